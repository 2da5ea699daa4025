"""The Hessian of the loss at a checkpoint, and along the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.analysis.case import Case, open_case
from lplr_cli.analysis.step_rule import formula, rule_name, rule_of_run
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.curvature import (
    Effort,
    Interval,
    LossCurvature,
    PerSample,
    SpectralDensity,
    Survey,
    TraceEstimate,
    basis_size,
    largest,
    norm,
    per_sample,
    preconditioned,
    survey,
)
from lplr_cli.errors import InputError
from lplr_cli.linalg import Ritz, lanczos
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY, NTKOperator
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain
from lplr_cli.shown import Shown

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
    case = open_case(path, size, loss, dtype, device, source, step)
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
    case = open_case(path, size, loss, dtype, device, source, chosen[0])
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
        "rule": rule_name(run),
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


def _head(case: Case, found: Survey, dtype: str) -> dict[str, Any]:
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


def _kernel_tie(case: Case, found: Survey, memory: int) -> dict[str, float] | None:
    """2s λ_max(K) beside λ_max(G), from other products: they agree for the squared loss, up to the residuals."""
    if not isinstance(case.loss, Loss) or case.loss.name != "squared" or found.parts is None:
        return None
    products = NTKOperator(case.network, case.inputs, budget=memory // 2)
    start = np.random.default_rng(0).standard_normal(products.shape[0])
    ritz: Ritz = lanczos(products.matvec, start, tolerance=1e-6, low_too=False, steps=100)
    value = 2 * case.loss.scale * float(ritz.high[-1])
    top = float(found.parts.gauss_newton.high[-1])
    return {"lambda_max": value, "relative_difference": abs(value - top) / max(abs(top), 1e-300)}


def _stability(case: Case, top: float, residual: float) -> dict[str, Any]:
    """λ_max beside the largest curvature at which the optimiser is stable on a quadratic (theory.md section 13)."""
    rule = rule_of_run(case.run, case.subject.step)
    name = rule_name(case.run)
    if isinstance(rule, str) and not isinstance(case.state, str) and not case.state.rule.adaptive:
        rule, name = case.state.rule, formula(case.state.rule)
    threshold = None if isinstance(rule, str) else rule.threshold
    return {
        "rule": name,
        "lr": None if isinstance(rule, str) else rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else float(top) / threshold,
        "ratio_error": None if threshold is None else float(residual) / threshold,
    }


def _preconditioned(case: Case, effort: Effort, memory: int) -> dict[str, Any] | None:
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
        "rule": formula(state.rule),
        "lr": state.rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else found.value / threshold,
    }


def _row(case: Case, step: int, effort: Effort, memory: int) -> dict[str, Any]:
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
