"""Reading of RUN, LOG or - for the commands that take one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from lplr_cli.diagnostics import LossSeries, RunFacts
    from lplr_cli.runs import RunDirectory

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN|LOG|-",
        help="A run directory; a CSV, Parquet, JSON-lines or TensorBoard log; or - for stdin. The format is sniffed.",
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|LOG|-...",
        help="Run directories; CSV, Parquet, JSON-lines or TensorBoard logs; or - for stdin. Formats are sniffed.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="A column of the log: loss=train/loss, step=…, grad_norm_sq=… or grad_norm=…, lr=…, drift=…. Repeatable.",
        rich_help_panel="Input",
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="A:B",
        help="First and last step of the window, instead of the rule.",
        rich_help_panel="Input",
    ),
]


@dataclass(frozen=True)
class LogInput:
    """A log, and the run it belongs to where there is one."""

    name: str
    log: pd.DataFrame
    run: RunDirectory | None
    summary: dict[str, Any] | None

    def series(self) -> LossSeries:
        """The usable rows; says which log when there is none."""
        from lplr_cli.diagnostics import clean_series

        try:
            return clean_series(self.log)
        except InputError as error:
            raise InputError(f"{self.name}: {error.what}", error.remedy) from error

    def facts(self) -> RunFacts:
        """What is known beside the log."""
        from lplr_cli.diagnostics import NO_FACTS

        if self.run is None:
            return NO_FACTS
        from lplr_cli.training import run_facts

        return run_facts(self.run, self.summary)


def read_log(source: str, columns: list[str] | None = None) -> LogInput:
    """Read the log that ``source`` names.

    Args:
        source: a path, or - for stdin.
        columns: ``--column`` options.

    Raises:
        InputError: it is neither a run directory nor a readable table, or lacks a column.
    """
    from lplr_cli.runs.foreign import parse_columns, read_foreign_log, read_stream

    chosen = parse_columns(columns or [])
    if source == "-":
        return LogInput("stdin", read_stream(sys.stdin.buffer, "stdin", chosen), None, None)
    path = Path(source)
    if path.is_dir() and (path / "run.json").exists():
        if chosen:
            raise InputError(f"{source} is a run of lplr, whose columns are known", "leave out --column")
        from lplr_cli.runs import RunDirectory
        from lplr_cli.training import summarize

        run = RunDirectory.open(path)
        return LogInput(str(path), run.log(), run, summarize(run))
    if not path.exists():
        raise InputError(f"no run or log {source}", "give a run directory, a log or -")
    return LogInput(str(path), read_foreign_log(path, chosen), None, None)
