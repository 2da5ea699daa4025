"""What every command shares: formats on stdout, files, requirements."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli import escape
from lplr_cli.audit.requirements import Failure, Requirement, check_requirements, parse_requirement
from lplr_cli.cli.streams import say, unicode_stdout
from lplr_cli.errors import InputError
from lplr_cli.shown import flatten

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from lplr_cli.reporting import Grid

FORMATS = ("table", "json", "csv", "markdown")
SUFFIXES = (".csv", ".parquet", ".json", ".md")
# Of tables in files and pipes.
PIPE_WIDTH = 140
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")

Format = Annotated[
    str, typer.Option("--format", help="On stdout: table, json, csv or markdown.", rich_help_panel="Output")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", help="Also write a file: .csv, .parquet, .json or .md.", rich_help_panel="Output"),
]
Force = Annotated[bool, typer.Option("--force", help="Let --output overwrite.", rich_help_panel="Output")]
Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        help="Fail (exit 1) unless it holds, e.g. 'pl_ratio.min >= 0.05' or 'verdict == \"linear\"'. Repeatable; keys "
        "are those of --format json.",
        rich_help_panel="Output",
    ),
]

Plot = Annotated[
    bool, typer.Option("--plot", help="Draw charts below the table (needs the extra 'plot').", rich_help_panel="Output")
]
FigureFile = Annotated[
    Path | None,
    typer.Option("--figure", help="Write a figure: .png, .svg or .pdf.", rich_help_panel="Output"),
]


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        record: the JSON object.
        frame: the same, or its series, as a table for CSV and Parquet.
        grids: tables for people.
        charts: drawings for terminals, shown below the tables.
    """

    record: dict[str, Any]
    frame: pd.DataFrame
    grids: list[Grid] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)


class Sink:
    """Where a result goes; made, and so checked, before any work begins.

    Raises:
        InputError: unknown format or suffix, an output file that exists, a requirement that is not understood.
    """

    def __init__(
        self, format: str, output: Path | None, force: bool, require: list[str] | None, figure: Path | None = None
    ) -> None:
        if format not in FORMATS:
            raise InputError(f"--format {format!r} is unknown", f"choose from {', '.join(FORMATS)}")
        _check_target("--output", output, SUFFIXES, force)
        _check_target("--figure", figure, FIGURE_SUFFIXES, force)
        self.format, self.output = format, output
        self.requirements: list[Requirement] = [parse_requirement(text) for text in require or []]

    def check(self, record: dict[str, Any]) -> list[Failure]:
        """The requirements that fail.

        Raises:
            InputError: an unknown key, which is a usage error, found before anything is printed.
        """
        return check_requirements(self.requirements, record)

    def emit(self, result: Result, extra_failures: Sequence[str] = ()) -> None:
        """Print the result, write the file, check the requirements.

        Args:
            result: what to show.
            extra_failures: further lines that make the command fail.

        Raises:
            typer.Exit: with code 1 when a requirement fails.
        """
        failures = [*map(str, self.check(result.record)), *extra_failures]
        if self.format == "table":
            _show(result)
            sys.stdout.flush()
        else:
            sys.stdout.write(_render(self.format, result, ascii=not unicode_stdout()))
            sys.stdout.flush()
        if self.output is not None:
            self._write(self.output, result)
        for failure in failures:
            say(f"failed: {failure}")
        if failures:
            raise typer.Exit(1)

    @staticmethod
    def _write(path: Path, result: Result) -> None:
        from lplr_cli.runs.atomic import write_text
        from lplr_cli.runs.tables import write_parquet

        if path.suffix == ".parquet":
            write_parquet(path, result.frame)
        else:
            write_text(path, _render({".csv": "csv", ".json": "json", ".md": "markdown"}[path.suffix], result))


def _show(result: Result) -> None:
    """The tables, each whole: where a terminal is too narrow, its columns stand in parts below each other."""
    from lplr_cli.reporting.text import plain_text

    console = stdout_console()
    for above, grid in zip([None, *result.grids], result.grids, strict=False):
        if above is not None and above.note:
            console.print()
        if not sys.stdout.isatty():
            # A file or a pipe has no edge.
            console.width = max(PIPE_WIDTH, grid.width)
        # Without rows there is nothing for the columns to head.
        if not grid.rows:
            console.print(plain_text(grid.title))
            console.print()
        for part in grid.fitting(console.width) if grid.rows else ():
            console.print(part.to_rich(console.width))
        for line in grid.note:
            console.print(plain_text(line))
    for chart in result.charts:
        sys.stdout.write("\n" + chart)


def _check_target(option: str, path: Path | None, suffixes: tuple[str, ...], force: bool) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"{option} {path} has no known suffix", f"end it in {', '.join(suffixes)}")
    if path.exists() and not force:
        raise InputError(f"{path} exists", "choose another name or pass --force")
    if not path.parent.is_dir():
        raise InputError(f"no directory {path.parent}", "create it first")


def _render(format: str, result: Result, ascii: bool = False) -> str:
    if format == "json":
        return escape.json(result.record, ascii)
    if format == "csv":
        return escape.csv(result.frame)
    return "\n".join(grid.to_markdown() for grid in result.grids)


def _plain_terminal() -> bool:
    return not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))


def stdout_console() -> Console:
    """A console for results; no ANSI codes unless stdout is a terminal and NO_COLOR is unset."""
    from rich.console import Console

    if _plain_terminal():
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        return Console(color_system=None, force_terminal=False, width=width)
    return Console()


def key_value_frame(record: dict[str, Any]) -> pd.DataFrame:
    """The flattened record as a table of keys and values, as text with full precision."""
    from lplr_cli.runs import frame_of

    pairs = [(k, "" if v is None else repr(v) if isinstance(v, float) else str(v)) for k, v in flatten(record)]
    return frame_of([{"key": k, "value": v} for k, v in pairs], ("key", "value"))


def note(text: str) -> None:
    """A line for people, on stderr."""
    say(text)
