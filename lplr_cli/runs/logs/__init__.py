"""Logs that other programs wrote: CSV, Parquet, JSON lines, TensorBoard events; sniffed, renamed, nothing assumed.

Every reader answers with a table of the columns that diagnostics know (:data:`KNOWN`), whatever they are called in
the file.
"""

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.tables import exact_floats

# What diagnostics read, with names that common loggers give it.
KNOWN: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "_step"),
    "loss": ("loss",),
    "grad_norm_sq": ("grad_norm_sq",),
    "grad_norm": ("grad_norm",),
    "lr": ("lr", "learning_rate"),
    "drift": ("drift",),
}
REQUIRED = ("step", "loss")
# A log longer than this is not read into memory.
MAX_BYTES = 4 << 30
_SHOWN = 40
_BOM = b"\xef\xbb\xbf"


def parse_columns(options: Iterable[str]) -> dict[str, str]:
    """``--column`` options ``name=column`` as a mapping.

    Raises:
        InputError: not of that form, an unknown name, a name given twice, or both grad_norm and grad_norm_sq.
    """
    columns: dict[str, str] = {}
    for option in options:
        name, equals, column = option.partition("=")
        if not equals or not column or name not in KNOWN:
            raise InputError(f"--column {option!r} is not understood", f"write NAME=COLUMN with {', '.join(KNOWN)}")
        if name in columns:
            raise InputError(f"--column {name} is given twice", "give it once")
        columns[name] = column
    if "grad_norm" in columns and "grad_norm_sq" in columns:
        raise InputError("--column has both grad_norm and grad_norm_sq", "give one of them")
    return columns


