"""Errors that the command line turns into one line on stderr and an exit code.

Every message reads ``what was wrong; what to do``.
"""

from __future__ import annotations


class LplrError(Exception):
    """Base of all errors that lplr raises on purpose.

    Args:
        what: what was wrong, naming the offending value.
        remedy: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class InputError(LplrError):
    """Bad usage, or input that cannot be read (exit code 2)."""


class NumericalError(LplrError):
    """A numerical failure or an output that could not be kept (exit code 3)."""

    exit_code = 3


class OutputError(NumericalError):
    """A result that could not be written: full disk, read-only or vanished directory (exit code 3)."""


def first_line(error: BaseException | str) -> str:
    """What another library's error or warning says, as one line of bounded length."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
