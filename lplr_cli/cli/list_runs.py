"""``lplr list``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lplr_cli.cli import output as out_
from lplr_cli.errors import InputError, LplrError


def list_runs(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look, at any depth; $LPLR_RUNS (./runs) by default.")
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
    from lplr_cli.runs import SCHEMA_VERSION, STATUSES, frame_of, plain, runs_root

    root = folder or runs_root()
    if not root.is_dir():
        raise InputError(f"no directory {root}", "name the folder of your runs")
    if status is not None and status not in STATUSES:
        raise InputError(f"--status {status!r} is unknown", f"choose from {', '.join(STATUSES)}")
    rows = []
    for path in sorted(p.parent for p in root.rglob("run.json")):
        row = _row(path)
        if (status is None or row["status"] == status) and (name is None or name in str(path)):
            rows.append(row)
    record: dict[str, Any] = plain(
        {"command": "list", "schema_version": SCHEMA_VERSION, "folder": str(root), "count": len(rows), "runs": rows}
    )
    columns = ("run", "status", "steps", "parameters", "loss", "drift", "pl_ratio_min", "rate", "error")
    frame = frame_of(rows, columns)
    shown = columns if any(r["error"] for r in rows) else columns[:-1]
    cells = [[number(r[c], 7 if c == "rate" else 4) for c in shown] for r in rows]
    grid = Grid(f"{len(rows)} runs below {root}", shown, cells, (2, 3, 4, 5, 6, 7))
    sink.emit(out_.Result(record, frame, [grid]))


def _row(path: Path) -> dict[str, Any]:
    """Key figures of a run, from its summary where it has one; what cannot be read is said."""
    from lplr_cli.runs import RunDirectory

    row: dict[str, Any] = dict.fromkeys(
        ("run", "status", "steps", "parameters", "loss", "drift", "pl_ratio_min", "rate", "error")
    )
    row["run"] = str(path)
    try:
        run = RunDirectory.open(path)
        manifest = run.manifest()
        row["status"], row["parameters"] = manifest.status, manifest.parameters
        log = run.log()
        known = log["loss"].dropna()
        row["steps"] = int(log["step"].max()) if len(log) else None
        row["loss"] = float(known.iloc[-1]) if len(known) else None
        row["drift"] = float(log["drift"].max()) if log["drift"].notna().any() else None
        summary = run.summary()
        if summary is not None:
            row["pl_ratio_min"] = (summary.get("pl_ratio") or {}).get("min")
            row["rate"] = (summary.get("rate") or {}).get("rate")
    except (LplrError, AttributeError, TypeError, ValueError) as error:
        row["error"] = str(error)
    return row
