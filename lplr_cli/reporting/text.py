"""Numbers and tables as text, for terminals and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table


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


@dataclass(frozen=True)
class Grid:
    """A table free of any output format.

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
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(self.columns):
            # Numbers and names are never broken, headings only between words.
            whole = [row[index] for row in self.rows] if index in self.right or index == 0 else []
            widest = max((cell_len(text) for text in [*whole, *column.split()]), default=0)
            table.add_column(
                column, justify="right" if index in self.right else "left", overflow="fold", min_width=widest
            )
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """As a GitHub-flavoured Markdown table."""
        marks = ["---:" if i in self.right else "---" for i in range(len(self.columns))]
        body = [self.columns, marks, *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
        return "\n".join([f"**{self.title}**", "", *lines, *[f"\n{line}" for line in self.note], ""])
