"""What is freed stays with the process, where its C library can, and nobody has said otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from lplr_cli.cli import heap

# Forty blocks of a megabyte, freed and taken again: how many pages the second half of the rounds had to fetch.
_FETCHED = """
import resource, sys
from lplr_cli.cli.heap import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
for turn in range(8):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytes(1 << 20) + b"1" for _ in range(40)]
    del blocks
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fetched(how: str, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and the pages that were fetched."""
    settings = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"} | environment
    command = [sys.executable, "-c", _FETCHED, how]
    done = subprocess.run(command, env=settings, check=True, capture_output=True, text=True, timeout=120)
    kept, pages = done.stdout.split()
    return kept == "1", int(pages)


def test_what_is_freed_is_not_fetched_again() -> None:
    kept, pages = fetched("kept")
    _, without = fetched("as it is")
    if not kept or without < 5000:
        pytest.skip("a C library without mallopt, or one that returns nothing by itself")
    assert pages < without / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_user_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was asked"))
    monkeypatch.setenv(name, "")
    assert not heap.keep_freed_memory()


class _Library:
    """Accepts some parameters, and notes what it was given."""

    def __init__(self, *accepted: int) -> None:
        self.accepted, self.given = accepted, list[tuple[int, int]]()

    def mallopt(self, parameter: int, value: int) -> int:
        self.given.append((parameter, value))
        return int(parameter in self.accepted)


def test_no_limit_is_set_without_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for library, done, count in ((_Library(-3, -1), True, 2), (_Library(-1), False, 1), (_Library(-3), False, 2)):
        monkeypatch.setattr(ctypes, "CDLL", lambda _, library=library: library)
        assert heap.keep_freed_memory() is done
        assert library.given == [(-3, 32 << 20), (-1, 128 << 20)][:count]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not heap.keep_freed_memory()
