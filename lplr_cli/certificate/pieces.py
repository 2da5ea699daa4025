"""Lemmas A to C of docs/theory.md, section 9, for many pieces of a path at once, with every rounding outwards.

A piece is the segment from a node p to the next one p + σ, in a ball on which −α ≤ ∇²L ≤ β. The parameter τ of the
nearest point of the segment runs over [0, 1], which is cut into intervals; on each of them the gradient norm is bounded
from below and the loss from above and below, so that the minimum over τ is a bound and no sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
INTERVALS = 128
# Relative margin of the few dozen floating-point operations behind each result, far above their rounding.
_MARGIN = 1e-12


def _silent() -> np.errstate:
    """Where nothing is proved bounds are infinite, and what comes of them may be NaN, which proves nothing either."""
    return np.errstate(divide="ignore", invalid="ignore", over="ignore")


@dataclass(frozen=True, slots=True)
class Smoothness:
    """What is known of the loss on one ball.

    Attributes:
        beta: ∇²L ≤ β.
        alpha: −α ≤ ∇²L, and the part of ∇²L beside the Gauss-Newton matrix has norm at most α.
        gauss_newton: Lipschitz constant of the Gauss-Newton part; infinite where it is not known.
        rest: Lipschitz constant of the other part; infinite where it is not known.
        loss_error: |L̂ − L| of a loss as computed.
        gradient_error: ||∇L̂ − ∇L|| of a gradient as computed.
    """

    beta: float
    alpha: float
    gauss_newton: float = math.inf
    rest: float = math.inf
    loss_error: float = 0.0
    gradient_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment with the inner products that the lemmas need, of vectors as computed.

    Attributes:
        step: of the optimiser that made the segment, or a part of it.
        length: d = ||σ||, rounded upwards.
        start, end: ||∇L||² at the two nodes.
        inner: their inner product.
        change: ||y||², y the difference of the two gradients.
        along: ⟨σ, y⟩.
        loss_start, loss_end: L at the two nodes.
        dot_error: relative error of the inner products: γ of the number of parameters.
        allowed: distance from the segment that the ball leaves room for.
        smoothness: on a ball that holds every point within ``allowed`` of the segment.
    """

    step: int
    length: float
    start: float
    end: float
    inner: float
    change: float
    along: float
    loss_start: float
    loss_end: float
    dot_error: float
    allowed: float
    smoothness: Smoothness


