"""RUN, LOG or - as arguments of the commands that take one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lplr_cli.cli import output as out_

if TYPE_CHECKING:
    from lplr_cli.analysis import LogInput

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN|LOG|-",
        help="A run directory; a log, folder or store of another program; or - for stdin. The format is sniffed.",
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|LOG|-...",
        help="Run directories; logs, folders or stores of other programs; or - for stdin. Formats are sniffed.",
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
RunName = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="Which run, of a store that holds several.", rich_help_panel="Input"),
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


def open_log(source: str, columns: list[str] | None = None, run: str | None = None) -> LogInput:
    """The log that ``source`` names, with the options ``--column`` and ``--run``; what was assumed goes to stderr."""
    from lplr_cli.analysis import read_log
    from lplr_cli.runs.logs import parse_columns

    log = read_log(source, parse_columns(columns or []), run)
    for note in log.notes:
        out_.note(f"{log.name}: {note}")
    return log
