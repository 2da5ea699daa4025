"""Parquet tables."""

from __future__ import annotations

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import MAX_BYTES, Place
from lplr_cli.runs.logs.reader import Reader


class Parquet(Reader):
    """A Parquet file, a row a step."""

    kind = "Parquet"

    def sniff(self, place: Place) -> bool:
        """By its magic."""
        return place.head.startswith(b"PAR1")

    def read(self, place: Place, choice: Choice) -> Table:
        """Only the columns that are wanted are decoded."""
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(place.open())
            present = list(file.schema_arrow.names)
            if file.metadata.num_rows > MAX_BYTES // 64:
                raise InputError(f"{place.name} has {file.metadata.num_rows:,} rows", "write fewer rows")
            return Table(file.read(columns=choice.pick(present)).to_pandas(), present)
        except InputError:
            raise
        except Exception as error:  # pyarrow raises many kinds for damaged files
            raise InputError(f"cannot read {place.name} ({first_line(error)})", "it is no Parquet table") from error
