"""Sums of exponentials with amplitudes that are not negative, fitted to the decrements of a loss without noise.

Least squares over all measures on the rates is a convex problem whose solution has few atoms (Lawson and Hanson 1974).
It is solved on a grid of rates, and again on grids around the atoms that are ever finer: without noise the decrements
are told to ten digits and more, and with them the gap that is left at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from lplr_cli.diagnostics.least_squares import Array

# Rates of the first grid; around each atom, points a spacing to either side; how often.
_RATES, _AROUND, _ROUNDS = 300, 4, 4
# e-folds between two nodes of the fastest rate.
_FASTEST = 10.0
# Errors that are as good as none.
_EXACT = 1e-12
# Decrements with less relative noise than this all count alike.
_CLEAR = 1e-4
# Modes with less of the decrement at the end say nothing about the gap that is left.
_LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Active:
    """The modes at one time: mean rate by their shares of the decrement and by those of the gap, spread, gap."""

    mean: float
    of_gap: float
    spread: float
    gap: float


@dataclass(frozen=True)
class Mixture:
    """Σ size exp(−rate s), sizes not negative: a decrement on scaled time.

    Attributes:
        size, rate: shape (modes,).
        error: root mean square of the relative error, weighted.
    """

    size: Array
    rate: Array
    error: float

    @classmethod
    def of(cls, ends: Array, fall: Array, noise: Array, slowest: float) -> Mixture:
        """Fit to mean decrements between nodes.

        Args:
            ends: of the nodes, increasing from 0, shape (m + 1,).
            fall: positive, shape (m,).
            noise: relative to ``fall``, shape (m,).
            slowest: e-folds of the slowest rate over all nodes.
        """
        span, count = float(ends[-1]), len(fall)
        s = ends / span
        weight = 1 / (fall * np.maximum(noise / _CLEAR, 1.0))
        steepest = float((-np.diff(np.log(fall)) / np.diff(0.5 * (s[1:] + s[:-1]))).max())
        rate = np.geomspace(slowest, max(1.5 * steepest, _FASTEST * count), _RATES)
        spacing = float(np.log(rate[1] / rate[0]))
        for left in reversed(range(_ROUNDS)):
            design = _between(s, rate) * weight[:, None]
            norm = np.maximum(np.sqrt((design**2).sum(axis=0)), 1e-300)
            size = nnls(design / norm, fall * weight, maxiter=100 * _RATES)[0] / norm
            error = float(np.sqrt(np.mean((design @ size - fall * weight) ** 2)))
            atoms = size > 0
            if not left or error < _EXACT:
                break
            around = np.exp(spacing * np.linspace(-1, 1, 2 * _AROUND + 1))
            spacing /= _AROUND
            rate = np.unique(np.maximum(np.outer(rate[atoms], around), slowest))
        return cls(size[atoms], rate[atoms] / span, error)

    def log_value(self, ends: Array) -> Array:
        """Logarithm of the mean decrements between nodes, shape (m,)."""
        return np.asarray(np.log(np.maximum(_between(ends, self.rate) @ self.size, 1e-300)))

    def active(self, s: float) -> Active:
        """The modes at time s."""
        fall = self.size * np.exp(-self.rate * s)
        seen = fall >= _LEAST_SHARE * fall.sum()
        fall, rate = fall[seen], self.rate[seen]
        mean, gap = float((fall * rate).sum() / fall.sum()), float((fall / rate).sum())
        spread = float((fall * (rate - mean) ** 2).sum() / fall.sum()) / mean**2
        return Active(mean, float(fall.sum()) / gap, spread, gap)


def _between(ends: Array, rate: Array) -> Array:
    """Means of exp(−rate s) between nodes, shape (m, modes)."""
    apart = np.outer(np.diff(ends), rate)
    return np.asarray(-np.exp(-np.outer(ends[:-1], rate)) * np.expm1(-apart) / apart)
