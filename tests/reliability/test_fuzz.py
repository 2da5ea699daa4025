"""Fuzzed files of every kind under every command end in documented exit codes, with one line, in bounded time."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pytest

from tests.reliability import fuzz_commands


def fuzzed(folder: Path, count: int, seed: int) -> None:
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fuzz_commands.main(count, seed)
    assert found["faults"] == []
    assert sum(found["codes"].values()) == count
    # Damage is met by refusals, and much of it leaves a file that can be read: both must be there.
    kinds = {code.split()[1] for code in found["codes"]}
    assert {"0", "2"} <= kinds


def test_a_sample(tmp_path: Path) -> None:
    fuzzed(tmp_path, 80, 16)


@pytest.mark.slow
def test_ten_thousand(tmp_path: Path) -> None:
    fuzzed(tmp_path, 10_000, 0)
