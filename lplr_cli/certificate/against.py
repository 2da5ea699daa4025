"""A run held against the certificate of its start: the one place that says whether a certificate speaks of a run.

A certificate is for L = (1/n) ||r||². A run of the loss (s/n) ||r||² is held against the certificate in its own units
(:func:`scaled`, theory.md section 12); a run of another loss, or of one that is not known, is not held against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lplr_cli.certificate.certify import AtRadius, Certificate, Containment, verdict_of

# Of √L_t and drifts, relative to √L_0 and R: the theorem speaks of exact steps, the run rounded each of them.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
# Of √L_0 in the log against that of the certificate: beyond it they are of different losses, data or parameters.
_SAME_START = {"float64": 1e-6, "float32": 1e-3}
_OUTWARDS = 1e-12


@dataclass(frozen=True)
class Trajectory:
    """A run from θ_0 as it was logged, with what is known of it; NaN where a row has no value.

    Attributes:
        steps, loss, drift, grad_norm_sq, lr: by logged row, shape (T,).
        scale: s of the squared loss L = (s/n) ||r||²; None for another loss, or an unknown one.
        loss_label: the loss, for a sentence.
        exact: whether losses and gradient norms are those of all data.
        eta: step size of plain full-batch gradient descent, else None.
        why_no_eta: what the run is instead, or what is not known.
        dtype: of training.
        data_known: whether the data of the certificate are by their fingerprint those of the run.
        diverged: whether the run ended so.
    """

    steps: NDArray[np.float64]
    loss: NDArray[np.float64]
    drift: NDArray[np.float64]
    grad_norm_sq: NDArray[np.float64]
    lr: NDArray[np.float64]
    scale: float | None
    loss_label: str
    exact: bool
    eta: float | None
    why_no_eta: str
    dtype: str | None
    data_known: bool
    diverged: bool

    @classmethod
    def of_descent(
        cls,
        loss: Sequence[float],
        drift: Sequence[float],
        eta: float,
        *,
        scale: float = 1.0,
        dtype: str = "float64",
    ) -> Trajectory:
        """Of plain full-batch gradient descent with step η on (s/n) ||r||², every step of it, on known data.

        Args:
            loss: L_t.
            drift: ||θ_t − θ_0||.
            eta: η.
            scale: s.
            dtype: of the steps.
        """

        def column(values: ArrayLike) -> NDArray[np.float64]:
            return np.asarray(values, dtype=np.float64)

        nothing = np.full(len(loss), np.nan)
        return cls(
            column(range(len(loss))),
            column(loss),
            column(drift),
            nothing,
            nothing,
            scale,
            f"squared loss, s = {scale:g}",
            True,
            eta,
            "",
            dtype,
            True,
            False,
        )


@dataclass(frozen=True)
class RunCheck:
    """A run held against a containment certificate; None where nothing can be said.

    Attributes:
        applies: whether the certificate speaks of this run at all (full-batch GD, η ≤ 1/β, containment proved).
        reason: why not, or what was checked.
        steps: logged steps that were compared.
        violations: steps outside the ball or above (1 - ημ)^t L_0; not 0 would refute the implementation.
    """

    applies: bool
    reason: str
    steps: int
    violations: int


@dataclass(frozen=True)
class RatioCheck:
    """½||∇L||²/L along a run against a μ that is proved on a ball (with L* = 0).

    Attributes:
        rows: logged rows inside the ball with exact loss and gradient norm.
        lowest: their smallest ratio; None without rows.
        violations: rows below μ, beyond the tolerance of the dtype.
    """

    rows: int
    lowest: float | None
    violations: int


def scaled(certificate: Certificate, scale: float) -> Certificate:
    """The same certificate for L = (s/n) ||r||²: μ and β times s, η divided by s, √L_0 times √s (theory.md 12).

    What speaks of the network alone (λ_0, L_J, L_K, radii) stays.

    Args:
        certificate: for s = 1.
        scale: s > 0.
    """
    if scale == 1:
        return certificate

    def ball(at: AtRadius) -> AtRadius:
        kernel, jacobian = (None if mu is None else rounded_down(scale * mu) for mu in (at.mu_kernel, at.mu_jacobian))
        return replace(at, mu_kernel=kernel, mu_jacobian=jacobian, beta=rounded_up(scale * at.beta))

    c = certificate.containment
    contained = Containment(c.holds, c.reach, ball(c.at), c.step_fraction, rounded_down(c.eta_max / scale))
    return replace(
        certificate,
        sqrt_loss_upper=rounded_up(math.sqrt(scale) * certificate.sqrt_loss_upper),
        given=None if certificate.given is None else ball(certificate.given),
        containment=contained,
        verdict=verdict_of(certificate.sigma_0_lower, certificate.radius_jacobian, contained),
    )


def own_certificate(certificate: Certificate, run: Trajectory) -> Certificate:
    """What the certificate proves for the loss of this run: all of it in units of s, or of the network alone.

    Without a loss that it speaks of there is no μ, no β and no containment; λ_0, L_J, L_K and the radii, on which
    λ_min(K) > 0 is proved, stay.

    Args:
        certificate: for s = 1, at the run's θ_0.
        run: from there.
    """
    why = why_not_of(certificate, run)
    if not why and run.scale is not None:
        return scaled(certificate, run.scale)

    def ball(at: AtRadius) -> AtRadius:
        return replace(at, mu_kernel=None, mu_jacobian=None, beta=math.nan)

    return replace(
        certificate,
        sqrt_loss_upper=math.nan,
        given=None if certificate.given is None else ball(certificate.given),
        containment=Containment(False, 0.0, ball(certificate.containment.at), 0.0, 0.0),
        verdict=f"no certificate of the loss: {why}",
    )


def why_not_of(certificate: Certificate, run: Trajectory) -> str:
    """Why what is certified of the loss does not speak of this run; empty where it does.

    It does where the loss is a squared one of known scale, and the data are those of the run: by their fingerprint,
    and by the loss of the start, where that was logged.

    Args:
        certificate: for s = 1, at the run's θ_0.
        run: from there.
    """
    if run.scale is None:
        return f"the theorem speaks of the squared loss with a known scale, this run has {run.loss_label}"
    start = _start(run)
    if start is None:
        return "" if run.data_known else "nothing tells that the data named are those of the run"
    if run.dtype not in _SAME_START:
        return "" if run.data_known else f"a loss in {run.dtype or 'an unknown dtype'} does not tell the data"
    expected = scaled(certificate, run.scale).sqrt_loss_upper
    if not abs(math.sqrt(max(start, 0.0)) - expected) <= _SAME_START[run.dtype] * max(expected, 1e-12):
        return (
            f"the log begins with a loss of {start:.6g}, network and data give {expected**2:.6g}: "
            "loss, scale, data or start are others"
        )
    return ""


def data_confirmed(certificate: Certificate, run: Trajectory) -> bool:
    """Whether fingerprint or first loss tell that the certificate is on the data of the run."""
    if run.scale is not None and _start(run) is not None and run.dtype in _SAME_START:
        return not why_not_of(certificate, run)
    return run.data_known


def _start(run: Trajectory) -> float | None:
    """The exact loss that was logged at θ_0."""
    first = run.loss[(run.steps == 0) & np.isfinite(run.loss)]
    return float(first[0]) if run.exact and len(first) else None


def check_run(certificate: Certificate, run: Trajectory) -> RunCheck:
    """Compare every logged step of a run from θ_0 with what containment promises (theory.md section 4).

    Args:
        certificate: at θ_0, for s = 1.
        run: from there.
    """
    why = _why_not_contained(certificate, run)
    if why:
        return RunCheck(False, why, 0, 0)
    assert run.eta is not None
    assert run.scale is not None
    assert run.dtype is not None
    own, tolerance = scaled(certificate, run.scale), TOLERANCE[run.dtype]
    at, top = own.containment.at, own.sqrt_loss_upper
    assert at.mu_jacobian is not None
    known = np.isfinite(run.drift) & ~np.isnan(run.loss)
    if not known.any():
        return RunCheck(False, "no logged row has both loss and drift", 0, 0)
    # A squared loss below zero is none.
    root = np.sqrt(np.where(run.loss < 0, np.inf, run.loss)[known])
    factor = math.sqrt(max(0.0, 1 - run.eta * at.mu_jacobian))
    outside = run.drift[known] > at.radius * (1 + tolerance)
    above = root > top * (factor ** run.steps[known] + tolerance)
    reason = "every logged step against R and (1 − ημ)^t L_0"
    return RunCheck(True, reason, int(known.sum()), int((outside | above).sum()))


def _why_not_contained(certificate: Certificate, run: Trajectory) -> str:
    """Why the theorem of containment does not speak of this run; empty where it does."""
    c = certificate.containment
    if not c.holds or c.at.mu_jacobian is None:
        return "containment is not proved"
    if run.eta is None:
        return "the theorem speaks of full-batch gradient descent with a constant step" + (
            f", and {run.why_no_eta}" if run.why_no_eta else ""
        )
    if not run.exact:
        return "the logged losses are those of mini-batches"
    why = why_not_of(certificate, run)
    if why:
        return why
    if run.dtype not in TOLERANCE:
        return f"no tolerance is stated for steps in {run.dtype or 'an unknown dtype'}"
    logged = run.lr[np.isfinite(run.lr)]
    if len(logged) and not np.allclose(logged, run.eta, rtol=1e-9, atol=0):
        return f"the log has step sizes from {logged.min():.6g} to {logged.max():.6g}, not {run.eta:.6g}"
    assert run.scale is not None
    limit = scaled(certificate, run.scale).containment.eta_max
    if run.eta > limit:
        return f"the step {run.eta:.4g} is above the {limit:.4g} that is proved"
    return "the run diverged" if run.diverged else ""


def check_ratio(certificate: Certificate, run: Trajectory) -> RatioCheck:
    """Compare ½||∇L||²/L of the logged rows with μ on the ball that was given (C1, theory.md section 3).

    Only in float64, and where √L is above a thousandth of its start: below, rounding of the residual shows in ratios.

    Args:
        certificate: at θ_0, for s = 1, with ``given``.
        run: a run that it speaks of, see :func:`why_not_of`.
    """
    if certificate.given is None or run.scale is None or not run.exact or run.dtype != "float64":
        return RatioCheck(0, None, 0)
    own = scaled(certificate, run.scale)
    at = own.given
    assert at is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 0.5 * run.grad_norm_sq / run.loss
    told = np.isfinite(ratio) & (run.drift <= at.radius) & (run.loss > 1e-6 * own.sqrt_loss_upper**2)
    if not told.any():
        return RatioCheck(0, None, 0)
    floor = 0.0 if at.mu_jacobian is None else at.mu_jacobian * (1 - 1e-6)
    return RatioCheck(int(told.sum()), float(ratio[told].min()), int((ratio[told] < floor).sum()))


def rounded_up(value: float) -> float:
    return value + abs(value) * _OUTWARDS


def rounded_down(value: float) -> float:
    return value - abs(value) * _OUTWARDS
