"""Statements along the path of the run itself (docs/theory.md, section 9), and the verdict that they give."""

from __future__ import annotations

from dataclasses import dataclass

from lplr_cli.analysis import PathFigures
from lplr_cli.audit.evidence import Evidence
from lplr_cli.audit.findings import Finding, Status, Verdict

_NONE = "no certificate along the path is kept: lplr certify RUN --path"
# A rate that is proved from here on, as a part of the run, is one of the run.
_EARLY = 0.1


@dataclass(frozen=True)
class Along:
    """Whether the run lies in a locally PL region around its own path.

    Attributes:
        verdict: ``yes``, ``no`` or ``undetermined``.
        explanation: one sentence.
        kind: ``certified``, ``estimate``, or None where nothing is known.
        mu, mu_star: on that region, relative to its infimum and with L* = 0.
        share: part of the path's length inside.
    """

    verdict: Verdict
    explanation: str
    kind: str | None = None
    mu: float | None = None
    mu_star: float | None = None
    share: float | None = None


def _nothing(e: Evidence) -> str:
    """Why there is no certificate along the path, with what to do."""
    return e.why_no_path or _NONE


def smooth_along(e: Evidence) -> Finding:
    """P1."""
    p = e.path
    if p is None or p.eta_beta_max is None:
        return Finding(
            "P1", Status.UNKNOWN, None, 2.0, _nothing(e) if p is None else p.rate_reason or "no step size is known"
        )
    if p.eta_beta_max < 2:
        return Finding("P1", _status(p), p.eta_beta_max, 2.0, f"η β ≤ {p.eta_beta_max:.4g} on every step")
    beyond = sum(1 for step in p.not_certified if "eta beta" in str(step.get("reason")))
    reason = (
        f"η β ≤ {p.eta_beta_max:.4g}; not below 2 on {beyond:,} of {p.steps:,} steps, which are the edge of the proof"
    )
    return Finding("P1", Status.UNKNOWN, p.eta_beta_max, 2.0, reason)


def local_pl_along(e: Evidence) -> Finding:
    """P2."""
    p = e.path
    if p is None:
        return Finding("P2", Status.UNKNOWN, None, 0.0, _nothing(e))
    mu = p.mu_path if p.certified else p.mu_path_estimated
    if mu is None:
        return Finding("P2", Status.UNKNOWN, None, 0.0, "no step of the path has a region")
    if p.share < 1:
        reason = (
            f"μ ≥ {mu:.4g} on {100 * p.share:.3g} % of the path; {len(p.not_certified):,} steps are named by certify"
        )
        return Finding("P2", Status.UNKNOWN, mu, 0.0, reason)
    reason = f"μ ≥ {mu:.4g} within {p.radius:.2g} of the whole path, measured {p.measured or 0.0:.4g}"
    return Finding("P2", _status(p), mu, 0.0, reason + _doubt(p))


def rate_along(e: Evidence) -> Finding:
    """P3."""
    p = e.path
    if p is None:
        return Finding("P3", Status.UNKNOWN, None, 1.0, _nothing(e))
    rate = p.rate_proved if p.certified else p.rate_estimated
    if rate is None or p.rate_from_step is None:
        return Finding("P3", Status.UNKNOWN, None, 1.0, p.rate_reason or "not proved")
    reason = f"L − L* shrinks by {rate:.8g} or more at every step from step {p.rate_from_step} on; {p.evidence}"
    if p.rate_from_step > _EARLY * p.steps + 2:
        return Finding("P3", Status.UNKNOWN, rate, 1.0, reason)
    return Finding("P3", _status(p), rate, 1.0, reason + _doubt(p))


def along_of(e: Evidence, finding: Finding) -> Along:
    """The verdict along the run, from P2."""
    p = e.path
    if p is None:
        return Along(Verdict.UNDETERMINED, e.scope.no_path or e.scope.no_network or _nothing(e))
    mu, star = (p.mu_path, p.mu_path_star) if p.certified else (p.mu_path_estimated, p.mu_path_star_estimated)
    figures = (p.kind, mu, star, p.share)
    if finding.status is Status.VERIFIED:
        return Along(Verdict.YES, f"certified, as kept by the run: {finding.reason}", *figures)
    if finding.status is Status.ESTIMATED:
        return Along(Verdict.YES, f"by an estimate, not by proof: {finding.reason}", *figures)
    return Along(Verdict.UNDETERMINED, finding.reason, *figures)


def _status(p: PathFigures) -> Status:
    return Status.VERIFIED if p.certified and p.confirmed else Status.ESTIMATED


def _doubt(p: PathFigures) -> str:
    """Why a proof is one of another path than the run's."""
    return "" if p.confirmed or not p.certified else f"; {p.agreement}"
