"""Hypotheses and conclusions, one function each from the evidence to a finding; and the verdict they give.

A new statement is a function here, its title in :mod:`lplr_cli.audit.findings` and its place in :data:`STATEMENTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from lplr_cli.audit.along import local_pl_along, rate_along, smooth_along
from lplr_cli.audit.entropy import law, lojasiewicz
from lplr_cli.audit.evidence import Evidence, Proof
from lplr_cli.audit.findings import Finding, Status, Verdict
from lplr_cli.certificate import AtRadius

# A product of two bounds, moved outwards by more than its rounding.
_OUTWARDS = 1 + 1e-12
VERIFIED, ESTIMATED, FAILS, UNKNOWN = Status.VERIFIED, Status.ESTIMATED, Status.FAILS, Status.UNKNOWN


def positivity(e: Evidence) -> Finding:
    """H1; of a checkpoint alone it speaks of that point."""
    found = _positive_at_start(e)
    return replace(found, reason=f"{found.reason}, at this checkpoint") if e.scope.no_path else found


def _positive_at_start(e: Evidence) -> Finding:
    if e.proof is not None and e.proof.certificate.lambda_0_lower > 0:
        low = e.proof.certificate.lambda_0_lower
        return _proved(e.proof, "H1", low, 0.0, f"λ0 ≥ {low:.4g} proved on all {e.proof.certificate.n:,} samples")
    if e.probes.table.empty:
        return Finding("H1", UNKNOWN, None, 0.0, _unmeasured(e) or "no NTK probe: see --offline-probe")
    first = e.probes.table.iloc[0]
    if int(first["step"]) != 0:
        return Finding("H1", UNKNOWN, None, 0.0, "no probe of the start")
    value = float(first["lambda_min"])
    if not e.probes.full:
        where = f"a subset of {int(first['probe_size']):,} samples"
        status = ESTIMATED if value > 0 else FAILS
        return Finding("H1", status, value, 0.0, f"λ_min = {value:.4g} on {where}, which can refute, not certify")
    return _positive_on_all(e, value, first.get("lambda_min_lower"), float(first["lambda_max"]), first["probe_size"])


def _positive_on_all(e: Evidence, value: float, lower: float | None, top: float, size: float) -> Finding:
    """H1 from a probe of all samples at the start."""
    # A bound above the value beside it is none that this program wrote.
    if lower is not None and 0 < lower <= value:
        status = VERIFIED if e.probes.own else ESTIMATED
        return Finding("H1", status, float(lower), 0.0, f"λ_min ≥ {lower:.4g} proved for the computed K on all samples")
    resolution = 10 * np.finfo(np.float64).eps * top * math.sqrt(float(size))
    if value > resolution:
        return Finding("H1", ESTIMATED, value, 0.0, f"λ_min = {value:.4g} on all samples, positivity not proved")
    why = f": {e.why_singular}" if e.why_singular else ""
    reason = f"λ_min = {value:.4g} on all samples is zero within rounding ({resolution:.1g}){why}"
    return Finding("H1", FAILS, value, 0.0, reason)


def lipschitz(e: Evidence) -> Finding:
    """H2."""
    at = _ball(e)
    if e.proof is not None and at is not None:
        return _proved(e.proof, "H2", at.l_k, None, f"L_K ≤ {at.l_k:.4g} proved on the ball R = {at.radius:.4g}")
    if e.estimates is not None and e.estimates.l_k is not None:
        reason = f"L_K ≥ {e.estimates.l_k:.4g} seen between probes; no bound: {e.no_proof}"
        return Finding("H2", ESTIMATED, e.estimates.l_k, None, reason)
    return Finding("H2", UNKNOWN, None, None, _unmeasured(e) or e.no_proof)


def _unmeasured(e: Evidence) -> str:
    """Why nothing is known of the network; empty where something is."""
    if e.proof is not None or not e.probes.table.empty:
        return ""
    return f"no probe, and no certificate ({e.no_proof}): see --offline-probe"


def compatibility(e: Evidence) -> Finding:
    """H3."""
    at = _ball(e)
    if e.proof is not None and at is not None:
        lam, product = e.proof.certificate.lambda_0_lower, at.l_k * at.radius
        if product * _OUTWARDS < lam:
            return _proved(e.proof, "H3", product, lam, f"L_K R ≤ {product:.4g} < {lam:.4g} ≤ λ0")
    c = e.estimates
    if c is None or c.compatible is None or c.l_k is None or c.radius is None or c.lambda_0 is None:
        reason = _unmeasured(e) or "no probes tell L_K and λ0"
        if e.proof is not None and at is not None:
            lam = e.proof.certificate.lambda_0_lower
            reason = f"undecided: the proved L_K R ≤ {at.l_k * at.radius:.4g} is not below λ0 ≥ {lam:.4g}"
        return Finding("H3", UNKNOWN, None, None, reason)
    product = c.l_k * c.radius
    if not c.compatible:
        reason = f"L_K R ≥ {product:.4g} against λ0 = {c.lambda_0:.4g}, with R = {c.radius:.4g} the drift of the run"
        return Finding("H3", FAILS, product, c.lambda_0, reason)
    reason = f"L_K R = {product:.4g} < λ0 = {c.lambda_0:.4g} with L_K from probes, which is one from below"
    return Finding("H3", ESTIMATED, product, c.lambda_0, reason)


def step_size(e: Evidence) -> Finding:
    """H4. The sharpness of the probes is that of the run's own loss."""
    if e.lr is None:
        return Finding("H4", UNKNOWN, None, 1.0, "the step size is not known")
    at = _ball(e)
    if e.proof is not None and e.proof.confirmed and not e.proof.why_not and at is not None and e.eta is not None:
        product = e.eta * at.beta
        if product <= 1:
            return Finding("H4", VERIFIED, product, 1.0, f"η β ≤ {product:.4g} with β proved on the ball")
    sharp = e.probes.sharpness
    if sharp is None:
        return Finding("H4", UNKNOWN, None, 1.0, _no_sharpness(e))
    product = e.lr * sharp
    # Sharpness at a point is a lower bound of β: above 1 it refutes, below it does not prove.
    if product > 1 + 1e-6:
        return Finding("H4", FAILS, product, 1.0, f"η·sharpness reaches {product:.4g}: η > 1/β")
    if e.eta is None:
        why = "which this is not" if e.scope.other_steps else f"and {e.scope.unknown_steps}"
        reason = (
            f"η·sharpness = {product:.4g} at the probes, but theory speaks of full-batch gradient descent with one "
            f"step size and no momentum, {why}"
        )
        return Finding("H4", UNKNOWN, product, 1.0, reason)
    return Finding("H4", ESTIMATED, product, 1.0, f"η·sharpness ≤ {product:.4g} at the probes")


