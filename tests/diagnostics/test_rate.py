"""Rates against planted truths, certified data sets, and each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lplr_cli.diagnostics import VERDICTS, RunFacts, analyse_rate, clean_series, fit_rate
from lplr_cli.diagnostics.decay import CURVES, SHIFTED, SUBLINEAR, Curve, Exponentials
from lplr_cli.diagnostics.faults import spikes
from lplr_cli.diagnostics.grain import grain_of, last_digit
from lplr_cli.diagnostics.least_squares import minimise
from lplr_cli.diagnostics.noise import restricted_correlation, whiten
from lplr_cli.errors import InputError

Array = NDArray[np.float64]
STEPS = np.arange(400.0)


def noisy(loss: Array, sigma: float, phi: float = 0.0, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    e = np.empty(len(loss))
    e[0] = rng.normal(0, sigma)
    for i in range(1, len(loss)):
        e[i] = phi * e[i - 1] + rng.normal(0, sigma * np.sqrt(1 - phi**2))
    return loss * np.exp(e)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(rate=st.floats(0.9, 0.997), floor=st.floats(0.0, 0.5), amplitude=st.floats(0.5, 100.0))
@example(rate=0.9, floor=0.268783127040689, amplitude=61.88464903910732)  # far more bend than rounding
def test_exact_exponentials_are_recovered(rate: float, floor: float, amplitude: float) -> None:
    fit = fit_rate(STEPS, floor + amplitude * rate**STEPS)
    assert fit is not None
    assert fit.verdict == "linear"
    assert fit.rate == pytest.approx(rate, abs=1e-6)
    assert fit.l_inf == pytest.approx(floor, abs=1e-6 * amplitude)
    assert fit.rate_low is not None
    assert fit.rate_high is not None
    assert fit.rate_low - 1e-9 <= rate <= fit.rate_high + 1e-9
    assert fit.half_life == pytest.approx(np.log(0.5) / np.log(rate), rel=1e-4)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(alpha=st.floats(0.3, 3.0), floor=st.sampled_from([0.0, 0.1]), t0=st.floats(2.0, 50.0))
def test_exact_power_laws_are_recovered(alpha: float, floor: float, t0: float) -> None:
    fit = fit_rate(STEPS, floor + 3.0 * (1 + STEPS / t0) ** -alpha)
    assert fit is not None
    assert fit.verdict == "sublinear"
    assert fit.alpha == pytest.approx(alpha, rel=1e-4)
    assert fit.curves["sublinear"]["t0"] == pytest.approx(t0, rel=1e-3)
    assert fit.rate is None


def test_two_rates_are_told_apart() -> None:
    fit = fit_rate(STEPS, noisy(0.01 + 2.0 * 0.93**STEPS + 0.5 * 0.99**STEPS, 0.01))
    assert fit is not None
    assert fit.verdict == "two_rate"
    assert fit.rate == pytest.approx(0.99, abs=6e-4)
    assert fit.curves["two_rate"]["rho_2"] == pytest.approx(0.93, abs=6e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "phi"), [(0.02, 0.0), (0.05, 0.0), (0.02, 0.6)])
@pytest.mark.parametrize("law", ["linear", "sublinear"])
def test_law_and_interval_of_planted_noise(law: str, sigma: float, phi: float) -> None:
    """A small share of the simulation in benchmarks/rates.py, whose table has the sharp figures."""
    truth = 0.97 ** STEPS[:200] if law == "linear" else (1 + STEPS[:200] / 10) ** -1.0
    named = wrong = covered = 0
    for seed in range(30):
        fit = fit_rate(STEPS[:200], noisy(2 * truth, sigma, phi, seed))
        assert fit is not None
        named += fit.verdict == law
        wrong += fit.verdict not in (law, "undecided")
        low, high = (fit.alpha_low, fit.alpha_high) if law == "sublinear" else (fit.rate_low, fit.rate_high)
        covered += (low or 0.0) <= (1.0 if law == "sublinear" else 0.97) <= (high or 1.0)
    assert wrong <= 1
    # With the larger noise a power law on 200 rows may stay undecided, which is the right answer to thin evidence.
    assert named >= (24 if sigma == 0.05 else 28)
    # A binomial of 30 at 95 %: fewer than 25 has probability 1 in 300.
    assert covered >= 25


def test_flat_noise_is_undecided() -> None:
    fit = fit_rate(STEPS, noisy(np.full(400, 0.7), 0.02))
    assert fit is not None
    assert fit.verdict == "undecided"
    assert "noise" in fit.reason


def test_too_short_to_tell_is_undecided() -> None:
    steps = np.arange(12.0)
    fit = fit_rate(steps, noisy(0.95**steps, 0.05))
    assert fit is not None
    assert fit.verdict == "undecided"
    assert fit_rate(STEPS[:5], np.ones(5)) is None


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_end_of_the_log_does_not_bias_the_rate(floor: float) -> None:
    """The paper's kind of artefact: with L* = L_T the suboptimality seems to fall ever faster towards the end."""
    loss = floor + 2.0 * 0.98**STEPS
    log = pd.DataFrame({"step": STEPS, "loss": loss})
    proxy = loss - loss[-1]
    naive = np.polyfit(STEPS[:-1], np.log(proxy[:-1]), 1)[0]
    found = analyse_rate(clean_series(log)).fit
    assert found.rate is not None
    assert abs(np.log(found.rate) / np.log(0.98) - 1) < 0.01
    assert abs(naive / np.log(0.98) - 1) > 0.02  # what it is protected from
    cut = analyse_rate(clean_series(log.iloc[:250])).fit
    assert cut.rate is not None
    assert abs(np.log(cut.rate) / np.log(0.98) - 1) < 0.01


