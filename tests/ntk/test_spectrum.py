from __future__ import annotations

import importlib
import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lplr_cli import linalg, ntk
from lplr_cli.errors import NumericalError
from lplr_cli.linalg.verified import gamma
from tests.cases import make
from tests.linalg.test_tiled import tiled


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("place", "full_limit"), [((1, 1), 9), ((0, 2), 9), ((1, 1), 2), ((4, 4), 2)])
def test_nan_is_a_numerical_failure(value: float, place: tuple[int, int], full_limit: int) -> None:
    matrix = torch.eye(5, dtype=torch.float64)
    matrix[place] = value
    with pytest.raises(NumericalError, match="the kernel holds NaN or infinity"):
        ntk.spectrum(matrix, full_limit=full_limit)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_beside_the_diagonal_of_a_large_kernel_is_one_too(value: float) -> None:
    matrix = torch.eye(9, dtype=torch.float64)
    matrix[0, 3] = matrix[3, 0] = value
    with pytest.raises(NumericalError, match="Lanczos did not converge"):
        ntk.spectrum(matrix, full_limit=2, formation_error=0.0)


@pytest.mark.parametrize("full_limit", [9, 2])
def test_what_is_said_of_a_spectrum(full_limit: int) -> None:
    values = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    matrix = with_spectrum(values)
    before = matrix.clone()
    found = ntk.spectrum(matrix, full_limit=full_limit, extremal=2)
    assert (found.size, found.complete, found.dtype) == (6, full_limit == 9, "float64")
    assert np.allclose(found.eigenvalues, values.numpy() if found.complete else [0.5, 1.0, 4.0, 8.0], rtol=1e-9)
    assert (found.lambda_min, found.lambda_max) == pytest.approx((0.5, 8.0), rel=1e-9)
    assert found.resolution == pytest.approx(6 * 2.0**-53 * 8, rel=1e-9, abs=0)
    assert found.trace == pytest.approx(18.5)
    assert found.effective_rank == pytest.approx(18.5 / 8)
    assert found.condition_number == pytest.approx(16.0)
    assert found.digits == pytest.approx(math.log10(0.5 / found.resolution))
    assert found.complete == (found.residual is None)
    assert 0 <= (found.residual or 0) < 1e-5
    assert found.lower is None
    assert found.lambda_min_lower is None
    least = ntk.spectrum(matrix, full_limit=full_limit)
    assert found.complete or np.allclose(least.eigenvalues, [0.5, 8.0])
    for error in (0.0, 0.125):
        bounded = ntk.spectrum(matrix, full_limit=full_limit, extremal=2, formation_error=error)
        assert bounded.lower is not None
        assert bounded.lower.formation_error == error
        assert bounded.lambda_min_lower == bounded.lower.value
        assert 0.98 * 0.5 - error < bounded.lower.value < 0.5 - error
        assert np.allclose(bounded.eigenvalues, found.eigenvalues, rtol=1e-9)
    nothing = ntk.spectrum(matrix, full_limit=full_limit, formation_error=math.inf)
    assert nothing.lambda_min_lower is None
    assert torch.equal(matrix, before)


def test_eigenvalues_are_found_where_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64))
    module = importlib.import_module("lplr_cli.ntk.spectrum")
    monkeypatch.setattr(module, "lambda_min_lower", partial(linalg.lambda_min_lower, attempts=0))
    found = ntk.spectrum(matrix, full_limit=2, formation_error=0.0)
    assert found.lower is not None
    assert (found.lower.value, found.lambda_min_lower) == (-math.inf, None)
    assert np.allclose(found.eigenvalues, [0.5, 4.0], rtol=1e-9)


@pytest.mark.parametrize("full_limit", [9, 6, 5, 2])
def test_tiles_have_the_spectrum_of_their_matrix(full_limit: int) -> None:
    """Up to the limit they are gathered, and all eigenvalues computed."""
    matrix = with_spectrum(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0, 8.0], dtype=torch.float64))
    found, plain = (ntk.spectrum(k, full_limit=full_limit, formation_error=0.25) for k in (tiled(matrix, 4), matrix))
    assert found.complete == plain.complete == (full_limit >= 6)
    assert np.allclose(found.eigenvalues, plain.eigenvalues, rtol=1e-9)
    assert found.trace == pytest.approx(plain.trace)
    assert found.lower is not None
    assert plain.lower is not None
    assert found.lower.value == pytest.approx(plain.lower.value, rel=1e-3)
    two = ntk.spectrum(tiled(torch.eye(2, dtype=torch.float64), 1), full_limit=0)
    assert (two.complete, two.lambda_min) == (True, 1.0)


def test_figures_of_a_spectrum_at_its_edges() -> None:
    found = ntk.spectrum(with_spectrum(torch.tensor([-8.0, 0.5, 1.0], dtype=torch.float64)))
    assert found.resolution == pytest.approx(3 * 2.0**-53 * 8, rel=1e-9, abs=0)
    below = ntk.spectrum(-torch.eye(3, dtype=torch.float64))
    assert below.resolution == pytest.approx(3 * 2.0**-53, rel=1e-9, abs=0)
    assert found.condition_number is None
    assert found.digits == pytest.approx(math.log10(8 / found.resolution))
    small = replace(found, lambda_min=1e-20)
    assert small.digits == 0
    assert replace(found, lambda_min=0.0).digits == replace(found, resolution=0.0).digits == 0
    assert replace(found, lambda_min=0.0).condition_number is None
    assert replace(found, lambda_max=0.0).effective_rank is replace(found, lambda_max=-1.0).effective_rank is None
    assert replace(found, lambda_max=0.5).effective_rank == pytest.approx(-13.0)
    # Two rows are too few for Lanczos, and three have one eigenvalue at each end.
    two = ntk.spectrum(torch.eye(2, dtype=torch.float64), full_limit=0)
    assert (two.complete, two.lambda_min) == (True, 1.0)
    three = ntk.spectrum(with_spectrum(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), full_limit=0, extremal=7)
    assert np.allclose(three.eigenvalues, [1.0, 4.0])
    with pytest.raises(NumericalError, match="far from positive semidefinite"):
        ntk.spectrum(-torch.eye(9, dtype=torch.float64), full_limit=2)


def test_the_bound_of_extremal_eigenvalues_is_of_a_close_shift() -> None:
    """Its estimate is rough, and its margin one part in a hundred of it."""
    values = torch.logspace(-3, 2, 60, dtype=torch.float64)
    matrix = with_spectrum(values)
    found = ntk.spectrum(matrix, full_limit=10, extremal=2, formation_error=0.0)
    assert found.lambda_min_lower is not None
    assert 0.97e-3 < found.lambda_min_lower < 1e-3
    assert found.lambda_min == pytest.approx(1e-3, rel=1e-9)
    # Nothing is proved of a matrix that is indefinite, and its eigenvalues are found all the same.
    values[0] = -1.0
    below = ntk.spectrum(with_spectrum(values), full_limit=10, formation_error=0.0)
    assert below.lambda_min_lower is not None
    assert below.lambda_min_lower < below.lambda_min == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize("full_limit", [9, 2])
def test_operator_norms_are_of_either_sign(full_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([-5.0, 1.0, 3.0, 4.0], dtype=torch.float64)
    monkeypatch.setattr(importlib.import_module("lplr_cli.ntk.spectrum"), "FULL_LIMIT", full_limit)
    assert ntk.operator_norm(with_spectrum(values)) == pytest.approx(5.0, rel=1e-9)


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
