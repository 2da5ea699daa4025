"""The runs below a folder, with status and key figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lplr_cli.errors import InputError, LplrError
from lplr_cli.runs.directory import RunDirectory
from lplr_cli.runs.manifest import STATUSES


@dataclass
class RunRow:
    """Key figures of a run; None where they are not known.

    Attributes:
        run: its path.
        status: one of :data:`lplr_cli.runs.manifest.STATUSES`.
        steps: the last that was logged.
        parameters: trained ones.
        loss_name: of the loss that is minimised.
        loss: the last that was logged.
        drift: the largest ||θ_t − θ_0||.
        pl_ratio_min: over the window of the summary.
        rate: of the summary, a step.
        error: what could not be read; the rest is what was read before.
    """

    run: str
    status: str | None = None
    steps: int | None = None
    parameters: int | None = None
    loss_name: str | None = None
    loss: float | None = None
    drift: float | None = None
    pl_ratio_min: float | None = None
    rate: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON and tables."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(RunRow))


def catalogue(
    root: Path,
    summarize: Callable[[RunDirectory], Mapping[str, Any]],
    *,
    status: str | None = None,
    name: str | None = None,
) -> list[RunRow]:
    """A row for each run at any depth below ``root``, in the order of their paths.

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
    return [row for row in rows if status is None or row.status == status]


def _row(path: Path, summarize: Callable[[RunDirectory], Mapping[str, Any]]) -> RunRow:
    """Key figures of a run; what cannot be read is said."""
    row = RunRow(str(path))
    try:
        run = RunDirectory.open(path)
        manifest = run.manifest()
        row.status, row.parameters, row.loss_name = manifest.status, manifest.parameters, manifest.loss.name
        log = run.log()
        known = log["loss"].dropna()
        row.steps = int(log["step"].max()) if len(log) else None
        row.loss = float(known.iloc[-1]) if len(known) else None
        row.drift = float(log["drift"].max()) if log["drift"].notna().any() else None
        # A log without a loss has no summary, which is no fault of the run.
        ended = manifest.status != "running" and len(known) > 0
        summary = summarize(run) if ended and not run.is_summarized() else run.summary() or {}
        row.pl_ratio_min = (summary.get("pl_ratio") or {}).get("min")
        row.rate = (summary.get("rate") or {}).get("rate")
    except (LplrError, OSError, AttributeError, TypeError, ValueError, OverflowError) as error:
        row.error = str(error)
    return row
