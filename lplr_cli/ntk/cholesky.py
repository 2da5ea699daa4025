"""Cholesky factorisation of a kernel in the memory that the kernel itself takes.

A symmetric matrix is stored twice over, so the factor goes into one triangle, the other keeps the matrix, and the
diagonal is set aside: a factorisation needs no second N × N matrix. Leaving the context puts the matrix back, bit by
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from scipy.linalg.lapack import dpotrf, spotrf
from torch import Tensor

# Rows handled together in copying one triangle onto the other.
_STRIP = 512

Solve = Callable[[Tensor], Tensor]


def mirror(kernel: Tensor) -> None:
    """Copy what stands above the diagonal below it, strip by strip."""
    _reflect(kernel, kernel.mT)


def _reflect(target: Tensor, source: Tensor) -> None:
    """Below the diagonal, ``target`` becomes ``source``; both may be views of one matrix and its transpose."""
    count = len(target)
    for start in range(0, count, _STRIP):
        stop = min(count, start + _STRIP)
        for left in range(0, start, _STRIP):
            columns = slice(left, min(start, left + _STRIP))
            target[start:stop, columns] = source[start:stop, columns]
        block, image = target[start:stop, start:stop], source[start:stop, start:stop]
        below = torch.ones_like(block, dtype=torch.bool).tril_(-1)
        block.copy_(torch.where(below, image, block))


@contextmanager
def cholesky(kernel: Tensor, shift: float = 0.0) -> Iterator[Solve | None]:
    """Factor fl(K - shift I) = RᵀR; inside the context ``kernel`` is not to be read.

    Args:
        kernel: symmetric (N, N), contiguous. On the CPU it is overwritten and restored; elsewhere it is copied.
        shift: subtracted from the diagonal, rounded once an entry.

    Yields:
        A function that maps b (N, k) to (K - shift I)⁻¹ b, or None when the factorisation broke down.
    """
    if kernel.device.type != "cpu" or not kernel.is_contiguous():
        factor = kernel.clone()
        factor.diagonal().sub_(shift)
        factor, info = torch.linalg.cholesky_ex(factor, upper=True)
        yield _solver(factor) if int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all()) else None
        return
    potrf = dpotrf if kernel.dtype == torch.float64 else spotrf
    diagonal = kernel.diagonal().clone()
    try:
        kernel.diagonal().sub_(shift)
        # LAPACK reads the transpose of a row-major array: its lower triangle is what stands above the diagonal here.
        _, info = potrf(kernel.numpy().T, lower=1, overwrite_a=1, clean=0)
        yield _solver(kernel) if info == 0 and bool(torch.isfinite(kernel.diagonal()).all()) else None
    finally:
        _reflect(kernel.mT, kernel)
        kernel.diagonal().copy_(diagonal)


def _solver(factor: Tensor) -> Solve:
    """Solves with RᵀR, R above the diagonal of ``factor``."""

    def solve(b: Tensor) -> Tensor:
        y = torch.linalg.solve_triangular(factor.mT, b, upper=False)
        solution: Tensor = torch.linalg.solve_triangular(factor, y, upper=True)
        return solution

    return solve
