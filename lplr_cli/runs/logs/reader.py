"""What every format of logs is to the rest: a reader that knows its own files and reads them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from lplr_cli.runs.logs.columns import Choice, Table, tells_runs
from lplr_cli.runs.logs.place import Place

# Names that are listed in messages; a log with more has them all the same.
_MOST_NAMES = 10_000


class Reader(ABC):
    """One format.

    ``sniff`` looks at the head of a file or the names in a folder and is cheap; ``read`` may find the content
    damaged. Nothing in a file is executed, and what is allocated is bounded by the size of the file.
    """

    kind: ClassVar[str]

    @abstractmethod
    def sniff(self, place: Place) -> bool:
        """Whether this is a log of this format."""

    @abstractmethod
    def read(self, place: Place, choice: Choice) -> Table:
        """The columns that the choice wants.

        Raises:
            InputError: damaged, or without rows; in one line.
        """


class Rows:
    """Rows that come one by one as mappings, gathered into columns of floats; what is no number is NaN.

    Columns that tell runs apart keep their text.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._values: dict[str, array[float]] = {}
        self._runs: dict[str, list[str | None]] = {}
        self._present: dict[str, bool] = {}
        self._seen: Any = ()
        self.count = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        if row.keys() != self._seen:
            self._seen = row.keys()
            for name in row:
                if name not in self._present:
                    self._learn(name)
        for name, column in self._values.items():
            value = row.get(name)
            column.append(value if type(value) is float else number(value))
        for name, texts in self._runs.items():
            value = row.get(name)
            texts.append(str(value) if isinstance(value, str | int) else None)
        self.count += 1

    def _learn(self, name: str) -> None:
        wanted = self._choice.wants(name)
        if wanted and tells_runs(name):
            self._runs[name] = [None] * self.count
        elif wanted:
            self._values[name] = array("d", [math.nan]) * self.count
        if wanted or len(self._present) < _MOST_NAMES:
            self._present[name] = wanted

    def table(self, notes: tuple[str, ...] = ()) -> Table:
        """The rows so far."""
        frame = pd.DataFrame({c: np.frombuffer(v, dtype=np.float64) for c, v in self._values.items()})
        frame = frame.assign(**{c: pd.Series(v, dtype=object) for c, v in self._runs.items()}) if self._runs else frame
        return Table(frame, list(self._present), notes)


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with dotted keys such as ``train.loss``."""
    flat: dict[str, Any] = {}
    stack: list[tuple[str, Mapping[str, Any]]] = [("", row)]
    while stack:
        prefix, level = stack.pop()
        for key, value in level.items():
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}.", value))
            else:
                flat[f"{prefix}{key}"] = value
    return flat


def number(value: Any) -> float:
    """A float, NaN for what is none."""
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
