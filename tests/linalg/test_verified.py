"""The verified bound at the edge of Cholesky, judged by rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lplr_cli.linalg import gamma, lambda_min_lower
from lplr_cli.linalg import verified as module
from lplr_cli.linalg.cholesky import cholesky
from lplr_cli.linalg.verified import LowerBound, shifted_bound, unit_roundoff
from tests.exact import is_semidefinite, rational, shifted


def largest_accepted(kernel: Tensor, above: float) -> float:
    """The largest shift that floating-point Cholesky accepts, by bisection down to neighbouring numbers."""

    def accepts(shift: float) -> bool:
        with cholesky(kernel, shift) as solve:
            return solve is not None

    low, high = (float(torch.tensor(sign * above, dtype=kernel.dtype)) for sign in (-1, 1))
    assert accepts(low)
    assert not accepts(high)
    while True:
        middle = float(torch.tensor(low + (high - low) / 2, dtype=kernel.dtype))
        if middle in (low, high):
            return low
        low, high = (middle, high) if accepts(middle) else (low, middle)


def nearly_singular(size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """B Bᵀ of rank ``size`` - 1, rounded: the least eigenvalue lies at the rounding."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn((size, size - 1), generator=generator, dtype=torch.float64).to(dtype)
    k = b @ b.T
    matrix: Tensor = (k + k.T) / 2
    return matrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_bound_at_the_largest_shift_that_cholesky_accepts(size: int, dtype: torch.dtype) -> None:
    """No margin helps there: the shift alone is above λ_min for some matrices, the bound for none."""
    unsound = 0
    for seed in range(20):
        kernel = nearly_singular(size, seed, dtype)
        exact = rational(kernel)
        shift = largest_accepted(kernel, 2 * float(kernel.trace()))
        slack, applied = shifted_bound(kernel, shift)
        assert slack is not None
        assert applied == shift
        unsound += not is_semidefinite(shifted(exact, Fraction(shift)))
        value = math.nextafter(shift - slack, -math.inf)
        assert is_semidefinite(shifted(exact, Fraction(value)))
    assert unsound >= 2


def test_a_two_by_two_matrix_whose_factorisation_is_wrong() -> None:
    """det < 0 exactly, and floating-point Cholesky runs to completion all the same."""
    found = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        p, q = torch.rand(2, generator=generator, dtype=torch.float64).add(0.5).tolist()
        kernel = torch.tensor([[p, q], [q, 0.0]], dtype=torch.float64)
        # The least last entry that is accepted.
        kernel[1, 1] = (q / math.sqrt(p)) ** 2 * (1 - 2**-50)
        while True:
            with cholesky(kernel) as solve:
                if solve is not None:
                    break
            kernel[1, 1] = math.nextafter(float(kernel[1, 1]), math.inf)
        if not is_semidefinite(rational(kernel)):
            found += 1
            slack, shift = shifted_bound(kernel, 0.0)
            assert slack is not None
            assert is_semidefinite(shifted(rational(kernel), Fraction(shift) - Fraction(slack)))
    assert found > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shift", [0.0, 0.25, -3.0, 1e-20])
def test_the_slack_is_its_formula(shift: float, dtype: torch.dtype) -> None:
    """φ trace(A) + u max|k_ii - c| + N² ν in rational arithmetic, from below and within a few parts in 10¹²."""
    kernel = torch.diag(torch.tensor([1.0, 3.0, 0.7, 12.0, 5.0], dtype=dtype)) + 0.01
    slack, applied = shifted_bound(kernel, shift)
    assert slack is not None
    n, u, c = len(kernel), Fraction(unit_roundoff(dtype)), Fraction(applied)
    assert applied == float(torch.tensor(shift, dtype=dtype))
    k = n + 1 + 8
    ku = k * u / (1 - k * u)
    phi = ku / (1 - ku)
    terms = [abs(Fraction(float(v)) - c) for v in kernel.diagonal()]
    exact = phi * sum(terms) + u * max(terms) + n * n * Fraction(float(torch.finfo(dtype).smallest_normal))
    assert exact <= Fraction(slack) <= exact * (1 + (Fraction(1, 10**12) if dtype == torch.float64 else 8 * u))


def test_the_shift_is_rounded_to_the_matrix_before_it_counts() -> None:
    kernel = torch.eye(3, dtype=torch.float32)
    found = lambda_min_lower(kernel, 0.1, formation_error=0.0)
    assert found.shift == float(torch.tensor(found.shift, dtype=torch.float32))


def test_everything_is_subtracted() -> None:
    kernel = nearly_singular(5, 3) + torch.eye(5, dtype=torch.float64)
    truth = float(torch.linalg.eigvalsh(kernel)[0])
    plain = lambda_min_lower(kernel, truth)
    assert plain.formation_error == 0
    assert Fraction(plain.value) <= Fraction(plain.shift) - Fraction(plain.factorisation_error)
    assert plain.shift == truth - 0.01 * truth
    assert plain.attempts == 1
    given = lambda_min_lower(kernel, truth, formation_error=0.125)
    assert given.formation_error == 0.125
    assert Fraction(given.value) <= Fraction(plain.shift) - Fraction(plain.factorisation_error) - Fraction(1, 8)
    assert given.value == pytest.approx(plain.value - 0.125, rel=1e-14)


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_differences_are_rounded_downwards(error: float) -> None:
    """Many shifts: some of them are rounded upwards by the subtraction, whose last bit the margins do not hold."""
    kernel = nearly_singular(5, 3) + torch.eye(5, dtype=torch.float64)
    for k in range(1, 60):
        found = lambda_min_lower(kernel, k / 61.0, formation_error=error)
        exact = Fraction(found.shift) - Fraction(found.factorisation_error) - Fraction(error)
        assert exact * (1 - Fraction(1, 2**50)) < Fraction(found.value) < exact


