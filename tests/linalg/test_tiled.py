"""Factorisations in tiles against dense ones, and their bound at the edge of Cholesky in rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.linalg.cholesky import cholesky
from lplr_cli.linalg.tasks import Here
from lplr_cli.linalg.tiled import TiledMatrix, gemm, potrf, trsm
from lplr_cli.linalg.verified import lambda_min_lower, shifted_bound
from tests.exact import is_semidefinite, rational, shifted
from tests.linalg.test_verified import nearly_singular


def tiled(matrix: Tensor, step: int) -> TiledMatrix:
    rows = [slice(i, min(len(matrix), i + step)) for i in range(0, len(matrix), step)]
    tiles: dict[tuple[int, int], NDArray[Any]] = {}
    for i, down in enumerate(rows):
        for j, across in list(enumerate(rows))[i:]:
            tiles[i, j] = matrix[down, across].numpy().copy()
            tiles[i, j].setflags(write=False)  # as those of an object store are
    return TiledMatrix(Here(), rows, tiles, matrix.dtype)


def positive(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    a = torch.randn((size, 2 * size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix: Tensor = (a @ a.T / size).to(dtype)
    return torch.triu(matrix) + torch.triu(matrix, 1).T


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "step"), [(1, 4), (7, 7), (23, 5), (24, 8)])
def test_solves_are_those_of_the_dense_matrix(size: int, step: int, dtype: torch.dtype) -> None:
    matrix, accuracy = positive(size, dtype), 1e4 * torch.finfo(dtype).eps
    kernel = tiled(matrix, step)
    assert kernel.shape == (size, size)
    assert torch.equal(kernel.gathered(), matrix)
    assert torch.equal(kernel.diagonal(), matrix.diagonal())
    b = torch.randn((size, 3), dtype=dtype, generator=torch.Generator().manual_seed(1))
    with cholesky(kernel, 0.25) as solve:
        assert solve is not None
        truth = torch.linalg.solve(matrix.double() - 0.25 * torch.eye(size), b.double())
        assert torch.allclose(solve(b).double(), truth, rtol=accuracy, atol=accuracy * float(truth.abs().max()))
    for v in (b, b[:, 0]):
        assert np.allclose(kernel.product(v.numpy()), (matrix @ v).numpy(), rtol=accuracy, atol=accuracy)
    top = float(torch.linalg.eigvalsh(matrix.double())[-1])
    with cholesky(kernel, 1.01 * top) as none:
        assert none is None
    matrix[size // 2, size // 2] = torch.nan
    with cholesky(tiled(matrix, step), 0.0) as none:
        assert none is None


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_tiles_keep_their_dtype(dtype: type[np.floating[Any]]) -> None:
    """Twice the bytes would not fit into the memory of a task."""
    a = np.asfortranarray(np.diag([4.0, 9.0, 16.0]).astype(dtype))
    r = potrf(a)
    assert r is not None
    assert np.array_equal(r, np.diag([2.0, 3.0, 4.0]))
    solved, updated = trsm(r, a), gemm(a, r, r)
    assert solved is not None
    assert updated is not None
    assert np.array_equal(solved, r)
    assert not updated.any()
    assert r.dtype == solved.dtype == updated.dtype == dtype
    with cholesky(tiled(torch.from_numpy(a), 2)) as solve:
        assert solve is not None
        assert solve(torch.ones(3, 1, dtype=torch.float64)).numpy().dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bound_holds_at_the_largest_shift_that_tiles_accept(dtype: torch.dtype) -> None:
    unsound = 0
    for seed in range(12):
        matrix = nearly_singular(6, seed, dtype)
        kernel, exact = tiled(matrix, 2), rational(matrix)
        high, low = 2 * float(matrix.trace()), -2 * float(matrix.trace())
        while (middle := float(torch.tensor((low + high) / 2, dtype=dtype))) not in (low, high):
            with cholesky(kernel, middle) as solve:
                low, high = (low, middle) if solve is None else (middle, high)
        slack, applied = shifted_bound(kernel, low)
        assert slack is not None
        unsound += not is_semidefinite(shifted(exact, Fraction(applied)))
        assert is_semidefinite(shifted(exact, Fraction(math.nextafter(applied - slack, -math.inf))))
    assert unsound >= 1


def test_the_bound_is_that_of_the_whole_matrix_to_rounding() -> None:
    matrix = positive(40, torch.float64)
    least = float(torch.linalg.eigvalsh(matrix)[0])
    one, two = (lambda_min_lower(k, least, formation_error=1e-9) for k in (tiled(matrix, 9), matrix.clone()))
    assert one.value == pytest.approx(two.value, rel=1e-12)
    assert 0.98 * least < one.value < least
