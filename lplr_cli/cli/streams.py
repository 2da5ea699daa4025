"""stdout and stderr as they may be: gone, closed, full, or without Unicode.

For the time of a command both are replaced by :class:`_Stream`, through which Rich, Typer and ``print`` write. An error
of writing then has one meaning whoever wrote: Rich and Click would turn a closed pipe into exit code 1.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from lplr_cli import escape
from lplr_cli.errors import OutputError, first_line


class ReaderGone(Exception):
    """Nobody reads stdout any more, as in ``lplr … | head``; no :class:`OSError`, which others would catch."""


class _Stream:
    """A text stream that spells what its encoding lacks.

    Args:
        inner: the stream, None where the process was started without.
        name: in errors; None swallows them, as there is nowhere to tell.
    """

    def __init__(self, inner: TextIO | None, name: str | None) -> None:
        self.inner, self.name = inner, name

    def write(self, text: str) -> int:
        """Write all of ``text``.

        Raises:
            ReaderGone: the pipe is closed.
            OutputError: the stream is closed or full.
        """
        with self._errors():
            if self.inner is None:
                raise OSError("it is closed")
            try:
                self.inner.write(text)
            except UnicodeEncodeError:
                code = self.inner.encoding or "ascii"
                self.inner.write(text.encode(code, "backslashreplace").decode(code))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        """Hand on what waits; errors as in :meth:`write`."""
        if self.inner is not None:
            with self._errors():
                self.inner.flush()

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return self.inner is not None and not self.inner.closed and self.inner.isatty()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            if self.name is not None:
                raise ReaderGone from error
        except (OSError, ValueError) as error:  # ValueError: closed from within
            if self.name is not None:
                reason = getattr(error, "strerror", None) or str(error)
                raise OutputError(f"cannot write {self.name} ({reason})", "check where it goes") from error

    def __getattr__(self, name: str) -> Any:
        if self.inner is None and name == "encoding":
            return "utf-8"
        return getattr(self.inner, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Replace stdout and stderr by guarded ones; afterwards nothing is left in them that could fail at shutdown.

    Warnings of libraries, which may have many lines, are one line each.
    """
    out, err, show = sys.stdout, sys.stderr, warnings.showwarning
    sys.stdout, sys.stderr = _Stream(out, "stdout"), _Stream(err, None)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        sys.stdout, sys.stderr, warnings.showwarning = out, err, show
        for stream in (out, err):
            _settle(stream)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {first_line(message)}")


def _settle(stream: TextIO | None) -> None:
    """Flush, or let what cannot be written go: the interpreter would complain of it and exit with 120."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())
            os.close(sink)


def reserve_descriptors() -> None:
    """Fill closed 0, 1 and 2, so that no file that is opened later gets what others write to standard streams."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)


def say(text: str) -> None:
    """A line for people on stderr, after ``lplr:``; a stderr that is closed or full is no failure."""
    sys.stderr.write(f"lplr: {escape.line(text)}\n")


def unicode_stdout() -> bool:
    """Whether stdout can hold every character."""
    return str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