class Pieces:
    """Bounds over S_k(ρ) = {θ : dist(θ, segment k) ≤ ρ} for many pieces; arrays have one row a piece."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        columns = {
            f.name: np.array([getattr(p, f.name) for p in pieces], dtype=np.float64)
            for f in fields(Piece)
            if f.name != "smoothness"
        }
        constants = {
            f.name: np.array([getattr(p.smoothness, f.name) for p in pieces], dtype=np.float64)
            for f in fields(Smoothness)
        }
        self.beta, self.alpha = constants["beta"], constants["alpha"]
        self.step, self.length, self.allowed = columns["step"].astype(np.int64), columns["length"], columns["allowed"]
        ends = [p.loss_start for p in pieces], [p.loss_end for p in pieces]
        self._loss = np.array(ends[0], dtype=np.float64), np.array(ends[1], dtype=np.float64), constants["loss_error"]
        edges = np.linspace(0.0, 1.0, INTERVALS + 1)
        low, high = edges[:-1], edges[1:]
        # sup of τ(1 − τ) on each interval: at ½, or at the end that is nearer to it.
        middle = np.clip(0.5, low, high)
        self._bow = middle * (1 - middle)
        self._edges = low, high
        self.chord_low, self.chord_high = self._chord(columns, constants["gradient_error"])
        self.kappa_sq = self._kappa_sq(columns, constants["gradient_error"])
        self.deviation = self._deviation(constants["gauss_newton"], constants["rest"])

    def _chord(self, c: dict[str, Array], error: Array) -> tuple[Array, Array]:
        """Bounds of ||(1 − τ)∇L_k + τ∇L_{k+1}|| on each interval, (pieces, intervals)."""
        low, high = self._edges
        # Any rounding of the inner products, of vectors of at most the larger norm.
        slack = ((c["dot_error"] + _MARGIN) * 4 * np.maximum(c["start"], c["end"]))[:, None]
        change = c["change"][:, None]
        with _silent():
            lowest = (c["start"] - c["inner"])[:, None] / change
        lowest = np.where(np.isfinite(lowest), lowest, 0.0)

        def square(tau: Array) -> Array:
            value: Array = (
                (1 - tau) ** 2 * c["start"][:, None]
                + 2 * tau * (1 - tau) * c["inner"][:, None]
                + tau**2 * c["end"][:, None]
            )
            return value

        least = np.maximum(square(np.clip(lowest, low, high)) - slack, 0.0)
        most = np.maximum(square(low[None]), square(high[None])) + slack
        error = error[:, None]
        return np.maximum(np.sqrt(least) * (1 - _MARGIN) - error, 0.0), np.sqrt(most) * (1 + _MARGIN) + error

    @_silent()
    def _kappa_sq(self, c: dict[str, Array], error: Array) -> Array:
        """κ² = (β − α)⟨σ, y⟩ + αβ d² − ||y||² of Lemma A, from above; (pieces,).

        Negative only where −α ≤ ∇²L ≤ β is false on the segment.
        """
        d, size = c["length"], np.sqrt(c["change"])
        along = c["along"] + d * (2 * error + (c["dot_error"] + 4 * _MARGIN) * size)
        changed = np.maximum(size * (1 - c["dot_error"] - _MARGIN) - 2 * error, 0.0) ** 2
        value: Array = (
            (self.beta - self.alpha) * along
            + self.alpha * self.beta * d**2
            - changed
            + _MARGIN * (self.beta * d * size + self.alpha * self.beta * d**2 + c["change"])
        )
        return value

    @_silent()
    def _deviation(self, gauss_newton: Array, rest: Array) -> Array:
        """How far the gradient on the segment can be from the chord: the better of Lemmas A and B."""
        by_norms = np.sqrt(np.maximum(self.kappa_sq, 0.0))[:, None] * np.sqrt(self._bow)
        # The rest of ∇²L differs by at most 2α between two points, and by its Lipschitz constant times their distance.
        delta = gauss_newton * self.length**2 / 2 + np.minimum(2 * self.alpha * self.length, rest * self.length**2 / 2)
        least: Array = np.minimum(by_norms, delta[:, None] * self._bow) * (1 + _MARGIN)
        return least

    @_silent()
    def gradient(self, rho: Array | float) -> Array:
        """G ≤ ||∇L|| within ρ of each interval, (pieces, intervals); not positive where nothing is proved."""
        value: Array = self.chord_low - self.deviation - self._column(self.beta * rho)
        outward: Array = value - _MARGIN * (self.chord_high + self.deviation)
        return outward

    @_silent()
    def loss_above(self, rho: Array | float) -> Array:
        """U ≥ L within ρ of each interval, (pieces, intervals)."""
        low, high = self._edges
        start, end, error = (v[:, None] for v in self._loss)
        chord = np.maximum((1 - low) * start + low * end, (1 - high) * start + high * end)
        bow = self._column(self.alpha * self.length**2 / 2) * self._bow
        away = self._away(rho, self.beta)
        value: Array = chord + error + (bow + away) * (1 + _MARGIN) + _MARGIN * np.abs(chord)
        return value

    @_silent()
    def loss_below(self, rho: Array | float) -> Array:
        """ℓ_k ≤ L on S_k, (pieces,)."""
        low, high = self._edges
        start, end, error = (v[:, None] for v in self._loss)
        chord = np.minimum((1 - low) * start + low * end, (1 - high) * start + high * end)
        bow = self._column(self.beta * self.length**2 / 2) * self._bow
        away = self._away(rho, self.alpha)
        value: Array = (chord - error - (bow + away) * (1 + _MARGIN) - _MARGIN * np.abs(chord)).min(axis=1)
        return value

    @_silent()
    def _away(self, rho: Array | float, curvature: Array) -> Array:
        """What L can change between a point of the segment and one within ρ of it."""
        gradient = self.chord_high + self.deviation
        return gradient * self._column(rho) + self._column(curvature * np.asarray(rho) ** 2 / 2)

    @staticmethod
    def _column(value: Array | float) -> Array:
        return np.reshape(np.asarray(value, dtype=np.float64), (-1, 1))

    @_silent()
    def lowest_seen(self, rho: float) -> Array:
        """An upper bound of inf L over S_k: at the better node, or ρ down its gradient, (pieces,)."""
        start, end, error = self._loss
        best: Array = np.full(len(start), np.inf)
        for loss, gradient in ((start, self.chord_low[:, 0]), (end, self.chord_low[:, -1])):
            # The bound over the first or last interval is one of the gradient at the node, too.
            gain = np.where(self.beta * rho <= gradient, gradient * rho - self.beta * rho**2 / 2, 0.0)
            best = np.minimum(best, loss + error - gain * (1 - _MARGIN) + _MARGIN * np.abs(loss))
        return best

    @_silent()
    def mu(self, rho: Array | float, floor: float) -> Array:
        """μ_k = min over τ of G² / (2 (U − floor)), (pieces,); 0 where G is not positive everywhere."""
        gradient = np.maximum(self.gradient(rho), 0.0)
        above = np.maximum(self.loss_above(rho) - floor, 0.0)
        value = np.where(gradient > 0, gradient**2 / (2 * above), 0.0)
        least: Array = value.min(axis=1) * (1 - _MARGIN)
        return least

    @_silent()
    def share(self, fraction: float) -> Array:
        """ρ_k that spends this fraction of the least gradient on its segment: c G_k(0) / β_k, (pieces,)."""
        least = np.maximum(self.gradient(0.0).min(axis=1), 0.0)
        value = np.where(self.beta > 0, fraction * least / self.beta, np.inf)
        return np.minimum(value, self.allowed)
