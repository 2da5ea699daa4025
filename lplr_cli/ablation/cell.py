"""One run of a sweep, wherever it is executed: train, resume or reuse, then its row of results.

:func:`main` runs one in a process of its own; see :mod:`lplr_cli.ablation.executors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lplr_cli.ablation.recover import departures
from lplr_cli.analysis import PathFigures, Source, Summary, conclude
from lplr_cli.errors import InputError, LplrError
from lplr_cli.factories import Word
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
    "mu_path",
    "mu_path_star",
    "path_share_certified",
    "path_rate",
    "path_rate_from_step",
    "path_breaks",
    "departures",
    "error",
)


def failed(message: str) -> dict[str, Any]:
    """The row of a cell that gave nothing."""
    return {**dict.fromkeys(RESULT_COLUMNS), "status": "failed", "error": message}


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
            _refuse_other_run(run, config)
            status, message = run.manifest().status, ""
            if status not in ("finished", "diverged"):
                outcome = resume(path, word=config.word, on_progress=on_progress)
                status, message = outcome.status, outcome.message
        else:
            outcome = train(config, path, on_progress=on_progress)
            run, status, message = outcome.run, outcome.status, outcome.message
        row |= {"status": status, "error": message or None}
        if status == "interrupted":
            return row
        summary = conclude(run, Source.from_word(config.word), patience=None)
        row |= result_row(summary)
        left = departures(run.log(), run.probes(), summary.lr)
        if status == "diverged":
            left.append("diverged")
        row["regime"] = ("left again" if follows else "left") if left else ("recovered" if follows else "stayed")
        row["departures"] = "; ".join(left) or None
    except LplrError as error:
        row |= {"status": "failed", "error": str(error)}
    return row


def _refuse_other_run(run: RunDirectory, config: TrainConfig) -> None:
    """A cell is gone on with only where its directory holds the run that was asked for."""
    kept = TrainConfig.from_dict(run.manifest().config, str(run.path / "run.json"))
    # What the line leaves open is settled when a run starts: the step size, details of the data and their path.
    other = kept.data.vouched(Word(data=config.data.source)).differing(config.data)
    settled = replace(config, lr=kept.lr if config.lr is None else config.lr, data=kept.data)
    if other is not None or kept != settled:
        raise InputError(f"{run.path} holds a run with other options", "choose another --out")


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
        **path_columns(summary.path),
    }


_PATH = ("mu_path", "mu_path_star", "path_share_certified", "path_rate", "path_rate_from_step", "path_breaks")


def path_columns(path: PathFigures | None) -> dict[str, Any]:
    """The columns of the region along the path."""
    if path is None:
        return dict.fromkeys(_PATH)
    values = (path.mu_path, path.mu_path_star, path.certified_share, path.rate_proved, path.rate_from_step)
    return dict(zip(_PATH, (*values, _breaks(path)), strict=True))


def _breaks(path: PathFigures) -> str | None:
    """The first steps without proof, and how many there are after them."""
    stretches = path.without_proof
    if not stretches:
        return None
    more = len(path.not_certified) - (stretches[0].last - stretches[0].first + 1)
    after = f", and {more} more up to step {stretches[-1].last}" if more else ""
    return f"{stretches[0].sentence}{after}"


def main(arguments: list[str]) -> None:
    """Run the cell that a JSON file describes (config, path, follows, threads) and write its row beside it.

    Args:
        arguments: the file, that of the row, and the user's word for code, as JSON: it comes with the task, not from
            a file.
    """
    request, answer, word = arguments
    job = json.loads(Path(request).read_text(encoding="utf-8"))
    row = run_task(job["config"], job["path"], bool(job["follows"]), int(job["threads"]), Word(**json.loads(word)))
    write_text(Path(answer), json.dumps(plain(row)) + "\n")


def run_task(config: dict[str, Any], path: str, follows: bool, threads: int, word: Word) -> dict[str, Any]:
    """One cell in a process of its own, from plain values: its row of results."""
    import torch

    torch.set_num_threads(threads)
    try:
        settled = TrainConfig.from_dict(config, "the task").vouched(word)
    except LplrError as error:
        return failed(str(error))
    return run_cell(settled, Path(path), follows=follows)
