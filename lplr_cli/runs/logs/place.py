"""Where a log lies: a regular file, a folder, or a stream; unpacked, seekable, its first bytes known."""

from __future__ import annotations

import bz2
import codecs
import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lplr_cli.errors import InputError, first_line
from lplr_cli.reading import LOG, UNPACKED, open_regular

# Kept in memory while it is unpacked or piped; what is longer goes to a temporary file.
_IN_MEMORY = 64 << 20
_HEAD = 64 << 10
# Of text whose first lines are longer: as far as the end of the second, up to this.
_LONGEST_HEAD, _LINES = 16 << 20, 2
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """What a reader is given.

    Attributes:
        name: for messages.
        path: of the file or folder; None for a pipe and for what was unpacked.
        stream: of the file, at its beginning, seekable; None for a folder.
        head: its first 64 KiB, more where the first lines of a text are longer.
        complete: whether the head is all there is.
    """

    name: str
    path: Path | None
    stream: IO[bytes] | None
    head: bytes
    complete: bool = True

    @property
    def folder(self) -> Path | None:
        """The folder, when it is one."""
        return self.path if self.stream is None else None

    @property
    def text(self) -> bytes:
        """The head without a byte order mark and leading white space."""
        return self.head.removeprefix(_BOM).lstrip()

    @property
    def binary(self) -> bool:
        """Whether it cannot be text; zeros at the end, which a crash of the machine leaves, do not tell."""
        return b"\0" in self.head.rstrip(b"\0")

    @property
    def endless(self) -> bool:
        """Whether the first line is longer than any that is read."""
        return not self.complete and not self.binary and b"\n" not in self.head

    def open(self) -> IO[bytes]:
        """The stream at its beginning; of a file only."""
        assert self.stream is not None
        self.stream.seek(0)
        return self.stream

    def whole(self, most: int) -> bytes:
        """All of a file.

        Raises:
            InputError: it has more than ``most`` bytes.
        """
        content = self.open().read(most + 1)
        if len(content) > most:
            raise InputError(f"{self.name} has more than {most:,} bytes in one document", "write a row a line")
        return content


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """The file or folder at ``path``; compressed files are unpacked.

    Raises:
        InputError: neither a regular file nor a folder, unreadable, too long, or damaged.
    """
    if path.is_dir():
        yield Place(str(path), path, None, b"")
        return
    try:
        with open_regular(path, LOG, "give a run directory, a log or -") as raw, _placed(raw, str(path), path) as place:
            yield place
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or first_line(error)})", "give a readable log"
        ) from error


@contextmanager
def piped(stream: IO[bytes], name: str) -> Iterator[Place]:
    """What comes through a pipe, kept while it is read.

    Raises:
        InputError: it is too long or damaged.
    """
    if stream.seekable():
        with _placed(stream, name, None) as place:
            yield place
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as kept:
        _copy(stream, kept, LOG, name)
        with _placed(kept, name, None) as place:
            yield place


@contextmanager
def _placed(raw: IO[bytes], name: str, path: Path | None) -> Iterator[Place]:
    head, complete = _head(raw)
    raw.seek(0)
    unpacker = next((u for magic, u in _PACKED.items() if head.startswith(magic)), None)
    if unpacker is None:
        yield Place(name, path, raw, head, complete)
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as plain:
        try:
            with unpacker(raw) as unpacked:
                _copy(unpacked, plain, UNPACKED, name)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise InputError(f"cannot unpack {name} ({first_line(error)})", "the compressed file is damaged") from error
        head, complete = _head(plain)
        yield Place(name, None, plain, head, complete)


def _head(stream: IO[bytes]) -> tuple[bytes, bool]:
    """What is read to tell the format, and whether that is all."""
    head = stream.read(_HEAD)
    complete = len(head) < _HEAD
    while not complete and len(head) < _LONGEST_HEAD and b"\0" not in head and head.count(b"\n") < _LINES:
        more = stream.read(_CHUNK)
        complete = len(more) < _CHUNK
        head += more
    return head, complete


def _copy(source: IO[bytes], target: IO[bytes], most: int, name: str) -> None:
    copied = 0
    while chunk := source.read(_CHUNK):
        copied += len(chunk)
        if copied > most:
            raise InputError(f"{name} holds more than {most:,} bytes", "write fewer rows")
        target.write(chunk)
    target.seek(0)


def _zstandard(raw: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")


def _utf16(raw: IO[bytes]) -> Any:
    """As UTF-8: what PowerShell writes with ``>``."""
    return nullcontext(codecs.EncodedFile(raw, "utf-8", "utf-16", errors="replace"))


_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\x28\xb5\x2f\xfd": _zstandard,
    codecs.BOM_UTF16_LE: _utf16,
    codecs.BOM_UTF16_BE: _utf16,
}
