"""Grids of training runs in one sweep directory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lplr_cli.errors import InputError, LplrError
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain
from lplr_cli.runs.atomic import output_errors, write_text
from lplr_cli.runs.tables import write_parquet
from lplr_cli.training import Progress, TrainConfig, certified_columns, resume, summarize, train

RESULT_COLUMNS = (
    "status",
    "parameters",
    "lr",
    "lambda_min_start",
    "lambda_min_end",
    "ntk_drift_percent",
    "drift",
    "loss_final",
    "pl_ratio_min",
    "pl_ratio_star_min",
    "rate",
    "lr_over_stable",
    "mu_estimated",
    "error",
)


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its directory name and what is special about it."""

    name: str
    values: dict[str, Any]


def grid_cells(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """The product of all axes, the last one varying fastest; names like ``width128-lr0.0005-seed0``."""
    names = list(axes)
    cells = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(names, combination, strict=True))
        label = "-".join(f"{k}{'auto' if v is None else v}" for k, v in values.items())
        cells.append(Cell(label.replace("/", "_").replace(":", "_"), values))
    if len({c.name for c in cells}) < len(cells):
        raise InputError("the grid names a value twice", "list each value once")
    return cells


def run_sweep(
    base: TrainConfig,
    axes: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    continue_: bool = False,
    on_cell: Callable[[int, int, Cell], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[pd.DataFrame, str]:
    """Run every cell of the grid that is not finished yet, one after another.

    Args:
        base: configuration of all cells.
        axes: fields of the configuration and their values.
        out: sweep directory, with a run directory a cell, sweep.json and results.csv / .parquet.
        continue_: go on with an existing sweep of the same grid.
        on_cell: called before each cell with its number, their count and the cell.
        on_progress: passed to training.

    Returns:
        The table of results, a row a cell, and ``finished`` or ``interrupted``. A cell that fails is a row with its
        status and error, and the others go on.

    Raises:
        InputError: the directory holds something else, or another grid.
    """
    cells = grid_cells(axes)
    definition = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "base": base.to_dict(),
            "axes": {k: list(v) for k, v in axes.items()},
        }
    )
    path = out / "sweep.json"
    if path.exists():
        if not continue_:
            raise InputError(f"{out} holds a sweep already", "pass --resume to go on with it, or choose another --out")
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}", "the sweep directory is damaged") from error
        if former != definition:
            raise InputError(f"{out} holds a sweep with other options", "repeat its options, or choose another --out")
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and holds no sweep", "choose another --out")
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(definition, indent=2) + "\n")
    rows: list[dict[str, Any]] = []
    status = "finished"
    for index, cell in enumerate(cells):
        if on_cell is not None:
            on_cell(index, len(cells), cell)
        row = _run_cell(base.with_(**cell.values), out / cell.name, on_progress)
        rows.append({"run": cell.name, **cell.values, **row})
        frame = pd.DataFrame(rows)
        write_text(out / "results.csv", frame.to_csv(index=False))
        if row["status"] == "interrupted":
            status = "interrupted"
            break
    write_parquet(out / "results.parquet", frame.astype({"error": "string"}))
    return frame, status


def _run_cell(config: TrainConfig, path: Path, on_progress: Callable[[Progress], None] | None) -> dict[str, Any]:
    """Train, resume or reuse one cell, and give its row of results."""
    row: dict[str, Any] = dict.fromkeys(RESULT_COLUMNS)
    try:
        if (path / "run.json").exists():
            run = RunDirectory.open(path)
            status, message = run.config().get("status"), ""
            if status not in ("finished", "diverged"):
                outcome = resume(path, on_progress=on_progress)
                status, message = outcome.status, outcome.message
        else:
            outcome = train(config, path, on_progress=on_progress)
            run, status, message = outcome.run, outcome.status, outcome.message
        row["status"] = status
        row["error"] = message or None
        if status == "interrupted":
            return row
        summary = summarize(run, certified_columns(run))
        run.write_summary(summary)
        row |= result_row(summary)
    except LplrError as error:
        row |= {"status": "failed", "error": str(error)}
    return row


def result_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the results table from a run's summary."""
    return {
        "parameters": summary["model"]["parameters"],
        "lr": summary["optimizer"]["lr"],
        "lambda_min_start": summary["lambda_min"]["initial"],
        "lambda_min_end": summary["lambda_min"]["final"],
        "ntk_drift_percent": summary["ntk_drift_percent"],
        "drift": summary["drift"]["max"],
        "loss_final": summary["loss"]["final"],
        "pl_ratio_min": summary["pl_ratio"]["min"],
        "pl_ratio_star_min": summary["pl_ratio_star"]["min"],
        "rate": None if summary["rate"] is None else summary["rate"]["rate"],
        "lr_over_stable": summary["sharpness"]["lr_over_stable"],
        "mu_estimated": summary["mu_estimated"],
        "mu_certified": summary["mu_certified"],
        "certified_radius": summary["certified_radius"],
    }


def failures(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(run, what happened) of the cells that did not finish."""
    for record in frame.to_dict("records"):
        if record["status"] != "finished":
            yield str(record["run"]), str(record["error"] or record["status"])
