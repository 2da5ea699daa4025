from __future__ import annotations

import pytest
import torch

from lplr_cli.linalg.cholesky import cholesky, mirror


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
