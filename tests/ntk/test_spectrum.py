from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lplr_cli import linalg, ntk
from lplr_cli.errors import NumericalError
from lplr_cli.linalg.verified import gamma
from tests.cases import make


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with eigenvalues ``values`` up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    matrix: Tensor = (q * values) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("low", [1.0, 1e-6, 1e-10])
def test_extremal_equals_full(low: float) -> None:
    values = torch.logspace(math.log10(low), 3, 60, dtype=torch.float64)
    matrix = with_spectrum(values)
    full = ntk.spectrum(matrix)
    extremal = ntk.spectrum(matrix, full_limit=10, extremal=3)
    assert full.complete
    assert not extremal.complete
    assert extremal.method == "cholesky+lanczos"
    assert extremal.residual is not None
    assert abs(extremal.lambda_min - full.lambda_min) <= full.resolution + extremal.residual
    assert extremal.lambda_max == pytest.approx(full.lambda_max, rel=1e-12)
    assert np.allclose(extremal.eigenvalues[:3], full.eigenvalues[:3], atol=full.resolution, rtol=1e-6)
    assert full.trace == pytest.approx(float(values.sum()), rel=1e-12)
    assert full.effective_rank == pytest.approx(float(values.sum()) / 1e3, rel=1e-10)


def test_singular_and_indefinite_matrices_are_found_so() -> None:
    values = torch.linspace(0.0, 1.0, 40, dtype=torch.float64)
    assert abs(ntk.spectrum(with_spectrum(values), full_limit=5).lambda_min) < 1e-12
    values[0] = -1e-3
    assert ntk.spectrum(with_spectrum(values), full_limit=5).lambda_min == pytest.approx(-1e-3, rel=1e-6)
    assert ntk.spectrum(with_spectrum(values)).condition_number is None


def test_nan_is_a_numerical_failure() -> None:
    with pytest.raises(NumericalError):
        ntk.spectrum(torch.full((3, 3), float("nan"), dtype=torch.float64))


def test_gamma_bounds_its_definition() -> None:
    for k in (1, 1000, 12_000):
        u = Fraction(1, 2**53)
        assert Fraction(gamma(k, torch.float64)) >= k * u / (1 - k * u)
    assert gamma(2**53, torch.float64) == math.inf


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("low", [1.0, 1e-6, 1e-9, 1e-12, 0.0, -1e-9, -1.0])
def test_lower_bound_is_never_above_the_truth(low: float, seed: int) -> None:
    values = torch.logspace(-5, 2, 80, dtype=torch.float64)
    values[0] = low
    matrix = with_spectrum(values, seed)
    truth = float(values.min())
    # The planted matrix was itself rounded: by far less than this.
    rounding = 1e-12
    for estimate in (float(torch.linalg.eigvalsh(matrix)[0]), truth * 1.5 + 1e-10, 1.0):
        bound = linalg.lambda_min_lower(matrix, estimate, formation_error=0.0)
        assert bound.value <= truth + rounding
    sharp = linalg.lambda_min_lower(matrix, float(torch.linalg.eigvalsh(matrix)[0]), formation_error=0.0)
    if truth > 20 * len(matrix) * 2**-53 * float(matrix.trace()):
        assert sharp.value >= 0.9 * truth
    assert linalg.lambda_min_lower(matrix, truth, formation_error=1.0).value <= sharp.value - 1.0 + 1e-12


def test_exact_rational_check_of_the_bound() -> None:
    """diag(2⁻³⁰, 1, …) rotated exactly by a Hadamard matrix: the truth is known without rounding."""
    hadamard = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(4):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    values = torch.ones(16, dtype=torch.float64)
    values[0] = 2.0**-30
    matrix = (hadamard * values) @ hadamard.T / 16
    bound = linalg.lambda_min_lower(matrix, 2.0**-30, formation_error=0.0)
    assert 0.98 * 2.0**-30 < bound.value <= 2.0**-30


def test_identity_of_the_theory() -> None:
    """½||∇L||²/L = 2 rᵀKr/||r||² (theory.md section 1)."""
    network, x = make("mlp-ntk-gelu-3")
    y = torch.zeros(len(x), 3, dtype=torch.float64)
    residual = network.forward(x) - y
    loss = residual.square().sum() / len(x)
    grads = torch.autograd.grad(loss, list(network.params.values()))
    square = sum(float(g.square().sum()) for g in grads)
    kernel = ntk.empirical_ntk(network, x).matrix
    r = residual.detach().reshape(-1)
    assert 0.5 * square / float(loss.detach()) == pytest.approx(2 * float(r @ kernel @ r) / float(r @ r), rel=1e-12)