@pytest.mark.parametrize("share", [0.97, 30.0])
def test_each_of_two_differences_is_rounded_downwards(share: float) -> None:
    """Where the second leaves little, the last bit of the first counts; where it is large, its own does."""
    kernel = nearly_singular(5, 3) + torch.eye(5, dtype=torch.float64)
    for k in range(1, 60):
        error = share * lambda_min_lower(kernel, k / 61.0).shift
        found = lambda_min_lower(kernel, k / 61.0, formation_error=error)
        exact = Fraction(found.shift) - Fraction(found.factorisation_error) - Fraction(error)
        assert Fraction(found.value) <= exact


def test_what_underflows_in_a_matrix_of_zeros() -> None:
    slack, _ = shifted_bound(torch.diag(torch.full((3,), 5e-324, dtype=torch.float64)) * 2**60, 0.0)
    assert slack is not None
    assert slack >= 9 * torch.finfo(torch.float64).smallest_normal


def test_errors_a_million_times_larger_show(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = nearly_singular(5, 3) + torch.eye(5, dtype=torch.float64)
    before = lambda_min_lower(kernel, 1.0).factorisation_error
    monkeypatch.setattr(module, "gamma", lambda k, dtype: 1e6 * gamma(k, dtype))
    assert lambda_min_lower(kernel, 1.0).factorisation_error > 5e5 * before


def test_the_margin_doubles_until_a_factorisation_succeeds() -> None:
    kernel = nearly_singular(6, 1) + torch.eye(6, dtype=torch.float64)
    truth = float(torch.linalg.eigvalsh(kernel)[0])
    found = lambda_min_lower(kernel, 1.1 * truth)
    # 1.1 (1 - 0.01 · 2ᵏ) < 1 first for k = 4.
    assert found.attempts == 5
    assert found.shift == pytest.approx(1.1 * truth * (1 - 0.16), rel=1e-12)
    assert found.value <= truth
    used: list[Tensor] = []
    assert found == lambda_min_lower(kernel, 1.1 * truth, attempts=5, use=lambda solve: used.append(solve(kernel)))
    assert len(used) == 1
    failed = lambda_min_lower(kernel, 1.1 * truth, attempts=4, formation_error=2.0)
    assert failed == LowerBound(-math.inf, -math.inf, math.inf, 2.0, 4)
    # Around zero the margin is of the size of the rounding.
    zero = lambda_min_lower(kernel, 0.0)
    assert zero.shift == -4 * unit_roundoff(torch.float64) * float(kernel.trace())


@pytest.mark.parametrize("estimate", [math.nan, math.inf])
def test_no_estimate_proves_nothing(estimate: float) -> None:
    assert lambda_min_lower(torch.eye(2, dtype=torch.float64), estimate).value == -math.inf
    nothing = LowerBound(-math.inf, -math.inf, math.inf, 0.5, 0)
    assert lambda_min_lower(torch.zeros(0, 0, dtype=torch.float64), 1.0, formation_error=0.5) == nothing
    assert lambda_min_lower(torch.eye(2, dtype=torch.float64), estimate, formation_error=0.5) == nothing


def test_precision_that_does_not_reach_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """φ ≥ 1: nothing follows from a factorisation."""
    monkeypatch.setattr(module, "gamma", lambda k, dtype: 1.5)
    assert lambda_min_lower(torch.eye(2, dtype=torch.float64), 1.0).value == -math.inf


@pytest.mark.parametrize("count", [1, 3, 2**20])
def test_gamma_is_its_definition_rounded_upwards(count: int) -> None:
    for dtype in (torch.float64, torch.float32):
        u = Fraction(unit_roundoff(dtype))
        if count * u >= Fraction(1, 2):
            continue
        exact = count * u / (1 - count * u)
        assert exact <= Fraction(gamma(count, dtype)) <= exact * (1 + Fraction(1, 2**48))
    assert gamma(2**52 - 1, torch.float64) < math.inf
    assert gamma(2**52, torch.float64) == math.inf


class Elsewhere(Tensor):
    """A tensor that says that it lies on another device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")

    def cpu(self, *args: object, **options: object) -> Tensor:
        return self.as_subclass(Tensor)


def test_a_matrix_of_another_device_is_factorised_on_the_cpu() -> None:
    """GPU libraries invert diagonal blocks, which the bound does not allow; ``use`` still gets what it asked for."""
    kernel = nearly_singular(50, 3) + torch.eye(50, dtype=torch.float64)
    seen: list[Tensor] = []
    b = torch.ones((50, 1), dtype=torch.float64)
    found = lambda_min_lower(kernel.as_subclass(Elsewhere), 1.0, use=lambda solve: seen.append(solve(b)))
    assert found == lambda_min_lower(kernel, 1.0)
    assert found.value > 0
    assert seen[0].device.type == "meta"
    assert lambda_min_lower(kernel.as_subclass(Elsewhere), 1.0) == found
    if torch.cuda.is_available():
        assert lambda_min_lower(kernel.cuda(), 1.0) == found
