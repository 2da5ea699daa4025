"""Theorems 9.3 and 9.4 of docs/theory.md, put together from the pieces of a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lplr_cli.certificate.pieces import Array, Piece, Pieces

# The part of the least gradient that the tube around the path may cost.
TUBE = 1 / 50
# Below this Σ η μ a rate is no evidence against a 1/t law (docs/theory.md, section 9, "What it is not").
EVIDENCE = 3.0
# How the reason of a step begins that is in D and whose descent is not proved.
INSIDE = "in the region"
_UP, _DOWN = 1 + 1e-12, 1 - 1e-12
# Pieces whose intervals are in memory at once.
BLOCK = 1024


@dataclass(frozen=True)
class Descent:
    """A step of plain gradient descent as it was made.

    Attributes:
        step: t.
        lr: η.
        error: ||θ_{t+1} − θ_t + η ∇L̂(θ_t)||, rounded upwards, with the gradient as computed.
        square: ||∇L̂(θ_t)||².
    """

    step: int
    lr: float
    error: float
    square: float


@dataclass(frozen=True)
class Lost:
    """A step that no ball was put on."""

    step: int
    length: float
    reason: str


@dataclass(frozen=True)
class StepRow:
    """One step, by the worst of its pieces.

    Attributes:
        step: from θ_step to the next iterate.
        certified: whether all its pieces are in D.
        mu, mu_star: smallest μ_k, relative to the lower bound of L*_D and to 0; 0 outside D.
        beta: largest β; infinite where no ball was put on it.
        eta_beta: η β for gradient descent.
        factor: L − L*_D shrinks by this factor or more; None where that is not proved.
        length: ||θ_{t+1} − θ_t||.
        pieces: how many.
        reason: why it is outside D, or inside without a factor; empty where all is proved.
    """

    step: int
    certified: bool
    mu: float
    mu_star: float
    beta: float
    eta_beta: float | None
    factor: float | None
    length: float
    pieces: int
    reason: str


@dataclass(frozen=True)
class Region:
    """D = every point within ``radius`` of a certified piece of the path, and what is proved there.

    Attributes:
        kind: ``certified`` or ``estimate``, as the bounds of the curvature are.
        certified_share: part of the path's length that lies in D.
        length: of the path, from the first to the last node.
        first_step, last_step: the first and the last iterate in D; None where D is empty.
        steps, steps_certified: steps walked, and those all of whose pieces are in D.
        radius: ρ; None where D is empty.
        mu: μ_path: ½||∇L||² ≥ μ (L − L*_D) on D; None where D is empty.
        mu_star: the same with 0 in the place of L*_D.
        l_star_lower, l_star_upper: bracket of L*_D, the infimum over D.
        beta_max: largest β over D.
        eta_beta_max: largest η β over the steps of gradient descent.
        rate: largest factor 1 − 2ημ(1 − ηβ/2 − rounding) from ``rate_from_step`` to the end.
        rate_from_step: L − L*_D shrinks by ``rate`` or more at every step from this one on.
        rate_reason: why there is no rate; empty where there is one.
        eta_mu_t: Σ η μ over the steps of gradient descent in D.
        pieces, balls: how many were used.
        measured, measured_star: smallest ratios at the nodes, relative to the lower bound of L*_D and to 0.
        rows: one a step.
    """

    kind: str
    certified_share: float
    length: float
    first_step: int | None
    last_step: int | None
    steps: int
    steps_certified: int
    radius: float | None
    mu: float | None
    mu_star: float | None
    l_star_lower: float | None
    l_star_upper: float | None
    beta_max: float | None
    eta_beta_max: float | None
    rate: float | None
    rate_from_step: int | None
    rate_reason: str
    eta_mu_t: float | None
    pieces: int
    balls: int
    measured: float | None
    measured_star: float | None
    rows: tuple[StepRow, ...]

    @property
    def not_certified(self) -> list[tuple[int, str]]:
        """Steps that lie outside D, or inside without proved descent, with the reason."""
        return [(row.step, row.reason) for row in self.rows if row.reason]


@dataclass(frozen=True)
class _Bounds:
    """What holds for each piece with one ρ for all."""

    radius: float
    inside: NDArray[np.bool_]
    floor: float
    above: float
    mu: Array
    mu_star: Array


def assemble(
    kind: str,
    found: Sequence[Piece],
    descents: Sequence[Descent],
    lost: Sequence[Lost],
    nodes: Array,
    *,
    radius: float | None,
    balls: int,
    steps: int,
) -> Region:
    """The region of these pieces.

    Args:
        kind: of their curvature.
        found: pieces in the order of the path.
        descents: steps of gradient descent; empty for other optimisers.
        lost: steps without pieces.
        nodes: L and ||∇L||² of every node, (2, nodes).
        radius: ρ; by default the smallest that spends :data:`TUBE` of the least gradient on some piece.
        balls: used.
        steps: walked.
    """
    bounds = _bounds(found, radius)
    rows = _rows(found, bounds, descents, lost)
    rate, first, reason = proved_rate(rows, bool(descents))
    eta_beta = [row.eta_beta for row in rows if row.eta_beta is not None and math.isfinite(row.eta_beta)]
    outside = Region(
        kind=kind,
        certified_share=0.0,
        length=math.fsum(row.length for row in rows),
        first_step=None,
        last_step=None,
        steps=steps,
        steps_certified=0,
        radius=None,
        mu=None,
        mu_star=None,
        l_star_lower=None,
        l_star_upper=None,
        beta_max=None,
        eta_beta_max=max(eta_beta, default=None),
        rate=rate,
        rate_from_step=first,
        rate_reason=reason,
        eta_mu_t=None,
        pieces=len(found),
        balls=balls,
        measured=measured_ratio(nodes, bounds.floor),
        measured_star=measured_ratio(nodes, 0.0),
        rows=rows,
    )
    return _inside(outside, found, bounds, descents) if bounds.inside.any() else outside


def _inside(region: Region, found: Sequence[Piece], bounds: _Bounds, descents: Sequence[Descent]) -> Region:
    """What is known of D, where it is not empty."""
    certified = [p for p, ok in zip(found, bounds.inside, strict=True) if ok]
    inside = [row for row in region.rows if row.certified]
    whole = len(inside) == len(region.rows)
    mu = float(bounds.mu[bounds.inside].min())
    eta = {d.step: d.lr for d in descents}
    return replace(
        region,
        certified_share=1.0 if whole else min(1.0, math.fsum(p.length for p in certified) / region.length),
        first_step=certified[0].step,
        last_step=certified[-1].step + 1,
        steps_certified=len(inside),
        radius=bounds.radius,
        mu=mu,
        mu_star=float(bounds.mu_star[bounds.inside].min()),
        l_star_lower=bounds.floor,
        l_star_upper=bounds.above,
        beta_max=max(p.smoothness.beta for p in certified),
        eta_mu_t=math.fsum(eta.get(row.step, 0.0) * mu for row in inside) if descents else None,
    )


def measured_ratio(nodes: Array, floor: float) -> float | None:
    loss, square = nodes
    known = (loss > floor) & np.isfinite(square)
    return float((square[known] / (2 * (loss[known] - floor))).min()) if known.any() else None


def _each(found: Sequence[Piece], of: Callable[[Pieces], Array]) -> Array:
    """A figure of every piece, in memory that does not grow with their number but for the figures."""
    blocks = [of(Pieces(found[k : k + BLOCK])) for k in range(0, len(found), BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _bounds(found: Sequence[Piece], radius: float | None) -> _Bounds:
    possible = _each(found, lambda pieces: _positive(pieces, 0.0)) > 0
    if radius is None:
        shares = _each(found, lambda pieces: pieces.share(TUBE))[possible]
        radius = float(shares.min()) if len(shares) else 0.0
    rho = radius
    inside = possible & (_each(found, lambda pieces: _positive(pieces, rho)) > 0)
    below = _each(found, lambda pieces: pieces.loss_below(rho))[inside]
    floor = max(0.0, float(below.min())) if inside.any() else 0.0
    above = _each(found, lambda pieces: pieces.lowest_seen(rho))[inside]
    return _Bounds(
        rho,
        inside,
        floor,
        float(above.min()) if inside.any() else math.inf,
        _each(found, lambda pieces: pieces.mu(rho, floor)),
        _each(found, lambda pieces: pieces.mu(rho, 0.0)),
    )


def _positive(pieces: Pieces, radius: float) -> Array:
    """1 where the gradient is positive and the loss finite on the whole piece, else 0."""
    positive = (pieces.gradient(radius).min(axis=1) > 0) & np.isfinite(pieces.loss_above(radius)).all(axis=1)
    inside: Array = positive.astype(np.float64)
    return inside


def _rows(
    found: Sequence[Piece], bounds: _Bounds, descents: Sequence[Descent], lost: Sequence[Lost]
) -> tuple[StepRow, ...]:
    groups: dict[int, list[int]] = {}
    for k, piece in enumerate(found):
        groups.setdefault(piece.step, []).append(k)
    by_step = {d.step: d for d in descents}
    rows = [
        StepRow(gap.step, False, 0.0, 0.0, math.inf, None, None, gap.length, 0, gap.reason)
        for gap in lost
        if gap.step not in groups
    ]
    least = float(bounds.mu[bounds.inside].min()) if bounds.inside.any() else 0.0
    for step, members in groups.items():
        own = [found[k] for k in members]
        inside = bool(bounds.inside[members].all())
        beta = max(p.smoothness.beta for p in own)
        descent = by_step.get(step)
        eta_beta = None if descent is None else descent.lr * beta * _UP
        factor = None if descent is None or not inside else contraction(descent, beta, own[0], least)
        rows.append(
            StepRow(
                step,
                inside,
                float(bounds.mu[members].min()) if inside else 0.0,
                float(bounds.mu_star[members].min()) if inside else 0.0,
                beta,
                eta_beta,
                factor,
                math.fsum(p.length for p in own),
                len(own),
                _reason(inside, beta, eta_beta, factor),
            )
        )
    return tuple(sorted(rows, key=lambda row: row.step))


def _reason(inside: bool, beta: float, eta_beta: float | None, factor: float | None) -> str:
    if not inside and not math.isfinite(beta):
        return "no finite bound of the curvature around it"
    if not inside:
        return "its segment may pass a critical point: the bound of the gradient is not positive"
    if eta_beta is not None and eta_beta >= 2:
        return f"{INSIDE}, but descent is not proved: eta beta = {eta_beta:.3g}, which is not below 2"
    if eta_beta is not None and factor is None:
        return f"{INSIDE}, but the rounding of the step hides its descent"
    return ""


def contraction(descent: Descent, beta: float, first: Piece, mu: float) -> float | None:
    """1 − 2ημ(1 − ηβ/2 − rounding) of Theorem 9.4, rounded upwards; None where it is not below 1."""
    eta = descent.lr
    wrong = first.smoothness.gradient_error
    least = math.sqrt(descent.square) * (1 - first.dot_error) * _DOWN - wrong
    if least <= 0 or eta <= 0:
        return None
    error = (descent.error + eta * wrong) * _UP
    rounding = error * (1 + eta * beta) / (eta * least) + beta * error**2 / (2 * eta * least**2)
    gain = 1 - (eta * beta / 2 + rounding) * _UP
    factor = 1 - 2 * eta * mu * gain * _DOWN
    return factor + 2**-52 if gain > 0 and mu > 0 and factor + 2**-52 < 1 else None


def proved_rate(rows: Sequence[StepRow], descends: bool) -> tuple[float | None, int | None, str]:
    """The largest factor over the longest tail of steps that all have one."""
    if not descends:
        return None, None, "the theorem is for gradient descent without momentum; the region holds for any path"
    tail = []
    for row in reversed(rows):
        if row.factor is None:
            break
        tail.append(row)
    if not tail:
        return None, None, f"step {rows[-1].step}: {rows[-1].reason}" if rows else "no step"
    return max(row.factor for row in tail if row.factor is not None), tail[-1].step, ""