def read_foreign_log(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The log in a file, or in a folder of TensorBoard events.

    Args:
        path: the format is sniffed from the content, not the name.
        columns: by known name, the column of the file.

    Raises:
        InputError: it cannot be read, or lacks a column; the message lists those present.
    """
    columns = dict(columns or {})
    if path.is_dir() or "tfevents" in path.name:
        return _select(_read_tensorboard(path, columns), columns, str(path))
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file", "give a run directory, a log or -")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size:,} bytes", f"logs up to {MAX_BYTES:,} are read; write fewer rows")
        with path.open("rb") as stream:
            return read_stream(stream, str(path), columns)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})", "give a readable log") from error


def read_stream(stream: IO[bytes], name: str, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The log in a binary stream; see :func:`read_foreign_log`."""
    columns = dict(columns or {})
    head = stream.read(64 << 10)
    if not head.removeprefix(_BOM).strip():
        raise InputError(f"{name} is empty", "give a log with a header and rows")
    if head[:4] == b"PAR1":
        frame = _read_parquet(_rewound(stream, head), name, columns)
    elif head[:2] in (b"\x1f\x8b", b"PK") or head[:4] == b"\x80\x04\x95\x00":
        raise InputError(f"{name} is compressed or an archive", "unpack it first")
    elif head.removeprefix(_BOM).lstrip()[:1] in (b"{", b"["):
        frame = _read_json_lines(_rewound(stream, head), name, columns)
    else:
        frame = _read_csv(_rewound(stream, head), head, name, columns)
    return _select(frame, columns, name)


def _wanted(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """By known name, the columns to look for: the one the user names, else the usual ones."""
    if "grad_norm" in columns or "grad_norm_sq" in columns:
        known = {k: v for k, v in KNOWN.items() if not k.startswith("grad_norm")}
    else:
        known = dict(KNOWN)
    return {**known, **{k: (v,) for k, v in columns.items()}}


def _select(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    """The known columns under their known names."""
    present = [str(c) for c in frame.attrs.get("present", frame.columns)]
    shown = ", ".join(present[:_SHOWN]) + (f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else "")
    renamed: dict[str, Any] = {}
    for known, candidates in _wanted(columns).items():
        found = next((c for c in candidates if c in frame.columns), None)
        if found is not None:
            renamed[known] = frame[found]
        elif known in columns:
            raise InputError(f"{name} has no column {columns[known]!r}", f"it has {shown or 'none'}")
        elif known in REQUIRED:
            raise InputError(
                f"{name} has no column {known!r}", f"name it with --column {known}=NAME; it has {shown or 'none'}"
            )
    return pd.DataFrame(renamed)


def _rewound(stream: IO[bytes], head: bytes) -> IO[bytes]:
    """A stream that begins with ``head`` again, read already from one that may be a pipe."""
    if stream.seekable():
        stream.seek(0)
        return stream
    return io.BytesIO(head + stream.read(MAX_BYTES))


def _read_csv(stream: IO[bytes], head: bytes, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    wanted = {c for candidates in _wanted(columns).values() for c in candidates}
    first = head.removeprefix(_BOM).lstrip().splitlines()[0]
    separator = max((",", "\t", ";"), key=lambda mark: first.count(mark.encode()))
    try:
        names = pd.read_csv(io.BytesIO(first), sep=separator, nrows=0, encoding="utf-8").columns
        frame: pd.DataFrame = pd.read_csv(
            stream,
            sep=separator,
            encoding="utf-8-sig",
            usecols=lambda column: column in wanted,
            index_col=False,
            skip_blank_lines=True,
            low_memory=True,
            **exact_floats(),
        )
    except (ValueError, UnicodeDecodeError, OverflowError, pd.errors.ParserError, MemoryError) as error:
        raise InputError(
            f"cannot read {name} ({first_line(error)})", "give CSV, Parquet, JSON lines or events"
        ) from error
    frame.attrs["present"] = [str(c) for c in names]
    return frame


def _read_parquet(stream: IO[bytes], name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    import pyarrow.parquet as pq

    wanted = {c for candidates in _wanted(columns).values() for c in candidates}
    try:
        table = pq.ParquetFile(stream)
        present = list(table.schema_arrow.names)
        if table.metadata.num_rows > MAX_BYTES // 64:
            raise InputError(f"{name} has {table.metadata.num_rows:,} rows", "write fewer rows")
        frame: pd.DataFrame = table.read(columns=[c for c in present if c in wanted]).to_pandas()
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds for damaged files
        raise InputError(f"cannot read {name} ({first_line(error)})", "the file is no Parquet table") from error
    frame.attrs["present"] = present
    return frame


def _read_json_lines(stream: IO[bytes], name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """JSON lines, or one array of objects; nested objects have columns like ``train.loss``."""
    wanted = {c for candidates in _wanted(columns).values() for c in candidates}
    quick = _arrow_json(stream, wanted)
    if quick is not None:
        return quick
    values: dict[str, array[float]] = {}
    present: dict[str, None] = {}
    seen: Any = ()
    rows = 0
    try:
        for row in _json_rows(stream):
            if row.keys() != seen:
                seen = row.keys()
                if len(present) < 10_000:
                    present.update(dict.fromkeys(seen))
                for c in wanted & seen - values.keys():
                    values[c] = array("d", [math.nan]) * rows
            for c, column in values.items():
                value = row.get(c)
                column.append(value if type(value) is float else _number(value))
            rows += 1
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {name} ({first_line(error)}, row {rows + 1})", "one JSON object a line"
        ) from error
    if rows == 0:
        raise InputError(f"{name} has no JSON object", "one JSON object a line")
    frame = pd.DataFrame({c: np.frombuffer(v, dtype=np.float64) for c, v in values.items()})
    frame.attrs["present"] = list(present)
    return frame


def _arrow_json(stream: IO[bytes], wanted: set[str]) -> pd.DataFrame | None:
    """Arrow's fast reader, for plain numbers and well-formed lines; None where the patient one must read."""
    import pyarrow as pa
    import pyarrow.json

    start = stream.tell()
    try:
        table = pyarrow.json.read_json(stream, read_options=pyarrow.json.ReadOptions(block_size=8 << 20))
        kinds = [table.schema.field(c).type for c in table.schema.names if c in wanted]
        plain = all(pa.types.is_integer(k) or pa.types.is_floating(k) or pa.types.is_null(k) for k in kinds)
        if plain and not any(pa.types.is_nested(field.type) for field in table.schema):
            frame: pd.DataFrame = table.select([c for c in table.schema.names if c in wanted]).to_pandas()
            frame.attrs["present"] = list(table.schema.names)
            return frame
    except Exception:  # NaN, a torn line, mixed types, an array: all of them the patient reader's
        pass
    if stream.closed:
        raise ValueError("the stream was closed")
    stream.seek(start)
    return None


def _json_rows(stream: IO[bytes]) -> Iterable[dict[str, Any]]:
    """Objects with scalar values, one a row."""
    first = stream.read(1)
    while first in (b"\xef", b"\xbb", b"\xbf") or first.isspace():
        first = stream.read(1)
    stream.seek(-len(first), io.SEEK_CUR)
    if first == b"[":
        for row in json.loads(stream.read().decode("utf-8")):
            if not isinstance(row, dict):
                raise ValueError("an element is no object")
            yield _flatten(row)
        return
    torn: Exception | None = None
    for line in stream:
        if line.isspace():
            continue
        if torn is not None:
            raise torn
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            # A crash may tear the last line; anywhere else it is a fault.
            torn = error
            continue
        if not isinstance(row, dict):
            raise ValueError("a line is no object")
        yield _flatten(row) if line.count(b"{") > 1 else row


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    stack = [("", row)]
    while stack:
        prefix, level = stack.pop()
        for key, value in level.items():
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))
            else:
                flat[f"{prefix}{key}"] = value
    return flat


def _number(value: Any) -> float:
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _read_tensorboard(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Scalars of an event file or folder, joined on their steps."""
    files = [path] if path.is_file() else sorted(path.rglob("*tfevents*"))
    if not files:
        raise InputError(f"{path} holds neither a run of lplr nor TensorBoard events", "give a run directory or a log")
    folders = sorted({str(f.parent) for f in files})
    if len(folders) > 1:
        raise InputError(f"{path} holds the events of {len(folders)} runs", f"give one: {', '.join(folders[:10])}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise InputError("reading TensorBoard events needs an extra", "pip install 'lplr[tensorboard]'") from error
    import logging

    wanted = {c for candidates in _wanted(columns).values() for c in candidates}
    quiet = logging.getLogger("tensorboard")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        events = EventAccumulator(
            str(path if path.is_file() else folders[0]), size_guidance={"scalars": 0, "tensors": 0}
        )
        events.Reload()
        tags = events.Tags()
        series: dict[str, dict[int, float]] = {}
        for tag in tags["scalars"]:
            if tag in wanted:
                series[tag] = {e.step: float(e.value) for e in events.Scalars(tag)}
        for tag in tags["tensors"]:
            if tag in wanted:
                found = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
                series[tag] = {step: float(v) for step, v in found if v.size == 1}
        present = ["step", *tags["scalars"], *tags["tensors"]]
    except Exception as error:  # damaged protocol buffers raise many kinds
        raise InputError(f"cannot read {path} ({first_line(error)})", "the events are damaged") from error
    finally:
        quiet.setLevel(level)
    steps = sorted({s for values in series.values() for s in values})
    frame = pd.DataFrame({"step": np.array(steps, dtype=np.float64)})
    for tag, values in series.items():
        frame[tag] = [values.get(s, math.nan) for s in steps]
    frame.attrs["present"] = present
    return frame