def test_spikes_are_left_out() -> None:
    clean = noisy(0.1 + 2 * 0.98**STEPS, 0.005)
    loss = clean.copy()
    loss[[50, 120, 121, 300]] *= [30.0, 5.0, 9.0, 0.1]
    assert np.flatnonzero(spikes(np.log(loss))).tolist() == [50, 120, 121, 300]
    one, two = fit_rate(STEPS, clean), fit_rate(STEPS, loss)
    assert one is not None
    assert two is not None
    assert two.spikes == 4
    assert two.rate == pytest.approx(one.rate, rel=1e-4)
    assert not spikes(np.log(3.0 * 0.5**STEPS)).any()


def test_rate_per_unit_of_step_size_under_a_schedule() -> None:
    """Steps by a cosine schedule decay in Σ lr, not in steps: a row has the loss before its step."""
    lr = 0.05 * (1 + np.cos(np.pi * STEPS / 400))
    tau = np.append(0, np.cumsum(lr[:-1]))
    result = analyse_rate(clean_series(pd.DataFrame({"step": STEPS, "loss": 2 * np.exp(-0.4 * tau), "lr": lr})))
    assert result.decay_per_lr_step == pytest.approx(0.4, rel=1e-3)
    assert result.clock == "lr_step"
    assert any("sum of the step sizes" in note for note in result.notes)
    constant = analyse_rate(clean_series(pd.DataFrame({"step": STEPS, "loss": 0.98**STEPS, "lr": 0.01})))
    assert constant.decay_per_lr_step == pytest.approx(-np.log(0.98) / 0.01, rel=1e-6)


def test_theory_stands_beside_the_fit() -> None:
    mu, eta = 0.3, 0.05
    x = 2.0 * (1 - eta * mu) ** STEPS
    log = pd.DataFrame({"step": STEPS, "loss": 0.5 * mu * x**2, "grad_norm_sq": (mu * x) ** 2, "lr": eta})
    result = analyse_rate(clean_series(log), facts=RunFacts(mu_certified=0.1, mu_estimated=-1.0, eta=eta))
    assert result.theory.rate_certified == pytest.approx(1 - eta * 0.1)
    assert result.theory.rate_estimated is None
    assert result.theory.pl_ratio_min == pytest.approx(mu, rel=1e-3)
    assert result.fit.rate is not None
    # C2 bounds the factor of the loss from above.
    assert result.fit.rate <= 1 - eta * mu + 1e-9
    momentum = analyse_rate(clean_series(log), facts=RunFacts(momentum=0.9))
    assert momentum.theory.rate_certified is None
    assert any("momentum" in note for note in momentum.notes)


def test_sensitivity_and_window_of_a_fit() -> None:
    log = pd.DataFrame({"step": STEPS, "loss": np.where(STEPS < 200, 0.98**STEPS, 0.98**200 * 0.99 ** (STEPS - 200))})
    result = analyse_rate(clean_series(log), window=(0, 199))
    assert result.fit.rate == pytest.approx(0.98, abs=1e-6)
    assert result.sensitivity["start_earlier"] is None
    assert result.sensitivity["stop_earlier"] == pytest.approx(0.98, abs=1e-6)
    later = result.sensitivity["stop_later"]
    assert later is not None
    assert abs(later - 0.98) > 1e-4
    with pytest.raises(InputError, match="too few"):
        analyse_rate(clean_series(log), window=(0, 4))


