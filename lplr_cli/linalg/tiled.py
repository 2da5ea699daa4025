"""Symmetric matrices in tiles that lie anywhere, and what is done with them by tasks on tiles.

Kept are the tiles on and above the diagonal, arrays that no task changes: each step of the factorisation

    R_kk = chol(A_kk)        R_kj = R_kk⁻ᵀ A_kj        A_ij ← A_ij − R_kiᵀ R_kj        (potrf, trsm, syrk and gemm)

makes new ones. Every entry of R is a_ij minus a sum of products, divided by a diagonal entry, as in any Cholesky; the
tiles only choose the order of that sum, which the error analysis leaves free (docs/theory.md, section 7). A task holds
four tiles at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm, dtrsm, sgemm, strsm
from scipy.linalg.lapack import dpotrf, spotrf
from torch import Tensor

from lplr_cli.linalg.tasks import Handle, Tasks

Array = NDArray[np.floating]
# A step of the factorisation begins when the diagonal tile this many steps before has been found positive definite:
# the cluster stays busy, and what a step makes is not piled up.
_AHEAD = 2


class TiledMatrix:
    """A symmetric matrix (N, N) whose tile (i, j), i ≤ j, is rows i and columns j of the given slices.

    Args:
        tasks: where tasks run.
        rows: the slices of 0 to N.
        tiles: handles of arrays by (i, j), i ≤ j; diagonal ones are symmetric.
        dtype: of the arrays, float64 or float32.
    """

    def __init__(
        self, tasks: Tasks, rows: Sequence[slice], tiles: dict[tuple[int, int], Handle], dtype: torch.dtype
    ) -> None:
        self.tasks, self.rows, self.dtype = tasks, list(rows), dtype
        self._tiles = tiles
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        """N."""
        return int(self.rows[-1].stop)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return len(self), len(self)

    def diagonal(self) -> Tensor:
        """A copy of the diagonal."""
        parts = self.tasks.get([self.tasks.submit(_diagonal, self._tiles[i, i]) for i in range(len(self.rows))])
        return torch.from_numpy(np.concatenate(parts))

    def product(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """K v for v (N,) or (N, k)."""
        vector = self.tasks.share(np.asarray(v, dtype=_numpy(self.dtype)))
        keys = list(self._tiles)
        parts = self.tasks.get(
            [self.tasks.submit(_product, self._tiles[i, j], vector, self.rows[i], self.rows[j]) for i, j in keys]
        )
        image = np.zeros(v.shape)
        # In the order of the tiles, whichever came first: the same sum every time.
        for (i, j), (down, across) in zip(keys, parts, strict=True):
            image[self.rows[i]] += down
            if i != j:
                image[self.rows[j]] += across
        return image

    def gathered(self) -> Tensor:
        """The whole matrix, in this process."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for (i, j), handle in self._tiles.items():
            tile = torch.from_numpy(self.tasks.get([handle])[0].copy())
            whole[self.rows[i], self.rows[j]] = tile
            whole[self.rows[j], self.rows[i]] = tile.T
        return whole

    @contextmanager
    def cholesky(self, shift: float) -> Iterator[TiledFactor | None]:
        """R of fl(K − shift I) = RᵀR, to be called with b (N, k) for (K − shift I)⁻¹ b; None where it broke down."""
        yield self._factor(shift)

    def _factor(self, shift: float) -> TiledFactor | None:
        submit, count = self.tasks.submit, len(self.rows)
        work = {(i, j): submit(_shifted, tile, shift) if i == j else tile for (i, j), tile in self._tiles.items()}
        handles: list[Handle] = []
        for k in range(count):
            if k >= _AHEAD and not self.tasks.get([handles[k - _AHEAD]])[0]:
                return None
            work[k, k] = submit(potrf, work[k, k])
            handles.append(submit(_is_there, work[k, k]))
            for j in range(k + 1, count):
                work[k, j] = submit(trsm, work[k, k], work[k, j])
            for i in range(k + 1, count):
                for j in range(i, count):
                    work[i, j] = submit(gemm, work[i, j], work[k, i], work[k, j])
        return TiledFactor(self.tasks, self.rows, work, self.dtype) if all(self.tasks.get(handles)) else None


class TiledFactor:
    """R of a factorisation RᵀR in tiles, as a solver."""

    def __init__(
        self, tasks: Tasks, rows: list[slice], tiles: dict[tuple[int, int], Handle], dtype: torch.dtype
    ) -> None:
        self._tasks, self._rows, self._tiles, self._dtype = tasks, rows, tiles, dtype

    def __call__(self, b: Tensor) -> Tensor:
        """(RᵀR)⁻¹ b for b (N, k): down the rows of R and up again."""
        submit, count = self._tasks.submit, len(self._rows)
        right = b.to(self._dtype).numpy()
        down: list[Handle] = []
        for k in range(count):
            before = [submit(_times, self._tiles[i, k], down[i], True) for i in range(k)]
            down.append(submit(_substitute, self._tiles[k, k], right[self._rows[k]], True, *before))
        up: dict[int, Handle] = {}
        for k in reversed(range(count)):
            after = [submit(_times, self._tiles[k, j], up[j], False) for j in range(k + 1, count)]
            up[k] = submit(_substitute, self._tiles[k, k], down[k], False, *after)
        return torch.from_numpy(np.concatenate(self._tasks.get([up[k] for k in range(count)])))


def potrf(a: Array | None) -> Array | None:
    """R with RᵀR = ``a``, upper triangular; None where there is none."""
    if a is None:
        return None
    factor, info = (dpotrf if a.dtype == np.float64 else spotrf)(a, lower=0, clean=1)
    return factor if info == 0 and np.isfinite(np.diagonal(factor)).all() else None


def trsm(r: Array | None, a: Array | None) -> Array | None:
    """R⁻ᵀA by substitution."""
    if r is None or a is None:
        return None
    solved: Array = (dtrsm if a.dtype == np.float64 else strsm)(1.0, r, a, side=0, lower=0, trans_a=1)
    return solved


def gemm(a: Array | None, left: Array | None, right: Array | None) -> Array | None:
    """A − LᵀR; on the diagonal, where L = R, both triangles."""
    if a is None or left is None or right is None:
        return None
    updated: Array = (dgemm if a.dtype == np.float64 else sgemm)(-1.0, left, right, beta=1.0, c=a, trans_a=1)
    return updated


def _numpy(dtype: torch.dtype) -> np.dtype[np.floating]:
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def _is_there(a: Array | None) -> bool:
    return a is not None


def _diagonal(a: Array) -> Array:
    return np.diagonal(a).copy()


def _shifted(a: Array, shift: float) -> Array:
    """A − shift I, rounded once an entry."""
    moved = a.copy(order="F")
    moved[np.diag_indices(len(a))] -= a.dtype.type(shift)
    return moved


def _product(a: Array, v: Array, rows: slice, columns: slice) -> tuple[Array, Array]:
    """A v and, off the diagonal, Aᵀ v, of the parts of v that the tile meets."""
    if rows == columns:
        return a @ v[columns], v[:0]
    return a @ v[columns], a.T @ v[rows]


def _times(r: Array, v: Array, transposed: bool) -> Array:
    product: Array = (r.T if transposed else r) @ v
    return product


def _substitute(r: Array, b: Array, transposed: bool, *less: Array) -> Array:
    """R⁻ᵀ(b − Σ less), or with R⁻¹."""
    rest = b - sum(less) if less else b
    solved: Array = (dtrsm if r.dtype == np.float64 else strsm)(
        1.0, r, rest, side=0, lower=0, trans_a=1 if transposed else 0
    )
    return solved
