"""Reading of RUN, LOG or - for the commands that take one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from lplr_cli.runs import RunDirectory

Source = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, a .csv or .parquet log, or - for CSV on stdin.")
]


@dataclass(frozen=True)
class LogInput:
    """A log, and the run it belongs to where there is one."""

    name: str
    log: pd.DataFrame
    run: RunDirectory | None
    summary: dict[str, Any] | None


def read_log(source: str) -> LogInput:
    """Read the log that ``source`` names.

    Raises:
        InputError: it is neither a run directory nor a readable table.
    """
    import io
    import sys

    from lplr_cli.errors import InputError
    from lplr_cli.runs import RunDirectory
    from lplr_cli.runs.tables import read_csv, read_parquet

    if source == "-":
        import pandas as pd

        try:
            return LogInput("stdin", pd.read_csv(io.StringIO(sys.stdin.read())), None, None)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError("stdin is no CSV log", "pipe a table with a header line") from error
    path = Path(source)
    if path.is_dir():
        from lplr_cli.training import summarize

        run = RunDirectory.open(path)
        return LogInput(str(path), run.log(), run, summarize(run))
    if not path.exists():
        raise InputError(f"no run or log {source}", "give a run directory, a .csv or .parquet file, or -")
    frame = read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    return LogInput(str(path), frame, None, None)
