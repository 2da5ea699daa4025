"""RUN, LOG or - as arguments of the commands that take one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lplr_cli.analysis import LogInput

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


def open_log(source: str, columns: list[str] | None = None) -> LogInput:
    """The log that ``source`` names, with ``--column`` options."""
    from lplr_cli.analysis import read_log
    from lplr_cli.runs.logs import parse_columns

    return read_log(source, parse_columns(columns or []))
