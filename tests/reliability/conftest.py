"""A command held to what every command promises, whatever it is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lplr_cli.cli.main import run

Lplr = Callable[..., int]


@pytest.fixture
def lplr(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lplr:
    """A command's exit code; one line where it fails, nothing else on stderr, and soon."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        began = time.process_time()
        code = run(list(arguments))
        err = capfd.readouterr().err
        assert code in (0, 1, 2, 3), err
        if code in (2, 3):
            assert [line[:13] for line in err.splitlines()].count("lplr: error: ") == 1, err
            assert all(line.startswith("lplr: ") for line in err.splitlines()), err
        assert time.process_time() - began < 30
        return code

    return call
