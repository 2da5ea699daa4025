"""One run of a sweep, wherever it is executed: train, resume or reuse, then its row of results.

``python -m lplr_cli.ablation.cell`` runs one in a process of its own; see :mod:`lplr_cli.ablation.executors`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lplr_cli.ablation.recover import departures
from lplr_cli.analysis import Summary, certified_columns, summarize
from lplr_cli.errors import LplrError
from lplr_cli.runs import RunDirectory, plain
from lplr_cli.runs.atomic import write_text
from lplr_cli.training import Progress, TrainConfig, resume, train

RESULT_COLUMNS = (
    "status",
    "regime",
    "parameters",
    "lr",
    "lambda_min_start",
    "lambda_min_end",
    "ntk_drift_percent",
    "drift",
    "loss_final",
    "pl_ratio_min",
    "pl_ratio_median",
    "pl_ratio_star_min",
    "rate",
    "law",
    "sharpness_start",
    "sharpness_max",
    "lr_over_stable",
    "mu_estimated",
    "mu_certified",
    "certified_radius",
    "departures",
    "error",
)


def run_cell(
    config: TrainConfig, path: Path, on_progress: Callable[[Progress], None] | None = None, follows: bool = False
) -> dict[str, Any]:
    """Train, resume or reuse one cell, and give its row of results; a failure is a row, too.

    Args:
        config: of this run.
        path: its directory.
        on_progress: passed to training.
        follows: whether it recovers another run, which names its regime.
    """
    row: dict[str, Any] = dict.fromkeys(RESULT_COLUMNS)
    try:
        if (path / "run.json").exists():
            run = RunDirectory.open(path)
            status, message = run.manifest().status, ""
            if status not in ("finished", "diverged"):
                outcome = resume(path, on_progress=on_progress)
                status, message = outcome.status, outcome.message
        else:
            outcome = train(config, path, on_progress=on_progress)
            run, status, message = outcome.run, outcome.status, outcome.message
        row |= {"status": status, "error": message or None}
        if status == "interrupted":
            return row
        summary = summarize(run, certified_columns(run))
        run.write_summary(summary.to_dict())
        row |= result_row(summary)
        left = departures(run.log(), run.probes(), summary.lr)
        if status == "diverged":
            left.append("diverged")
        row["regime"] = ("left again" if follows else "left") if left else ("recovered" if follows else "stayed")
        row["departures"] = "; ".join(left) or None
    except LplrError as error:
        row |= {"status": "failed", "error": str(error)}
    return row


def result_row(summary: Summary) -> dict[str, Any]:
    """The columns of the results table from a run's summary."""
    return {
        "parameters": summary.parameters,
        "lr": summary.lr,
        "lambda_min_start": summary.lambda_min.initial,
        "lambda_min_end": summary.lambda_min.final,
        "ntk_drift_percent": summary.ntk_drift_percent,
        "drift": summary.estimates.radius,
        "loss_final": summary.loss.final,
        "pl_ratio_min": summary.pl_ratio.min,
        "pl_ratio_median": summary.pl_ratio.median,
        "pl_ratio_star_min": summary.pl_ratio_star.min,
        "rate": None if summary.rate is None else summary.rate.rate,
        "law": None if summary.rate is None else summary.rate.verdict,
        "sharpness_start": summary.sharpness.initial,
        "sharpness_max": summary.sharpness.max,
        "lr_over_stable": summary.sharpness.lr_over_stable,
        "mu_estimated": summary.estimates.mu_kernel,
        "mu_certified": summary.certified.mu,
        "certified_radius": summary.certified.radius,
    }


def main(arguments: list[str]) -> None:
    """Run the cell that a JSON file describes (config, path, follows, threads) and write its row beside it."""
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(int(job["threads"]))
    row = run_cell(TrainConfig.from_dict(job["config"]), Path(job["path"]), follows=bool(job["follows"]))
    write_text(Path(arguments[1]), json.dumps(plain(row)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
