"""W&B's own file of a run, ``run-ID.wandb``, as offline runs leave it; no library is needed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader, Rows, flatten
from lplr_cli.runs.logs.wire import BYTES, FIXED64, VARINT, fields, signed

# The framing of LevelDB logs: blocks of records with checksum, length and kind, behind a header of seven bytes.
_MAGIC = b":W&B"
_BLOCK, _FRAME, _HEADER = 32 << 10, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_LONGEST_RECORD = 256 << 20
# Fields of wandb_internal.Record, .HistoryRecord, .HistoryStep and .HistoryItem.
_HISTORY = 2
_ITEM, _STEP = 1, 2
_KEY, _NESTED, _INTEGER, _NUMBER, _JSON_TEXT = 1, 2, 5, 6, 16


class WandbFile(Reader):
    """History rows, nested metrics with dotted names."""

    kind = "W&B run"

    def sniff(self, place: Place) -> bool:
        """By its magic."""
        return place.head.startswith(_MAGIC)

    def read(self, place: Place, choice: Choice) -> Table:
        """Record by record; one that a crash tore ends the file."""
        rows = Rows(choice)
        try:
            for record in _records(place.open()):
                for number, _, value in fields(record):
                    if number == _HISTORY and isinstance(value, bytes):
                        rows.add(_row(value))
        except (ValueError, struct.error, RecursionError) as error:
            raise InputError(f"cannot read {place.name} ({first_line(error)})", "the file of W&B is damaged") from error
        if rows.count == 0:
            raise InputError(f"{place.name} has no history", "give a run that logged metrics")
        return rows.table()


def _row(history: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number, kind, value in fields(history):
        if number == _ITEM and isinstance(value, bytes):
            name, content = _item(value)
            row |= flatten({name: content})
        elif number == _STEP and kind == BYTES and isinstance(value, bytes):
            row["_step"] = next((signed(v) for n, v in _integers(value) if n == 1), 0)
    return row


def _integers(message: bytes) -> list[tuple[int, int]]:
    return [(number, value) for number, kind, value in fields(message) if kind == VARINT and isinstance(value, int)]


def _item(message: bytes) -> tuple[str, Any]:
    """Name and value of a metric; None for what is neither a number nor JSON."""
    names: list[str] = []
    metric: Any = None
    for number, kind, value in fields(message):
        if number in (_KEY, _NESTED) and isinstance(value, bytes):
            names.append(value.decode("utf-8", "replace"))
        elif number == _JSON_TEXT and isinstance(value, bytes):
            metric = json.loads(value)
        elif number == _NUMBER and kind == FIXED64 and isinstance(value, bytes):
            metric = struct.unpack("<d", value)[0]
        elif number == _INTEGER and isinstance(value, int):
            metric = signed(value)
    return ".".join(names), metric


def _records(stream: IO[bytes]) -> Iterator[bytes]:
    stream.seek(_HEADER)
    offset, parts = _HEADER, bytearray()
    while True:
        left = _BLOCK - offset % _BLOCK
        if left < _FRAME:
            stream.seek(left, 1)
            offset += left
        header = stream.read(_FRAME)
        if len(header) < _FRAME:
            return
        checksum, length, kind = struct.unpack("<IHB", header)
        content = stream.read(length)
        if len(content) < length or (kind == length == checksum == 0):
            return
        if zlib.crc32(content, zlib.crc32(header[6:])) != checksum:
            raise ValueError("a record has a wrong checksum")
        offset += _FRAME + length
        parts = parts + content if kind in (_MIDDLE, _LAST) else bytearray(content)
        if len(parts) > _LONGEST_RECORD:
            raise ValueError("a record is too long")
        if kind in (_FULL, _LAST):
            yield bytes(parts)
