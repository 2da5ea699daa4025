"""Is a run lazy? Its measured loss beside the one that its kernels predict (theory.md section 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.func import jvp

from lplr_cli.analysis.subject import OWN, Source, Subject, open_subject
from lplr_cli.errors import InputError
from lplr_cli.ntk import (
    DEFAULT_MEMORY,
    Linearised,
    Modes,
    Network,
    cross_ntk,
    empirical_ntk,
    evaluation_mode,
    laziness_error,
    memory_needed,
    operator_norm,
)
from lplr_cli.runs import Manifest, RunDirectory, plain
from lplr_cli.shown import Shown

Vector = NDArray[np.float64]
# A run is called lazy while the predicted loss is within 10 % of the measured one at every step.
LAZY = math.log(1.1)
# The part of the residual whose directions are counted.
PART = 0.9
# Directions that are listed.
_LISTED = 10
# Matrices of K's size that LAPACK and the eigenvectors take.
_COPIES = 4
_CHUNK = 256
# Steps that are predicted, each of them a number in memory.
_MOST_STEPS = 10_000_000
# Rows of K up to which audits and reports take its eigenvectors without being asked to.
MOST_ROWS = 1500


@dataclass(frozen=True)
class Descent:
    """Descent on a squared loss, as far as a prediction needs it: of full batches, or the mean over mini-batches.

    Attributes:
        scale: s.
        momentum: heavy-ball.
        steps: η_0, …, η_{T−1}.
        loss: L_0, …, L_T as logged, NaN where there is no row.
    """

    scale: float
    momentum: float
    steps: Vector
    loss: Vector


@dataclass(frozen=True)
class Piece:
    """The prediction from the kernel at one checkpoint.

    Attributes:
        step: of the checkpoint.
        until: of the next one, or the last step.
        predicted: L at ``step``, …, T (T − step + 1,).
        error: laziness error up to ``until``; error_to_end: up to T.
        alignment: of K with the residual there.
    """

    step: int
    until: int
    predicted: Vector
    error: float | None
    error_to_end: float | None
    alignment: float | None


@dataclass(frozen=True, repr=False)
class LazyPrediction(Shown):
    """Measured and predicted loss of a run.

    Attributes:
        descent: what the run did.
        pieces: a prediction a checkpoint; the first is from the start.
        start, end: K and the residual at the first and last checkpoint.
        kernel_change: ||K_T − K_0||/||K_0|| between these.
        parameters_step: of the checkpoint that ``end`` is from.
    """

    descent: Descent
    pieces: tuple[Piece, ...]
    start: Modes
    end: Modes
    kernel_change: float | None
    parameters_step: int

    @property
    def error(self) -> float | None:
        """Laziness error of the whole run, from the kernel at its start."""
        return self.pieces[0].error_to_end

    @property
    def lazy(self) -> bool | None:
        """Whether the kernel at the start predicts every loss within 10 %; None where nothing was comparable."""
        return None if self.error is None else self.error < LAZY

    def to_dict(self) -> dict[str, Any]:
        """``prediction`` in the record of ``probe-ntk --predict``."""
        record: dict[str, Any] = plain(
            {
                "loss_scale": self.descent.scale,
                "momentum": self.descent.momentum,
                "steps": len(self.descent.steps),
                "lazy": self.lazy,
                "laziness_error": self.error,
                "threshold": LAZY,
                "kernel_change": self.kernel_change,
                "final": {"measured": float(self.descent.loss[-1]), "predicted": float(self.pieces[0].predicted[-1])},
                "start": _describe(self.start),
                "end": {"step": self.parameters_step, **_describe(self.end)},
                "pieces": [
                    {"step": p.step, "until": p.until, "error": p.error, "error_to_end": p.error_to_end}
                    for p in self.pieces
                ],
                "directions": self.directions().to_dict("records"),
            }
        )
        return record

    def to_frame(self) -> pd.DataFrame:
        """A row a step: step, loss, predicted (from the start), predicted_piecewise (from the last checkpoint)."""
        piecewise = self.pieces[0].predicted.copy()
        for piece in self.pieces[1:]:
            piecewise[piece.step :] = piece.predicted
        return pd.DataFrame(
            {
                "step": np.arange(len(self.descent.loss)),
                "loss": self.descent.loss,
                "predicted": self.pieces[0].predicted,
                "predicted_piecewise": piecewise,
            }
        )

    def directions(self) -> pd.DataFrame:
        """The eigendirections that hold most of the residual at the start, with the rate that each predicts."""
        order = np.argsort(self.start.share)[::-1][:_LISTED]
        share = self.start.share[order]
        factors = Linearised(self.start, self.descent.scale, self.descent.momentum).factors(
            float(self.descent.steps[0])
        )[order]
        with np.errstate(divide="ignore"):
            half = np.where((factors > 0) & (factors < 1), math.log(0.5) / np.log(factors), np.nan)
        return pd.DataFrame(
            {
                "rank": order + 1,
                "eigenvalue": self.start.eigenvalues[order],
                "share": share,
                "cumulative": share.cumsum(),
                "rate": factors,
                "half_life": half,
            }
        )


def _describe(modes: Modes) -> dict[str, Any]:
    return {
        "alignment": modes.alignment,
        "participation": modes.participation,
        "directions_90": modes.directions(PART),
        "lambda_max": float(modes.eigenvalues[0]),
    }


def predict_run(
    path: Path,
    *,
    source: Source = OWN,
    pieces: int = 5,
    mean: bool = False,
    memory: int = DEFAULT_MEMORY,
    most_rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LazyPrediction:
    """Predict the loss of a run from the kernels at its checkpoints, over all samples and outputs, in float64.

    Args:
        path: run directory with a checkpoint of its start.
        source: what the user says of a run that does not tell its model or data.
        pieces: checkpoints to predict from, at most; the start and the last are always examined.
        mean: also of mini-batches, whose mean residual follows the recursion of full batches (docs/theory.md, section
            11); the noise about it is left out.
        memory: bytes for a kernel and its eigenvectors.
        most_rows: refuse a kernel with more rows; None for no limit but memory.
        progress: called with (kernels done, kernels).

    Raises:
        InputError: a run that is not full-batch descent on a squared loss of known scale with known steps, saying why;
            no checkpoint of the start; a kernel that does not fit.
    """
    run = RunDirectory.open(path)
    descent = descent_of(run, mean=mean)
    taken = [s for s in run.checkpoint_steps() if s <= len(descent.steps)]
    if not taken or taken[0] != 0:
        raise InputError(f"{path} has no checkpoint of its start", "record step 0")
    chosen = _spread(taken, pieces)
    subject = open_subject(path, source, step=0)
    inputs, targets = subject.dataset.tensors()
    if most_rows is not None and targets.numel() > most_rows:
        raise InputError(
            f"K has {targets.numel():,} rows, and here {most_rows:,} at most are taken",
            f"ask for it: lplr probe-ntk {path} --predict",
        )
    found: list[Piece] = []
    ends: list[tuple[Tensor, Modes]] = []
    for done, (step, until) in enumerate(_stretches(chosen, len(descent.steps)), start=1):
        network = _network_at(subject, run, step)
        kernel, modes = _modes(network, inputs, targets, memory)
        velocity = _velocity(run, step, network, inputs, modes) if descent.momentum else None
        if step < len(descent.steps):
            found.append(_piece(descent, Linearised(modes, descent.scale, descent.momentum, velocity), step, until))
        ends = [*ends[:1], (kernel, modes)]
        if progress is not None:
            progress(done, len(chosen))
    change = operator_norm(ends[-1][0] - ends[0][0]) / max(float(ends[0][1].eigenvalues[0]), 1e-300)
    return LazyPrediction(descent, tuple(found), ends[0][1], ends[-1][1], change, chosen[-1])


def predict_outputs(
    path: Path, inputs: ArrayLike, *, source: Source = OWN, steps: int | None = None, memory: int = DEFAULT_MEMORY
) -> Vector:
    """Outputs of the network linearised at the start of a run, on other inputs, after the run's steps: (M, C).

    Args:
        path: run directory.
        inputs: (M, …), as the training inputs are.
        source: as in :func:`predict_run`.
        steps: of the run; all by default.
        memory: bytes for a kernel and its eigenvectors.

    Raises:
        InputError: as :func:`predict_run`.
    """
    run = RunDirectory.open(path)
    descent = descent_of(run)
    subject = open_subject(path, source, step=0)
    network = _network_at(subject, run, 0)
    training, targets = subject.dataset.tensors()
    _, modes = _modes(network, training, targets, memory)
    others = network.cast(torch.as_tensor(np.asarray(inputs)))
    with torch.no_grad(), evaluation_mode(network.module):
        before = network.forward(others)
    cross = cross_ntk(network, others, network.cast(training), memory=memory)
    after = Linearised(modes, descent.scale, descent.momentum).outputs(
        descent.steps[:steps], cross.numpy(), before.numpy()
    )
    return after.reshape(before.shape)


def descent_of(run: RunDirectory, *, mean: bool = False) -> Descent:
    """What a prediction needs of a run.

    Args:
        run: its directory.
        mean: take mini-batches, too, as in :func:`predict_run`.

    Raises:
        InputError: it is not such descent on a squared loss of known scale, or its steps are not known.
    """
    manifest, log = run.manifest(), run.log()
    optimizer, scale = manifest.optimizer, manifest.loss.squared_scale
    why = _why_no_descent(manifest, ("gd", "sgd") if mean else ("gd",))
    if why is not None or scale is None or optimizer.momentum is None:
        raise InputError(f"no prediction for {run.path}: {why}", "it needs full-batch descent on a squared loss")
    at = _steps_of(log, run.path)
    last = int(at[-1])
    loss, steps = np.full(last + 1, np.nan), np.full(last + 1, np.nan)
    loss[at], steps[at] = log["loss"].to_numpy(dtype=np.float64), log["lr"].to_numpy(dtype=np.float64)
    if np.isnan(steps[:-1]).any():
        if optimizer.schedule != "constant" or optimizer.lr is None:
            raise InputError(f"no prediction for {run.path}: its log lacks step sizes", "log every step")
        steps = np.full(last + 1, optimizer.lr)
    return Descent(scale, optimizer.momentum, steps[:-1], loss)


def _why_no_descent(manifest: Manifest, optimizers: tuple[str, ...]) -> str | None:
    """What keeps a run from being such descent on a squared loss of known scale; None for one that is."""
    optimizer, loss = manifest.optimizer, manifest.loss
    reasons = [
        (loss.squared_scale is None, f"the loss is the {loss.label}" if loss.name else "the loss is not known"),
        (optimizer.name not in optimizers, f"the optimiser is {optimizer.name or 'not known'}"),
        (optimizer.momentum is None, "momentum is not known"),
        (manifest.recorded and bool(optimizer.momentum), "a recorded momentum may be heavy-ball or Nesterov's"),
        (optimizer.weight_decay is None, "weight decay is not known"),
        (bool(optimizer.weight_decay), "weights decay"),
    ]
    return next((reason for holds, reason in reasons if holds), None)


def _steps_of(log: pd.DataFrame, path: Path) -> NDArray[np.int64]:
    """The steps of a log, of which the last is the largest, and few enough to go through one by one.

    Raises:
        InputError: they are not so.
    """
    at = log["step"].to_numpy(dtype=np.int64)
    last = int(at[-1]) if len(at) else 0
    if last < 1:
        raise InputError(f"no prediction for {path}: it made no step", "train it first")
    if last > _MOST_STEPS or at.max() > last:
        odd = f"its log ends at step {last:,}" if last > _MOST_STEPS else "the steps of its log are out of order"
        raise InputError(f"no prediction for {path}: {odd}", f"up to {_MOST_STEPS:,} are predicted, one by one")
    return at


def _spread(steps: list[int], most: int) -> list[int]:
    """At most ``most`` of the steps, evenly, with the first, and the last beside them."""
    if most < 1:
        raise InputError(f"--pieces {most} is too small", "give at least 1")
    picked = np.unique(np.linspace(0, len(steps) - 1, min(most + 1, len(steps))).round().astype(int))
    return [steps[i] for i in picked]


def _stretches(steps: list[int], last: int) -> Iterator[tuple[int, int]]:
    yield from zip(steps, [*steps[1:], last], strict=True)


def _network_at(subject: Subject, run: RunDirectory, step: int) -> Network:
    subject.move_to(run, step)
    return subject.network(torch.float64, torch.device("cpu"))


def _modes(network: Network, inputs: Tensor, targets: Tensor, memory: int) -> tuple[Tensor, Modes]:
    rows = targets.numel()
    needed = memory_needed(network, inputs) + _COPIES * 8 * rows**2
    if memory < needed:
        raise InputError(
            f"the eigenvectors of {rows:,} rows need {-(-needed >> 20)} MiB", f"give --memory {-(-needed >> 20)}MiB"
        )
    kernel = empirical_ntk(network, inputs, memory=memory).matrix
    with torch.no_grad(), evaluation_mode(network.module):
        outputs = torch.cat([network.forward(x) for x in torch.split(network.cast(inputs), _CHUNK)])
    return kernel, Modes.of(kernel.numpy(), (outputs - targets).reshape(-1).numpy(), len(inputs))


def _velocity(run: RunDirectory, step: int, network: Network, inputs: Tensor, modes: Modes) -> Vector | None:
    """Coordinates of J̃v of the momentum that a checkpoint kept."""
    kept = run.load(step).optimizer.get("momentum")
    if kept is None:
        return None
    flat = torch.split(kept.to(torch.float64).reshape(-1), [p.numel() for p in network.params.values()])
    point = {k: p.detach() for k, p in network.params.items()}
    tangent = {k: v.view_as(p) for (k, p), v in zip(point.items(), flat, strict=True)}
    with torch.no_grad(), evaluation_mode(network.module):
        images = [
            jvp(lambda p, x=x: network.forward(x, p), (point,), (tangent,))[1]
            for x in torch.split(network.cast(inputs), _CHUNK)
        ]
    along: Vector = modes.vectors.T @ torch.cat(images).reshape(-1).numpy() / math.sqrt(len(inputs))
    return along


def _piece(descent: Descent, linearised: Linearised, step: int, until: int) -> Piece:
    predicted = linearised.losses(descent.steps[step:])
    measured = descent.loss[step:]
    up_to = until - step + 1
    return Piece(
        step,
        until,
        predicted,
        laziness_error(measured[:up_to], predicted[:up_to]),
        laziness_error(measured, predicted),
        linearised.modes.alignment,
    )
