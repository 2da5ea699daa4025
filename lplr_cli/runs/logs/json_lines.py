"""JSON lines: one object a row, as W&B exports, structured loggers and many loops write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader, Rows, flatten

_LONGEST_LINE = 16 << 20


class JsonLines(Reader):
    """One JSON object a line; nested objects have columns like ``train.loss``, a torn last line is dropped."""

    kind = "JSON lines"

    def sniff(self, place: Place) -> bool:
        """The first line is an object of values that are no lists, or another one follows."""
        if place.text[:1] != b"{" or place.text[1:].lstrip()[:1] not in (b'"', b"}"):
            return False
        lines = place.text.split(b"\n", 1)
        if len(lines) == 2 and lines[1].lstrip()[:1] == b"{":
            return True
        try:
            row = json.loads(lines[0])
        except (ValueError, RecursionError):
            return False
        return isinstance(row, dict) and not _has_columns(row)

    def read(self, place: Place, choice: Choice) -> Table:
        """Plain numbers by a fast reader; NaN, mixed types and torn lines by a patient one."""
        quick = _by_arrow(place, choice)
        if quick is not None:
            return quick
        rows = Rows(choice)
        try:
            for row in _objects(place.open()):
                rows.add(row)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"cannot read {place.name} ({first_line(error)}, row {rows.count + 1})", "one JSON object a line"
            ) from error
        if rows.count == 0:
            raise InputError(f"{place.name} has no JSON object", "one JSON object a line")
        return rows.table()


def _has_columns(document: dict[str, Any]) -> bool:
    """Whether a list is in it, or a column by row number, as pandas writes them."""
    objects = [v for v in document.values() if isinstance(v, dict)]
    series = any(v and all(k.isdecimal() for k in v) for v in objects)
    return series or any(isinstance(v, list) for v in document.values()) or any(map(_has_columns, objects))


def _by_arrow(place: Place, choice: Choice) -> Table | None:
    """Arrow's reader, for plain numbers and well-formed lines; None where the patient one must read."""
    import pyarrow as pa
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(
            pa.PythonFile(place.open(), mode="r"), read_options=pyarrow.json.ReadOptions(block_size=8 << 20)
        )
        names = list(table.schema.names)
        chosen = choice.pick(names)
        kinds = [table.schema.field(c).type for c in chosen]
        plain = all(pa.types.is_integer(k) or pa.types.is_floating(k) or pa.types.is_null(k) for k in kinds)
        if plain and not any(pa.types.is_nested(field.type) for field in table.schema):
            frame: pd.DataFrame = table.select(chosen).to_pandas()
            return Table(frame, names)
    except Exception:  # NaN, a torn line, mixed types: all of them the patient reader's
        pass
    return None


def _objects(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    torn: Exception | None = None
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError("a line is too long")
        if line.isspace():
            continue
        if torn is not None:
            raise torn
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            # A crash may tear the last line; anywhere else it is a fault.
            torn = error
            continue
        if not isinstance(row, dict):
            raise ValueError("a line is no object")
        yield flatten(row) if line.count(b"{") > 1 else row
