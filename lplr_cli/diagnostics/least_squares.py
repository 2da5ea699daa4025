"""Nonlinear least squares with box bounds and first-order autoregressive errors, for curves of few parameters.

The solver is Levenberg-Marquardt (Marquardt's scaling by the columns of the Jacobian, gain-ratio update of the
damping) with parameters frozen at a bound while the gradient points outwards. Each step solves the augmented system
by orthogonal factorisation, never the normal equations, so that nearly dependent columns keep their digits.

Errors e_i = φ e_{i-1} + innovation are whitened exactly (Prais and Winsten 1954). φ comes from the restricted
likelihood (Patterson and Thompson 1971), which takes off the bias that fitting the mean brings: with it, intervals
keep their coverage where the plain estimate would make them too short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# p → (residual, shape (n,); its Jacobian, shape (n, p)).
Residual = Callable[[Array], tuple[Array, Array]]

# Correlations beyond this cannot be told from a random walk.
MAX_CORRELATION = 0.995
_GRID = np.concatenate([np.linspace(-0.95, 0.95, 96), 1 - np.geomspace(0.045, 1 - MAX_CORRELATION, 24)])


@dataclass(frozen=True)
class Solution:
    """A local minimum.

    Attributes:
        p: parameters, shape (p,).
        residual: at p, whitened when the problem was, shape (n,).
        jacobian: of the residual, shape (n, p).
        cost: residual · residual.
    """

    p: Array
    residual: Array
    jacobian: Array
    cost: float


def whiten(values: Array, phi: float) -> Array:
    """Turn AR(1) errors of correlation ``phi`` into uncorrelated ones; first axis n, innovations keep their size."""
    if phi == 0.0:
        return values
    out = np.empty_like(values)
    out[0] = np.sqrt(1 - phi * phi) * values[0]
    np.subtract(values[1:], phi * values[:-1], out=out[1:])
    return out


def minimise(
    residual: Residual, start: Array, lower: Array, upper: Array, phi: float = 0.0, max_iterations: int = 100
) -> Solution:
    """Minimise ||whiten(residual(p), phi)||² over the box from ``start``.

    Parameters whose bounds coincide stay fixed.
    """
    p = np.clip(np.asarray(start, dtype=np.float64), lower, upper)
    free_box = upper > lower

    def at(q: Array) -> tuple[Array, Array, float]:
        with np.errstate(all="ignore"):
            r, jac = residual(q)
        r, jac = whiten(r, phi), whiten(jac, phi)
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


@dataclass(frozen=True)
class Correlation:
    """AR(1) correlation φ of the errors, with the restricted estimate of the innovations' variance."""

    phi: float
    variance: float


def restricted_correlation(residual: Array, jacobian: Array) -> Correlation:
    """φ of restricted maximum likelihood for raw (not whitened) residuals and their Jacobian.

    The likelihood is that of the model linearised at the fit. For AR(1) errors every product that it needs is a
    quadratic in φ, so that a grid of φ costs no more passes over the data than one value.
    """
    scale = np.sqrt((jacobian**2).sum(axis=0))
    columns = jacobian[:, scale > 0] / scale[scale > 0]
    # An orthonormal basis of the tangent space: nearly dependent columns count once.
    u, singular, _ = np.linalg.svd(columns, full_matrices=False)
    basis = u[:, singular > 1e-10 * singular[0]] if len(singular) else u
    n, p = basis.shape
    both = np.column_stack([basis, residual])
    middle = both[1:-1]
    squares, inner = both.T @ both, middle.T @ middle
    cross = both[1:].T @ both[:-1]
    cross = cross + cross.T

    def criterion(phi: Array) -> tuple[Array, Array]:
        products = squares - phi[:, None, None] * cross + (phi**2)[:, None, None] * inner
        a, b, c = products[:, :p, :p], products[:, :p, p], products[:, p, p]
        rest = np.maximum(c - (b * np.linalg.solve(a, b[..., None])[..., 0]).sum(axis=1), 1e-300)
        return (n - p) * np.log(rest) - np.log1p(-(phi**2)) + np.linalg.slogdet(a)[1], rest

    grid = _GRID
    for _ in range(3):
        value, rest = criterion(grid)
        best = int(np.argmin(value))
        phi, variance = float(grid[best]), float(rest[best]) / max(n - p, 1)
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 33)
    return Correlation(phi, variance)
