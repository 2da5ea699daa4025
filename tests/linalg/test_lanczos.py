from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lplr_cli.errors import NumericalError
from lplr_cli.linalg.lanczos import lanczos, tridiagonalise
from lplr_cli.linalg.rayleigh import lowest


def planted(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """A symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix: NDArray[np.float64] = (q * values) @ q.T
    return matrix


# The edges of a semicircle are close together: slow for any method.
BULK = np.sort(np.concatenate([2 * np.cos(np.pi * (np.arange(300) + 0.5) / 300), [3.0, 2.6, 2.3, -2.9, -2.5, -2.2]]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("basis", [None, 40, 20])
def test_both_ends_with_and_without_restarts(k: int, basis: int | None) -> None:
    matrix = planted(BULK)
    start = np.random.default_rng(1).standard_normal(len(BULK))
    products = 0

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal products
        products += 1
        return matrix @ v

    found = lanczos(product, start, k=k, steps=250, tolerance=1e-6, relative_to_norm=True, basis=basis)
    assert found.converged
    assert found.steps == products
    # A Ritz value errs by about the square of its residual.
    np.testing.assert_allclose(found.high, BULK[-k:], atol=1e-8)
    np.testing.assert_allclose(found.low, BULK[:k], atol=1e-8)
    assert (found.high_residuals <= 1e-6 * 3.0 + 1e-12).all()
    if basis is not None and products > basis:
        assert len(found.alpha) == basis


def test_residuals_hold_before_convergence() -> None:
    matrix = planted(BULK)
    start = np.random.default_rng(1).standard_normal(len(BULK))
    for steps in range(3, 60, 7):
        for basis in (None, 9):
            found = lanczos(lambda v: matrix @ v, start, k=2, steps=steps, basis=basis)
            for value, bound in zip(
                [*found.low, *found.high], [*found.low_residuals, *found.high_residuals], strict=True
            ):
                assert np.abs(BULK - value).min() <= bound + 1e-12


def test_one_end_is_cheaper() -> None:
    values = np.concatenate([np.logspace(-8, 0, 200), [2.0]])
    matrix = planted(values)
    start = np.random.default_rng(0).standard_normal(len(values))
    one = lanczos(lambda v: matrix @ v, start, tolerance=1e-4, low_too=False)
    both = lanczos(lambda v: matrix @ v, start, tolerance=1e-4, steps=150)
    assert one.converged
    assert one.high[-1] == pytest.approx(2.0, rel=1e-7)
    assert one.steps < both.steps


def test_an_invariant_space_ends_the_iteration() -> None:
    values = np.zeros(50)
    values[:3] = [5.0, -1.0, 2.0]
    matrix = planted(values)
    found = lanczos(lambda v: matrix @ v, np.random.default_rng(0).standard_normal(50), k=2, tolerance=0.0)
    assert found.converged
    assert found.steps <= 5
    np.testing.assert_allclose(found.high, [2.0, 5.0], atol=1e-12)
    alpha, beta = tridiagonalise(lambda v: matrix @ v, np.ones(50), 20)
    assert len(alpha) == len(beta) + 1 <= 5
    one = lanczos(lambda v: 3 * v, np.ones(1))
    assert (one.high.tolist(), one.low.tolist()) == ([3.0], [3.0])


def test_infinite_products_are_refused() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        lanczos(lambda v: v * np.inf, np.ones(4))


@pytest.mark.parametrize("exact", [True, False])
def test_the_smallest_eigenvalue_without_a_basis(exact: bool) -> None:
    """A planted spectrum with few large eigenvalues, the top given exactly, roughly, or not at all."""
    generator = np.random.default_rng(3)
    values = np.concatenate([np.linspace(1.0, 2.0, 60), [50.0, 300.0, 1e4]])
    matrix = planted(values, 4)
    top = np.linalg.eigh(matrix)[1][:, -3:].T
    if not exact:
        top = np.linalg.qr((top + 1e-3 * generator.standard_normal(top.shape)).T)[0].T
    heights = values[-3:]
    start = generator.standard_normal(len(values))
    seen: list[tuple[int, int]] = []
    found = lowest(
        lambda v: matrix @ v,
        start,
        top,
        heights,
        products=200,
        tolerance=1e-6,
        progress=lambda d, m: seen.append((d, m)),
    )
    assert found.value == pytest.approx(1.0, rel=1e-9)
    assert found.residual <= 1.1e-6
    assert seen == [(i + 1, 200) for i in range(found.products)]
    plain = lowest(lambda v: matrix @ v, start, np.zeros((0, len(values))), np.zeros(0), products=found.products)
    assert plain.value > found.value * (1 + 1e-4)  # what the preconditioner is for
    # Too few products: still an estimate from above, with a residual that holds an eigenvalue.
    for products in (2, 3, 10):
        few = lowest(lambda v: matrix @ v, start, top, heights, products=products)
        assert few.products <= products
        assert few.value >= 1.0 - 1e-12
        assert np.abs(values - few.value).min() <= few.residual + 1e-12
    with pytest.raises(NumericalError, match="not finite"):
        lowest(lambda v: v * np.nan, start, top, heights, products=5)
