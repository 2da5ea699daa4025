"""Where the evidence is thin: short logs, slow noise, noise that grows, laws in doubt; samples of benchmarks/rates.py
that were answered wrong before."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.rate_cases import CASES, Sample, exponential, power
from benchmarks.rates import log_of, sample_of, told
from lplr_cli.diagnostics import RateFit, analyse_rate, clean_series
from lplr_cli.diagnostics.faults import local_noise, outliers, spikes
from lplr_cli.diagnostics.fits import criterion
from lplr_cli.diagnostics.noise import local_scale
from lplr_cli.diagnostics.shape import parabolas, stretches

Array = NDArray[np.float64]


def sample(group: str, name: str, rows: int, seed: int) -> Sample:
    return sample_of(next(c for c in CASES if (c.group, c.name) == (group, name) and rows in c.rows), rows, seed)


def fit_of(group: str, name: str, rows: int, seed: int) -> RateFit:
    return analyse_rate(clean_series(log_of(sample(group, name, rows, seed)))).fit


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_noise_that_grows_on_the_logarithm_has_no_faults(floor: float) -> None:
    """Of one size on the loss: beside the noise of all rows a fifth of them were left out as spikes."""
    curve = exponential(1000, 0.05) + floor
    noise = np.random.default_rng(3).normal(0, 0.008, 1000)
    assert spikes(np.log(curve + noise)).sum() == 0
    spiked = np.log(curve + noise)
    spiked[[300, 900]] += [0.3, 1.5]
    assert np.flatnonzero(spikes(spiked)).tolist() == [300, 900]
    found = local_noise(np.log(curve + noise))
    assert found[900] == pytest.approx(0.008 / curve[900], rel=0.25)
    assert found[100] == pytest.approx(0.008 / curve[100], rel=0.25)


@pytest.mark.parametrize("row", [1, 2, 100, 196, 197, 198])
@pytest.mark.parametrize("by", [0.4, -0.4])
def test_a_row_that_stands_out_is_a_fault_but_at_the_very_ends(row: int, by: float) -> None:
    log = -0.01 * np.arange(200.0) + np.random.default_rng(2).normal(0, 0.01, 200)
    log[row] += by
    assert np.flatnonzero(spikes(log)).tolist() == [row]
    log[row] -= by
    log[[0, -1]] += by
    assert not outliers(log).any()


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_a_scale_that_follows_the_loss_does_so_row_by_row(exponent: float) -> None:
    curve = power(1000)
    log = np.log(curve) + np.random.default_rng(5).normal(0, 0.004 * curve**-exponent)
    apart = np.log(local_scale(log)) + exponent * np.log(curve)
    assert np.abs(apart - apart.mean()).max() < 0.1


def test_a_scale_that_follows_nothing_is_that_of_its_stretches() -> None:
    sigma = np.where(np.arange(800) < 400, 0.01, 0.03)
    log = -0.005 * np.arange(800) + np.random.default_rng(6).normal(0, sigma)
    found = local_scale(log)
    assert found[700] / found[100] == pytest.approx(3.0, rel=0.25)


def test_noise_of_one_size_on_the_loss_is_no_random_walk() -> None:
    """The loss falls to a twentieth: a walk explains white noise on it far worse than a power law does."""
    fit = fit_of("power law", "additive noise", 1000, 11)
    assert (fit.verdict, fit.part, fit.spikes) == ("sublinear", None, 0)
    assert fit.alpha_low is not None
    assert fit.alpha_high is not None
    assert fit.alpha_low <= 1.0 <= fit.alpha_high


@pytest.mark.parametrize(
    ("name", "rows", "seed"),
    [
        ("power law", 12, 13),
        ("power law", 12, 400),
        ("power law", 12, 1721),
        ("power law", 20, 13),
        ("power law, α = 0.5", 12, 16),
        ("power law, α = 0.5", 12, 62),
        ("power law, α = 0.5", 20, 19),
    ],
)
def test_short_logs_do_not_claim_what_a_dozen_rows_feign(name: str, rows: int, seed: int) -> None:
    """Two rates or a curve without a law were said of these power laws."""
    fit = fit_of("short", name, rows, seed)
    assert fit.verdict in ("undecided", "sublinear")


@pytest.mark.parametrize(("rows", "seed"), [(12, 0), (12, 7), (20, 1), (40, 2)])
def test_short_exponentials_are_linear_still(rows: int, seed: int) -> None:
    assert fit_of("short", "linear", rows, seed).verdict == "linear"


def test_the_criterion_counts_rows_less_the_parameters_of_the_largest_law() -> None:
    apart = criterion(2.0, 4, 12) - criterion(1.0, 4, 12)
    assert apart == pytest.approx(7 * np.log(2))
    assert criterion(2.0, 4, 10_000) - criterion(1.0, 4, 10_000) == pytest.approx(10_000 * np.log(2), rel=1e-3)


@pytest.mark.parametrize("seed", [12, 17, 114, 211])
def test_noise_as_slow_as_a_schedule_is_no_evidence_for_two_rates(seed: int) -> None:
    """Steps of the step size that are not logged leave what noise of φ = 0.99 would."""
    fit = fit_of("no law", "step decay, lr unknown", 200, seed)
    assert fit.verdict == "undecided"
    assert "pieces of their own" in fit.reason


@pytest.mark.parametrize("seed", [61, 92, 1039, 1201])
def test_two_rates_are_not_told_from_a_power_law_with_slow_noise(seed: int) -> None:
    """A free curve takes slow noise away, and what is left beside exponentials looks white."""
    fit = fit_of("power law", "α = 1, white + AR(0.95)", 200, seed)
    assert fit.verdict in ("undecided", "sublinear")


@pytest.mark.parametrize(("rows", "seed"), [(200, 1303), (200, 1305), (1000, 1300)])
def test_slow_noise_makes_no_exponential_of_an_annealed_step_size(rows: int, seed: int) -> None:
    fit = fit_of("no law", "cosine schedule, lr unknown", rows, seed)
    assert fit.verdict == "none"
    assert fit.looks_like is not None
    assert "slows at the end" in fit.looks_like


def test_parabolas_go_through_what_they_describe() -> None:
    s = np.linspace(0, 1, 300)
    log = np.where(s < 0.5, -4 * s, -2 + 3 * (s - 0.5) ** 2)
    noisy = log + np.random.default_rng(0).normal(0, 0.01, 300)
    columns, pieces = parabolas(s, noisy)
    assert pieces == len(stretches(s, noisy)) == 2
    assert columns.shape == (300, 6)
    left = log - columns @ np.linalg.lstsq(columns, log, rcond=None)[0]
    # The cut may be a row or two from the kink.
    assert np.abs(left).max() < 0.03


def test_a_course_without_a_law_is_not_undone_as_a_moving_average() -> None:
    fit = fit_of("no law", "grows slowly at the end", 200, 502)
    assert (fit.verdict, fit.smoothing) == ("none", None)


@pytest.mark.parametrize("seed", [92, 1100])
def test_a_factor_that_leaves_it_undecided_does_so_for_all(seed: int) -> None:
    """Behind averages of 0.8 and 0.85 the rows are two exponentials, not behind that of 0.9, which made them."""
    fit = fit_of("power law", "α = 1, smoothed", 200, seed)
    assert fit.verdict == "undecided"
    assert " with 0.9" in fit.reason


def test_a_random_walk_that_feigns_a_law_leaves_it_undecided() -> None:
    assert fit_of("no law", "random walk", 1000, 216).verdict == "undecided"


def test_a_law_in_doubt_is_not_called_refuted() -> None:
    """Far rows of a power law: p is below one in a thousand, above one in a hundred thousand."""
    fit = fit_of("power law", "α = 1, t3", 200, 213)
    assert fit.verdict == "undecided"
    assert 1e-5 < fit.misfit < 1e-3
    assert "in doubt" in fit.reason
    assert fit.looks_like is None


def test_intervals_are_no_narrower_than_floats() -> None:
    one = sample("exact", "quadratic, condition 100, 2 modes, L* = 0", 1000, 1)
    fit = analyse_rate(clean_series(log_of(one))).fit
    assert one.rate is not None
    assert fit.rate_low is not None
    assert fit.rate_high is not None
    assert fit.rate_low < np.exp(-one.rate) < fit.rate_high < fit.rate_low + 1e-13


def test_what_no_fit_can_tell_is_thin() -> None:
    """The second sample lies nearer to two exponentials than to the power law that made it."""
    assert told(sample("power law", "α = 1, white 5 %", 200, 300))
    assert not told(sample("power law", "α = 1, white 5 %", 200, 301))
    assert told(sample("no law", "three plateaus", 200, 0))


def test_the_law_that_a_sample_names_is_the_one_that_made_it() -> None:
    """What no fit can tell would be told by the wrong law otherwise."""
    planted = [c for c in CASES if c.group in ("linear", "two rates", "power law", "short")]
    named = [(c, one) for c in planted if (one := sample_of(c, c.rows[0], 0)).law is not None]
    assert len(named) > 40
    for one_case, one in named:
        assert one.law is not None
        assert ("sublinear" in one_case.right) == (one.law.name == "sublinear")
        assert (one_case.group == "two rates") == (one.law.name == "two_rate")
