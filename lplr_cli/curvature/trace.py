"""Trace and Frobenius norm from products, each with its standard error: XTrace (Epperly, Tropp and Webber, SIAM J.
Matrix Anal. Appl. 45, 2024, section 2), the improvement of Hutch++ in which every test vector serves both ends.

With Y = AΩ for k Gaussian vectors, and P_i the projector onto the range of all columns of Y but the i-th,

    t_i = tr(P_i A P_i) + ((P − rank P_i)/||w_i||²) w_iᵀA w_i,       w_i = (I − P_i) ω_i

has mean tr A for every i, as ω_i is independent of P_i and the direction of w_i uniform. Their mean is the estimate,
their spread its standard error. The same 2k products give ||A||_F² = tr A²:

    s_i = ||A Q_i||_F² + ((P − rank P_i)/||w_i||²) ||A w_i||²

with Q_i an orthonormal basis of P_i's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class TraceEstimate:
    """Unbiased estimates of tr A and ||A||_F² with their standard errors, over ``vectors`` random vectors.

    Attributes:
        trace, trace_error: tr A.
        square, square_error: ||A||_F².
        vectors: k.
        products: spent.
        exact: whether the products span A's whole range, so that only rounding is left.
    """

    trace: float
    trace_error: float
    square: float
    square_error: float
    vectors: int
    products: int
    exact: bool

    @property
    def frobenius(self) -> float:
        """||A||_F."""
        return math.sqrt(max(0.0, self.square))

    @property
    def frobenius_error(self) -> float | None:
        """Its standard error, to first order; None where the norm is zero."""
        return self.square_error / (2 * self.frobenius) if self.frobenius > 0 else None


def xtrace(
    product: Callable[[Vector], Vector],
    size: int,
    *,
    vectors: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TraceEstimate:
    """tr A and ||A||_F² of a symmetric A from 2k products; 3k vectors of ``size`` numbers are kept.

    Args:
        product: v (P,) → A v.
        size: P.
        vectors: k, at least 2; at most P are used.
        seed: of the test vectors.
        progress: called with (products done, products at most).
    """
    k = min(vectors, size)
    omega = np.random.default_rng(seed).standard_normal((size, k))
    done = 0

    def apply(columns: Matrix) -> Matrix:
        nonlocal done
        images = np.empty_like(columns)
        for j in range(columns.shape[1]):
            images[:, j] = product(columns[:, j])
            done += 1
            if progress is not None:
                progress(done, 2 * k)
        return images

    y = apply(omega)
    q, rank = _range(y)
    z = apply(q)
    if rank < k or k == size:
        # The range of A itself: nothing is left beside it.
        return TraceEstimate(float(np.sum(q * z)), 0.0, float(np.sum(z * z)), 0.0, k, done, True)
    coordinates = q.T @ y
    inner = q.T @ z
    along = q.T @ omega
    images = z.T @ z
    traces, squares = np.empty(k), np.empty(k)
    for i in range(k):
        basis, _ = _range(np.delete(coordinates, i, axis=1))
        left = basis @ (basis.T @ along[:, i])
        rest = omega[:, i] - q @ left
        image = y[:, i] - z @ left
        weight = (size - basis.shape[1]) / float(rest @ rest)
        traces[i] = np.sum(basis * (inner @ basis)) + weight * float(rest @ image)
        squares[i] = np.sum(basis * (images @ basis)) + weight * float(image @ image)
    return TraceEstimate(
        float(traces.mean()),
        float(traces.std(ddof=1)) / math.sqrt(k),
        float(squares.mean()),
        float(squares.std(ddof=1)) / math.sqrt(k),
        k,
        done,
        False,
    )


def _range(columns: Matrix) -> tuple[Matrix, int]:
    """An orthonormal basis of the columns' range, to rounding, and its dimension."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    rank = int(np.sum(s > s[:1].max(initial=0.0) * 1e-12))
    return np.ascontiguousarray(u[:, :rank]), rank
