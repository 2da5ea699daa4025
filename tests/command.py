"""Command lines and programs in this process: what a shell would see, without the start of an interpreter."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen, TimeoutExpired
from types import ModuleType
from unittest import mock

from lplr_cli.cli.main import run


def command(*arguments: str, cwd: Path, **env: str) -> CompletedProcess[str]:
    """``lplr ARGUMENTS`` in a folder whose modules are in reach, with stdout and stderr as text."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        mock.patch.dict("os.environ", env),
        mock.patch.object(sys, "path", [str(cwd), *sys.path]),
    ):
        code = run(list(arguments))
    return CompletedProcess(["lplr", *arguments], code, out.getvalue(), err.getvalue())


# Seconds after which what has not happened is taken to have failed: far more than a busy machine needs.
DEADLINE = 400.0


@contextlib.contextmanager
def started(arguments: Sequence[str], cwd: Path) -> Iterator[Popen[bytes]]:
    """A process with pipes that does not outlive the block, nor do those that it has started, whatever fails."""
    with Popen(arguments, cwd=cwd, stdout=PIPE, stderr=PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=30)
                except TimeoutExpired:
                    process.kill()


def wait_for(happened: Callable[[], bool], process: Popen[bytes] | None = None, seconds: float = DEADLINE) -> None:
    """Return when something has happened; fail when a process ends before that, or the time is up."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None or happened(), f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.002)


def grown(path: Path, size: int) -> bool:
    """Whether a file is there and has at least ``size`` bytes."""
    return path.exists() and path.stat().st_size >= size


def program(path: Path) -> ModuleType:
    """A script as a module, its main part not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
