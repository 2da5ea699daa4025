"""The paper's experiments (P: arXiv 2507.21429, sections 6.1 to 6.3) as sweeps with a table and a checklist.

The text that we have gives widths, depth, activation, initialisation, optimiser and what was observed, not the step
sizes, sample counts and numbers of steps. docs/reproduction.md says how those were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lplr_cli.ablation.grid import Cell
from lplr_cli.ablation.judge_cnn import judge_cnn
from lplr_cli.ablation.judge_mnist import judge_mnist
from lplr_cli.ablation.judge_width import judge_width
from lplr_cli.ablation.statements import Statement
from lplr_cli.analysis import certify_start, predict_run
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError, LplrError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig

Row = dict[str, Any]
# Training images of five classes of CIFAR-10.
_IMAGES = 25_000
# Of K over all images and outputs, at most.
_MOST_ROWS = 2000
PRESETS = ("paper-mnist", "paper-width", "paper-cnn")


@dataclass(frozen=True)
class Preset:
    """An experiment: its runs and how they are judged.

    Attributes:
        name: one of :data:`PRESETS`.
        base: configuration that all runs share.
        cells: the runs.
        recover: whether runs that left are followed by one with a smaller step.
        judge: statements from the table of results and the sweep directory.
        extras: columns beyond the paper, a mapping of run to values, computed after the runs.
        along: whether the region along the path of each run is certified.
    """

    name: str
    base: TrainConfig
    cells: tuple[Cell, ...]
    recover: bool
    judge: Callable[[pd.DataFrame, Path], list[Statement]]
    extras: Callable[[pd.DataFrame, Path], dict[str, Row]]
    along: bool


def preset(name: str, *, fast: bool = False, full: bool = False) -> Preset:
    """The preset ``name``.

    Args:
        name: one of :data:`PRESETS`.
        fast: the same machinery at a size for tests, whose verdicts mean nothing.
        full: the paper's size (paper-cnn: all images of --data-dir, width 64), for accelerators.

    Raises:
        InputError: unknown.
    """
    if name == "paper-mnist":
        return _paper_mnist(fast)
    if name == "paper-width":
        return _paper_width(fast)
    if name == "paper-cnn":
        return _paper_cnn(fast, full)
    raise InputError(f"--preset {name!r} is unknown", f"choose from {', '.join(PRESETS)}")


def _softplus(fast: bool) -> TrainConfig:
    """What the runs of sections 6.1 and 6.2 share."""
    return TrainConfig(
        DataSpec("mnist", samples=12 if fast else 1000),
        ModelSpec(depth=4, activation="softplus", init="he"),
        lr=1e-2 if fast else 5e-4,
        steps=12 if fast else 500,
        probe_size=6 if fast else 100,
        probe_every=6 if fast else 250,
        checkpoint_every=0,
        seed=0,
    )


def _paper_mnist(fast: bool) -> Preset:
    width, lr, steps = (8, 1e-2, 12) if fast else (128, 1.6e-3, 420)
    base = _softplus(fast).with_(width=width, lr=lr, steps=steps, probe_every=4 if fast else 20)
    return Preset("paper-mnist", base, (Cell(f"width{width}"),), False, judge_mnist, _extras_full, True)


def _paper_width(fast: bool) -> Preset:
    widths = (8, 16, 32, 64) if fast else (128, 256, 512, 1024)
    cells = tuple(Cell(f"width{w}", {"width": w}) for w in widths)
    return Preset("paper-width", _softplus(fast), cells, True, judge_width, _extras_full, True)


def _paper_cnn(fast: bool, full: bool) -> Preset:
    width, samples, epochs, batch = (8, 20, 4, 10) if fast else (64, None, 100, 50) if full else (16, 300, 220, 10)
    middle = epochs * -(-(samples or _IMAGES) // batch) // 2
    base = TrainConfig(
        DataSpec("cifar10", samples=samples, targets="onehot"),
        ModelSpec(kind="resnet", width=width),
        optimizer="sgd",
        lr=1e-3,
        momentum=0.9,
        batch_size=batch,
        schedule="cosine",
        steps=None,
        epochs=epochs,
        probe_size=4 if fast else 100,
        probe_every=middle,
        probe_sharpness=False,
        checkpoint_every=middle,
        dtype="float32",
    )
    seeds = [Cell(f"seed{s}", {"seed": s}) for s in range(3)]
    # The paper's schedule ends with a step of zero, at which any drift saturates; half as long, this one moves as far.
    constant = Cell("constant-seed0", {"seed": 0, "schedule": "constant", "epochs": max(1, epochs // 2)})
    return Preset("paper-cnn", base, (*seeds, constant), False, judge_cnn, _extras_lazy, False)


def _extras_full(frame: pd.DataFrame, out: Path) -> dict[str, Row]:
    """Beyond the paper: λ_min of the whole training set at the start, its proved bound, and the certified radius."""
    extras: dict[str, Row] = {}
    for name in frame["run"]:
        start = RunDirectory.open(out / str(name)).checkpoint_path(0)
        try:
            proved = certify_start(start, directions=0).certificate
            extras[str(name)] = {
                "lambda_min_full": proved.lambda_0,
                "lambda_min_full_lower": proved.lambda_0_lower,
                "certified_radius": proved.radius_jacobian if math.isfinite(proved.radius_jacobian) else None,
            }
        except LplrError:
            extras[str(name)] = dict.fromkeys(("lambda_min_full", "lambda_min_full_lower", "certified_radius"))
    return extras


def _extras_lazy(frame: pd.DataFrame, out: Path) -> dict[str, Row]:
    """Beyond the paper, of the first seed: how K of all outputs is aligned with the residual at the start, in the
    middle and at the end, and how far the loss that it predicts from start and middle on is off.
    """
    name = str(frame["run"].iloc[0])
    try:
        prediction = predict_run(out / name, mean=True, pieces=2, most_rows=_MOST_ROWS)
    except LplrError as why:
        return {name: {"lazy_reason": str(why)}}
    start, middle = prediction.pieces
    return {
        name: {
            "alignment_start": start.alignment,
            "alignment_middle": middle.alignment,
            "alignment_end": prediction.end.alignment,
            "laziness_error_start": start.error_to_end,
            "laziness_error_middle": middle.error_to_end,
        }
    }
