"""Statements about cross-entropy with hard labels, whose law is another one than PL (docs/theory.md, section 14)."""

from __future__ import annotations

import math

import numpy as np

from lplr_cli.audit.evidence import Evidence
from lplr_cli.audit.findings import Finding, Status
from lplr_cli.diagnostics import numbers
from lplr_cli.runs import LARGEST_LOSS

# Exponents of a power law that count as 1.
_NEAR = (0.8, 1.25)


def lojasiewicz(e: Evidence) -> Finding | None:
    """CE1; None for other losses."""
    if not e.scope.entropy:
        return None
    measured = _smallest(e)
    if measured is None:
        return Finding("CE1", Status.UNKNOWN, None, None, "no gradient norms are logged")
    where = f"is {measured:.4g} here" if e.scope.no_path else f"is at least {measured:.4g} along the run"
    if e.exact is None:
        reason = f"½‖∇L‖²/L² {where}, where the rows of the log are of all data; c needs the network"
        return Finding("CE1", Status.UNKNOWN, measured, None, reason)
    seen = f"½‖∇L‖²/L² {where}"
    if not e.exact:
        return Finding("CE1", Status.UNKNOWN, measured, None, f"{seen}: an estimate, biased upward by noise, no bound")
    found = _constant(e)
    if isinstance(found, str):
        return Finding("CE1", Status.UNKNOWN, measured, None, f"{seen}; c is not known: {found}")
    c, how = found
    if measured < c * (1 - 1e-9):
        reason = f"{seen}, below c = {c:.4g} {how}: the data, the loss or the labels are others than named"
        return Finding("CE1", Status.FAILS, measured, c, reason)
    return Finding("CE1", Status.ESTIMATED, measured, c, f"{seen}; c = {c:.4g} {how}")


def law(e: Evidence) -> Finding | None:
    """CE2; None for other losses."""
    if not e.scope.entropy:
        return None
    if e.rate is None:
        return Finding("CE2", Status.UNKNOWN, None, 1.0, "too few rows to fit a law")
    fit, lost = e.rate.fit, e.series.lost_from
    if lost is not None:
        return Finding("CE2", Status.UNKNOWN, None, 1.0, f"the log ends without a finite loss, from step {lost:g} on")
    about = f"; expected of gradient descent, and {e.scope.other_steps_short}" if e.scope.other_steps_short else ""
    if fit.verdict != "sublinear" or fit.alpha is None:
        return Finding("CE2", Status.UNKNOWN, fit.rate, 1.0, f"{fit.about}{about}")
    near = _NEAR[0] <= fit.alpha <= _NEAR[1] or (fit.alpha_low or 0.0) <= 1 <= (fit.alpha_high or math.inf)
    reason = f"sublinear, exponent {fit.alpha:.3g}, {fit.reason}{about}"
    return Finding("CE2", Status.ESTIMATED if near else Status.UNKNOWN, fit.alpha, 1.0, reason)


def _smallest(e: Evidence) -> float | None:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ratio = 0.5 * e.series.grad_norm_sq / e.series.loss**2
    known = ratio[np.isfinite(ratio)]
    return float(known.min()) if len(known) else None


def _constant(e: Evidence) -> tuple[float, str] | str:
    """c = ½ λ_min κ ((1 − e^{−M})/M)² from the probes and how, or why not."""
    table = e.probes.table
    if table.empty or LARGEST_LOSS not in table:
        return "no probe tells λ_min and the largest loss of a sample with hard labels"
    if not e.probes.full:
        return "the probes take a subset of the samples"
    low, top = float(numbers(table["lambda_min"]).min()), float(numbers(table[LARGEST_LOSS]).max())
    if not math.isfinite(top):
        return "the labels are not hard"
    if not low > 0:
        return f"λ_min = {low:.4g} at a probe"
    assert e.manifest is not None
    outputs = e.manifest.data.outputs or 1
    kappa = outputs / max(outputs - 1, 1) if e.manifest.loss.name == "cross-entropy" else 1 / outputs
    share = -math.expm1(-top) / top if top > 0 else 1.0
    return 0.5 * low * kappa * share**2, f"with λ_min ≥ {low:.3g} and samples' losses up to {top:.3g} at the probes"
