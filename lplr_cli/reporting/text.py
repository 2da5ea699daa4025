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
from lplr_cli.runs import plain

# A column of words is not set narrower than this, if its words go on that long; between columns Rich leaves this much.
_WORDS, _GAP = 14, 3
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """10⁻³ and the like."""
    return f"10{str(exponent).translate(_RAISED)}"


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


def known(value: Any, digits: int = 4) -> str:
    """A number of a result, as :func:`number` writes that of its record: missing where it is not finite."""
    return number(plain(value), digits)


def plain_text(text: str, style: str = "") -> Text:
    """Text for Rich as it stands: no markup, no emoji codes, no highlighting, nothing that a terminal obeys."""
    return Text(escape.line(text), style)


def _total(widths: Sequence[int]) -> int:
    """Of a line, with what Rich leaves between columns and at the edges."""
    return sum(widths) + _GAP * (len(widths) - 1) + 2


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

    def to_rich(self, width: int | None = None) -> Table:
        """For a terminal.

        Args:
            width: of the terminal; None where there is no edge.
        """
        title = plain_text(self.title, "table.title") if self.title else None
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, (column, chosen) in enumerate(zip(self.columns, self._chosen(width), strict=True)):
            justify: Literal["left", "right"] = "right" if index in self.right else "left"
            table.add_column(plain_text(column), justify=justify, overflow="fold", width=chosen)
        for row in self.rows:
            table.add_row(*map(plain_text, row))
        return table

    def _natural(self) -> list[int]:
        """The width of each column without a break."""
        lines = [self.columns, *self.rows]
        return [max(cell_len(escape.line(row[i])) for row in lines) for i in range(len(self.columns))]

    def _least(self, width: int | None = None) -> list[int]:
        """The least width of each column: numbers and names are never broken, headings only between words; but for
        names in the first column that would take more than half of the terminal.
        """
        least = []
        for index, column in enumerate(self.columns):
            widest = max((cell_len(escape.line(row[index])) for row in self.rows), default=0)
            words = max((cell_len(word) for word in escape.line(column).split()), default=1)
            most = width // 2 if index == 0 and width else widest if index in (0, *self.right) else _WORDS
            least.append(max(words, min(widest, most)))
        return least

    def _chosen(self, width: int | None) -> list[int]:
        """Widths of the columns within that of a terminal: what is left above the least goes first to those that lack
        little.
        """
        natural, least = self._natural(), self._least(width)
        if width is None:
            return natural
        left = max(0, width - _total(least))
        chosen = list(least)
        lacking = sorted(range(len(natural)), key=lambda i: natural[i] - least[i])
        for place, index in enumerate(lacking):
            more = min(natural[index] - least[index], left // (len(lacking) - place))
            chosen[index] += more
            left -= more
        return chosen

    @property
    def width(self) -> int:
        """From which on nothing but words is broken."""
        return _total(self._least())

    def fitting(self, width: int) -> list[Grid]:
        """The table as it is where it fits a terminal of that width, else cut between columns, each part with the first
        column. The title stands above the first part, the note below the last.
        """
        first, *others = self._least(width)
        if _total([first, *others]) <= width:
            return [self]
        parts: list[list[int]] = [[]]
        for index in range(1, len(others) + 1):
            if parts[-1] and _total([first, *(others[i - 1] for i in [*parts[-1], index])]) > width:
                parts.append([])
            parts[-1].append(index)
        return [self._part([0, *part], k == 0, k == len(parts) - 1) for k, part in enumerate(parts)]

    def _part(self, indices: list[int], begins: bool, ends: bool) -> Grid:
        return Grid(
            self.title if begins else "",
            tuple(self.columns[i] for i in indices),
            [[row[i] for i in indices] for row in self.rows],
            tuple(k for k, i in enumerate(indices) if i in self.right),
            self.note if ends else (),
        )

    def to_markdown(self) -> str:
        """As a GitHub-flavoured Markdown table; without rows its title and note."""
        marks = ["---:" if i in self.right else "---" for i in range(len(self.columns))]
        head, *body = ["| " + " | ".join(map(escape.markdown, row)) + " |" for row in [self.columns, *self.rows]]
        lines = [head, f"| {' | '.join(marks)} |", *body] if body else []
        notes = [f"\n{escape.markdown(line)}" for line in self.note]
        return "\n".join([escape.markdown(self.title, bold=True), "", *lines, *notes, ""])
