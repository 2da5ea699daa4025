"""Nonlinear least squares with box bounds, for curves of few parameters.

The solver is Levenberg-Marquardt (Marquardt's scaling by the columns of the Jacobian, gain-ratio update of the
damping) with parameters frozen at a bound while the gradient points outwards. Each step solves the augmented system
by orthogonal factorisation, never the normal equations, so that nearly dependent columns keep their digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# p → (residual, shape (n,); its Jacobian, shape (n, p)).
Residual = Callable[[Array], tuple[Array, Array]]


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


def minimise(residual: Residual, start: Array, lower: Array, upper: Array, max_iterations: int = 100) -> Solution:
    """Minimise ||residual(p)||² over the box from ``start``.

    Parameters whose bounds coincide stay fixed.
    """
    p = np.clip(np.asarray(start, dtype=np.float64), lower, upper)
    free_box = upper > lower

    def at(q: Array) -> tuple[Array, Array, float]:
        with np.errstate(all="ignore"):
            r, jac = residual(q)
            return r, jac, float(r @ r)

    r, jac, cost = at(p)
    damping, growth = 1e-3, 2.0
    for _ in range(max_iterations):
        if not np.isfinite(cost) or cost <= 1e-31 * len(r):
            break
        gradient = jac.T @ r
        free = free_box & ~((p <= lower) & (gradient > 0)) & ~((p >= upper) & (gradient < 0))
        with np.errstate(over="ignore"):
            scale = np.sqrt((jac[:, free] ** 2).sum(axis=0))
        alive = (scale > 0) & np.isfinite(scale)
        index = np.flatnonzero(free)[alive]
        if len(index) == 0:
            break
        columns = jac[:, index] / scale[alive]
        # The angle between residual and tangent space: nothing to gain below rounding.
        if np.abs(columns.T @ r).max() <= 1e-14 * np.sqrt(cost):
            break
        # One factorisation serves every damping that is tried at this point.
        q_factor, r_factor = np.linalg.qr(columns)
        reduced = q_factor.T @ r
        improved = False
        for _ in range(12):
            stacked = np.vstack([r_factor, np.sqrt(damping) * np.eye(len(index))])
            step = -np.linalg.lstsq(stacked, np.concatenate([reduced, np.zeros(len(index))]), rcond=None)[0]
            trial = p.copy()
            trial[index] += step / scale[alive]
            trial = np.clip(trial, lower, upper)
            new_r, new_jac, new_cost = at(trial)
            if np.isfinite(new_cost) and new_cost < cost:
                predicted = float(reduced @ reduced - ((reduced + r_factor @ step) ** 2).sum())
                gain = (cost - new_cost) / predicted if predicted > 0 else 1.0
                damping *= max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)
                growth = 2.0
                improved = True
                break
            damping, growth = min(damping * growth, 1e12), growth * 2
        if not improved:
            break
        moved = np.abs(trial - p).max() / (1 + np.abs(p).max())
        fell = (cost - new_cost) / cost
        p, r, jac, cost = trial, new_r, new_jac, new_cost
        if fell < 1e-13 and moved < 1e-9:
            break
    return Solution(p, r, jac, cost)
