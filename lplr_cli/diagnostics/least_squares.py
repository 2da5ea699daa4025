"""Nonlinear least squares with box bounds, for curves of few parameters.

The solver is Levenberg-Marquardt (Marquardt's scaling by the columns of the Jacobian, gain-ratio update of the
damping) with parameters frozen at a bound while the gradient points outwards. Each step solves the augmented system
by orthogonal factorisation, never the normal equations, so that nearly dependent columns keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# p → (residual, shape (n,); its Jacobian, shape (n, p)).
Residual = Callable[[Array], tuple[Array, Array]]
# Dampings that are tried at a point.
_DAMPINGS = 12


@dataclass(frozen=True)
class Solution:
    """A local minimum.

    Attributes:
        p: parameters, shape (p,).
        residual: at p, shape (n,).
        jacobian: of the residual, shape (n, p).
        cost: residual · residual.
    """

    p: Array
    residual: Array
    jacobian: Array
    cost: float


def minimise(
    residual: Residual, start: Array, lower: Array, upper: Array, max_iterations: int = 100, fall: float = 1e-13
) -> Solution:
    """Minimise ||residual(p)||² over the box from ``start``.

    Parameters whose bounds coincide stay fixed. The end is where a step lowers the cost by a share of less than
    ``fall`` and moves the parameters by less than 10⁴ times that.
    """
    with np.errstate(all="ignore"):
        return _minimise(residual, start, lower, upper, max_iterations, fall)


def _minimise(residual: Residual, start: Array, lower: Array, upper: Array, iterations: int, fall: float) -> Solution:
    here = _at(residual, np.clip(np.asarray(start, dtype=np.float64), lower, upper))
    damping = _Damping()
    for _ in range(iterations):
        if not math.isfinite(here.cost) or here.cost <= 1e-31 * len(here.residual):
            break
        tangent = _Tangent.of(here, lower, upper)
        there = None if tangent is None else _descend(residual, here, tangent, damping, lower, upper)
        if there is None:
            break
        moved = np.abs(there.p - here.p).max() / (1 + np.abs(here.p).max())
        fell = (here.cost - there.cost) / here.cost
        here = there
        if fell < fall and moved < 1e4 * fall:
            break
    return here


def _at(residual: Residual, p: Array) -> Solution:
    r, jac = residual(p)
    return Solution(p, r, jac, float(r @ r))


class _Damping:
    """Of Levenberg and Marquardt, by the ratio of the gain to the predicted one (Nielsen 1999)."""

    def __init__(self) -> None:
        self.value, self._growth = 1e-3, 2.0

    def accept(self, gain: float) -> None:
        """After a step that gained this part of what was predicted."""
        self.value *= max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)
        self._growth = 2.0

    def refuse(self) -> None:
        """After a step that gained nothing."""
        self.value, self._growth = min(self.value * self._growth, 1e12), self._growth * 2


@dataclass(frozen=True)
class _Tangent:
    """The tangent space at a point, factorised once for every damping that is tried there.

    Attributes:
        index: parameters that may move, shape (k,). scale: lengths of their columns of the Jacobian, shape (k,).
        singular: values of the scaled columns, shape (k,), with the right vectors as rows of ``right``, shape (k, k).
        reduced: the residual along the left vectors, shape (k,).
    """

    index: NDArray[np.intp]
    scale: Array
    singular: Array
    right: Array
    reduced: Array

    @classmethod
    def of(cls, here: Solution, lower: Array, upper: Array) -> _Tangent | None:
        """At a point; None where nothing is to be gained."""
        p, r, jac = here.p, here.residual, here.jacobian
        gradient = jac.T @ r
        free = (upper > lower) & ~((p <= lower) & (gradient > 0)) & ~((p >= upper) & (gradient < 0))
        scale = np.sqrt(np.einsum("ij,ij->j", jac, jac))
        index = np.flatnonzero(free & (scale > 0) & np.isfinite(scale))
        if len(index) == 0:
            return None
        scale, k = scale[index], len(index)
        # The angle between residual and tangent space: nothing to gain below rounding.
        if np.abs(gradient[index] / scale).max() <= 1e-14 * math.sqrt(here.cost):
            return None
        both = np.empty((len(r), k + 1))
        np.divide(jac[:, index], scale, out=both[:, :k])
        both[:, k] = r
        # R of the residual beside the columns holds Qᵀ residual, without Q.
        factor: Array = np.asarray(np.linalg.qr(both, mode="r"))[:k]
        left, singular, right = np.linalg.svd(factor[:, :k])
        return cls(index, scale, singular, right, left.T @ factor[:, k])

    def step(self, damping: float) -> Array:
        """The damped step of the scaled parameters, shape (k,)."""
        step: Array = -(self.singular / (self.singular**2 + damping) * self.reduced) @ self.right
        return step

    def predicted(self, damping: float) -> float:
        """By how much that step would lower the cost if the residual were linear."""
        left = damping / (self.singular**2 + damping)
        return float((self.reduced**2 * (1 - left**2)).sum())


def _descend(
    residual: Residual, here: Solution, tangent: _Tangent, damping: _Damping, lower: Array, upper: Array
) -> Solution | None:
    """A point of lower cost, or None where no damping leads to one."""
    for _ in range(_DAMPINGS):
        step = tangent.step(damping.value)
        trial = here.p.copy()
        trial[tangent.index] += step / tangent.scale
        there = _at(residual, np.clip(trial, lower, upper))
        if math.isfinite(there.cost) and there.cost < here.cost:
            predicted = tangent.predicted(damping.value)
            damping.accept((here.cost - there.cost) / predicted if predicted > 0 else 1.0)
            return there
        damping.refuse()
    return None
