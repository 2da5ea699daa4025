"""TensorBoard events: scalars of a file or of a folder of files, joined on their steps; no library is needed."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table, pick_run
from lplr_cli.runs.logs.folder import walk
from lplr_cli.runs.logs.place import Place, opened
from lplr_cli.runs.logs.reader import Reader
from lplr_cli.runs.logs.wire import BYTES, FIXED32, FIXED64, VARINT, fields, signed

# Fields of tensorflow.Event, .Summary, .Summary.Value, .TensorProto and .SessionLog.
_STEP, _SUMMARY, _SESSION = 2, 5, 7
_VALUE = 1
_TAG, _SIMPLE, _TENSOR = 1, 2, 8
_DTYPE, _CONTENT, _FLOATS, _DOUBLES = 1, 4, 5, 6
_STATUS, _START = 1, 1
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}
_LONGEST_RECORD = 256 << 20
_MOST_TAGS = 10_000
# Scalars have short records; pictures and graphs, which are passed over, are not checked.
_CHECKED = 1024


class TensorBoard(Reader):
    """Records of ``tensorflow.Event``; a tag is a column."""

    kind = "TensorBoard"

    def sniff(self, place: Place) -> bool:
        """A first record whose length has the right checksum, or a folder with such files."""
        if place.folder is not None:
            return bool(_event_files(place.folder))
        return len(place.head) >= 12 and _checked_length(place.head[:12]) is not None

    def read(self, place: Place, choice: Choice) -> Table:
        """Of a folder with several runs the chosen one; a record that a crash tore ends its file."""
        scalars = _Scalars(choice)
        if place.folder is None:
            _gather(place, scalars)
        else:
            for path in _files_of_run(place.folder, choice):
                with opened(path) as file:
                    _gather(file, scalars)
        return scalars.table()


def _event_files(folder: Path) -> dict[str, list[Path]]:
    """Event files by the folder, relative, that holds them."""
    by_folder: dict[str, list[Path]] = {}
    for path in walk(folder):
        if "tfevents" in path.name:
            by_folder.setdefault(str(path.parent.relative_to(folder)), []).append(path)
    return by_folder


def _files_of_run(folder: Path, choice: Choice) -> list[Path]:
    runs = _event_files(folder)
    return runs[pick_run({name: name for name in runs}, choice, str(folder))]


@dataclass
class _Scalars:
    """Values by tag and step; what a restart computes again replaces what was there.

    Each value is kept with the number of restarts before it, so that one look at the end tells which are forgotten: a
    file of nothing but restarts takes no longer than another.
    """

    choice: Choice
    values: dict[str, dict[int, tuple[int, float]]] = field(default_factory=dict)
    present: dict[str, bool] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)

    def add(self, step: int, tag: str, value: bytes | float) -> None:
        """A scalar, or the tensor that holds one."""
        if tag not in self.present:
            wanted = self.choice.wants(tag)
            if not wanted and len(self.present) >= _MOST_TAGS:
                return
            self.present[tag] = wanted
        if self.present[tag]:
            number = _scalar(value) if isinstance(value, bytes) else value
            if number is not None:
                self.values.setdefault(tag, {})[step] = len(self.restarts), number

    def restart(self, step: int) -> None:
        """Forget what a run that went back to this step had written behind it."""
        self.restarts.append(step)

    def table(self) -> Table:
        """A row a step."""
        # The lowest step that the run went back to after so many restarts.
        lowest = [*reversed(list(accumulate(reversed([*self.restarts, math.inf]), min)))]
        kept = {
            tag: {step: value for step, (before, value) in series.items() if step < lowest[before]}
            for tag, series in self.values.items()
        }
        steps = sorted({s for series in kept.values() for s in series})
        columns = {tag: [series.get(s, np.nan) for s in steps] for tag, series in kept.items()}
        frame = pd.DataFrame({"step": np.array(steps, dtype=np.float64), **columns})
        return Table(frame, ["step", *self.present])


def _gather(place: Place, scalars: _Scalars) -> None:
    try:
        for record in _records(place.open()):
            _take(record, scalars)
    except (ValueError, struct.error, OverflowError) as error:
        raise InputError(f"cannot read {place.name} ({first_line(error)})", "the events are damaged") from error


def _records(stream: IO[bytes]) -> Iterator[bytes]:
    """Payloads of TFRecord: length, its checksum, payload, its checksum."""
    first = True
    while len(header := stream.read(12)) == 12:
        length = _checked_length(header)
        if length is None or length > _LONGEST_RECORD:
            raise ValueError("no events" if first else "a record has a wrong checksum")
        payload, checksum = stream.read(length), stream.read(4)
        if len(payload) < length or len(checksum) < 4:
            return
        if length <= _CHECKED and masked(payload) != int.from_bytes(checksum, "little"):
            raise ValueError("a record has a wrong checksum")
        yield payload
        first = False
    if first:
        raise ValueError("no events")


def _take(record: bytes, scalars: _Scalars) -> None:
    step, summaries, restarted = 0, [], False
    for number, kind, value in fields(record):
        if number == _STEP and kind == VARINT and isinstance(value, int):
            step = signed(value)
        elif number == _SUMMARY and kind == BYTES and isinstance(value, bytes):
            summaries.append(value)
        elif number == _SESSION and isinstance(value, bytes):
            restarted = (_STATUS, VARINT, _START) in list(fields(value))
    if restarted and step > 0:
        scalars.restart(step)
    for summary in summaries:
        _take_summary(step, summary, scalars)


def _take_summary(step: int, summary: bytes, scalars: _Scalars) -> None:
    for number, kind, value in fields(summary):
        if number == _VALUE and kind == BYTES and isinstance(value, bytes):
            _take_value(step, value, scalars)


def _take_value(step: int, message: bytes, scalars: _Scalars) -> None:
    tag, scalar = "", None
    for number, kind, value in fields(message):
        if not isinstance(value, bytes):
            continue
        if number == _TAG and kind == BYTES:
            tag = value.decode("utf-8", "replace")
        elif number == _SIMPLE and kind == FIXED32:
            scalar = struct.unpack("<f", value)[0]
        elif number == _TENSOR and kind == BYTES:
            scalar = value
    if tag and scalar is not None:
        scalars.add(step, tag, scalar)


def _scalar(tensor: bytes) -> float | None:
    """The one number of a tensor; None for several, and for text."""
    dtype, content = 0, b""
    for number, kind, value in fields(tensor):
        if number == _DTYPE and isinstance(value, int):
            dtype = value
        elif isinstance(value, bytes) and (
            number == _CONTENT or kind in (FIXED32, FIXED64) or number in (_FLOATS, _DOUBLES)
        ):
            content += value
    if dtype not in _DTYPES or len(content) != np.dtype(_DTYPES[dtype]).itemsize:
        return None
    return float(np.frombuffer(content, _DTYPES[dtype])[0])


def _checked_length(header: bytes) -> int | None:
    length, checksum = struct.unpack("<QI", header)
    return length if masked(header[:8]) == checksum else None


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def masked(data: bytes) -> int:
    """The Castagnoli checksum, rotated and shifted as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
