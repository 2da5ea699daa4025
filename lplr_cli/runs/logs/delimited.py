"""Tables of text: CSV, tabs, semicolons or spaces, with a header or without, decimal point or comma."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any

import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader
from lplr_cli.runs.tables import exact_floats

_SAMPLE = 50
_SPACES = r"\s+"
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eEdD][-+]?\d+)?|[-+]?(?:nan|inf|infinity)", re.IGNORECASE)
# Digits in groups of three; the second tells it from a decimal comma without looking at other cells.
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")
_SURELY_GROUPED = re.compile(r"[^,.]*,\d{3}(?:,.*|\..*)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_UNREADABLE = "give CSV, Parquet, JSON lines or events"


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Attributes:
        separator: a mark, or the pattern of white space.
        names: of the columns.
        skip: lines before the first row of numbers.
        decimal: point or comma.
        note: what was assumed for want of a header.
    """

    separator: str
    names: tuple[str, ...]
    skip: int
    decimal: str = "."
    note: str = ""


class Delimited(Reader):
    """A table of text whose columns are told by a header, or by their number where there is none."""

    kind = "CSV"

    def sniff(self, place: Place) -> bool:
        """Most lines have as many cells as the header, numbers among them."""
        return layout(place) is not None

    def read(self, place: Place, choice: Choice) -> Table:
        """Only the columns that are wanted are kept."""
        how = layout(place)
        if how is None:
            raise InputError(f"cannot read {place.name} (no table)", _UNREADABLE)
        present = _unique(how.names)
        wanted = choice.pick(present)
        options: dict[str, Any] = exact_floats() if how.decimal == "." else {}
        try:
            frame: pd.DataFrame = pd.read_csv(
                place.open(),
                sep=how.separator,
                encoding="utf-8-sig",
                encoding_errors="replace",
                header=None,
                names=present,
                usecols=wanted,
                index_col=False,
                skiprows=how.skip,
                decimal=how.decimal,
                skip_blank_lines=True,
                low_memory=True,
                **options,
            )
        except (ValueError, OverflowError, pd.errors.ParserError, MemoryError) as error:
            raise InputError(f"cannot read {place.name} ({first_line(error)})", _UNREADABLE) from error
        notes = [how.note] if how.note else []
        return Table(_without_groups(frame, notes), present, tuple(notes))


def _without_groups(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Columns of numbers such as 12,345.6 as numbers, where no cell says that the comma is a decimal one; noted."""
    for name in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[name]):
            continue
        cells = frame[name].dropna().astype(str).str.strip()
        commas = cells[cells.str.contains(",", regex=False)]
        if not len(commas) or not commas.str.fullmatch(_GROUPED).all():
            continue
        plain = cells[~cells.index.isin(commas.index)]
        # A number below a thousand beside them has no decimal comma.
        if commas.str.fullmatch(_SURELY_GROUPED).any() or plain.map(_is_number).any():
            frame[name] = frame[name].astype(str).str.replace(",", "", regex=False).str.strip()
            notes.append(f"commas in {name!r} are taken as those between thousands")
    return frame


def layout(place: Place) -> Layout | None:
    """How the table is written; None for what is no table."""
    if place.binary:
        return None
    lines = _LINE_END.split(place.head.decode("utf-8-sig", "replace"))
    if not place.complete:
        lines = lines[:-1]
    comments = list(takewhile(lambda line: line.startswith("#") or not line.strip(), lines))
    start = len(comments)
    rows = [line for line in lines[start : start + _SAMPLE] if line.strip()]
    if not rows:
        return None
    title = next((line.lstrip("# ") for line in reversed(comments) if line.strip()), None)
    for separator in (",", "\t", ";", "|", _SPACES):
        found = _try(separator, rows, title)
        if found is not None:
            return replace(found, skip=start + found.skip)
    return None


def _try(separator: str, lines: list[str], title: str | None) -> Layout | None:
    """The layout under one separator; its ``skip`` counts from the first line."""
    cells = [_split(separator, line) for line in lines]
    first, width = cells[0], len(cells[0])
    headless = all(map(_is_number, first))
    data = cells if headless else cells[1:]
    if not data and width > 1 and separator != _SPACES:
        return Layout(separator, tuple(first), 1)
    if not headless and not _may_be_header(first, separator):
        return None
    fitting = [row for row in data if _fits(row, width)]
    if 2 * len(fitting) <= len(data) or not any(_is_number(c) for row in fitting for c in row[:width]):
        return None
    if not headless:
        return Layout(separator, tuple(first), 1, _decimal(separator, fitting))
    return _without_header(separator, fitting, width, title)


def _without_header(separator: str, rows: list[list[str]], width: int, title: str | None) -> Layout:
    """A comment above the table names its columns where it has as many words, else they have the usual names."""
    names = () if title is None else tuple(_split(separator, title))
    decimal = _decimal(separator, rows)
    return Layout(separator, names, 0, decimal) if len(names) == width else _headless(separator, rows, width, decimal)


def _fits(row: list[str], width: int) -> bool:
    """As many cells as the header has, but for an empty one behind a last separator."""
    return len(row) == width or (len(row) == width + 1 and not row[-1])


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _may_be_header(cells: list[str], separator: str) -> bool:
    """Names, some of which may be numbers where the separator is a mark."""
    return any(cells) and not (separator == _SPACES and any(map(_is_number, cells)))


def _decimal(separator: str, rows: list[list[str]]) -> str:
    """A comma where numbers have some and none has a point."""
    numbers = [c for row in rows for c in row if _is_number(c)]
    commas = separator != "," and any("," in c for c in numbers) and not any("." in c for c in numbers)
    return "," if commas else "."


def _headless(separator: str, rows: list[list[str]], width: int, decimal: str) -> Layout:
    """Names for columns without a header: one is the loss, a second one before it that counts up is the step."""
    if width == 1:
        return Layout(separator, ("loss",), 0, decimal, "no header: the one column is taken as the loss")
    counts = [row[0] for row in rows]
    counting = all(c.isdecimal() for c in counts) and all(float(a) < float(b) for a, b in pairwise(counts))
    if width == 2 and counting:
        return Layout(separator, ("step", "loss"), 0, decimal, "no header: the columns are taken as step, loss")
    names = tuple(str(i) for i in range(1, width + 1))
    return Layout(separator, names, 0, decimal, "no header: columns are called 1, 2, …")


def _split(separator: str, line: str) -> list[str]:
    if separator == _SPACES:
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    except (csv.Error, StopIteration):
        return [line]


def _unique(names: tuple[str, ...]) -> list[str]:
    """Names as pandas tells equal ones apart, and names those that are empty."""
    seen: dict[str, int] = {}
    unique = []
    for name in (given or f"Unnamed: {i}" for i, given in enumerate(names)):
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}.{count}" if count else name)
    return unique
