"""Upper bounds of norms at the edge of Cholesky and of rounding, judged by rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import norms
from lplr_cli.certificate.norms import (
    frobenius_upper,
    kernel_norm_upper,
    largest_eigenvalue_upper,
    norm_upper,
    operator_norms,
)
from lplr_cli.linalg import gamma
from tests.exact import is_semidefinite, product, rational, shifted, square_sum, transpose

U = Fraction(1, 2**53)
TINY = Fraction(float(torch.finfo(torch.float64).smallest_normal))


def psd(size: int, rank: int, seed: int) -> Tensor:
    b = torch.randn((size, rank), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    g = b @ b.T
    matrix: Tensor = (g + g.T) / 2
    return matrix


def dominates(bound: float, g: Tensor) -> bool:
    """bound · I - G has no negative eigenvalue, exactly."""
    return is_semidefinite(shifted(rational(g), -Fraction(bound), sign=-1))


def least_accepted(g: Tensor) -> float:
    """The least t for which Cholesky of tI - G runs to completion, by bisection down to neighbouring numbers."""

    def proved(t: float) -> bool:
        return math.isfinite(float(norms.proved_from(g[None], torch.tensor([t], dtype=torch.float64))[0]))

    low, high = 0.0, 2 * float(g.trace())
    assert proved(high)
    while True:
        middle = low + (high - low) / 2
        if middle in (low, high):
            return high
        low, high = (low, middle) if proved(middle) else (middle, high)


@pytest.mark.parametrize(("size", "rank"), [(2, 2), (3, 1), (5, 3)])
def test_the_proof_at_the_least_shift_that_cholesky_accepts(size: int, rank: int) -> None:
    """Without the 2 % of the first shift: t alone is below λ_max for some matrices, the bound for none."""
    unsound = 0
    for seed in range(80):
        g = psd(size, rank, seed)
        t = least_accepted(g)
        unsound += not dominates(t, g)
        assert dominates(float(norms.proved_from(g[None], torch.tensor([t], dtype=torch.float64))[0]), g)
    assert unsound >= 1


@pytest.mark.parametrize("t", [4.0, 1e10])
def test_the_slack_of_the_proof_is_its_formula(t: float) -> None:
    g = torch.stack([torch.diag(torch.tensor([1.0, 3.0, 0.5]).double()), torch.eye(3).double()])
    found = norms.proved_from(g, torch.full((2,), t, dtype=torch.float64))
    ku = 13 * U / (1 - 13 * U)
    for bound, matrix in zip(found.tolist(), g, strict=True):
        trace = sum(Fraction(float(v)) for v in matrix.diagonal())
        largest = Fraction(float(matrix.diagonal().max()))
        slack = ku / (1 - ku) * (3 * Fraction(t) + trace) + U * (Fraction(t) + largest) + 9 * TINY
        assert Fraction(t) + slack <= Fraction(bound) <= Fraction(t) + slack + 12 * U * Fraction(t)


def test_the_proof_fails_where_it_must() -> None:
    g = psd(4, 4, 0)
    top = float(torch.linalg.eigvalsh(g)[-1])
    found = norms.proved_from(
        torch.stack([g, g, g]), torch.tensor([0.5 * top, 0.999999 * top, 1.000001 * top]).double()
    )
    assert torch.isinf(found).tolist() == [True, True, False]


def test_no_precision_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "gamma", lambda k, dtype: 1.0)
    assert math.isinf(float(norms.proved_from(torch.eye(2).double()[None], torch.tensor([2.0]).double())[0]))


@pytest.mark.parametrize("first", [1 + 2**-50, 1 + 2**-40, 1.02])
def test_largest_eigenvalues_without_the_first_margin(first: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one rank, full rank, zeros, and a start vector orthogonal to the top."""
    monkeypatch.setattr(norms, "FIRST", first)
    v = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    matrices = [psd(4, rank, seed) for rank in (1, 2, 4) for seed in range(8)]
    matrices += [torch.zeros(4, 4).double(), torch.eye(4).double(), torch.eye(4).double() + 9 * torch.outer(v, v)]
    batch = torch.stack(matrices)
    found = largest_eigenvalue_upper(batch)
    for bound, g in zip(found.tolist(), batch, strict=True):
        assert dominates(bound, g)
        truth = float(torch.linalg.eigvalsh(g)[-1])
        # One of them starts orthogonal to its top, and is left with the trace.
        if first > 1.01:
            assert bound <= (22.1 if g[0, 1] == -9 else 1.07 * truth + 1e-300)
    # Alone or in a batch: the same.
    assert torch.equal(found, torch.cat([largest_eigenvalue_upper(g[None]) for g in batch]))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_estimate_that_is_too_low_is_not_believed(part: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shift grows until Cholesky accepts it, and no further; or up to four times, then the trace is left."""
    batch = torch.stack([psd(6, 6, seed) + 5 * torch.eye(6).double() for seed in range(4)])
    truth = torch.linalg.eigvalsh(batch)[:, -1]
    # Some of a batch are proved before the others, which go on by themselves.
    for parts in ([part] * 4, [1.0, part, 1.0, part], [1.0, 0.97, part, 1.0]):
        monkeypatch.setattr(norms, "ritz_value", lambda g, parts=parts: truth * truth.new_tensor(parts))
        found = largest_eigenvalue_upper(batch)
        for bound, g, top, own in zip(found.tolist(), batch, truth.tolist(), parts, strict=True):
            assert dominates(bound, g)
            factors = [1.02, 1.06, 1.18, 1.54, 2.62]
            first = next((f for f in factors if f * own >= 1), None)
            shift = float(g.trace()) if first is None else min(first * own * top, float(g.trace()))
            assert bound == pytest.approx(shift, rel=1e-9)


def test_the_slack_of_the_proof_where_each_of_its_terms_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.diag(torch.tensor([2.0, 1.0])).double()
    monkeypatch.setattr(norms, "gamma", lambda k, dtype: 0.25)
    bound = float(norms.proved_from(g[None], torch.tensor([3.0]).double())[0])
    assert bound == pytest.approx(3 + (0.25 / 0.75) * (2 * 3 + 3), rel=1e-12)
    monkeypatch.setattr(norms, "gamma", lambda k, dtype: 0.0)
    least, t = torch.finfo(torch.float64).smallest_normal, 1e-306
    small = float(norms.proved_from(t / 4 * g[None], torch.tensor([t], dtype=torch.float64))[0])
    assert math.isfinite(small)
    assert small >= t + 4 * least


def test_norms_of_what_is_negative_everywhere() -> None:
    for size in (1e200, 1e-200):
        assert norm_upper(torch.full((3, 3), -size, dtype=torch.float64)) == pytest.approx(3 * size, rel=0.03)
        assert norm_upper(torch.tensor([[-size, 0.0]], dtype=torch.float64)) == pytest.approx(size, rel=0.03)


@pytest.mark.parametrize("shape", [(7, 1, 5), (7, 5, 1), (4, 3, 6), (4, 6, 3), (3, 4, 4), (1, 2, 2), (0, 3, 2)])
def test_norms_of_many_matrices_at_once(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    a = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    exact = torch.linalg.matrix_norm(a, 2) if len(a) else torch.zeros(0, dtype=torch.float64)
    found = operator_norms(a)
    assert found.shape == exact.shape
    # To the rounding of the reference.
    assert bool((found >= exact * (1 - 1e-14)).all())
    assert bool((found <= 1.05 * exact).all())
    # Rounding of visible size, the smaller of both ways, and the last root.
    monkeypatch.setattr(norms, "largest_eigenvalue_upper", lambda g: torch.linalg.eigvalsh(g)[..., -1])
    monkeypatch.setattr(norms, "gamma", lambda k, dtype: 1e-4 * k)
    whole, (_, p, m) = a.square().sum(dim=(1, 2)), shape
    grown = torch.minimum(whole, exact.square() + 1.01e-4 * (max(p, m) + 8) * whole) if min(p, m) > 1 else whole
    torch.testing.assert_close(operator_norms(a), grown.sqrt() * (1 + 1e-4 * (p * m + 16)), rtol=1e-9, atol=0)


def test_the_trace_is_a_bound_where_the_proof_is_not_better() -> None:
    """Rank one: the trace is λ_max, and rounding is added to it."""
    g = torch.zeros(3, 3).double()
    g[0, 0] = 7.0
    found = Fraction(float(largest_eigenvalue_upper(g[None])[0]))
    assert 7 + 7 * 5 * U * Fraction(999, 1000) <= found <= 7 + 7 * 7 * U


def losing_row() -> Tensor:
    """Squares whose sum loses its small terms in floating point, in whatever lanes it is made: (1, k)."""
    return torch.cat([torch.ones(64), torch.full((40_000,), 2**-27.2)]).double()[None]


LOSING: list[tuple[Callable[[Tensor], float], Callable[[Tensor], Fraction]]] = [
    (norm_upper, lambda w: square_sum([Fraction(float(v)) for v in w.flatten()])),
    (frobenius_upper, lambda w: square_sum([Fraction(float(v)) for v in w.flatten()])),
]


@pytest.mark.parametrize(("bound", "square"), LOSING, ids=["operator", "frobenius"])
def test_what_a_sum_of_squares_loses_is_added(
    bound: Callable[[Tensor], float], square: Callable[[Tensor], Fraction], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = losing_row()
    truth = square(row)
    # The eigenvalue of a 1 × 1 matrix is its entry: no margin of another proof helps.
    monkeypatch.setattr(norms, "largest_eigenvalue_upper", lambda g: g[:, 0, 0])
    for w in (row, row.T):
        assert truth <= Fraction(bound(w)) ** 2 <= truth * (1 + Fraction(1, 10**10))


def test_the_error_of_the_gram_matrix_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "largest_eigenvalue_upper", lambda g: torch.zeros(len(g), dtype=torch.float64))
    w = torch.randn((3, 7), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = square_sum([Fraction(float(v)) for v in w.flatten()])
    exact = Fraction(gamma(9, torch.float64)) * square
    for matrix in (w, w.T):
        assert exact <= Fraction(norm_upper(matrix)) ** 2 <= exact * (1 + Fraction(1, 10**12))


def test_norms_of_kernels() -> None:
    """The smaller of two norms, each of them attained, across strips."""
    n = 600
    ones = torch.ones((n, n), dtype=torch.float64)
    assert n <= kernel_norm_upper(ones) <= n * (1 + 1e-9)
    block = torch.eye(n, dtype=torch.float64)
    # ||I||_∞ = 1 and ||I||_F = √n.
    assert 1 <= kernel_norm_upper(block) <= 1 + 1e-9
    star = torch.zeros((n, n), dtype=torch.float64)
    star[0, :] = star[:, 0] = 1.0
    frobenius = math.sqrt(2 * n - 1)
    assert frobenius <= kernel_norm_upper(star) <= frobenius * (1 + 1e-9)
    last = torch.zeros((n, n), dtype=torch.float64)
    last[n - 1, n - 1] = -5.0
    assert 5 <= kernel_norm_upper(last) <= 5 * (1 + 1e-9)


def test_norms_of_kernels_round_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    row = losing_row()[0, :2000]
    kernel = torch.zeros((len(row), len(row)), dtype=torch.float64)
    kernel[0], kernel[:, 0] = row, row
    square = square_sum([Fraction(v) for v in kernel[kernel != 0].tolist()])
    assert square <= Fraction(kernel_norm_upper(kernel)) ** 2
    before = kernel_norm_upper(kernel)
    monkeypatch.setattr(norms, "gamma", lambda k, dtype: 1e6 * gamma(k, dtype))
    assert kernel_norm_upper(kernel) > before * (1 + 1e6 * gamma(len(row) * 200, torch.float64))
    assert norm_upper(row[None]) > float(row.norm()) * (1 + 0.4e6 * gamma(len(row), torch.float64))
    assert frobenius_upper(row) > float(row.norm()) * (1 + 0.9e6 * gamma(len(row), torch.float64))


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-170, 1e-20, 1.0, 1e20, 1e170, 1e307])
def test_norms_of_every_magnitude(scale: float) -> None:
    """Squares would vanish or overflow; the matrix is scaled by a power of two before."""
    w = scale * torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    top, frobenius = Fraction(float(w[0, 0])), square_sum([Fraction(float(v)) for v in w.flatten()])
    for found in (norm_upper(w), kernel_norm_upper(w)):
        assert top <= Fraction(found) <= top * Fraction(102, 100) + TINY
    assert frobenius <= Fraction(frobenius_upper(w)) ** 2 <= frobenius * (1 + Fraction(1, 10**9)) + TINY**2
    assert frobenius_upper(w[:0]) == 0


def test_norms_that_are_no_numbers() -> None:
    zero = torch.zeros((2, 2), dtype=torch.float64)
    assert norm_upper(zero) == kernel_norm_upper(zero) == frobenius_upper(zero) == 0
    for value in (math.inf, math.nan):
        assert kernel_norm_upper(zero + value) == frobenius_upper(zero + value) == math.inf
    huge = torch.full((2, 2), 1.5e308, dtype=torch.float64)
    assert norm_upper(huge) == kernel_norm_upper(huge) == frobenius_upper(huge) == math.inf


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4, 4), (1, 5)])
def test_norm_upper_dominates_the_gram_matrix(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "FIRST", 1 + 2**-50)
    for seed in range(10):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = rational(w)
        gram = product(exact, transpose(exact))
        assert is_semidefinite(shifted(gram, -(Fraction(norm_upper(w)) ** 2), sign=-1))
        assert norm_upper(w) <= 1.2 * float(torch.linalg.matrix_norm(w, 2))
