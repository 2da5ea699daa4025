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

from lplr_cli.linalg import scratch
from lplr_cli.linalg.tiled import TiledMatrix

# Rows handled together in copying one triangle onto the other.
_STRIP = 512
# Most rows of a factor that are made at a time in a file.
_BLOCK = 1024

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
            scratch.release(target[start:stop, columns])
            scratch.release(source[start:stop, columns])
        block, image = target[start:stop, start:stop], source[start:stop, start:stop]
        below = torch.ones_like(block, dtype=torch.bool).tril_(-1)
        block.copy_(torch.where(below, image, block))


@contextmanager
def cholesky(kernel: Tensor | TiledMatrix, shift: float = 0.0) -> Iterator[Solve | None]:
    """Factor fl(K - shift I) = RᵀR; inside the context ``kernel`` is not to be read.

    Args:
        kernel: symmetric (N, N), contiguous or in tiles. On the CPU it is overwritten and restored; elsewhere, and in
            tiles, it is copied.
        shift: subtracted from the diagonal, rounded once an entry.

    Yields:
        A function that maps b (N, k) to (K - shift I)⁻¹ b, or None when the factorisation broke down.
    """
    if isinstance(kernel, TiledMatrix):
        with kernel.cholesky(shift) as factor:
            yield factor
        return
    if scratch.is_mapped(kernel):
        with _blocked(kernel, shift) as solve:
            yield solve
        return
    if kernel.device.type != "cpu" or not kernel.is_contiguous():
        copy = kernel.clone()
        copy.diagonal().sub_(shift)
        copy, info = torch.linalg.cholesky_ex(copy, upper=True)
        yield _solver(copy) if int(info) == 0 and bool(torch.isfinite(copy.diagonal()).all()) else None
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


@contextmanager
def _blocked(kernel: Tensor, shift: float) -> Iterator[Solve | None]:
    """As :func:`cholesky`, a block of rows in memory at a time, for a kernel in a file.

    R is made from above, each block of rows from those before it (left-looking), so that every pass over the file runs
    along its rows. The analysis of Cholesky does not depend on the order of the sums, and so neither do bounds.
    """
    blocks = _row_blocks(kernel)
    diagonal = scratch.diagonal(kernel)
    try:
        scratch.set_diagonal(kernel, diagonal - shift)
        yield (
            _blocked_solver(kernel, blocks) if all(_block_row(kernel, blocks, k) for k in range(len(blocks))) else None
        )
    finally:
        _reflect(kernel.mT, kernel)
        scratch.set_diagonal(kernel, diagonal)


def _row_blocks(kernel: Tensor) -> list[slice]:
    """Rows that are made at a time."""
    count = len(kernel)
    height = max(1, min(_BLOCK, scratch.RESIDENT // max(1, count * kernel.element_size())))
    return [slice(i, min(count, i + height)) for i in range(0, count, height)]


def _block_row(kernel: Tensor, blocks: list[slice], k: int) -> bool:
    """R in block row k, from those above it; False where the diagonal block is not positive definite."""
    rows = blocks[k]
    right = slice(rows.start, None)
    row = kernel[rows, right].clone()
    for above in blocks[:k]:
        part = kernel[above, right]
        row.addmm_(part[:, : rows.stop - rows.start].mT, part, alpha=-1)
        scratch.release(part)
    size = rows.stop - rows.start
    corner, info = torch.linalg.cholesky_ex(row[:, :size], upper=True)
    if int(info) or not bool(torch.isfinite(corner.diagonal()).all()):
        return False
    # Below the diagonal the matrix itself stays.
    keep = torch.ones_like(corner, dtype=torch.bool).tril_(-1)
    kernel[rows, rows] = torch.where(keep, kernel[rows, rows], corner)
    if rows.stop < len(kernel):
        kernel[rows, rows.stop :] = torch.linalg.solve_triangular(corner.mT, row[:, size:], upper=False)
    scratch.release(kernel[rows, right])
    return True


def _blocked_solver(factor: Tensor, blocks: list[slice]) -> Solve:
    """Solves with RᵀR, walking along the rows of R down and up again."""

    def solve(b: Tensor) -> Tensor:
        y = b.clone()
        for rows in blocks:
            part = factor[rows, rows.start :]
            size = rows.stop - rows.start
            y[rows] = torch.linalg.solve_triangular(part[:, :size].triu().mT, y[rows], upper=False)
            y[rows.stop :].addmm_(part[:, size:].mT, y[rows], alpha=-1)
            scratch.release(part)
        for rows in reversed(blocks):
            part = factor[rows, rows.start :]
            size = rows.stop - rows.start
            y[rows] = torch.linalg.solve_triangular(
                part[:, :size].triu(), y[rows] - part[:, size:] @ y[rows.stop :], upper=True
            )
            scratch.release(part)
        return y

    return solve


def _solver(factor: Tensor) -> Solve:
    """Solves with RᵀR, R above the diagonal of ``factor``."""

    def solve(b: Tensor) -> Tensor:
        y = torch.linalg.solve_triangular(factor.mT, b, upper=False)
        solution: Tensor = torch.linalg.solve_triangular(factor, y, upper=True)
        return solution

    return solve
