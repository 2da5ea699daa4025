"""Lanczos with full reorthogonalisation: both ends of a spectrum from products with vectors alone.

A Ritz value θ with Ritz vector y has an eigenvalue of K within its residual ||K y - θ y|| = β_m |s_m| (Parlett 1998,
section 13.2), and the smallest Ritz value is never below λ_min but for rounding. At the low end of an ill-conditioned
kernel convergence is slow, so there the residual, and not the number of steps, says what the value is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Ritz:
    """Extremal Ritz values, each with the distance within which an eigenvalue lies.

    Attributes:
        low: the smallest ones, ascending; low_residuals beside them.
        high: the largest ones, ascending; high_residuals beside them.
        steps: products spent.
        converged: whether every residual met the tolerance.
    """

    low: Vector
    low_residuals: Vector
    high: Vector
    high_residuals: Vector
    steps: int
    converged: bool


def lanczos(
    product: Callable[[Vector], Vector],
    start: Vector,
    *,
    k: int = 1,
    steps: int = 200,
    tolerance: float = 1e-6,
    progress: Callable[[int, int], None] | None = None,
) -> Ritz:
    """The k smallest and k largest Ritz values of a symmetric operator.

    Args:
        product: v (N,) → K v.
        start: first vector, not zero.
        k: values at each end.
        steps: products at most; the basis takes steps × N numbers.
        tolerance: residual, relative to the value, at which an end counts as converged.
        progress: called with (steps done, steps at most).
    """
    size = len(start)
    steps = min(steps, size)
    basis = np.empty((steps, size))
    alpha: Vector = np.zeros(steps)
    beta: Vector = np.zeros(steps)
    q = start / np.linalg.norm(start)
    for m in range(steps):
        basis[m] = q
        w = product(q)
        alpha[m] = q @ w
        for _ in range(2):  # once is not enough (Parlett 1998, section 6.9)
            w = w - basis[: m + 1].T @ (basis[: m + 1] @ w)
        beta[m] = np.linalg.norm(w)
        if progress is not None:
            progress(m + 1, steps)
        done = m + 1
        spread = np.abs(alpha[:done]).max()
        exhausted = beta[m] <= 1e-14 * spread or done == size
        if exhausted or done == steps or done % 10 == 0:
            theta, s = _tridiagonal(alpha[:done], beta[: done - 1])
            residuals: Vector = np.abs(s[-1]) * (0.0 if exhausted else float(beta[m]))
            kept = min(k, done)
            ends = np.concatenate(
                [
                    residuals[:kept] <= tolerance * np.abs(theta[:kept]),
                    residuals[-kept:] <= tolerance * np.abs(theta[-kept:]),
                ]
            )
            converged = bool(ends.all()) and done >= min(2 * k, size)
            if exhausted or converged or done == steps:
                return Ritz(
                    theta[:kept], residuals[:kept], theta[-kept:], residuals[-kept:], done, exhausted or converged
                )
        q = w / beta[m]
    raise AssertionError("the last step returns")


def _tridiagonal(alpha: Vector, beta: Vector) -> tuple[Vector, Vector]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric tridiagonal matrix."""
    values, vectors = eigh_tridiagonal(alpha, beta)
    return np.asarray(values, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