def _no_sharpness(e: Evidence) -> str:
    if e.scope.unknown_loss and not e.probes.table.empty:
        return f"no sharpness: {e.scope.unknown_loss}"
    return _unmeasured(e) or "no probe measured the sharpness"


def containment(e: Evidence) -> Finding:
    """H5."""
    if e.proof is not None and e.proof.check.applies:
        return _contained(e.proof)
    top = e.drift
    if top is None:
        return Finding("H5", UNKNOWN, None, None, "the log has no drift")
    if e.proof is None:
        reason = f"R = {top:.4g} is the largest drift of the logged steps; no certified radius to compare it with"
        return Finding("H5", UNKNOWN, top, None, reason)
    radius = e.proof.certificate.radius_jacobian
    if top <= radius:
        reason = f"drift {top:.4g} of the logged steps ≤ certified radius {radius:.4g}"
        return Finding("H5", ESTIMATED, top, radius, reason)
    return Finding("H5", FAILS, top, radius, f"drift {top:.4g} exceeds the certified radius {radius:.4g}")


def _contained(proof: Proof) -> Finding:
    """H5 of a run that the theorem of containment speaks of."""
    check, radius = proof.check, proof.certificate.containment.at.radius
    if check.violations:
        return Finding("H5", FAILS, radius, None, f"{check.violations} logged steps break the certificate")
    if proof.dtype == "float64":
        reason = f"proved before the first step: every iterate stays within R = {radius:.4g}"
    else:
        reason = (
            f"proved for exact steps: every iterate stays within R = {radius:.4g}; "
            f"so do {check.steps:,} logged steps in {proof.dtype}"
        )
    return Finding("H5", VERIFIED, radius, None, reason)


def local_pl(e: Evidence) -> Finding:
    """C1."""
    lowest, star = _measured(e)
    if e.scope.unknown_loss:
        return Finding(
            "C1", UNKNOWN, star, 0.0, f"μ is not known, as {e.scope.unknown_loss}{_seen(e, star)}; see --loss"
        )
    at = _ball(e)
    if e.proof is not None and not e.proof.why_not and at is not None and at.mu_jacobian is not None:
        return _proved_pl(e.proof, at.mu_jacobian)
    mu = None if e.estimates is None else e.estimates.mu_kernel
    if mu is not None and mu > 0:
        if lowest is not None and lowest < mu * (1 - 1e-9):
            return Finding("C1", FAILS, lowest, mu, f"the PL ratio falls to {lowest:.4g}, below μ = {mu:.4g}")
        reason = f"μ = 2s(λ0 − L_K R) = {mu:.4g} with L_K from probes{_seen(e, star)}"
        return Finding("C1", ESTIMATED, mu, 0.0, reason)
    why = "does not follow, as H3 fails" if compatibility(e).holds is False else "μ is not known"
    return Finding("C1", UNKNOWN, star, 0.0, f"{why}{_seen(e, star)}")


def _proved_pl(proof: Proof, mu: float) -> Finding:
    """C1 with a certified μ; rows of the run inside the ball that contradict it win."""
    if proof.ratio.violations and proof.ratio.lowest is not None:
        reason = f"½‖∇L‖²/L falls to {proof.ratio.lowest:.4g} inside the ball, below the proved μ ≥ {mu:.4g}"
        return Finding("C1", FAILS, proof.ratio.lowest, mu, reason)
    return _proved(proof, "C1", mu, 0.0, f"μ ≥ {mu:.4g} proved on the ball of the run (Jacobian-Weyl)")


