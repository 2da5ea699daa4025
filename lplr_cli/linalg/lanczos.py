"""Lanczos with full reorthogonalisation: both ends of a spectrum from products with vectors alone.

A Ritz value θ with Ritz vector y has an eigenvalue of K within its residual ||K y - θ y|| = β_m |s_m| (Parlett 1998,
section 13.2), and the smallest Ritz value is never below λ_min but for rounding. At the low end of an ill-conditioned
kernel convergence is slow, so there the residual, and not the number of steps, says what the value is worth.

Where the basis may not hold all steps, it is restarted with the Ritz vectors nearest both ends (thick restart: Wu and
Simon, SIAM J. Matrix Anal. Appl. 22, 2000), after which the projection is an arrow and no longer tridiagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.errors import NumericalError

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]
# Steps between two looks at the convergence.
_EVERY = 5
# Columns of the basis that a restart turns at a time.
_STRIP = 1 << 16


@dataclass(frozen=True)
class Ritz:
    """Extremal Ritz values, each with the distance within which an eigenvalue lies.

    Attributes:
        low: the smallest ones, ascending; low_residuals beside them.
        high: the largest ones, ascending; high_residuals beside them.
        steps: products spent.
        converged: whether every residual met the tolerance.
        asymmetry: largest deviation of the coefficients of products from those of a symmetric operator, over the norm:
            rounding where it is one.
        alpha, beta: diagonal (m,) and off-diagonal (m − 1,) of the projection before any restart: the Gauss quadrature
            of the start's spectral measure.
        vectors: (1 + t, N) unit Ritz vectors where they were asked for: of the smallest value, and of the t largest.
        vector_values: their Ritz values (1 + t,).
    """

    low: Vector
    low_residuals: Vector
    high: Vector
    high_residuals: Vector
    steps: int
    converged: bool
    asymmetry: float
    alpha: Vector
    beta: Vector
    vectors: NDArray[np.float64] | None = None
    vector_values: Vector | None = None


def lanczos(
    product: Product,
    start: Vector,
    *,
    k: int = 1,
    steps: int = 200,
    tolerance: float = 1e-6,
    low_too: bool = True,
    relative_to_norm: bool = False,
    basis: int | None = None,
    top_vectors: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ritz:
    """The k smallest and k largest Ritz values of a symmetric operator.

    Args:
        product: v (N,) → K v.
        start: first vector, not zero.
        k: values at each end.
        steps: products at most.
        tolerance: residual, relative to the value, at which an end counts as converged.
        low_too: whether the low end must converge as well.
        relative_to_norm: measure residuals against the largest |Ritz value| instead: for indefinite operators, whose
            eigenvalues near zero have no relative accuracy.
        basis: vectors of N numbers that are kept at a time, at least 2k + 3; all steps by default.
        top_vectors: how many Ritz vectors of the high end to return, beside that of the lowest value; none by default.
        progress: called with (steps done, steps at most).

    Raises:
        NumericalError: a product that is not finite.
    """
    size = len(start)
    steps = min(steps, size)
    room = steps if basis is None else min(steps, max(basis, 2 * k + 3))
    state = _Projection(start, room)
    for done in range(1, steps + 1):
        state.extend(product)
        if progress is not None:
            progress(done, steps)
        last = done == steps or state.exhausted
        if not (last or state.full or done % _EVERY == 0):
            continue
        pairs = state.pairs()
        converged = state.exhausted or pairs.converged(min(2 * k, size), k, tolerance, low_too, relative_to_norm)
        if last or converged:
            return _answer(state, pairs, k, done, converged, top_vectors)
        if state.full:
            state.restart(pairs.theta, pairs.s, k)
    raise AssertionError("the last step returns")


@dataclass(frozen=True)
class _Pairs:
    """Ritz values in ascending order (m,), their coordinates in the basis (m, m), and residuals (m,)."""

    theta: Vector
    s: NDArray[np.float64]
    residuals: Vector

    @property
    def norm(self) -> float:
        """The largest |θ|."""
        return float(np.abs(self.theta).max())

    def converged(self, least: int, k: int, tolerance: float, low_too: bool, relative_to_norm: bool) -> bool:
        """Whether there are at least ``least``, and the residuals of the k highest, and of the k lowest, are small."""
        scale = np.full(len(self.theta), self.norm) if relative_to_norm else np.abs(self.theta)
        small = self.residuals <= tolerance * scale
        return len(small) >= least and bool(small[-k:].all()) and (not low_too or bool(small[:k].all()))


def _answer(state: _Projection, pairs: _Pairs, k: int, steps: int, converged: bool, top_vectors: int | None) -> Ritz:
    theta, residuals = pairs.theta, pairs.residuals
    vectors, values = (None, None) if top_vectors is None else state.lift(theta, pairs.s, top_vectors)
    alpha, beta = state.tridiagonal
    return Ritz(
        low=theta[:k],
        low_residuals=residuals[:k],
        high=theta[-k:],
        high_residuals=residuals[-k:],
        steps=steps,
        converged=converged,
        asymmetry=state.asymmetry / max(pairs.norm, state.asymmetry, 1e-300),
        alpha=alpha,
        beta=beta,
        vectors=vectors,
        vector_values=values,
    )


def tridiagonalise(product: Product, start: Vector, steps: int) -> tuple[Vector, Vector]:
    """Diagonal (m,) and off-diagonal (m − 1,) of the Lanczos matrix of ``start``, m ≤ ``steps``, fewer where the Krylov
    space is exhausted; :class:`NumericalError` for a product that is not finite.
    """
    state = _Projection(start, min(steps, len(start)))
    while not (state.full or state.exhausted):
        state.extend(product)
    return state.tridiagonal


class _Projection:
    """An orthonormal basis of m vectors, and the operator in it.

    Long vectors are torch's: NumPy has threads of its own, and they and those of the products wait for each other.
    """

    def __init__(self, start: Vector, room: int) -> None:
        first = torch.from_numpy(np.ascontiguousarray(start, dtype=np.float64))
        self._basis = torch.empty((room, len(start)), dtype=torch.float64)
        self._matrix = np.zeros((room, room))
        self._next: Tensor = first / torch.linalg.vector_norm(first)
        self._coupling: Vector = np.zeros(0)
        self._first: tuple[Vector, Vector] | None = None
        self.length = 0
        self.beta = 0.0
        self.asymmetry = 0.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The operator in the basis, (m, m)."""
        return self._matrix[: self.length, : self.length]

    @property
    def full(self) -> bool:
        """Whether no further vector fits."""
        return self.length == len(self._basis)

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans an invariant space, to rounding."""
        if not self.length:
            return False
        return self.length == self._basis.shape[1] or self.beta <= 1e-14 * float(np.abs(self.matrix.diagonal()).max())

    def pairs(self) -> _Pairs:
        """Ritz values with their coordinates and residuals."""
        theta, s = np.linalg.eigh(self.matrix)
        return _Pairs(theta, s, np.abs(s[-1]) * (0.0 if self.exhausted else self.beta))

    @property
    def tridiagonal(self) -> tuple[Vector, Vector]:
        """Diagonal and off-diagonal before any restart."""
        if self._first is not None:
            return self._first
        return self.matrix.diagonal().copy(), self.matrix.diagonal(1).copy()

    def extend(self, product: Product) -> None:
        """One step: the next vector joins the basis."""
        m, q = self.length, self._next
        self._basis[m] = q
        w = torch.from_numpy(np.ascontiguousarray(product(q.numpy()), dtype=np.float64))
        if not bool(torch.isfinite(w).all()):
            raise NumericalError("a product with a vector is not finite", "check the parameters and the data")
        row = self._coupling
        self._matrix[m, m - len(row) : m] = self._matrix[m - len(row) : m, m] = row
        self._matrix[m, m] = float(torch.dot(q, w))
        known = self._basis[: m + 1]
        along = known @ w
        self.asymmetry = max(self.asymmetry, float(np.abs(along.numpy() - self._matrix[m, : m + 1]).max()))
        w = w - along @ known
        # Once is not enough (Parlett 1998, section 6.9).
        w = w - (known @ w) @ known
        self.length = m + 1
        self.beta = float(torch.linalg.vector_norm(w))
        self._coupling = np.array([self.beta])
        if self.beta > 0:
            self._next = w / self.beta

    def lift(self, theta: Vector, s: NDArray[np.float64], top: int) -> tuple[NDArray[np.float64], Vector]:
        """Ritz vectors, and values, of the lowest and the ``top`` highest ones."""
        chosen = [0, *range(max(1, len(theta) - top), len(theta))]
        lifted: NDArray[np.float64] = (torch.from_numpy(s[:, chosen].T) @ self._basis[: self.length]).numpy()
        return lifted, theta[chosen]

    def restart(self, theta: Vector, s: NDArray[np.float64], k: int) -> None:
        """Keep the Ritz vectors nearest both ends, in the room that they had."""
        if self._first is None:
            self._first = self.tridiagonal
        side = max(k, min(2 * k, (len(theta) - 1) // 3))
        chosen = np.r_[:side, len(theta) - side : len(theta)]
        kept = torch.from_numpy(s[:, chosen].T)
        for at in range(0, self._basis.shape[1], _STRIP):
            strip = slice(at, at + _STRIP)
            self._basis[: len(chosen), strip] = kept @ self._basis[: self.length, strip]
        self._matrix[:] = 0.0
        self.length = len(chosen)
        self._matrix[range(self.length), range(self.length)] = theta[chosen]
        self._coupling = self.beta * s[-1, chosen]
