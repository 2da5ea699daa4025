"""The Hessian of the loss at a checkpoint, and along the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.analysis.case import Case, open_case
from lplr_cli.analysis.hessian import HessianProbe, HessianSeries, KernelTie, Stability, curve
from lplr_cli.analysis.step_rule import formula, rule_name, rule_of_run
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.curvature import (
    Effort,
    LossCurvature,
    PerSample,
    Survey,
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
from lplr_cli.runs import RunDirectory

_AS_ADAM = "Adam steps against the curvature that it sees itself"


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
    surveyed = survey(case.network, case.inputs, case.targets, case.loss, effort=effort, memory=memory, report=report)
    return HessianProbe(
        checkpoint=case.subject.path,
        step=case.subject.step,
        assumptions=tuple(case.subject.assumptions),
        loss=case.loss_name,
        samples=case.subject.dataset.n,
        dtype=dtype,
        survey=surveyed,
        kernel=_kernel_tie(case, surveyed, memory),
        preconditioned=_preconditioned(case, effort or Effort(), memory),
        stability=_stability(case, float(surveyed.extremes.high[-1]), float(surveyed.extremes.high_residuals[-1])),
        density=curve(surveyed.density),
    )


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
    return HessianSeries(
        run=run.path,
        assumptions=tuple(case.subject.assumptions),
        loss=case.loss_name,
        samples=case.subject.dataset.n,
        n=len(case.inputs),
        parameters=case.network.parameter_count,
        dtype=dtype,
        every=every,
        rule=rule_name(run),
        table=pd.DataFrame(rows),
    )


def _kernel_tie(case: Case, surveyed: Survey, memory: int) -> KernelTie | None:
    """2s λ_max(K) beside λ_max(G), from other products: they agree for the squared loss, up to the residuals."""
    if not isinstance(case.loss, Loss) or case.loss.name != "squared" or surveyed.parts is None:
        return None
    products = NTKOperator(case.network, case.inputs, budget=memory // 2)
    start = np.random.default_rng(0).standard_normal(products.shape[0])
    ritz: Ritz = lanczos(products.matvec, start, tolerance=1e-6, low_too=False, steps=100)
    value = 2 * case.loss.scale * float(ritz.high[-1])
    top = float(surveyed.parts.gauss_newton.high[-1])
    return KernelTie(value, abs(value - top) / max(abs(top), 1e-300))


def _stability(case: Case, top: float, residual: float) -> Stability:
    """λ_max beside the threshold of the run's optimiser, or of the file's."""
    rule = rule_of_run(case.run, case.subject.step)
    name = rule_name(case.run)
    if case.run is None:
        name = f"unknown: {case.state if isinstance(case.state, str) else _AS_ADAM}"
    if isinstance(rule, str) and not isinstance(case.state, str) and not case.state.rule.adaptive:
        rule, name = case.state.rule, formula(case.state.rule)
    if isinstance(rule, str):
        return Stability(top, residual, name, None, None)
    return Stability(top, residual, name, rule.lr, rule.threshold)


def _preconditioned(case: Case, effort: Effort, memory: int) -> Stability | None:
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
    return Stability(found.value, found.residual, formula(state.rule), state.rule.lr, state.rule.threshold)


def _row(case: Case, step: int, effort: Effort, memory: int) -> dict[str, Any]:
    network = case.subject.network(case.network.dtype, case.network.device)
    # All eigenvalues that were asked for: one alone at the low end would stop among those near zero.
    spare = replace(effort, trace_vectors=0, density_vectors=0)
    surveyed = survey(network, case.inputs, case.targets, case.loss, effort=spare, memory=memory)
    rule = rule_of_run(case.run, step)
    threshold = None if isinstance(rule, str) else rule.threshold
    top = float(surveyed.extremes.high[-1])
    return {
        "step": step,
        "loss": surveyed.loss,
        "grad_norm_sq": surveyed.gradient_norm_sq,
        "sharpness": top,
        "sharpness_residual": float(surveyed.extremes.high_residuals[-1]),
        "lambda_min": float(surveyed.extremes.low[0]),
        "lambda_min_residual": float(surveyed.extremes.low_residuals[0]),
        "gauss_newton": None if surveyed.parts is None else float(surveyed.parts.gauss_newton.high[-1]),
        "rest": None if surveyed.parts is None else norm(surveyed.parts.rest),
        "lr": None if isinstance(rule, str) else rule.lr,
        "threshold": threshold,
        "ratio": None if threshold is None else top / threshold,
        "products": surveyed.products,
    }
