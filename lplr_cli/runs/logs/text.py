"""Free text: what loops print, such as ``iter 100: loss 3.21, time 20ms`` or ``step=100 loss=3.21``."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import lru_cache

from lplr_cli.errors import InputError
from lplr_cli.runs.logs.columns import Choice, Table, normal
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader, Rows

# A key of up to three words, a mark or white space, a number; what stands around a number ends it.
_PAIR = re.compile(
    r"(?<![\w./-])(?P<key>[A-Za-z_][\w./-]{0,60}(?: [A-Za-z_][\w./-]{0,40}){0,2})['\"]?"
    r"[ \t]{0,8}[:=]?[ \t]{0,8}[\[('\"]?"
    r"(?P<value>[-+]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][-+]?\d{1,4})?|[-+]?(?:nan|inf)\b)(?![\w.]*[A-Za-z]{3})",
    re.IGNORECASE,
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST_LINE = 4096
_SEEN_BY_SNIFF = 400


class Text(Reader):
    """Lines that name what they tell; those without a loss or gradient norm are passed over."""

    kind = "text"

    def sniff(self, place: Place) -> bool:
        """Some line near the beginning names a loss."""
        if place.binary:
            return False
        is_loss = lru_cache(1024)(Choice().is_loss)
        lines = place.head.decode("utf-8", "replace").splitlines()[:_SEEN_BY_SNIFF]
        return any(any(map(is_loss, pairs(line))) for line in lines)

    def read(self, place: Place, choice: Choice) -> Table:
        """Line by line."""
        rows = Rows(choice)
        is_loss = lru_cache(1024)(choice.is_loss)
        passed = 0
        for line in _lines(place):
            row = pairs(line)
            if any(map(is_loss, row)):
                rows.add(row)
            else:
                passed += bool(line.strip())
        if rows.count == 0:
            raise InputError(f"no line of {place.name} tells a loss", "write lines such as: step 100 loss 3.21")
        table = rows.table()
        keys = ", ".join(name for name in table.present[:8])
        note = f"read as text: {rows.count:,} lines with {keys}; {passed:,} other lines passed over"
        return Table(table.frame, table.present, (note,))


def pairs(line: str) -> dict[str, str]:
    """Keys and numbers of a line; of a key that is there twice the first."""
    found: dict[str, str] = {}
    for match in _PAIR.finditer(_ESCAPES.sub("", line[:_LONGEST_LINE])):
        found.setdefault(_key(match["key"]), match["value"])
    return found


@lru_cache(1024)
def _key(words: str) -> str:
    """The longest end of some words that is a known name, else their last."""
    parts = words.split()
    for start in range(len(parts)):
        name = " ".join(parts[start:])
        if Choice().wants(name) or _names_other_set(name):
            return name
    return parts[-1]


def _names_other_set(name: str) -> bool:
    """Whether it is the loss of held-out data, which is not the loss that was minimised."""
    return normal(name).split("_")[0] in ("val", "valid", "validation", "eval", "test", "dev")


def _lines(place: Place) -> Iterator[str]:
    """Lines, also where a progress bar returned the carriage."""
    text = io.TextIOWrapper(place.open(), encoding="utf-8", errors="replace", newline=None)
    try:
        while line := text.readline(1 << 20):
            yield line
    finally:
        text.detach()
