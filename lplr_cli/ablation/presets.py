"""The paper's experiments (P: arXiv 2507.21429, sections 6.2 and 6.3) as sweeps with a table and a checklist.

The text that we have gives widths, depth, activation, initialisation, optimiser and what was observed, not the step
sizes, sample counts and numbers of steps. docs/reproduction.md says how those were chosen. A statement is judged by the
rule written beside it, fixed before the runs, and a statement that does not hold is reported so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.ablation.grid import Cell
from lplr_cli.ablation.recover import NTK_DRIFT
from lplr_cli.analysis import certify_checkpoint
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError, LplrError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig

Row = dict[str, Any]


@dataclass(frozen=True)
class Statement:
    """One observation of the paper, judged on our runs.

    Attributes:
        key: W1 to W5, R1 to R4, or S1 to S4.
        text: the observation, with the rule it is judged by.
        holds: None when the runs do not tell.
        figures: what it was judged on.
    """

    key: str
    text: str
    holds: bool | None
    figures: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"key": self.key, "text": self.text, "holds": self.holds, "figures": self.figures}


@dataclass(frozen=True)
class Preset:
    """An experiment: its runs and how they are judged.

    Attributes:
        name: as on the command line.
        base: configuration that all runs share.
        cells: the runs.
        recover: whether runs that left are followed by one with a smaller step.
        judge: statements from the table of results and the sweep directory.
        extras: columns beyond the paper, a mapping of run to values, computed after the runs.
    """

    name: str
    base: TrainConfig
    cells: tuple[Cell, ...]
    recover: bool
    judge: Callable[[pd.DataFrame, Path], list[Statement]]
    extras: Callable[[pd.DataFrame, Path], dict[str, Row]]


def preset(name: str, *, fast: bool = False, full: bool = False) -> Preset:
    """The preset ``name``.

    Args:
        name: paper-width or paper-cnn.
        fast: the same machinery at a size for tests, whose verdicts mean nothing.
        full: the paper's size (paper-cnn: all images of --data-dir, width 64), for accelerators.

    Raises:
        InputError: unknown.
    """
    if name == "paper-width":
        return _paper_width(fast)
    if name == "paper-cnn":
        return _paper_cnn(fast, full)
    raise InputError(f"--preset {name!r} is unknown", "choose paper-width or paper-cnn")


def _paper_width(fast: bool) -> Preset:
    widths = (8, 16, 32, 64) if fast else (128, 256, 512, 1024)
    base = TrainConfig(
        DataSpec("mnist", samples=60 if fast else 1000),
        ModelSpec(depth=4, activation="softplus", init="he"),
        lr=1e-2 if fast else 5e-4,
        steps=40 if fast else 500,
        probe_size=20 if fast else 100,
        probe_every=20 if fast else 250,
        checkpoint_every=0,
        seed=0,
    )
    cells = tuple(Cell(f"width{w}", {"width": w}) for w in widths)
    return Preset("paper-width", base, cells, True, _judge_width, _extras_width)


def _paper_cnn(fast: bool, full: bool) -> Preset:
    width, samples, epochs = (8, 20, 3) if fast else (64, None, 100) if full else (16, 300, 40)
    base = TrainConfig(
        DataSpec("cifar10", samples=samples, targets="onehot"),
        ModelSpec(kind="resnet", width=width),
        optimizer="sgd",
        lr=1e-3,
        momentum=0.9,
        batch_size=10 if fast else 50,
        schedule="cosine",
        steps=None,
        epochs=epochs,
        probe_size=4 if fast else 100,
        probe_every=0,
        probe_sharpness=False,
        checkpoint_every=0,
        dtype="float32",
    )
    cells = tuple(Cell(f"seed{s}", {"seed": s}) for s in range(3))
    return Preset("paper-cnn", base, cells, False, _judge_cnn, lambda frame, out: {})


_TEXT = ("run", "status", "regime", "law", "departures", "follows", "error")


def _records(frame: pd.DataFrame) -> list[Row]:
    """Rows with NaN for a missing number, which no comparison lets pass, and None for missing text."""
    records = []
    for row in frame.to_dict("records"):
        records.append({str(k): (None if k in _TEXT else math.nan) if pd.isna(v) else v for k, v in row.items()})
    return records


def _span(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


def _judge_width(frame: pd.DataFrame, out: Path) -> list[Statement]:
    rows = _records(frame)
    grid = [r for r in rows if r["follows"] is None and r["status"] in ("finished", "diverged")]
    recovered = next((r for r in rows if r["follows"] is not None), None)
    if len(grid) < 4:
        return [Statement("W1", "four widths were run", None, f"{len(grid)} of 4 ended")]
    narrow, wide = grid[:-1], grid[-1]
    names = ", ".join(str(r["width"]) for r in narrow)
    low = [r["lambda_min_start"] for r in grid]
    ratios = [b / a for a, b in pairwise(low)]
    drifts = [r["drift"] for r in narrow]
    ntk = [r["ntk_drift_percent"] for r in narrow]
    kept = [r["lambda_min_end"] / r["lambda_min_start"] for r in narrow]
    shape = [r["pl_ratio_min"] / r["pl_ratio_median"] for r in narrow]
    statements = [
        Statement(
            "W1",
            "λ_min of the NTK is positive at initialisation and doubles from width to width (each ratio in 1.5 to 3)",
            all(v > 0 for v in low) and all(1.5 <= r <= 3 for r in ratios),
            f"λ_min {_span(low)}; ratios {_span(ratios)}",
        ),
        Statement(
            "W2",
            f"widths {names} drift little: ‖θ_T − θ_0‖ stays below 0.5",
            all(d < 0.5 for d in drifts),
            f"drift {_span(drifts)}",
        ),
        Statement(
            "W3",
            f"widths {names} keep their kernel: NTK drift below {NTK_DRIFT:.0%}, λ_min within 15 % of its start",
            all(v < 100 * NTK_DRIFT for v in ntk) and all(abs(k - 1) < 0.15 for k in kept),
            f"NTK drift {_span(ntk)} %; λ_min end/start {_span(kept)}",
        ),
        Statement(
            "W4",
            f"widths {names} keep a PL ratio bounded from below: its minimum on the window at least half its median",
            all(s >= 0.5 for s in shape),
            f"minimum {_span([r['pl_ratio_min'] for r in narrow])}; minimum/median {_span(shape)}",
        ),
        Statement(
            "W5",
            f"width {wide['width']} at the same step leaves the local regime (rule of --recover)",
            wide["regime"] == "left",
            wide["departures"] or "it stayed",
        ),
    ]
    if recovered is None:
        missing = "nothing left, so nothing was recovered"
        return statements + [Statement(f"R{i}", "recovery with a smaller step", None, missing) for i in range(1, 5)]
    r, small = recovered, f"step {recovered['lr']:.3g} instead of {wide['lr']:.3g}"
    kept_there = r["lambda_min_end"] / r["lambda_min_start"]
    run = RunDirectory.open(out / str(r["run"]))
    loss = run.log()["loss"].to_numpy(dtype=np.float64)
    return [
        *statements,
        Statement(
            "R1",
            f"with a smaller step width {wide['width']} drifts no more than the narrower ones",
            r["drift"] <= max(drifts),
            f"{small}: drift {r['drift']:.3g} against {max(drifts):.3g} at most (it was {wide['drift']:.3g})",
        ),
        Statement(
            "R2",
            f"its kernel stays: NTK drift below {NTK_DRIFT:.0%}, λ_min within 15 % of its start",
            r["ntk_drift_percent"] < 100 * NTK_DRIFT and abs(kept_there - 1) < 0.15,
            f"NTK drift {r['ntk_drift_percent']:.3g} % (was {wide['ntk_drift_percent']:.3g} %); "
            f"λ_min end/start {kept_there:.3g} (was {wide['lambda_min_end'] / wide['lambda_min_start']:.3g})",
        ),
        Statement(
            "R3",
            "its PL ratio is bounded from below again: minimum on the window at least half the median",
            bool(r["pl_ratio_min"] >= 0.5 * r["pl_ratio_median"]),
            f"minimum {r['pl_ratio_min']:.3g}, median {r['pl_ratio_median']:.3g}",
        ),
        Statement(
            "R4",
            "its loss falls at every step and linearly",
            bool((np.diff(loss) <= 0).all()) and r["law"] in ("linear", "two_rate"),
            f"{int((np.diff(loss) > 0).sum())} steps rise; law {r['law']}, loss {loss[-1]:.3g} "
            f"(was {wide['loss_final']:.3g})",
        ),
    ]


def _extras_width(frame: pd.DataFrame, out: Path) -> dict[str, Row]:
    """Beyond the paper: λ_min of the whole training set at the start, its proved bound, and the certified radius."""
    extras: dict[str, Row] = {}
    for name in frame["run"]:
        start = RunDirectory.open(out / str(name)).checkpoint_path(0)
        try:
            found = certify_checkpoint(start, directions=0)
            extras[str(name)] = {
                "lambda_min_full": found["lambda_0"],
                "lambda_min_full_lower": found["lambda_0_lower"],
                "certified_radius": found["radius_jacobian"],
            }
        except LplrError:
            extras[str(name)] = dict.fromkeys(("lambda_min_full", "lambda_min_full_lower", "certified_radius"))
    return extras


def _judge_cnn(frame: pd.DataFrame, out: Path) -> list[Statement]:
    rows = [r for r in _records(frame) if r["status"] == "finished"]
    if not rows:
        return [Statement("S1", "three seeds were run", None, "none finished")]
    laws = [str(r["law"]) for r in rows]
    shape = [r["pl_ratio_min"] / r["pl_ratio_median"] for r in rows]
    tails, lows = [], []
    for r in rows:
        run = RunDirectory.open(out / str(r["run"]))
        drift = run.log()["drift"].to_numpy(dtype=np.float64)
        tails.append(float(drift[-1] / drift[int(0.8 * (len(drift) - 1))] - 1))
        lows += run.probes()["lambda_min"].tolist()
    return [
        Statement(
            "S1",
            "the loss falls linearly (law linear or two_rate) for every seed",
            all(law in ("linear", "two_rate") for law in laws),
            f"laws {', '.join(laws)}",
        ),
        Statement(
            "S2",
            "the PL ratio stays bounded from below on the window: minimum at least a tenth of the median",
            all(s >= 0.1 for s in shape),
            f"minimum {_span([r['pl_ratio_min'] for r in rows])}; minimum/median {_span(shape)}",
        ),
        Statement(
            "S3",
            "the drift saturates: it grows by less than 10 % over the last fifth of the run",
            all(t < 0.1 for t in tails),
            f"growth {_span([100 * t for t in tails])} %; final drift {_span([r['drift'] for r in rows])}",
        ),
        Statement(
            "S4",
            "beyond the paper: λ_min of the full-output NTK is positive at start and end, on a subset",
            all(v > 0 for v in lows),
            f"λ_min {_span(lows)} (start and end of each seed)",
        ),
    ]