@pytest.mark.parametrize("curve", [*CURVES, SHIFTED, Exponentials(3)], ids=lambda c: c.name)
def test_jacobians_of_the_curves(curve: Curve) -> None:
    s = np.linspace(0, 1, 7)
    lower, upper = curve.bounds(7)
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = np.clip(rng.normal(0, 0.7, len(curve.parameters)), lower + 0.01, upper)
        _, jacobian = curve.value(p, s)
        for j in range(len(p)):
            step = np.zeros(len(p))
            step[j] = 1e-6
            numeric = (curve.value(p + step, s)[0] - curve.value(p - step, s)[0]) / 2e-6
            assert jacobian[:, j] == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_whitening_and_correlation() -> None:
    e = np.log(noisy(np.ones(4000), 0.1, 0.7, seed=3))
    white = whiten(e, 0.7)
    assert abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.05
    assert restricted_correlation(e, np.ones((4000, 1))).phi == pytest.approx(0.7, abs=0.04)
    # Exactly the AR(1) likelihood: the quadratic form with the inverse of the covariance.
    cov = 0.7 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    v = np.arange(1.0, 7.0)
    assert whiten(v, 0.7) @ whiten(v, 0.7) == pytest.approx((1 - 0.49) * v @ np.linalg.solve(cov, v))


# NIST Statistical Reference Datasets, nonlinear regression (public domain): data and certified values.
MISRA_X = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]
MISRA_Y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
BOX_X = [1.0, 2.0, 3.0, 5.0, 7.0, 10.0]
BOX_Y = [109.0, 149.0, 149.0, 191.0, 213.0, 224.0]
LANCZOS3_Y = [
    2.5134, 2.0443, 1.6684, 1.3664, 1.1232, 0.9269, 0.7679, 0.6389, 0.5338, 0.4479, 0.3776, 0.3197,
    0.2720, 0.2325, 0.1997, 0.1723, 0.1493, 0.1301, 0.1138, 0.1000, 0.0883, 0.0783, 0.0698, 0.0624,
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "y", "certified", "rss", "starts"),
    [
        (MISRA_X, MISRA_Y, (2.3894212918e2, 5.5015643181e-4), 1.2455138894e-1, [(500, 1e-4), (250, 5e-4)]),
        (BOX_X, BOX_Y, (2.1380940889e2, 5.4723748542e-1), 1.1680088766e3, [(100, 0.75)]),
    ],
    ids=["Misra1a", "BoxBOD"],
)
def test_nist_saturating_exponentials(
    x: list[float],
    y: list[float],
    certified: tuple[float, float],
    rss: float,
    starts: list[tuple[float, float]],
) -> None:
    """b1 (1 − exp(−b2 x)) from NIST's starting points; for BoxBOD the nearer, as we never start far from a grid."""
    at, seen = np.array(x), np.array(y)

    def residual(p: Array) -> tuple[Array, Array]:
        decay = np.exp(-p[1] * at)
        return p[0] * (1 - decay) - seen, np.column_stack([1 - decay, p[0] * at * decay])

    for start in starts:
        found = minimise(residual, np.array(start, dtype=float), np.array([0.0, 0.0]), np.array([np.inf, np.inf]))
        assert found.p == pytest.approx(certified, rel=1e-8)
        assert found.cost == pytest.approx(rss, rel=1e-8)


def test_nist_lanczos3_by_our_own_starts() -> None:
    """Three exponentials without a floor, least squares on the values, from the starts that the curve makes itself."""
    curve, x, y = Exponentials(3), np.arange(24) * 0.05, np.array(LANCZOS3_Y)
    s = x / x[-1]
    lower, upper = curve.bounds(len(s))
    upper[-1] = 0.0

    def residual(p: Array) -> tuple[Array, Array]:
        m, jacobian = curve.value(p, s)
        return m - y, jacobian

    found = min(
        (minimise(residual, start, lower, upper, max_iterations=3000) for start in curve.starts(s, y)),
        key=lambda solution: solution.cost,
    )
    p = curve.ordered(found.p)
    rates = np.exp(p[1:-1:2]) / x[-1]
    amplitudes = np.exp(p[0:-1:2])
    assert found.cost == pytest.approx(1.6117193594e-8, rel=1e-6)
    assert rates == pytest.approx([9.5498101505e-1, 2.9515951832, 4.9863565084], rel=1e-4)
    assert amplitudes == pytest.approx([8.6816414977e-2, 8.4400777463e-1, 1.5825685901], rel=1e-4)


