"""Spectral density by stochastic Lanczos quadrature, with what is known of its error (Lin, Saad and Yang, SIAM Review
58, 2016; Ghorbani, Krishnan and Xiao, ICML 2019).

A start vector u, uniform on the sphere, has the spectral measure μ_u = Σ_j (u·q_j)² δ(λ_j), whose mean over u is the
density of eigenvalues (1/P) Σ_j δ(λ_j). m steps of Lanczos give its Gauss quadrature: nodes θ_1 < … < θ_m, weights ω.

Two errors, told apart. The quadrature's is bounded without any assumption by the Chebyshev-Markov-Stieltjes
inequalities: with W_k = ω_1 + … + ω_k the distribution of μ_u satisfies

    W_{k−1} ≤ μ_u((−∞, t)) ≤ μ_u((−∞, t]) ≤ W_{k+1}    for θ_k ≤ t ≤ θ_{k+1}   (at a node W_{k−1} and W_k),

to rounding. The sampling error, of a few vectors for all, is estimated by their spread (95 % by Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.stats import t as student

from lplr_cli.linalg.lanczos import tridiagonalise

Vector = NDArray[np.float64]
# Probability with which a band holds what it estimates, were the vectors' values normal.
LEVEL = 0.95


@dataclass(frozen=True)
class Quadrature:
    """Gauss quadrature of one start vector's spectral measure: nodes, ascending, and weights of sum 1, (m,) both."""

    nodes: Vector
    weights: Vector

    @classmethod
    def of(cls, alpha: Vector, beta: Vector) -> Quadrature:
        """From the diagonal and off-diagonal of the Lanczos matrix."""
        nodes, vectors = eigh_tridiagonal(alpha, beta)
        weights = np.asarray(vectors[0], dtype=np.float64) ** 2
        return cls(np.asarray(nodes, dtype=np.float64), weights / weights.sum())

    def below(self, t: float) -> tuple[float, float]:
        """Bounds of the measure of everything up to t, and below t."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.weights), [1.0]])
        # W_k with k nodes below t, and those at t.
        before, upto = (int(np.searchsorted(self.nodes, t, side=s)) for s in ("left", "right"))
        low = cumulative[max(0, before - 1)] if upto == before else cumulative[before]
        high = cumulative[min(len(self.nodes), upto + 1)] if upto == before else cumulative[upto]
        return float(low), float(high)


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval in which it is held to lie; ends None where one vector gives no spread."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SpectralDensity:
    """The density of the eigenvalues of a symmetric P × P operator, as seen by some random vectors.

    Attributes:
        samples: the quadrature of each vector.
        size: P.
        products: spent.
    """

    samples: tuple[Quadrature, ...]
    size: int
    products: int

    def mean(self, function: Callable[[Vector], Vector]) -> Interval:
        """(1/P) Σ_j g(λ_j) with its sampling error; the quadrature's error is not in it."""
        return _interval([float(q.weights @ function(q.nodes)) for q in self.samples])

    def share_below(self, t: float) -> Interval:
        """The share of eigenvalues below t: the quadratures' bounds, widened by their sampling errors."""
        bounds = [q.below(t) for q in self.samples]
        middle = _interval([(low + high) / 2 for low, high in bounds])
        if middle.low is None or middle.high is None:
            return middle
        lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
        low, high = float(np.mean(lows) - _slack(lows)), float(np.mean(highs) + _slack(highs))
        return Interval(middle.value, max(0.0, low), min(1.0, high))

    def negative_weight(self) -> Interval:
        """Σ_{λ<0} |λ| / Σ |λ|, the negative part of the curvature."""
        parts = [(float(q.weights @ np.maximum(-q.nodes, 0)), float(q.weights @ np.abs(q.nodes))) for q in self.samples]
        found = _interval([part / whole if whole > 0 else 0.0 for part, whole in parts])
        if found.low is None or found.high is None:
            return found
        return Interval(found.value, max(0.0, found.low), min(1.0, found.high))

    def curve(self, grid: ArrayLike, width: float) -> tuple[Vector, Vector, Vector]:
        """The density smoothed by a Gaussian of standard deviation ``width``: mean, low and high end of the band of its
        sampling error, each of the grid's shape; the band is the mean itself for a single vector.
        """
        t = np.asarray(grid, dtype=np.float64)
        curves = np.stack(
            [
                np.exp(-0.5 * ((t[:, None] - q.nodes) / width) ** 2) @ q.weights / (width * math.sqrt(2 * math.pi))
                for q in self.samples
            ]
        )
        mean = curves.mean(axis=0)
        if len(curves) < 2:
            return mean, mean, mean
        slack = _slack(curves)
        return mean, np.maximum(mean - slack, 0.0), mean + slack

    def points(self) -> tuple[Vector, Vector]:
        """All nodes, ascending, and their weights over the vectors, which sum to 1."""
        nodes = np.concatenate([q.nodes for q in self.samples])
        weights = np.concatenate([q.weights for q in self.samples]) / len(self.samples)
        order = np.argsort(nodes, kind="stable")
        return nodes[order], weights[order]


def spectral_density(
    product: Callable[[Vector], Vector],
    size: int,
    *,
    vectors: int = 4,
    steps: int = 40,
    seed: int = 1,
    known: Sequence[Quadrature] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SpectralDensity:
    """Lanczos quadrature from random vectors; ``steps`` vectors of ``size`` numbers are kept.

    Args:
        product: v (P,) → A v.
        size: P.
        vectors: new start vectors.
        steps: products for each.
        seed: of the vectors.
        known: quadratures that other runs of Lanczos from random vectors have left.
        progress: called with (products done, products at most).
    """
    random = np.random.default_rng(seed)
    done, most = 0, vectors * min(steps, size)

    def counted(v: Vector) -> Vector:
        nonlocal done
        image = product(v)
        done += 1
        if progress is not None:
            progress(done, most)
        return image

    found = [Quadrature.of(*tridiagonalise(counted, random.standard_normal(size), steps)) for _ in range(vectors)]
    return SpectralDensity((*known, *found), size, done)


def _slack(values: ArrayLike) -> Any:
    """Half the width of the band of a mean over the first axis, by Student's t."""
    array = np.asarray(values, dtype=np.float64)
    return student.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(axis=0, ddof=1) / math.sqrt(len(array))


def _interval(values: Sequence[float]) -> Interval:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    slack = float(_slack(values))
    return Interval(mean, mean - slack, mean + slack)
