"""The runs below a folder, with status and key figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lplr_cli.errors import InputError, LplrError
from lplr_cli.runs.directory import RunDirectory
from lplr_cli.runs.manifest import STATUSES

COLUMNS = ("run", "status", "steps", "parameters", "loss_name", "loss", "drift", "pl_ratio_min", "rate", "error")


def catalogue(
    root: Path,
    summarize: Callable[[RunDirectory], Mapping[str, Any]],
    *,
    status: str | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """A row of :data:`COLUMNS` for each run at any depth below ``root``, in the order of their paths.

    Args:
        root: the folder.
        summarize: makes the summary of an ended run that has none, as recorded and killed ones.
        status: only runs of this status.
        name: only runs whose path contains this.

    Raises:
        InputError: no such folder or status.
    """
    if not root.is_dir():
        raise InputError(f"no directory {root}", "name the folder of your runs")
    if status is not None and status not in STATUSES:
        raise InputError(f"--status {status!r} is unknown", f"choose from {', '.join(STATUSES)}")
    paths = sorted(p.parent for p in root.rglob("run.json"))
    rows = [_row(path, summarize) for path in paths if name is None or name in str(path)]
    return [row for row in rows if status is None or row["status"] == status]


def _row(path: Path, summarize: Callable[[RunDirectory], Mapping[str, Any]]) -> dict[str, Any]:
    """Key figures of a run; what cannot be read is said."""
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "run": str(path)}
    try:
        run = RunDirectory.open(path)
        manifest = run.manifest()
        row["status"], row["parameters"], row["loss_name"] = manifest.status, manifest.parameters, manifest.loss.name
        log = run.log()
        known = log["loss"].dropna()
        row["steps"] = int(log["step"].max()) if len(log) else None
        row["loss"] = float(known.iloc[-1]) if len(known) else None
        row["drift"] = float(log["drift"].max()) if log["drift"].notna().any() else None
        # A log without a loss has no summary, which is no fault of the run.
        ended = manifest.status != "running" and len(known) > 0
        summary = summarize(run) if ended and not run.is_summarized() else run.summary() or {}
        row["pl_ratio_min"] = (summary.get("pl_ratio") or {}).get("min")
        row["rate"] = (summary.get("rate") or {}).get("rate")
    except (LplrError, OSError, AttributeError, TypeError, ValueError, OverflowError) as error:
        row["error"] = str(error)
    return row