def test_lanczos3_has_more_rates_than_its_rows_settle() -> None:
    """Three exponentials over one e-fold of the slowest, to five digits: two do not describe them."""
    fit = fit_rate(np.linspace(0, 1.15, 24), np.array(LANCZOS3_Y))
    assert fit is not None
    assert fit.verdict == "undecided"
    assert "slower rates than the log can show may follow" in fit.reason
    assert fit.curves["two_rate"].keys() == {"amplitude_1", "rho_1", "amplitude_2", "rho_2", "l_inf"}
    assert SUBLINEAR.name in fit.delta_bic


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1e-300, 1e300), min_size=8, max_size=40),
    st.floats(1e-6, 1e6),
)
@example(
    [
        9.636053127620265e299,
        3.599482505506631e299,
        3.465547040846895e299,
        8.434382469904052e299,
        0.99999,
        4115614446463568.0,
        4.27155498863179e16,
        1.8984375,
        1.7698413683894102e176,
        5.491507954105035e297,
    ],
    149796.6975843607,
)  # an amplitude beyond float64
def test_any_positive_series_is_answered(values: list[float], spacing: float) -> None:
    fit = fit_rate(np.arange(len(values), dtype=np.float64) * spacing, np.array(values))
    if fit is not None:
        assert fit.verdict in VERDICTS
        # Undecided is also a loss that may as well stay where it is.
        assert fit.verdict == "undecided" or (fit.rate is None) == (fit.verdict in ("sublinear", "none"))
        assert fit.rate is None or 0 <= fit.rate <= 1


@pytest.mark.parametrize("loss", [np.full(50, 0.3), np.full(50, 5e-324), np.linspace(1, 2, 50), 2.0 ** -np.arange(50)])
def test_odd_series_have_an_answer(loss: Array) -> None:
    fit = fit_rate(np.arange(50.0), loss)
    assert fit is not None
    assert (fit.verdict in ("undecided", "none")) == (loss[-1] >= loss[0])


@pytest.mark.parametrize("digits", [4, 6, 8])
def test_a_rounded_log_is_read_by_its_last_digit(digits: int) -> None:
    """Where the loss changes by less than a digit a row, rows repeat; the truth is in the middle of each plateau."""
    t = np.arange(1000.0)
    straight = fit_rate(t, np.round(0.05 + 2 * np.exp(-0.006 * t), digits))
    assert straight is not None
    assert straight.verdict == "linear"
    assert straight.rate == pytest.approx(np.exp(-0.006), abs=1e-6)
    assert straight.rate_low is not None
    assert straight.rate_high is not None
    assert straight.rate_low <= np.exp(-0.006) <= straight.rate_high
    power = fit_rate(t, np.round(2 / (1 + t / 50), digits))
    assert power is not None
    assert power.verdict == "sublinear"
    assert power.alpha == pytest.approx(1.0, abs=1e-3)
    # Twenty modes: the tail tells the rate that rules where the digits end.
    h = np.geomspace(0.01, 1.0, 20)
    squares = np.random.default_rng(1).normal(size=20) ** 2 * (1 - h) ** (2 * np.arange(400.0)[:, None])
    fit = fit_rate(t[:400], np.round(squares @ h, digits + 4))
    assert fit is not None
    assert fit.verdict in ("linear", "two_rate")


def test_the_last_digit_of_a_log() -> None:
    rng = np.random.default_rng(0)
    loss = np.exp(-rng.uniform(0, 9, 300))
    assert last_digit(loss) is None
    found = last_digit(np.asarray(np.round(loss, 5), dtype=np.float64))
    assert found is not None
    assert np.unique(found).tolist() == [1e-5]
    short = np.array([float(f"{v:.4g}") for v in loss])
    found = last_digit(short)
    assert found is not None
    np.testing.assert_allclose(found, 10.0 ** (np.floor(np.log10(short)) - 3))
    # Noise far above the last digit is noise.
    assert (
        grain_of(np.arange(300.0), np.asarray(np.round(np.exp(rng.normal(0, 0.01, 300)), 5), dtype=np.float64)) is None
    )
