"""Theorems 9.3 and 9.4 from given pieces: every figure by its formula, holes and lost steps named."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from lplr_cli.certificate import Smoothness
from lplr_cli.certificate.pieces import Piece, Pieces
from lplr_cli.certificate.region import (
    TUBE,
    Descent,
    Lost,
    Region,
    StepRow,
    assemble,
    contraction,
    measured_ratio,
    proved_rate,
)

SMOOTH = Smoothness(4.0, 0.5, 0.2, 0.3, 1e-4, 2e-4)


def piece(step: int, loss: float = 2.0, slope: float = 1.0, smooth: Smoothness = SMOOTH) -> Piece:
    """A step of length 0.1 down a slope that falls by a tenth."""
    after = 0.9 * slope
    return Piece(
        step=step, length=0.1, start=slope**2, end=after**2, inner=slope * after, change=(slope - after) ** 2,
        along=0.1 * (slope - after), loss_start=loss, loss_end=loss - 0.095 * slope, dot_error=1e-6, allowed=0.01,
        smoothness=smooth,
    )  # fmt: skip


PIECES = [piece(0), piece(1, 1.9, 0.9), piece(2, 1.8, 0.8), piece(2, 1.75, 0.75)]
DESCENTS = [Descent(s, 0.1, 1e-5, p.start) for s, p in ((0, PIECES[0]), (1, PIECES[1]), (2, PIECES[2]))]
NODES = [(p.loss_start, p.start) for p in PIECES] + [(1.68, 0.5)]


def region(
    pieces: Sequence[Piece] = PIECES,
    descents: Sequence[Descent] = DESCENTS,
    lost: Sequence[Lost] = (),
    radius: float | None = None,
) -> Region:
    return assemble("certified", pieces, descents, lost, np.array(NODES).T, radius=radius, balls=5, steps=3)


def test_every_figure_of_a_whole_path() -> None:
    found, bounds = region(), Pieces(PIECES)
    rho = float(bounds.share(TUBE).min())
    assert found.radius == rho > 0
    floor = float(bounds.loss_below(rho).min())
    assert found.l_star_lower == floor
    assert found.l_star_upper == float(bounds.lowest_seen(rho).min())
    assert found.mu == float(bounds.mu(rho, floor).min())
    assert found.mu_star == float(bounds.mu(rho, 0.0).min())
    assert found.mu_star < found.mu
    assert found.certified_share == 1.0
    assert (found.first_step, found.last_step, found.steps, found.steps_certified) == (0, 3, 3, 3)
    assert found.length == pytest.approx(0.4)
    assert found.beta_max == 4.0
    assert found.eta_beta_max == pytest.approx(0.4)
    assert found.eta_mu_t == pytest.approx(0.3 * found.mu)
    assert (found.pieces, found.balls) == (4, 5)
    assert found.measured_star == min(s / (2 * v) for v, s in NODES)
    assert found.measured == min(s / (2 * (v - floor)) for v, s in NODES)
    assert [row.pieces for row in found.rows] == [1, 1, 2]
    assert [row.length for row in found.rows] == pytest.approx([0.1, 0.1, 0.2])
    values, stars = bounds.mu(rho, floor), bounds.mu(rho, 0.0)
    assert [row.mu for row in found.rows] == [values[0], values[1], values[2:].min()]
    assert [row.mu_star for row in found.rows] == [stars[0], stars[1], stars[2:].min()]
    assert found.not_certified == []


def factor(d: Descent, beta: float, wrong: float, dot: float, mu: float) -> float:
    """1 − 2ημ(1 − ηβ/2 − ε) with the least gradient and the largest error."""
    least = math.sqrt(d.square) * (1 - dot) - wrong
    error = d.error + d.lr * wrong
    rounding = error * (1 + d.lr * beta) / (d.lr * least) + beta * error**2 / (2 * d.lr * least**2)
    return 1 - 2 * d.lr * mu * (1 - d.lr * beta / 2 - rounding)


def test_rate_by_its_formula() -> None:
    found = region()
    assert found.mu is not None
    wanted = [factor(d, 4.0, 2e-4, 1e-6, found.mu) for d in DESCENTS]
    for row, value in zip(found.rows, wanted, strict=True):
        assert row.factor is not None
        assert row.factor == pytest.approx(value, abs=1e-12)
        assert row.factor >= value
    assert found.rate == max(row.factor or 0.0 for row in found.rows)
    assert found.rate_from_step == 0
    assert found.rate_reason == ""


def exact_factor(d: Descent, beta: float, wrong: float, dot: float, mu: float) -> mpmath.mpf:
    """1 − 2ημ(1 − ηβ/2 − ε) in 60 digits, of floats as they are."""
    lr, size, error, b, w, m = (mpmath.mpf(v) for v in (d.lr, d.square, d.error, beta, wrong, mu))
    least, moved = mpmath.sqrt(size) * (1 - mpmath.mpf(dot)) - w, error + lr * w
    rounding = moved * (1 + lr * b) / (lr * least) + b * moved**2 / (2 * lr * least**2)
    return 1 - 2 * lr * m * (1 - lr * b / 2 - rounding)


@pytest.mark.parametrize(
    "regime", ["generic", "hardly a step", "one step is all", "edge of stability", "gradient near its error"]
)
def test_a_factor_is_never_below_its_formula(regime: str) -> None:
    """Where each term cancels, with rounding outwards that cannot be left out."""
    rng = np.random.default_rng(7)
    known = 0
    for _ in range(1500):
        lr, beta, error, wrong, dot = 10 ** rng.uniform(-3, 0), 1.0, 0.0, 0.0, 0.0
        mu = rng.uniform(0.1, 1.0)
        if regime == "generic":
            error, wrong, dot = (10.0 ** rng.uniform(-14, -3, 3)).tolist()
        elif regime == "hardly a step":
            lr, beta = 10 ** rng.uniform(-17, -14), 10 ** rng.uniform(-3, 3)
        elif regime == "one step is all":
            beta, mu = 0.0, rng.uniform(0.3, 0.5) / lr
        elif regime == "edge of stability":
            mu = beta = 2 * (1 - 10 ** rng.uniform(-11, -8)) / lr
        else:
            wrong = rng.uniform(0.1, 0.5)
        found = contraction(
            d := Descent(0, lr, error, rng.uniform(0.5, 2.0)),
            beta,
            replace(PIECES[0], dot_error=dot, smoothness=replace(SMOOTH, gradient_error=wrong)),
            mu,
        )
        if found is not None:
            known += 1
            with mpmath.workdps(60):
                assert mpmath.mpf(found) >= exact_factor(d, beta, wrong, dot, mu)
                assert found < 1
    assert known > 300


def test_a_gradient_of_exactly_its_error_is_none() -> None:
    smooth = replace(SMOOTH, gradient_error=1 - 1e-12)
    assert (
        contraction(Descent(0, 0.1, 0.0, 1.0), 0.0, replace(PIECES[0], dot_error=0.0, smoothness=smooth), 0.5) is None
    )


def test_eta_beta_is_rounded_upwards() -> None:
    rng = np.random.default_rng(8)
    for beta in rng.uniform(1, 4, 50).tolist():
        smooth = replace(SMOOTH, beta=beta)
        found = region([replace(p, smoothness=smooth) for p in PIECES])
        assert found.eta_beta_max is not None
        assert Fraction(found.eta_beta_max) >= Fraction(0.1) * Fraction(beta)


def test_a_rate_that_ends_too_soon_names_the_last_step() -> None:
    found = region(descents=[*DESCENTS[:2], replace(DESCENTS[2], error=0.5)])
    assert (found.rate, found.rate_from_step) == (None, None)
    assert found.rate_reason == f"step 2: {found.rows[2].reason}"
    assert proved_rate([], True) == (None, None, "no step")


def test_steps_without_descent_add_nothing_to_the_evidence() -> None:
    found = region(descents=[DESCENTS[0], DESCENTS[2]])
    assert found.eta_mu_t == pytest.approx(0.2 * (found.mu or 0.0))
    assert found.not_certified == []


@pytest.mark.filterwarnings("error")
def test_a_piece_with_a_loss_beyond_float64_is_outside() -> None:
    most = sys.float_info.max
    for broken in (replace(PIECES[1], loss_start=most), replace(PIECES[1], loss_end=most)):
        found = region([PIECES[0], broken, *PIECES[2:]])
        assert [row.certified for row in found.rows] == [True, False, True]
    unknown = replace(PIECES[1], smoothness=replace(SMOOTH, loss_error=math.inf))
    assert [row.certified for row in region([PIECES[0], unknown, *PIECES[2:]]).rows] == [True, False, True]


def test_the_sharper_piece_of_a_step_rules_it() -> None:
    sharp = replace(PIECES[3], smoothness=replace(SMOOTH, beta=15.0))
    found = region([*PIECES[:3], sharp])
    assert found.rows[2].beta == 15.0
    assert found.rows[2].eta_beta == pytest.approx(1.5)
    assert found.beta_max == 15.0
    assert found.eta_beta_max == found.rows[2].eta_beta
    unbounded = region([*PIECES[:3], replace(PIECES[3], smoothness=Smoothness(math.inf, math.inf))])
    assert unbounded.eta_beta_max == pytest.approx(0.4)


@pytest.mark.parametrize(("beta", "edge"), [(19.9, False), (20.1, True)])
def test_two_over_eta_is_the_edge(beta: float, edge: bool) -> None:
    found = region([replace(PIECES[0], smoothness=replace(SMOOTH, beta=beta)), *PIECES[1:]])
    assert (found.rows[0].factor is None) == edge
    assert found.rate_from_step == (1 if edge else 0)
    assert bool(found.not_certified) == edge
    assert not edge or "not below 2" in found.not_certified[0][1]
    assert found.certified_share == 1.0


def test_a_step_that_is_no_gradient_step_has_no_factor() -> None:
    found = region(descents=[DESCENTS[0], replace(DESCENTS[1], error=0.5), DESCENTS[2]])
    assert found.rows[1].factor is None
    assert found.rate_from_step == 2
    assert "rounding" in found.not_certified[0][1]


def test_no_factor_from_a_gradient_within_its_error_or_a_step_of_nothing() -> None:
    good = Descent(0, 0.1, 1e-9, 1.0)
    assert contraction(good, 4.0, PIECES[0], 0.5) == pytest.approx(1 - 0.1 * 0.8, rel=1e-4)
    for bad in (replace(good, square=1e-10), replace(good, square=4e-8), replace(good, square=0.0)):
        assert contraction(replace(bad, error=0.0), 4.0, PIECES[0], 0.5) is None
    assert contraction(replace(good, lr=0.0), 4.0, PIECES[0], 0.5) is None
    assert contraction(replace(good, lr=-0.1), 4.0, PIECES[0], 0.5) is None
    assert contraction(good, 4.0, PIECES[0], 0.0) is None


def test_a_gradient_of_zero_is_no_region() -> None:
    for still in (piece(1, slope=0.0), replace(piece(1, slope=0.0, smooth=Smoothness(4.0, 0.5, 0.0, 0.0)), length=0.0)):
        found = region([PIECES[0], still, *PIECES[2:]], radius=0.0)
        assert [row.certified for row in found.rows] == [True, False, True]


def test_other_optimisers_have_a_region_and_no_rate() -> None:
    found = region(descents=())
    assert (found.mu, found.certified_share) == (region().mu, 1.0)
    assert [row.factor for row in found.rows] == [None] * 3
    assert found.not_certified == []
    assert (found.rate, found.rate_from_step, found.eta_mu_t, found.eta_beta_max) == (None,) * 4
    assert "for gradient descent without momentum" in found.rate_reason


def test_ratios_are_measured_where_the_loss_is_above_the_floor() -> None:
    losses, squares = [2.0, 0.5, 3.0, 1.0], [1.0, 1e-9, math.nan, 1e-9]
    assert measured_ratio(np.array([losses, squares]), 1.0) == 0.5
    assert measured_ratio(np.array([[1.0], [1.0]]), 1.0) is None


def test_blocks_of_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = region()
    for size in (1, 2, 3, 4):
        monkeypatch.setattr("lplr_cli.certificate.region.BLOCK", size)
        assert region() == whole


def test_holes_and_lost_steps() -> None:
    flat = replace(PIECES[1], start=1e-4, end=1e-4, inner=-1e-4, change=4e-4, along=0.002)
    found = region([PIECES[0], flat, *PIECES[2:]])
    assert [row.certified for row in found.rows] == [True, False, True]
    assert (found.rows[1].mu, found.rows[1].mu_star) == (0.0, 0.0)
    assert found.certified_share == pytest.approx(0.75)
    assert found.steps_certified == 2
    assert "critical point" in dict(found.not_certified)[1]
    assert found.eta_mu_t == pytest.approx(0.2 * (found.mu or 0.0))
    assert found.mu == region([PIECES[0], *PIECES[2:]]).mu
    lost = region([PIECES[0], *PIECES[2:]], lost=[Lost(1, 0.6, "no ball")])
    assert lost.certified_share == pytest.approx(0.3 / 0.9)
    assert lost.rows[1] == StepRow(1, False, 0.0, 0.0, math.inf, None, None, 0.6, 0, "no ball")
    assert lost.rate_from_step == 2


def test_half_a_step_in_the_region_is_none() -> None:
    flat = replace(PIECES[3], start=1e-4, end=1e-4, inner=-1e-4, change=4e-4, along=0.002)
    found = region([*PIECES[:3], flat])
    assert not found.rows[2].certified
    assert found.certified_share == pytest.approx(0.75)
    assert found.rate is None
    assert "step 2" in found.rate_reason


@pytest.mark.filterwarnings("error")
def test_nothing_is_nothing() -> None:
    unknown = [replace(p, smoothness=Smoothness(math.inf, math.inf)) for p in PIECES]
    for pieces in (unknown, []):
        found = region(pieces, descents=())
        assert (found.mu, found.mu_star, found.radius, found.rate, found.first_step) == (None,) * 5
        assert found.certified_share == 0.0
        assert found.steps_certified == 0
        assert all(row.mu == 0.0 for row in found.rows)
        assert found.eta_mu_t is None
        assert found.measured == found.measured_star
    assert "no finite bound" in region(unknown).not_certified[0][1]


def test_a_radius_that_is_given_is_taken() -> None:
    found, bounds = region(radius=0.005), Pieces(PIECES)
    assert found.radius == 0.005
    assert found.mu_star == float(bounds.mu(0.005, 0.0).min())
    # And one that is too large leaves nothing.
    assert region(radius=1.0).mu is None


def test_a_loss_below_zero_is_not_believed() -> None:
    low = [replace(p, loss_start=1e-4, loss_end=1e-5) for p in PIECES]
    assert region(low).l_star_lower == 0.0
