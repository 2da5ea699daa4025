"""Curves without a law, laws on a part, logs without noise, smoothed logs: a seeded sample of benchmarks/rates.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from benchmarks.rate_cases import CASES, Sample, power
from benchmarks.rates import log_of, sample_of
from lplr_cli.diagnostics import Convergence, analyse_pl_ratio, analyse_rate, clean_series, fit_rate, settled_row
from lplr_cli.diagnostics.clock import changes_of
from lplr_cli.diagnostics.faults import excursions, shifts, spikes
from lplr_cli.diagnostics.fits import price
from lplr_cli.diagnostics.mixture import Mixture
from lplr_cli.diagnostics.noise import restricted_correlation, whiten
from lplr_cli.diagnostics.shape import describe, stretches
from lplr_cli.diagnostics.smoothing import unsmoothed
from lplr_cli.diagnostics.tails import analyse_tail
from lplr_cli.errors import InputError

Array = NDArray[np.float64]


def case(name: str, rows: int = 200) -> Sample:
    found = next(c for c in CASES if c.name == name)
    return sample_of(found, rows, 1)


def verdict(name: str, rows: int = 200) -> Convergence:
    return analyse_rate(clean_series(log_of(case(name, rows))))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("falls, then rises", "falls, then rises from step"),
        ("three plateaus", "3 plateaus, changes at 40 and 120"),
        ("exp(−t²)", "ever faster"),
        ("logarithm", "logarithm"),
        ("stretched exponential 0.5", "ever slower"),
        ("rises", "rises"),
    ],
)
def test_no_law_is_said_with_what_it_looks_like(name: str, words: str) -> None:
    result = verdict(name)
    assert result.fit.verdict == "none"
    assert result.fit.rate is None
    assert result.fit.l_inf is None
    assert result.fit.looks_like is not None
    assert words in result.fit.looks_like
    assert result.fit.conditional_on == "no law, no interval"


@pytest.mark.parametrize("name", ["plateau, then drop", "warm-up, lr unknown"])
def test_a_law_of_a_part_names_the_part(name: str) -> None:
    result, sample = verdict(name), case(name)
    assert result.fit.verdict == "linear"
    assert result.fit.part is not None
    assert 30 <= result.fit.part.start <= 125
    assert "from step" in result.fit.says
    if sample.rate is not None:
        assert result.fit.rate is not None
        assert -np.log(result.fit.rate) == pytest.approx(sample.rate, rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        "quadratic, condition 10, 20 modes, L* = 0.1",
        "quadratic, condition 3, 20 modes, L* = 0",
        "least squares 100 × 50, L* = 0.1",
        "losses below the normal range",
    ],
)
def test_quadratics_are_linear_with_the_rate_of_their_end(name: str) -> None:
    sample = case(name)
    result = analyse_rate(clean_series(log_of(sample)))
    assert result.fit.verdict in ("linear", "two_rate")
    assert result.fit.rate is not None
    assert sample.rate is not None
    assert -np.log(result.fit.rate) == pytest.approx(sample.rate, rel=0.05)


@pytest.mark.parametrize(
    ("modes", "condition", "steps"),
    [(20, 600.0, 424), (10, 2000.0, 1000), (50, 40.0, 60), (20, 2.5, 60)],
    ids=["four slow rates left", "one e-fold of the slowest", "two of it in sixty rows", "over after ten rows"],
)
def test_the_rate_at_an_end_where_several_are_active(modes: int, condition: float, steps: int) -> None:
    """The mean rate of the gap at the last resolved row, where slower modes would rule further on."""
    curvature = np.exp(np.random.default_rng(2).uniform(-np.log(condition), 0, modes))
    gap = 0.5 * (1 - curvature) ** (2.0 * np.arange(steps)[:, None]) @ curvature
    tail = analyse_tail(np.arange(float(steps)), 0.1 + gap)
    assert tail is not None
    assert tail.verdict == "linear"
    assert tail.rate == pytest.approx(float(np.log(gap[tail.last - 1] / gap[tail.last])), rel=0.02)


def test_a_mixture_of_exponentials_is_found_again() -> None:
    ends, rate, size = np.linspace(0, 1, 61), np.array([2.0, 5.0, 40.0]), np.array([1.0, 3.0, 20.0])
    fall = -np.diff(np.exp(-np.outer(ends, rate)) @ (size / rate)) * 60
    found = Mixture.of(ends, fall, np.zeros(60), 0.03)
    assert found.error < 1e-8
    end = size * np.exp(-rate)
    assert found.active(1.0).of_gap == pytest.approx(float(end.sum() / (end / rate).sum()), rel=0.02)
    assert found.log_value(ends) == pytest.approx(np.log(fall), abs=1e-7)


def test_more_than_two_rates_under_noise_are_linear_with_that_of_the_end() -> None:
    s, rate = np.arange(300) / 300, np.array([5.0, 15.0, 50.0, 150.0])
    loss = (0.02 + np.exp(-np.outer(s, rate)).sum(axis=1)) * np.exp(np.random.default_rng(0).normal(0, 0.005, 300))
    fit = fit_rate(np.arange(300.0), loss)
    assert fit is not None
    assert (fit.verdict, fit.part) == ("linear", None)
    assert "earlier ones are up to" in fit.reason
    assert fit.rate_low is not None
    assert fit.rate_high is not None
    assert fit.rate_low <= np.exp(-5 / 300) <= fit.rate_high


@pytest.mark.parametrize("shape", ["cosine", "line"])
def test_an_annealed_step_size_that_is_not_logged_is_no_law(shape: str) -> None:
    s = np.arange(300) / 300
    time = s + np.sin(np.pi * s) / np.pi if shape == "cosine" else 2 * s - s**2
    loss = (0.02 + 2 * np.exp(-5 * time)) * np.exp(np.random.default_rng(1).normal(0, 0.01, 300))
    fit = fit_rate(np.arange(300.0), loss)
    assert fit is not None
    assert fit.verdict == "none"
    assert fit.looks_like is not None
    assert "slows at the end of the log" in fit.looks_like
    assert shape in fit.looks_like


@pytest.mark.parametrize(("rows", "seed"), [(1000, 2), (200, 21)])
def test_a_random_walk_is_no_law(rows: int, seed: int) -> None:
    """The second looks like a fall with noise of φ = 0.73: a walk without a law is as likely."""
    found = next(c for c in CASES if c.name == "random walk")
    fit = analyse_rate(clean_series(log_of(sample_of(found, rows, seed)))).fit
    assert fit.verdict == "undecided"
    assert "slow noise" in fit.reason


@pytest.mark.parametrize(
    "name",
    [
        "quadratic, condition 10, 20 modes, L* = 0.1",
        "quadratic, condition 100, 20 modes, L* = 0",
        "least squares 100 × 50, L* = 0",
        "least squares 100 × 50, L* = 0.1",
    ],
)
def test_the_bracket_of_the_pl_ratio_holds_the_true_constant(name: str) -> None:
    sample = case(name, 1000)
    result = analyse_pl_ratio(clean_series(log_of(sample)))
    assert result.pl_ratio_star.min is not None
    assert result.pl_ratio.min is not None
    assert sample.mu is not None
    assert result.pl_ratio_star.min * (1 - 1e-12) <= sample.mu <= result.pl_ratio.min * (1 + 1e-4)
    assert result.window is not None
    # Rounding of the loss is far below the last gap of the window.
    assert sample.loss[result.window.last] - sample.loss.min() > 1e-14 * sample.loss.min()
    # The left end is over all rows, also where the ratio falls on behind the window.
    assert result.pl_ratio_star.min == result.table["pl_ratio_star"].min()


def test_the_effective_rate_of_many_modes_slows_to_that_of_the_end() -> None:
    sample = case("least squares 100 × 50, L* = 0.1", 1000)
    series = analyse_rate(clean_series(log_of(sample))).effective
    assert sample.rate is not None
    assert series["effective_rate"].iloc[-1] == pytest.approx(np.exp(-sample.rate), abs=0.01 * sample.rate)
    assert series["effective_rate"].iloc[0] < series["effective_rate"].iloc[-1]


def test_a_moving_average_is_recognised_and_undone() -> None:
    sample = case("smoothed")
    result = analyse_rate(clean_series(log_of(sample)))
    assert result.fit.smoothing in (0.8, 0.85, 0.9)
    assert result.fit.verdict == "linear"
    told = analyse_rate(clean_series(log_of(sample)), smoothing=0.9)
    assert told.fit.smoothing == 0.9
    rng = np.random.default_rng(0)
    raw = np.exp(rng.normal(size=50))
    smooth = lfilter([0.1], [1.0, -0.9], raw, zi=[0.9 * raw[0]])[0]
    assert unsmoothed(smooth, 0.9) == pytest.approx(raw)
    falling = pd.DataFrame({"step": np.arange(50.0), "loss": 0.5 ** np.arange(50)})
    with pytest.raises(InputError, match="moving average"):
        analyse_rate(clean_series(falling), smoothing=0.9)


def test_a_smoothed_power_law_is_never_called_linear() -> None:
    """Several factors may explain 200 rows; where they lead to different laws the answer is undecided, with both."""
    found = next(c for c in CASES if c.name == "α = 1, smoothed")
    for seed in range(2):
        fit = analyse_rate(clean_series(log_of(sample_of(found, 200, seed)))).fit
        assert fit.smoothing is not None
        assert fit.verdict in ("sublinear", "undecided")
        assert fit.verdict == "sublinear" or "sublinear with" in fit.reason


def test_a_dozen_rows_of_a_power_law_are_not_called_linear() -> None:
    """Five parameters fit a dozen rows of anything: they must earn more there."""
    said = []
    for name in ("power law", "power law, α = 0.5"):
        found = next(c for c in CASES if (c.group, c.name, c.rows) == ("short", name, (12,)))
        logs = [clean_series(log_of(sample_of(found, 12, seed))) for seed in range(8)]
        said += [analyse_rate(log).fit.verdict for log in logs]
    assert "linear" not in said
    assert said.count("two_rate") <= 1
    assert price(5, 12) == pytest.approx(2 * 5 * np.log(12))
    assert price(5, 10_000) == pytest.approx(5 * np.log(10_000), rel=1e-3)


def test_piecewise_rates_stand_in_a_table_where_the_step_size_jumps() -> None:
    result = verdict("step decay, lr known")
    # A kink where the step size is known to change is no slow noise.
    assert result.fit.verdict == "none"
    assert [s.start for s in result.segments] == [0, 100, 150]
    assert [s.lr for s in result.segments] == [0.1, 0.01, 0.001]
    first = result.segments[0]
    assert first.rate is not None
    assert first.decay_per_lr_step == pytest.approx(-np.log(first.rate) / 0.1)


def test_one_row_is_no_level_shift() -> None:
    sample = case("one row × 1.3", 400)
    assert settled_row(np.arange(400.0), sample.loss) == (0, "")
    assert np.flatnonzero(spikes(np.log(sample.loss))).tolist() == [180]
    shifted = np.log(sample.loss) + np.where(np.arange(400) >= 100, 0.5, 0.0)
    assert shifts(shifted[spikes(shifted) == 0])[0] == 100


def test_a_spike_that_recovers_is_left_out_with_its_rows() -> None:
    log = -0.01 * np.arange(200.0)
    log[80:90] += 0.6 * np.exp(-np.arange(10) / 3)
    assert excursions(log)[80:87].all()
    assert not excursions(log)[:80].any()
    # The log ends in it.
    assert np.flatnonzero(excursions(log[:84])).tolist() == [80, 81, 82, 83]
    # A jump that stays is none.
    log[80:] = -0.2 - 0.01 * np.arange(120.0)
    assert not excursions(log).any()
    assert not excursions(log[:84]).any()


def test_spikes_that_fill_a_log_lose_their_tails_not_all_their_rows() -> None:
    log = np.exp(-((np.arange(400) - 10) % 50) / 4.0)
    noisy = log + np.random.default_rng(0).normal(0, 0.02, 400)
    # With whole tails spikes would fill half of the rows and more.
    assert excursions(noisy).mean() > 0.5
    found = spikes(noisy)
    assert found[10:][log[10:] > 0.2].all()
    assert found.mean() < 0.45


def test_the_tail_of_a_spike_in_a_fall_goes_with_it() -> None:
    found = next(c for c in CASES if c.name == "spikes that recover")
    for seed in (3, 101):
        sample = sample_of(found, 200, seed)
        left = np.log(sample.loss / power(200, 0.7, 0.01, 0.1))[~spikes(np.log(sample.loss))]
        assert np.abs(left).max() < 0.06
        assert analyse_rate(clean_series(log_of(sample))).fit.verdict == "sublinear"


def test_whitening_of_arma_errors_is_their_exact_likelihood() -> None:
    phi, theta, n = 0.7, -0.4, 8
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    variance = (1 + 2 * phi * theta + theta**2) / (1 - phi**2)
    first = phi * variance + theta
    cov = np.where(lags == 0, variance, first * phi ** np.maximum(lags - 1, 0))
    v = np.cos(np.arange(n))
    white = whiten(v, phi, theta)
    # The normalised innovations give the quadratic form of the inverse covariance.
    assert white @ white == pytest.approx(v @ np.linalg.solve(cov, v), rel=1e-9)


def test_white_noise_on_a_slow_process_is_an_arma() -> None:
    rng = np.random.default_rng(4)
    slow = lfilter([1.0], [1.0, -0.95], rng.normal(0, np.sqrt(1 - 0.95**2), 4000))
    found = restricted_correlation(slow + rng.normal(size=4000), np.ones((4000, 1)))
    assert found.phi == pytest.approx(0.95, abs=0.03)
    assert found.theta < -0.5


def test_slow_noise_that_forgets_within_the_rows_is_noise() -> None:
    """A free curve takes off half of what it adds to white noise; a trend that lasts as long as the rows is misfit."""
    found = next(c for c in CASES if (c.group, c.name) == ("two rates", "white + AR(0.95)"))
    sample = sample_of(found, 200, 1)
    fit = analyse_rate(clean_series(log_of(sample))).fit
    assert (fit.verdict, fit.part) == ("two_rate", None)
    assert fit.noise.phi == pytest.approx(0.95, abs=0.03)
    assert sample.rate is not None
    assert fit.rate_low is not None
    assert fit.rate_high is not None
    assert fit.rate_low <= np.exp(-sample.rate) <= fit.rate_high
    assert verdict("grows slowly at the end").fit.verdict == "none"


@pytest.mark.parametrize("seed", [0, 1])
def test_two_decimals_of_a_log_that_scatters_hide_neither_law_nor_rows(seed: int) -> None:
    """At the floor a digit is a fifth of the loss: its steps are no spikes, and no plateaus of a log without noise."""
    rows = 150 if seed else 600
    curve = (0.05 + 2 * np.exp(-6 * np.arange(rows) / rows)) * np.exp(np.random.default_rng(seed).normal(0, 0.01, rows))
    fit = fit_rate(np.arange(float(rows)), curve.round(2))
    assert fit is not None
    assert (fit.verdict, fit.part, fit.spikes) == ("linear", None, 0)
    assert fit.rate_low is not None
    assert fit.rate_high is not None
    assert fit.rate_low <= np.exp(-6 / rows) <= fit.rate_high


@pytest.mark.slow
def test_a_curve_without_a_law_is_no_moving_average() -> None:
    found = next(c for c in CASES if c.name == "cubic slowing")
    fit = analyse_rate(clean_series(log_of(sample_of(found, 1000, 101)))).fit
    assert (fit.verdict, fit.smoothing) == ("none", None)


@pytest.mark.slow
def test_many_rates_are_no_moving_average() -> None:
    """Six rates beside AR(0.8) noise: four describe them, and a fifth betters nothing."""
    found = next(c for c in CASES if c.name == "6 rates, AR(0.8) of 0.1%")
    sample = sample_of(found, 1000, 1)
    fit = analyse_rate(clean_series(log_of(sample))).fit
    assert (fit.verdict, fit.part, fit.smoothing) == ("linear", None, None)
    assert fit.rate is not None
    assert sample.rate is not None
    assert -np.log(fit.rate) == pytest.approx(sample.rate, rel=0.05)


def test_stretches_of_a_broken_line() -> None:
    t = np.arange(300.0)
    log = np.where(t < 100, 0.0, np.where(t < 200, -0.03 * (t - 100), -3 + 0.02 * (t - 200)))
    log = log + np.random.default_rng(0).normal(0, 0.01, 300)
    found = stretches(t, log)
    assert [s.trend for s in found] == ["flat", "falls", "rises"]
    assert [s.start for s in found] == pytest.approx([0, 100, 200], abs=6)
    assert describe(found).startswith("flat, then falls from step")


def descent(lr: Array, curvatures: Array, floor: float) -> Array:
    """Losses of gradient descent on ½ Σ h x² + floor from ones, before each step."""
    x, loss = np.ones(len(curvatures)), np.empty(len(lr))
    for t, size in enumerate(lr.tolist()):
        loss[t] = 0.5 * float(curvatures @ x**2) + floor
        x = x * (1 - size * curvatures)
    return loss


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("schedule", ["cosine", "warm-up"])
def test_a_schedule_that_is_known_has_its_rate_per_summed_step_size(schedule: str, noise: float) -> None:
    share = np.arange(600) / 600
    cosine, warm = 0.025 * (1 + np.cos(np.pi * share)) + 5e-5, 0.04 * np.minimum(1, share / 0.2 + 0.01)
    lr = cosine if schedule == "cosine" else warm
    loss = descent(lr, np.array([0.3]), 0.02) * np.exp(np.random.default_rng(0).normal(0, noise, 600))
    result = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(600.0), "loss": loss, "lr": lr})))
    assert (result.clock, result.fit.verdict, result.fit.part) == ("lr_step", "linear", None)
    # (1 − ηh)² a step: 2h per unit of the summed step sizes, and ηh/2 of it more at the largest.
    assert result.decay_per_lr_step == pytest.approx(0.6, rel=0.015)


def test_without_noise_a_change_of_pace_ends_the_part_that_a_law_holds_for() -> None:
    lr = np.repeat([0.03, 0.01, 0.003], [300, 150, 150])
    loss = descent(lr, np.array([0.3]), 0.02)
    result = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(600.0), "loss": loss})))
    assert result.fit.part is not None
    assert result.fit.part.stop == pytest.approx(300, abs=6)
    assert "steps 0 to" in result.fit.law
    known = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(600.0), "loss": loss, "lr": lr})))
    for segment, size in zip(known.segments, (0.03, 0.01, 0.003), strict=True):
        assert segment.decay_per_lr_step == pytest.approx(-2 * np.log(1 - 0.3 * size) / size, rel=1e-3)
        low, high = segment.decay_per_lr_step_low, segment.decay_per_lr_step_high
        assert segment.decay_per_lr_step is not None
        assert low is not None
        assert high is not None
        assert low <= segment.decay_per_lr_step <= high


def test_a_ramp_of_the_step_size_is_no_row_of_jumps() -> None:
    assert changes_of(np.array([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0])) == []
    assert changes_of(np.array([1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01])) == [2, 5]


def test_logistic_regression_is_sublinear_where_it_separates_and_linear_where_it_does_not() -> None:
    said: dict[bool, list[str]] = {True: [], False: []}
    for separable in (True, False):
        name = "logistic, separable" if separable else "logistic, not separable"
        found = next(c for c in CASES if c.name == name)
        for seed in range(2):
            said[separable].append(analyse_rate(clean_series(log_of(sample_of(found, 1000, seed)))).fit.verdict)
    assert "sublinear" in said[True]
    assert set(said[True]) <= {"sublinear", "undecided"}
    assert set(said[False]) <= {"linear", "two_rate"}


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (lambda s: (0.2 + 2 * np.exp(-10 * s)) * np.exp(6 * np.maximum(s - 0.8, 0)), "steps 0 to"),
        (lambda s: 0.02 + 2 * np.exp(-6 * s) + 6 * np.exp(-0.5 * ((s - 0.08) / 0.02) ** 2), "from step"),
        (lambda s: 0.1 + np.exp(-6 * s) + 3 * np.exp(60 * (s - 1)), "none"),
    ],
    ids=["rises at the end", "bump at the start", "diverges at the end"],
)
def test_without_noise_a_law_does_not_hide_what_it_misses(curve: Callable[[Array], Array], words: str) -> None:
    loss = curve(np.arange(300) / 300)
    fit = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(300.0), "loss": loss}))).fit
    assert words in fit.law
    assert fit.looks_like is not None


def test_two_near_rates_are_told_where_one_is_refuted() -> None:
    s = np.arange(300) / 300
    loss = np.exp(-5 * s) + np.exp(-7.5 * s) + 0.02
    fit = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(300.0), "loss": loss}))).fit
    assert fit.verdict == "two_rate"
    assert fit.rate == pytest.approx(np.exp(-5 / 300), rel=1e-8)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_loss_that_stays_has_no_rate(noise: float) -> None:
    """No constant of a law stands beside the answer that there is no fall to see."""
    loss = 0.5 * np.exp(noise * np.random.default_rng(0).standard_normal(300))
    found = analyse_rate(clean_series(pd.DataFrame({"step": np.arange(300.0), "loss": loss}))).fit
    assert found.verdict == "undecided"
    assert "does not fall" in found.reason
    assert (found.rate, found.half_life, found.alpha, found.conditional_on) == (None, None, None, "no law, no interval")