def _measured(e: Evidence) -> tuple[float | None, float | None]:
    """Smallest PL ratio and smallest with L* = 0; gradients of mini-batches are larger than those of L."""
    if e.ratio is None or e.exact is False:
        return None, None
    return e.ratio.pl_ratio.min, e.ratio.pl_ratio_star.min


def _seen(e: Evidence, star: float | None) -> str:
    if star is None:
        return ""
    where = "along the run" if e.exact else "where the rows of the log are of all data,"
    return f"; {where} ½‖∇L‖²/L is at least {star:.4g}"


def linear_rate(e: Evidence) -> Finding:
    """C2: fails only where the inequality itself is seen broken (theory.md section 12)."""
    if e.proof is not None and e.proof.check.applies:
        check = e.proof.check
        if check.violations:
            reason = f"{check.violations} of {check.steps:,} logged steps break the proved rate"
            return Finding("C2", FAILS, None, None, reason)
        return Finding("C2", VERIFIED, None, None, f"proved, and {check.steps:,} logged steps obey it")
    if e.rate is None:
        return Finding("C2", UNKNOWN, None, None, "too few rows to fit a rate")
    fit, lost = e.rate.fit, e.series.lost_from
    if lost is not None:
        return Finding("C2", UNKNOWN, None, None, f"the log ends without a finite loss, from step {lost:g} on")
    if fit.verdict in ("linear", "two_rate"):
        predicted = max(e.rate.theory.rates, default=None)
        beside = "" if predicted is None else f"; 1 − ημ = {predicted:.6g} with the smallest known μ"
        alone = f"; of the curve alone: {', '.join(e.scope.open)}" if e.scope.open else ""
        reason = f"linear, ρ = {fit.rate:.6g}, {fit.reason}{beside}{alone}"
        return Finding("C2", ESTIMATED, fit.rate, predicted, reason)
    if fit.verdict == "sublinear":
        reason = f"no linear rate is seen: sublinear, exponent {fit.alpha:.3g}, {fit.reason}"
        return Finding("C2", UNKNOWN, fit.alpha, None, reason)
    return Finding("C2", UNKNOWN, fit.rate, None, fit.about)


def _ball(e: Evidence) -> AtRadius | None:
    """What is proved on the ball of the run's drift."""
    return None if e.proof is None else e.proof.certificate.given


def _proved(proof: Proof, key: str, value: float, threshold: float | None, reason: str) -> Finding:
    """Verified, where the data of the proof are known to be those of the run."""
    if proof.confirmed:
        return Finding(key, VERIFIED, value, threshold, reason)
    why = proof.why_not or "nothing tells that the data named are those of the run"
    return Finding(key, ESTIMATED, value, threshold, f"{reason}, for the data named; {why}")


STATEMENTS: Mapping[str, Callable[[Evidence], Finding | None]] = {
    "H1": positivity,
    "H2": lipschitz,
    "H3": compatibility,
    "H4": step_size,
    "H5": containment,
    "C1": local_pl,
    "C2": linear_rate,
    "CE1": lojasiewicz,
    "CE2": law,
    "P1": smooth_along,
    "P2": local_pl_along,
    "P3": rate_along,
}


def findings_of(e: Evidence) -> tuple[Finding, ...]:
    """Every statement that is a matter of this run's loss; those that it cannot be asked are unknown for that."""
    refused = e.scope.not_asked
    found = (
        Finding(key, UNKNOWN, None, None, f"not asked: {refused[key]}") if key in refused else judge(e)
        for key, judge in STATEMENTS.items()
    )
    return tuple(f for f in found if f is not None)


def verdict_of(e: Evidence, findings: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Whether the run lies in a locally PL region by this theory, in one sentence.

    Args:
        e: the evidence.
        findings: the findings, by key.
    """
    if all(findings[key].status is VERIFIED for key in ("C1", "H1")):
        return Verdict.YES, f"certified: {findings['C1'].reason}"
    out_of_scope = e.scope.no_path or e.scope.no_network or e.scope.other_loss
    if out_of_scope:
        return Verdict.UNDETERMINED, out_of_scope
    return _by_estimates(findings)


def _by_estimates(findings: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """The verdict where no proof settles it."""
    failing = [findings[key] for key in ("H1", "H3", "C1") if findings[key].holds is False]
    if failing:
        return Verdict.NO, "; ".join(f"{f.key} fails: {f.reason}" for f in failing)
    needed = [findings[key] for key in ("H1", "H2", "H3", "C1")]
    if all(f.holds for f in needed):
        return Verdict.YES, "by estimates, not by proof: " + "; ".join(f"{f.key}: {f.reason}" for f in needed)
    open_ = [f.key for f in needed if f.holds is None]
    return Verdict.UNDETERMINED, f"{', '.join(open_)} cannot be decided from what is logged"
