"""Parquet tables."""

from __future__ import annotations

from lplr_cli.reading import read_parquet
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader


class Parquet(Reader):
    """A Parquet file, a row a step."""

    kind = "Parquet"

    def sniff(self, place: Place) -> bool:
        """By its magic."""
        return place.head.startswith(b"PAR1")

    def read(self, place: Place, choice: Choice) -> Table:
        """Only the columns that are wanted are decoded."""
        frame, present = read_parquet(place.open(), place.name, choice.pick)
        return Table(frame, present)
