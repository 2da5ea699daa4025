"""Numbers and tables as text, for terminals and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lplr_cli import escape


def number(value: Any, digits: int = 4) -> str:
    """A number for people: ``digits`` significant ones, an en dash for a missing value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def plain_text(text: str, style: str = "") -> Text:
    """Text for Rich as it stands: no markup, no emoji codes, no highlighting, nothing that a terminal obeys."""
    return Text(escape.line(text), style)


@dataclass(frozen=True)
class Grid:
    """A table free of any output format: its texts may come from anywhere, each rendering makes them harmless.

    Attributes:
        title: above the table.
        columns: headings.
        rows: cells as text.
        right: indices of columns set flush right.
        note: lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    right: tuple[int, ...] = ()
    note: tuple[str, ...] = ()

    def to_rich(self) -> Table:
        """For a terminal."""
        title = plain_text(self.title, "table.title")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(self.columns):
            # Numbers and names are never broken, headings only between words.
            whole = [escape.line(row[index]) for row in self.rows] if index in self.right or index == 0 else []
            widest = max((cell_len(text) for text in [*whole, *escape.line(column).split()]), default=0)
            justify: Literal["left", "right"] = "right" if index in self.right else "left"
            table.add_column(plain_text(column), justify=justify, overflow="fold", min_width=widest)
        for row in self.rows:
            table.add_row(*map(plain_text, row))
        return table

    def to_markdown(self) -> str:
        """As a GitHub-flavoured Markdown table."""
        marks = ["---:" if i in self.right else "---" for i in range(len(self.columns))]
        head, *body = ["| " + " | ".join(map(escape.markdown, row)) + " |" for row in [self.columns, *self.rows]]
        lines = [head, f"| {' | '.join(marks)} |", *body]
        notes = [f"\n{escape.markdown(line)}" for line in self.note]
        return "\n".join([escape.markdown(self.title, bold=True), "", *lines, *notes, ""])
