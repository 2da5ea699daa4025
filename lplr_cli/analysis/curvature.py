"""The Hessian of the loss at a checkpoint, and along the checkpoints of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.analysis.subject import OWN, Source, Subject, open_subject
from lplr_cli.curvature import (
    Effort,
    Interval,
    LossCurvature,
    OptimizerState,
    PerSample,
    SpectralDensity,
    StepRule,
    Survey,
    TraceEstimate,
    basis_size,
    largest,
    norm,
    optimizer_state,
    per_sample,
    preconditioned,
    survey,
)
from lplr_cli.errors import InputError
from lplr_cli.linalg import Ritz, lanczos
from lplr_cli.losses import Loss
from lplr_cli.models import DTYPES
from lplr_cli.ntk import DEFAULT_MEMORY, Network, NTKOperator
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain
from lplr_cli.runs.checkpoint import is_checkpoint, parse_checkpoint
from lplr_cli.runs.foreign_weights import read_file
from lplr_cli.shown import Shown
from lplr_cli.training import resolve_device

# Points of the density's curve, and its smoothing in parts of the spectrum's width.
_GRID, _WIDTH = 401, 0.01
# An eigenvalue counts as negative below this part of the largest |eigenvalue|.
NEGATIVE = 1e-3


@dataclass(frozen=True, repr=False)
class HessianProbe(Shown):
    """The Hessian at a checkpoint: the JSON record and the smoothed density."""

    record: dict[str, Any]
    density: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """The record of ``probe-hessian --format json``."""
        return self.record

    def to_frame(self) -> pd.DataFrame:
        """The density: eigenvalue, density, low, high; empty where it was not asked for."""
        return self.density


@dataclass(frozen=True, repr=False)
class HessianSeries(Shown):
    """The Hessian along a run: the JSON record and a row a checkpoint."""

    record: dict[str, Any]
    table: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """The record of ``probe-hessian --every --format json``."""
        return self.record

    def to_frame(self) -> pd.DataFrame:
        """A row a checkpoint."""
        return self.table


@dataclass(frozen=True)
class _Case:
    """A network at a checkpoint with the samples and the loss that are examined."""

    subject: Subject
    loss: Loss | PerSample
    inputs: Tensor
    targets: Tensor
    network: Network
    run: RunDirectory | None
    state: OptimizerState | str

    @property
    def loss_record(self) -> dict[str, Any]:
        known = isinstance(self.loss, Loss)
        return {
            "name": self.loss.name if isinstance(self.loss, Loss) else getattr(self.loss, "__name__", "given"),
            "scale": self.loss.scale if isinstance(self.loss, Loss) else None,
            "formula": self.loss.formula if isinstance(self.loss, Loss) else "L = (1/n) sum_i l(f(x_i), y_i)",
            "known": known,
        }


def probe_hessian(
    path: Path,
    *,
    size: int | None = None,
    effort: Effort | None = None,
    loss: Loss | PerSample | None = None,
    dtype: str = "float64",
    memory: int = DEFAULT_MEMORY,
    device: str = "cpu",
    source: Source = OWN,
    step: int | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> HessianProbe:
    """The Hessian of the training loss at a checkpoint, or at the last checkpoint of a run.

    Args:
        path: checkpoint or run directory.
        size: samples, the first of the training set; None means all.
        effort: how many eigenvalues, products and random vectors.
        loss: what the file does not tell: a known loss, or (f (m, C), y) → values of the samples (m,).
        dtype: of the passes; sums and iterations are float64.
        memory: bytes beside the model and the data.
        device: where to compute.
        source: what the user says of a file that is not of lplr.
        step: which checkpoint of a run directory; the last by default.
        report: told of the progress: what, products done, products at most.

    Raises:
        InputError: what cannot be opened, a loss that nobody tells, or too little memory.
        NumericalError: products that are not finite.
    """
    case = _open(path, size, loss, dtype, device, source, step)
    found = survey(case.network, case.inputs, case.targets, case.loss, effort=effort, memory=memory, report=report)
    record = {**_head(case, found, dtype), **_figures(found)}
    if record["gauss_newton"] is not None:
        record["gauss_newton"]["kernel"] = _kernel_tie(case, found, memory)
        # Λ ⪰ 0 for the known losses, so that samples only add: (1/N) Σ over all ⪰ (n/N) (1/n) Σ over some.
        share = found.n / case.subject.dataset.n if isinstance(case.loss, Loss) else None
        top = record["gauss_newton"]["lambda_max"]["value"]
        record["gauss_newton"]["lower_bound_full"] = None if share is None else share * top
    record["preconditioned"] = _preconditioned(case, effort or Effort(), memory)
    record["stability"] = _stability(case, found.extremes.high[-1], found.extremes.high_residuals[-1])
    cleaned: dict[str, Any] = plain(record)
    return HessianProbe(cleaned, _curve(found.density))


def hessian_along(
    path: Path,
    *,
    every: int = 1,
    size: int | None = None,
    effort: Effort | None = None,
    loss: Loss | PerSample | None = None,
    dtype: str = "float64",
    memory: int = DEFAULT_MEMORY,
    device: str = "cpu",
    source: Source = OWN,
    report: Callable[[str, int, int], None] | None = None,
) -> HessianSeries:
    """Sharpness, smallest eigenvalue and Gauss-Newton part along a run, beside the largest stable curvature.

    Args:
        path: run directory.
        every: steps between the checkpoints that are examined; the first and last are always.
        effort: its products and tolerance count; trace and density are left out.
        report: told of the progress: what, checkpoints done, checkpoints.

    The other arguments and the errors are those of :func:`probe_hessian`.
    """
    if every < 1:
        raise InputError(f"--every {every} is too small", "give at least 1")
    run = RunDirectory.open(path)
    steps = run.checkpoint_steps()
    if not steps:
        raise InputError(f"{path} has no checkpoint", "give a run with checkpoints")
    chosen = [s for s in steps if s % every == 0 or s in (steps[0], steps[-1])]
    case = _open(path, size, loss, dtype, device, source, chosen[0])
    rows = []
    for done, step in enumerate(chosen, start=1):
        case.subject.move_to(run, step)
        rows.append(_row(case, step, effort or Effort(), memory))
        if report is not None:
            report("checkpoints", done, len(chosen))
    table = pd.DataFrame(rows)
    known = table["ratio"].dropna()
    record = {
        "command": "probe-hessian",
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "assumptions": list(case.subject.assumptions),
        "loss": case.loss_record,
        "samples": case.subject.dataset.n,
        "n": len(case.inputs),
        "subset": len(case.inputs) < case.subject.dataset.n,
        "parameters": case.network.parameter_count,
        "dtype": dtype,
        "every": every,
        "rule": _rule_name(run),
        "sharpness": {
            "initial": float(table["sharpness"].iloc[0]),
            "final": float(table["sharpness"].iloc[-1]),
            "max": float(table["sharpness"].max()),
            "growth": float(table["sharpness"].iloc[-1] / table["sharpness"].iloc[0]),
        },
        "ratio": {
            "max": float(known.max()) if len(known) else None,
            "final": float(known.iloc[-1]) if len(known) else None,
        },
        "rows": table.astype(object).where(table.notna(), None).to_dict("records"),
    }
    cleaned: dict[str, Any] = plain(record)
    return HessianSeries(cleaned, table)


def _open(
    path: Path,
    size: int | None,
    loss: Loss | PerSample | None,
    dtype: str,
    device: str,
    source: Source,
    step: int | None,
) -> _Case:
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is unknown", f"choose from {', '.join(DTYPES)}")
    subject = open_subject(path, source, step=step)
    if size is not None and not 1 <= size <= subject.dataset.n:
        raise InputError(f"--size {size} is out of range", f"the checkpoint has {subject.dataset.n} samples")
    run = _run_of(subject.path)
    inputs, targets = (t[:size] for t in subject.dataset.tensors())
    network = subject.network(DTYPES[dtype], resolve_device(device))
    state = optimizer_state(read_file(subject.path), subject.module)
    return _Case(subject, _loss(subject.path, run, loss), inputs, targets, network, run, state)


def _run_of(path: Path) -> RunDirectory | None:
    """The run that a checkpoint lies in."""
    folder = path.resolve().parent.parent
    if path.resolve().parent.name != "checkpoints" or not (folder / "run.json").is_file():
        return None
    return RunDirectory.open(folder)


def _loss(path: Path, run: RunDirectory | None, given: Loss | PerSample | None) -> Loss | PerSample:
    """The loss that the file tells, or the user; a known one is not overruled.

    Raises:
        InputError: nobody tells, or the two differ.
    """
    told = run.manifest().loss.known if run is not None else _loss_of_file(path)
    if told is None and given is None:
        raise InputError(f"{path} does not tell its loss", "give --loss squared, cross-entropy, bce or module:function")
    if told is not None and given is not None and given != told:
        raise InputError(f"{path} tells its own loss, {told.formula}", "leave out --loss")
    found = told or given
    assert found is not None
    return found


def _loss_of_file(path: Path) -> Loss | None:
    content = read_file(path)
    if not is_checkpoint(content):
        return None
    scale = parse_checkpoint(content, path).loss_scale
    return None if scale is None else Loss("squared", scale)


def _head(case: _Case, found: Survey, dtype: str) -> dict[str, Any]:
    return {
        "command": "probe-hessian",
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(case.subject.path),
        "step": case.subject.step,
        "assumptions": list(case.subject.assumptions),
        "loss": {**case.loss_record, "value": found.loss, "grad_norm_sq": found.gradient_norm_sq},
        "normalisation": {"hessian": "of the mean over the n samples", "n": found.n},
        "samples": case.subject.dataset.n,
        "n": found.n,
        "subset": found.n < case.subject.dataset.n,
        "parameters": found.size,
        "dtype": dtype,
        "method": found.method,
        "micro_batch": found.batch,
        "products": found.products,
    }


def _end(value: float, residual: float) -> dict[str, float]:
    return {"value": float(value), "residual": float(residual)}


def _figures(found: Survey) -> dict[str, Any]:
    ends, trace = found.extremes, found.trace
    return {
        "converged": ends.converged,
        "resolution": found.resolution,
        "lambda_max": _end(ends.high[-1], ends.high_residuals[-1]),
        "lambda_min": _end(ends.low[0], ends.low_residuals[0]),
        "largest": _pairs(ends.high[::-1], ends.high_residuals[::-1]),
        "smallest": _pairs(ends.low, ends.low_residuals),
        "trace": _trace(trace),
        "frobenius": None
        if trace is None
        else {"value": trace.frobenius, "standard_error": trace.frobenius_error, "vectors": trace.vectors},
        "gauss_newton": None
        if found.parts is None
        else {
            "lambda_max": _end(found.parts.gauss_newton.high[-1], found.parts.gauss_newton.high_residuals[-1]),
            "trace": _trace(found.parts.gauss_newton_trace),
            "kernel": None,
        },
        "rest": None
        if found.parts is None
        else {
            "lambda_max": _end(found.parts.rest.high[-1], found.parts.rest.high_residuals[-1]),
            "lambda_min": _end(found.parts.rest.low[0], found.parts.rest.low_residuals[0]),
        },
        "negative": _negative(found.density, norm(ends)),
        "density": None
        if found.density is None
        else {
            "vectors": len(found.density.samples),
            "nodes": max(len(q.nodes) for q in found.density.samples),
            "width": _width(found.density),
        },
    }


def _pairs(values: NDArray[np.float64], residuals: NDArray[np.float64]) -> list[dict[str, float]]:
    return [_end(v, r) for v, r in zip(values, residuals, strict=True)]


def _trace(found: TraceEstimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "value": found.trace,
        "standard_error": found.trace_error,
        "vectors": found.vectors,
        "exact": found.exact,
    }


def _negative(density: SpectralDensity | None, norm: float) -> dict[str, Any] | None:
    """Share of negative eigenvalues by number and by weight; the share counts those below a threshold."""
    if density is None:
        return None

    def record(found: Interval) -> dict[str, float | None]:
        return {"value": found.value, "low": found.low, "high": found.high}

    return {
        "threshold": -NEGATIVE * norm,
        "share": record(density.share_below(-NEGATIVE * norm)),
        "weight": record(density.negative_weight()),
    }


def _width(density: SpectralDensity) -> float:
    nodes = density.points()[0]
    return _WIDTH * max(float(nodes[-1] - nodes[0]), 1e-300)


def _curve(density: SpectralDensity | None) -> pd.DataFrame:
    columns = ["eigenvalue", "density", "low", "high"]
    if density is None:
        return pd.DataFrame(columns=columns)
    nodes, width = density.points()[0], _width(density)
    grid = np.linspace(nodes[0] - 4 * width, nodes[-1] + 4 * width, _GRID)
    return pd.DataFrame(dict(zip(columns, (grid, *density.curve(grid, width)), strict=True)))


def _kernel_tie(case: _Case, found: Survey, memory: int) -> dict[str, float] | None:
    """2s λ_max(K) beside λ_max(G), from other products: they agree for the squared loss, up to the residuals."""
    if not isinstance(case.loss, Loss) or case.loss.name != "squared" or found.parts is None:
        return None
    products = NTKOperator(case.network, case.inputs, budget=memory // 2)
    start = np.random.default_rng(0).standard_normal(products.shape[0])
    ritz: Ritz = lanczos(products.matvec, start, tolerance=1e-6, low_too=False, steps=100)
    value = 2 * case.loss.scale * float(ritz.high[-1])
    top = float(found.parts.gauss_newton.high[-1])
    return {"lambda_max": value, "relative_difference": abs(value - top) / max(abs(top), 1e-300)}


def rule_of_run(run: RunDirectory | None, step: int | None) -> StepRule | str:
    """How the optimiser steps at ``step``, or why that is not known."""
    if run is None:
        return "the checkpoint does not tell its optimiser"
    manifest = run.manifest()
    optimizer = manifest.optimizer
    if optimizer.name not in ("gd", "sgd"):
        return f"the optimiser is {optimizer.name or 'not known'}"
    if optimizer.momentum is None or optimizer.weight_decay is None:
        return "momentum or weight decay is not known"
    if manifest.recorded and optimizer.momentum > 0:
        return "a recorded momentum may be heavy-ball or Nesterov's"
    lr = optimizer.lr if optimizer.schedule == "constant" else _lr_at(run, step)
    if lr is None or not 0 < lr < math.inf:
        return "the step size is not known"
    return StepRule(lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)


def _lr_at(run: RunDirectory, step: int | None) -> float | None:
    """The step size that was logged at ``step``, or last before it: the end of a run has none."""
    log = run.log()
    known = log[log["lr"].notna()]
    before = known if step is None else known[known["step"] <= step]
    return float(before["lr"].iloc[-1]) if len(before) else None


def _rule_name(run: RunDirectory | None) -> str:
    rule = rule_of_run(run, None)
    if isinstance(rule, str):
        return f"unknown: {rule}"
    return _formula(rule)


def _stability(case: _Case, top: float, residual: float) -> dict[str, Any]:
    """λ_max beside the largest curvature at which the optimiser is stable on a quadratic (theory.md section 13)."""
    rule = rule_of_run(case.run, case.subject.step)
    name = _rule_name(case.run)
    if isinstance(rule, str) and not isinstance(case.state, str) and not case.state.rule.adaptive:
        rule, name = case.state.rule, _formula(case.state.rule)
    threshold = None if isinstance(rule, str) else rule.threshold
    return {
        "rule": name,
        "lr": None if isinstance(rule, str) else rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else float(top) / threshold,
        "ratio_error": None if threshold is None else float(residual) / threshold,
    }


def _preconditioned(case: _Case, effort: Effort, memory: int) -> dict[str, Any] | None:
    """λ_max of P^(−½) H P^(−½) beside Adam's threshold; None where the file has no second moments."""
    state = case.state
    if isinstance(state, str) or state.second_moments is None:
        return None
    vectors = min(memory // 2, 8 * case.network.parameter_count * (effort.products + 2))
    curvature = LossCurvature(case.network, case.inputs, case.targets, per_sample(case.loss), memory=memory - vectors)
    shifted = preconditioned(lambda v: curvature.hessian(v) + state.shift * v, state.second_moments, state.epsilon)
    found = largest(
        shifted,
        curvature.size,
        tolerance=effort.tolerance,
        max_products=effort.products,
        basis=basis_size(curvature.size, vectors),
    )
    threshold = state.rule.threshold
    return {
        "lambda_max": {"value": found.value, "residual": found.residual},
        "rule": _formula(state.rule),
        "lr": state.rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else found.value / threshold,
    }


def _formula(rule: StepRule) -> str:
    """The threshold of :mod:`lplr_cli.curvature.stability` in words."""
    if rule.adaptive:
        decay = f" (2 - eta w)/2, w = {rule.weight_decay:g}" if rule.weight_decay else ""
        return f"(2 + 2 beta)/((1 - beta) eta){decay}, beta = {rule.momentum:g}"
    decay = f" - {rule.weight_decay:g}" if rule.weight_decay else ""
    if rule.momentum == 0:
        return f"2/eta{decay}"
    if rule.nesterov:
        return f"(2 + 2 beta)/((1 + 2 beta) eta){decay}, beta = {rule.momentum:g}"
    damped = f"((1 - {rule.dampening:g}) eta)" if rule.dampening else "eta"
    return f"(2 + 2 beta)/{damped}{decay}, beta = {rule.momentum:g}"


def _row(case: _Case, step: int, effort: Effort, memory: int) -> dict[str, Any]:
    network = case.subject.network(case.network.dtype, case.network.device)
    spare = replace(effort, eigenvalues=1, trace_vectors=0, density_vectors=0)
    found = survey(network, case.inputs, case.targets, case.loss, effort=spare, memory=memory)
    rule = rule_of_run(case.run, step)
    threshold = None if isinstance(rule, str) else rule.threshold
    top = float(found.extremes.high[-1])
    return {
        "step": step,
        "loss": found.loss,
        "grad_norm_sq": found.gradient_norm_sq,
        "sharpness": top,
        "sharpness_residual": float(found.extremes.high_residuals[-1]),
        "lambda_min": float(found.extremes.low[0]),
        "lambda_min_residual": float(found.extremes.low_residuals[0]),
        "gauss_newton": None if found.parts is None else float(found.parts.gauss_newton.high[-1]),
        "rest": None if found.parts is None else norm(found.parts.rest),
        "lr": None if isinstance(rule, str) else rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else top / threshold,
        "products": found.products,
    }
