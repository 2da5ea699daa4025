"""Lemmas A to C over intervals: against exact formulas, functions whose Hessian is known, and changed constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lplr_cli.certificate import Smoothness
from lplr_cli.certificate.pieces import INTERVALS, Piece, Pieces


def test_nothing_deviates_from_the_chord_of_a_quadratic() -> None:
    piece = quadratic_piece(beta=3.0, alpha=0.0)
    pieces = Pieces([piece])
    assert float(pieces.deviation.max()) == 0.0


def quadratic_piece(beta: float, alpha: float) -> Piece:
    """L = ½ θᵀ diag(1, 3) θ between two points."""
    h = torch.tensor([1.0, 3.0], dtype=torch.float64)
    a, b = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([0.6, 0.2], dtype=torch.float64)
    g, k = h * a, h * b
    s, y = b - a, k - g
    return Piece(
        step=0, length=float(s.norm()), start=float(g @ g), end=float(k @ k), inner=float(g @ k), change=float(y @ y),
        along=float(s @ y), loss_start=float(a @ g) / 2, loss_end=float(b @ k) / 2, dot_error=0.0, allowed=0.01,
        smoothness=Smoothness(beta, alpha, 0.0, 0.0),
    )  # fmt: skip


def test_lemmas_on_a_quadratic_in_rational_numbers() -> None:
    """κ², the chord, U and ℓ against their formulas, evaluated by hand for L = ½ θᵀ diag(1, 3) θ."""
    pieces = Pieces([quadratic_piece(beta=3.0, alpha=0.5)])
    # σ = (−2/5, −4/5), y = (−2/5, −12/5): ⟨σ, y⟩ = 52/25, d² = 4/5, ||y||² = 148/25.
    assert float(pieces.kappa_sq[0]) == pytest.approx(2.5 * 52 / 25 + 0.5 * 3 * 4 / 5 - 148 / 25, rel=1e-9)
    assert float(pieces.chord_high.max()) == pytest.approx(math.sqrt(10), rel=1e-9)
    assert float(pieces.chord_low.min()) == pytest.approx(math.sqrt(0.36 + 0.36), rel=1e-9)
    above, below = pieces.loss_above(0.01), float(pieces.loss_below(0.01)[0])
    # At the first node: L = 2, the bow is that of the first interval, ρ times the gradient there and βρ²/2 on top.
    bow = (1 / 128) * (127 / 128)
    away = (math.sqrt(10) + 0.0 * bow) * 0.01 + 3.0 * 1e-4 / 2
    assert float(above[0, 0]) == pytest.approx(2.0 + 0.5 * 0.8 * bow / 2 + away, rel=1e-9)
    # Lowest: near the second node, where L = 6/25.
    assert below <= 6 / 25 - 0.01 * math.sqrt(0.72) - 0.5 * 1e-4 / 2 + 1e-12
    assert below >= 6 / 25 - 0.01 * float(pieces.chord_high[0, -1]) - 3 * 0.8 / 8 - 1e-3


# Amplitude, frequency, start and move of each coordinate.
WAVES = st.tuples(st.floats(0.1, 2), st.floats(0.3, 3), st.floats(-3, 3), st.floats(-1.5, 1.5))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(WAVES, min_size=1, max_size=4),
    st.floats(0.0, 0.3),
)
def test_lemmas_bound_sums_of_sines(waves: list[tuple[float, float, float, float]], rho: float) -> None:
    """L = 10 + Σ a sin(bθ): −ab² ≤ ∇²L ≤ ab², its Lipschitz constant ab³; every bound at many points of the tube."""
    a, b, start, move = (np.array(v) for v in zip(*waves, strict=True))
    beta = alpha = float((a * b**2).max())
    end = start + move
    loss: Callable[[np.ndarray], float] = lambda t: 10 + float((a * np.sin(b * t)).sum())  # noqa: E731
    grad: Callable[[np.ndarray], np.ndarray] = lambda t: a * b * np.cos(b * t)  # noqa: E731
    g, k, sigma = grad(start), grad(end), end - start
    length = float(np.linalg.norm(sigma))
    piece = Piece(
        0, length * (1 + 1e-12), float(g @ g), float(k @ k), float(g @ k), float((k - g) @ (k - g)),
        float(sigma @ (k - g)), loss(start), loss(end), 1e-15, 1.0,
        Smoothness(beta, alpha, 0.0, float((a * b**3).max())),
    )  # fmt: skip
    pieces = Pieces([piece])
    assert pieces.kappa_sq[0] >= -1e-9
    lower, above, below = pieces.gradient(rho)[0], pieces.loss_above(rho)[0], float(pieces.loss_below(rho)[0])
    seen = float(pieces.lowest_seen(rho)[0])
    rng = np.random.default_rng(0)
    lowest = math.inf
    for tau in np.linspace(0, 1, 33):
        interval = min(int(tau * len(lower)), len(lower) - 1)
        centre = start + tau * sigma
        for _ in range(4):
            away = rng.standard_normal(len(a))
            # Perpendicular to the segment, so that the nearest point is this one, except beyond its ends.
            if length > 0:
                away -= (away @ sigma) / length**2 * sigma
            size = float(np.linalg.norm(away))
            point = centre + (rho / size * away if size > 1e-9 else 0)
            around = [interval, max(0, interval - 1)] if tau * len(lower) == interval else [interval]
            assert min(lower[i] for i in around) <= np.linalg.norm(grad(point)) + 1e-9
            assert max(above[i] for i in around) >= loss(point) - 1e-9
            assert below <= loss(point) + 1e-9
        lowest = min(lowest, loss(centre))
    assert seen >= below
    # D reaches ρ from each node: going down the gradient by ρ is inside.
    for point, slope in ((start, g), (end, k)):
        if np.linalg.norm(slope) > 0:
            lowest = min(lowest, loss(point - rho * slope / np.linalg.norm(slope)))
    assert seen >= lowest - 1e-6 or seen >= min(loss(start), loss(end)) - beta * rho**2


def exact(p: Any, rho: Any, floor: Any, root: Callable[[Any], Any] = math.sqrt) -> dict[str, list[Any]]:
    """Every bound on every interval by its formula, one number at a time, without margins."""
    s = p.smoothness
    kappa = root(
        max(
            0.0,
            (s.beta - s.alpha) * (p.along + p.length * (2 * s.gradient_error + p.dot_error * root(p.change)))
            + s.alpha * s.beta * p.length**2
            - max(0.0, root(p.change) * (1 - p.dot_error) - 2 * s.gradient_error) ** 2,
        )
    )
    delta = s.gauss_newton * p.length**2 / 2 + min(2 * s.alpha * p.length, s.rest * p.length**2 / 2)
    found: dict[str, list[Any]] = {"gradient": [], "above": [], "below": [], "mu": []}
    for k in range(INTERVALS):
        a, b = k / INTERVALS, (k + 1) / INTERVALS
        bow = max(a * (1 - a), b * (1 - b), 0.25 if a <= 0.5 <= b else 0.0)
        squares = [(1 - t) ** 2 * p.start + 2 * t * (1 - t) * p.inner + t**2 * p.end for t in (a, b)]
        slack = 4 * p.dot_error * max(p.start, p.end)
        turn = (p.start - p.inner) / p.change if p.change else 0.0
        lowest = min(max(turn, a), b)
        least = (1 - lowest) ** 2 * p.start + 2 * lowest * (1 - lowest) * p.inner + lowest**2 * p.end
        low = max(0.0, root(max(0.0, least - slack)) - s.gradient_error)
        high = root(max(squares) + slack) + s.gradient_error
        dev = min(kappa * root(bow), delta * bow)
        chords = [(1 - t) * p.loss_start + t * p.loss_end for t in (a, b)]
        found["gradient"].append(low - dev - s.beta * rho)
        away = (high + dev) * rho
        above = max(chords) + s.loss_error + s.alpha * p.length**2 * bow / 2 + away + s.beta * rho**2 / 2
        found["above"].append(above)
        found["below"].append(min(chords) - s.loss_error - s.beta * p.length**2 * bow / 2 - away - s.alpha * rho**2 / 2)
        g = found["gradient"][-1]
        found["mu"].append(g**2 / (2 * (above - floor)) if g > 0 else 0.0)
    return found


REAL = st.floats(0.05, 3)
SMALL = st.floats(0, 0.02)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(REAL, REAL, REAL, REAL), st.tuples(REAL, REAL), st.tuples(REAL, REAL, REAL, REAL),
    st.tuples(SMALL, SMALL, SMALL), SMALL,
)  # fmt: skip
def test_every_bound_is_its_formula(
    vectors: tuple[float, ...],
    losses: tuple[float, ...],
    constants: tuple[float, ...],
    errors: tuple[float, ...],
    rho: float,
) -> None:
    """To 1e-9, and outwards: never better than exact arithmetic from the same numbers."""
    a, b, turn, length = vectors
    g, k = np.array([a, 0.0]), np.array([b * math.cos(turn), b * math.sin(turn)])
    alpha = constants[0]
    square, other, inner, change = (float(v) for v in (g @ g, k @ k, g @ k, (k - g) @ (k - g)))
    piece = Piece(
        step=0, length=length, start=square, end=other, inner=inner, change=change,
        along=constants[1] * length, loss_start=1 + losses[0], loss_end=1 + losses[1], dot_error=errors[0] / 10,
        allowed=0.05, smoothness=Smoothness(alpha + constants[2], alpha, constants[3], a, errors[1], errors[2]),
    )  # fmt: skip
    pieces, floor = Pieces([piece]), 0.3
    want = exact(piece, rho, floor)
    size = 10 + abs(max(want["above"]))
    for got, wanted, outwards in (
        (pieces.gradient(rho)[0], want["gradient"], -1),
        (pieces.loss_above(rho)[0], want["above"], 1),
    ):
        assert np.allclose(got, wanted, rtol=0, atol=1e-8 * size)
        assert (outwards * (got - np.array(wanted)) >= -1e-14 * size).all()
    below = float(pieces.loss_below(rho)[0])
    assert min(want["below"]) - 1e-9 * size <= below <= min(want["below"])
    mu = float(pieces.mu(rho, floor)[0])
    assert mu <= min(want["mu"]) * (1 + 1e-14)
    assert mu == pytest.approx(min(want["mu"]), rel=1e-6, abs=1e-7)
    share = float(pieces.share(0.02)[0])
    bare = max(0.0, min(exact(piece, 0.0, floor)["gradient"]))
    assert share == pytest.approx(min(0.02 * bare / (alpha + constants[2]), 0.05), rel=1e-6, abs=1e-8)
    seen = float(pieces.lowest_seen(rho)[0])
    ends = []
    for loss, index in ((piece.loss_start, 0), (piece.loss_end, -1)):
        low = float(pieces.chord_low[0, index])
        beta = alpha + constants[2]
        gain = low * rho - beta * rho**2 / 2 if beta * rho <= low else 0.0
        ends.append(loss + errors[1] - gain)
    assert seen == pytest.approx(min(ends), rel=1e-9)
    assert seen >= min(ends)


def in_digits(p: Piece) -> Any:
    """The same piece with its numbers as they are, to be computed with in any number of digits."""

    def exactly(record: dict[str, Any]) -> dict[str, Any]:
        return {k: SimpleNamespace(**exactly(v)) if isinstance(v, dict) else mpmath.mpf(v) for k, v in record.items()}

    return SimpleNamespace(**exactly(asdict(p)))


@pytest.mark.parametrize("seed", range(12))
def test_no_rounding_makes_a_bound_better(seed: int) -> None:
    """In 40 digits and without any tolerance, where terms cancel and where errors are zero."""
    rng = np.random.default_rng(seed)
    turn = float(10.0 ** -rng.integers(0, 8))
    g = rng.standard_normal(3)
    # Nearly the same, or nearly the opposite, with a chord that comes near to zero.
    k = (1 if seed % 2 else -1 - turn) * g + turn * rng.standard_normal(3)
    length = float(10.0 ** -rng.integers(0, 6))
    alpha = rng.random() * (seed // 3 % 3)
    along = length * rng.random() * float(np.linalg.norm(k - g))
    # Two of them may be above the change of the gradient.
    error = (0.0, 1e-9, 0.2)[seed % 3]
    size = (1.0, 1e8, 1e-8)[seed % 3]
    smooth = Smoothness(alpha + rng.random(), alpha, rng.random(), rng.random(), error * size, error)
    piece = Piece(
        seed, length, float(g @ g), float(k @ k), float(g @ k), float((k - g) @ (k - g)), along,
        size * (1 + rng.random()), size * (1 + rng.random()), min(error, 1e-9), 0.1, smooth,
    )  # fmt: skip
    pieces = Pieces([piece])
    with mpmath.workdps(40):
        for rho, floor in ((0.0, 0.0), (1e-3, 0.9 * size)):
            want = exact(in_digits(piece), mpmath.mpf(rho), mpmath.mpf(floor), mpmath.sqrt)
            lower, above = pieces.gradient(rho)[0].tolist(), pieces.loss_above(rho)[0].tolist()
            assert all(x <= y for x, y in zip(lower, want["gradient"], strict=True))
            assert all(x >= y for x, y in zip(above, want["above"], strict=True))
            assert float(pieces.loss_below(rho)[0]) <= min(want["below"])
            assert float(pieces.mu(rho, floor)[0]) <= min(want["mu"])
            ends = []
            for loss, slope in ((piece.loss_start, pieces.chord_low[0, 0]), (piece.loss_end, pieces.chord_low[0, -1])):
                low, beta, r = (mpmath.mpf(float(v)) for v in (slope, smooth.beta, rho))
                down = low * r - beta * r**2 / 2 if beta * r <= low else mpmath.mpf(0)
                ends.append(mpmath.mpf(loss) + mpmath.mpf(smooth.loss_error) - down)
            assert float(pieces.lowest_seen(rho)[0]) >= min(ends)


def test_many_pieces_are_bounded_as_each_alone() -> None:
    base = quadratic_piece(3.0, 0.5)
    several = [replace(base, step=k, length=base.length * (1 + k), loss_start=2.0 + k) for k in range(INTERVALS)]
    together, rho = Pieces(several), np.linspace(0.0, 0.01, INTERVALS)
    bounds: list[Callable[[Pieces, Any], Any]] = [
        Pieces.gradient, Pieces.loss_above, Pieces.loss_below, Pieces.lowest_seen,
        lambda p, r: p.mu(r, 0.1), lambda p, r: p.share(0.02),
    ]  # fmt: skip
    for of in bounds:
        alone = [of(Pieces([piece]), r)[0] for piece, r in zip(several, rho, strict=True)]
        assert np.array_equal(of(together, rho), np.array(alone))


def test_what_is_not_said_of_a_loss_is_the_least_that_can_be() -> None:
    assert Smoothness(1.0, 2.0) == Smoothness(1.0, 2.0, math.inf, math.inf, 0.0, 0.0)


def test_arithmetic_is_outwards() -> None:
    piece = quadratic_piece(3.0, 0.5)
    sharp, blunt = Pieces([piece]), Pieces([replace(piece, dot_error=1e-3)])
    assert float(blunt.kappa_sq[0]) > float(sharp.kappa_sq[0])
    assert float(blunt.chord_low.min()) < float(sharp.chord_low.min())
    assert float(blunt.chord_high.max()) > float(sharp.chord_high.max())


def test_each_constant_moves_the_bounds_in_its_direction() -> None:
    base = quadratic_piece(3.0, 0.5)
    s = Smoothness(3.0, 0.5, 2.0, 2.0)

    def bounds(**changes: float) -> tuple[float, float, float]:
        p = Pieces([replace(base, smoothness=replace(s, **changes))])
        return float(p.gradient(0.01).min()), float(p.loss_above(0.01).max()), float(p.loss_below(0.01)[0])

    clean = bounds()
    # Small Lipschitz constants rule here, so that each of them is felt.
    assert bounds(gauss_newton=2.5)[0] < clean[0]
    assert bounds(rest=2.2)[0] < clean[0]
    assert bounds(beta=4.0)[0] < clean[0]
    assert bounds(alpha=0.6)[1] > clean[1]
    assert bounds(beta=4.0)[2] < clean[2]
    assert bounds(loss_error=0.1)[1:] == pytest.approx((clean[1] + 0.1, clean[2] - 0.1))


def test_nothing_is_divided_by_nothing() -> None:
    base = quadratic_piece(3.0, 0.5)
    # A ball that leaves no gradient, and a floor that leaves no loss.
    assert Pieces([base]).mu(1e6, 1e300).tolist() == [0.0]
    flat = replace(base, start=0.0, end=0.0, inner=0.0, change=0.0, along=0.0, smoothness=Smoothness(0.0, 0.0))
    assert Pieces([flat]).share(0.02).tolist() == [flat.allowed]


def test_a_radius_is_at_most_what_the_ball_of_the_bounds_has_room_for() -> None:
    base = quadratic_piece(3.0, 0.5)
    free = float(Pieces([replace(base, allowed=math.inf)]).share(0.02)[0])
    assert 0 < free < math.inf
    assert Pieces([replace(base, allowed=free / 2)]).share(0.02).tolist() == [free / 2]
