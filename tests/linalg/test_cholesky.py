from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import cholesky, mirror
from lplr_cli.linalg.tiled import TiledMatrix
from tests.linalg.test_tiled import positive, tiled

Place = Callable[[Tensor], "Tensor | TiledMatrix"]


def strided(matrix: Tensor) -> Tensor:
    """Every other entry of a row in memory."""
    wide = matrix.new_zeros((len(matrix), 2 * len(matrix)))
    wide[:, ::2] = matrix
    return wide[:, ::2]


@pytest.fixture(params=["memory", "strided", "file", "tiles"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where a matrix lies; in a file, three rows of nine are in memory at a time."""
    monkeypatch.setattr(scratch, "RESIDENT", 3 * 9 * 8)

    def mapped(matrix: Tensor) -> Tensor:
        file = scratch.matrix_in_file(len(matrix), matrix.dtype, tmp_path)
        file.copy_(matrix)
        return file

    places: dict[str, Place] = {
        "memory": Tensor.clone, "strided": strided, "file": mapped, "tiles": lambda m: tiled(m, 2),
    }  # fmt: skip
    return places[request.param]


def entries(kernel: Tensor | TiledMatrix) -> Tensor:
    return kernel.gathered() if isinstance(kernel, TiledMatrix) else kernel


@pytest.mark.parametrize("shift", [0.0, 0.125, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_factored_is_the_shifted_matrix_wherever_it_lies(
    dtype: torch.dtype, shift: float, place: Place
) -> None:
    matrix = positive(9, dtype) + torch.eye(9, dtype=dtype)
    kernel = place(matrix)
    with cholesky(kernel, shift) as solve:
        assert solve is not None
        inverse = solve(torch.eye(9, dtype=dtype))
    exact = torch.linalg.inv(matrix.double() - shift * torch.eye(9, dtype=torch.float64))
    assert torch.allclose(inverse.double(), exact, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    assert torch.equal(entries(kernel), matrix)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("at", [(0, 0), (4, 4), (7, 7), (8, 8), (2, 5), (7, 8)])
def test_one_entry_is_enough_to_break_down(at: tuple[int, int], value: float, place: Place) -> None:
    """Or several that are no numbers; what was there is there again."""
    if at[0] != at[1] and value <= 0:
        value = -3.0
    matrix = 2 * torch.eye(9, dtype=torch.float64)
    matrix[at] = matrix[at[::-1]] = value
    kernel = place(matrix)
    with cholesky(kernel) as solve:
        assert solve is None
    assert torch.equal(entries(kernel).nan_to_num(7.0), matrix.nan_to_num(7.0))


@pytest.mark.parametrize("size", [1, 7, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solves_and_restores_bit_by_bit(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    a = torch.randn(size, size + 5, generator=generator, dtype=dtype)
    kernel = a @ a.T / size + torch.eye(size, dtype=dtype)
    kernel = (kernel + kernel.T) / 2
    before = kernel.clone()
    b = torch.randn(size, 3, generator=generator, dtype=dtype)
    with cholesky(kernel, 0.5) as solve:
        assert solve is not None
        found = solve(b)
    assert torch.equal(kernel, before)
    residual = (before - 0.5 * torch.eye(size, dtype=dtype)) @ found - b
    assert float(residual.abs().max()) < (1e-3 if dtype == torch.float32 else 1e-10)


def test_breakdown_is_none_and_restores() -> None:
    kernel = torch.eye(600, dtype=torch.float64)
    kernel[500, 500] = -1.0
    before = kernel.clone()
    with cholesky(kernel) as solve:
        assert solve is None
    assert torch.equal(kernel, before)
    kernel[3, 2] = kernel[2, 3] = float("nan")
    with cholesky(kernel, -2.0) as solve:
        assert solve is None


def test_restores_after_an_exception() -> None:
    kernel = torch.eye(20, dtype=torch.float64) * 2
    before = kernel.clone()
    with pytest.raises(RuntimeError), cholesky(kernel):
        raise RuntimeError
    assert torch.equal(kernel, before)


@pytest.mark.parametrize("size", [1, 5, 513, 1100])
def test_mirror_copies_the_upper_triangle(size: int) -> None:
    matrix = torch.randn(size, size, dtype=torch.float64)
    upper = torch.triu(matrix)
    mirror(matrix)
    assert torch.equal(matrix, upper + torch.triu(upper, 1).T)
