"""``lplr list``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import output as out_

if TYPE_CHECKING:
    from lplr_cli.runs import RunDirectory

_NUMBERS = ("steps", "parameters", "loss", "drift", "pl_ratio_min", "rate")


def list_runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Where to look, at any depth; $LPLR_RUNS (./runs) by default."),
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only running, finished, interrupted or diverged ones.")] = None,
    name: Annotated[str | None, typer.Option(help="Only runs whose path contains this.")] = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """List the runs below a folder with status and key figures.

    [bold]lplr list runs --status finished --format json[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    from lplr_cli.reporting import Grid, number
    from lplr_cli.runs import SCHEMA_VERSION, frame_of, plain, runs_root
    from lplr_cli.runs.catalogue import COLUMNS, catalogue

    root = folder or runs_root()
    rows = catalogue(root, _summarize, status=status, name=name)
    records = [row.to_dict() for row in rows]
    record: dict[str, Any] = plain(
        {"command": "list", "schema_version": SCHEMA_VERSION, "folder": str(root), "count": len(rows), "runs": records}
    )
    # Columns that would say nothing: errors where there are none, names where every loss is the squared one.
    told = {
        "error": any(row.error for row in rows),
        "loss_name": any(row.loss_name not in (None, "squared") for row in rows),
    }
    shown = tuple(c for c in COLUMNS if told.get(c, True))
    cells = [[number(r[c], 7 if c == "rate" else 4) for c in shown] for r in records]
    runs = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    grid = Grid(f"{runs} below {root}", shown, cells, tuple(shown.index(c) for c in _NUMBERS))
    sink.emit(out_.Result(record, frame_of(records, COLUMNS), [grid]))


def _summarize(run: RunDirectory) -> dict[str, Any]:
    # Only for a run without a summary: torch comes with it.
    from lplr_cli.analysis import summary_of

    return summary_of(run).to_dict()
