"""Progress is drawn on a terminal's stderr, and nowhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import pytest

from lplr_cli.cli import progress
from lplr_cli.training import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TABLE = pd.DataFrame(
    {
        "run": ["width3", "width5"],
        "status": ["finished", "failed"],
        "regime": ["stayed", None],
        "loss_final": [0.125, None],
        "drift": [0.5, None],
        "lr_over_stable": [0.25, None],
    }
)
CASES: dict[str, tuple[Callable[[], AbstractContextManager[Any]], list[tuple[Any, ...]], list[str]]] = {
    "training": (
        progress.training_progress,
        [(Progress(1, 7, 0.5, 0.1, None),), (Progress(2, 7, None, 0.25, 0.0625),)],
        # Between exact losses the last one stands.
        ["2/7", "loss 0.5", "drift 0.25", "λ_min 0.0625"],
    ),
    "counting": (lambda: progress.counting_progress("runs"), [(1, 4), (2, 4)], ["runs", "50%"]),
    "sweep": (progress.sweep_progress, [(TABLE,)], ["width3", "stayed", "0.125", "failed", "–"]),
    "stages": (
        progress.stages_progress,
        [("kernel", 1, 2), ("bounds", 3, 4)],
        ["kernel", "50%", "bounds", "75%"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_terminal_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, (bar, calls, expected) = Terminal(), CASES[name]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    with bar() as update:
        for call in calls:
            update(*call)
    assert all(text in shown.getvalue() for text in expected), shown.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_no_terminal_shows_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    with CASES[name][0]() as update:
        assert update is None
    assert silent.getvalue() == ""
