"""JSON documents: trainer states, histories, curves; columns by name or rows in a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader, Rows, flatten, number

# A document is parsed whole, at up to twenty times its size.
MOST_BYTES = 128 << 20
# How a list of JSON begins, and a line such as "[2024-01-01] step 1" does not.
_LIST = re.compile(rb'\[\s*(?:\{\s*["}]|\[|(?:-?\d[\d.eE+-]*|NaN|null|-?Infinity)\s*(?:,|\]\s*$)|\]\s*$)')
_PAIRS = {2: ("step", "loss"), 3: ("wall_time", "step", "value")}


class JsonDocument(Reader):
    """One JSON document.

    Understood are rows in a list (``log_history`` of ``trainer_state.json``, or any other), columns as lists
    (``history.json``, ``{"loss": […]}``) or by row number (as pandas writes), a list of numbers, and a list of pairs
    (step, loss) or triples (time, step, value).
    """

    kind = "JSON"

    def sniff(self, place: Place) -> bool:
        """It begins as an object or a list does."""
        return (place.text[:1] == b"{" and place.text[1:].lstrip()[:1] in (b'"', b"}", b"", b"{")) or bool(
            _LIST.match(place.text)
        )

    def read(self, place: Place, choice: Choice) -> Table:
        """Parsed whole."""
        try:
            document = json.loads(place.whole(MOST_BYTES).decode("utf-8-sig"))
            table = _from_list(document, choice) if isinstance(document, list) else _from_object(document, choice)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"cannot read {place.name} ({first_line(error)})", "give JSON with rows, or with a list for each column"
            ) from error
        if table is None or not len(table.present):
            raise InputError(f"{place.name} has no rows", "give JSON with rows, or with a list for each column")
        return table


def _from_object(document: Mapping[str, Any], choice: Choice) -> Table | None:
    if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
        return _from_rows([dict(zip(document["columns"], row, strict=False)) for row in document["data"]], choice)
    lists = [document.get("log_history"), *document.values()]
    rows = next((v for v in lists if isinstance(v, list) and v and isinstance(v[0], dict)), None)
    return _from_series(dict(_series(document)), choice) if rows is None else _from_rows(rows, choice)


def _from_list(document: list[Any], choice: Choice) -> Table | None:
    if document and isinstance(document[0], list):
        names = _PAIRS.get(len(document[0]))
        if names is None:
            raise ValueError("lists of other lengths than 2 (step, loss) or 3 (time, step, value)")
        if any(not isinstance(row, list) or len(row) != len(names) for row in document):
            raise ValueError("lists of different lengths")
        table = _from_series(dict(zip(names, zip(*document, strict=True), strict=True)), choice)
        return Table(table.frame, table.present, (f"lists of {len(names)} numbers are read as {', '.join(names)}",))
    if any(isinstance(row, dict) for row in document):
        return _from_rows(document, choice)
    return _from_series({"values": document}, choice) if document else None


def _from_rows(records: list[Any], choice: Choice) -> Table:
    rows = Rows(choice)
    for record in records:
        if not isinstance(record, dict):
            raise ValueError("an element is no object")
        rows.add(flatten({str(k): v for k, v in record.items()}))
    return rows.table()


def _series(document: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Lists, and objects with row numbers for keys, by dotted names."""
    stack: list[tuple[str, Mapping[str, Any]]] = [("", document)]
    while stack:
        prefix, level = stack.pop()
        for key, value in level.items():
            if isinstance(value, list):
                yield prefix + key, value
            elif isinstance(value, dict) and value and all(k.isdecimal() for k in value):
                yield prefix + key, [value[k] for k in sorted(value, key=int)]
            elif isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))


def _from_series(series: Mapping[str, Any], choice: Choice) -> Table:
    """Columns of one length; shorter ones end in NaN."""
    present = list(series)
    columns = {name: np.array([number(v) for v in series[name]]) for name in choice.pick(present)}
    length = max((len(v) for v in columns.values()), default=0)
    frame = pd.DataFrame({c: np.pad(v, (0, length - len(v)), constant_values=np.nan) for c, v in columns.items()})
    return Table(frame, present)
