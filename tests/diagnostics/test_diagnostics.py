from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lplr_cli.diagnostics import clean_series, envelope, fit_linear, loss_floor, pl_ratio, stable_window
from lplr_cli.errors import InputError

STEPS = np.arange(400.0)


def test_pl_ratio_by_hand() -> None:
    ratio = pl_ratio([4.0, 2.0, 1.0], [8.0, 4.0, 2.0], 1.0)
    assert ratio[:2].tolist() == [4 / 3, 2.0]
    assert np.isnan(ratio[2])
    assert envelope(ratio).to_dict() == {
        "min": 4 / 3,
        "q05": pytest.approx(4 / 3 + 0.05 * (2 - 4 / 3)),
        "median": pytest.approx((4 / 3 + 2) / 2),
        "count": 2,
    }
    assert envelope(np.array([np.nan])).min is None


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0.9, 0.999), floor=st.floats(0.0, 0.5), amplitude=st.floats(0.5, 100.0))
def test_exact_exponentials_are_recovered(rate: float, floor: float, amplitude: float) -> None:
    loss = floor + amplitude * rate**STEPS
    fit = fit_linear(STEPS[:200], loss[:200], floor)
    assert fit is not None
    assert fit.rate == pytest.approx(rate, abs=1e-6)
    assert fit.rate_low <= rate + 1e-9
    assert fit.rate_high >= rate - 1e-9


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3])
def test_floor_of_an_exponential(floor: float) -> None:
    loss = floor + 2.0 * 0.98**STEPS
    assert loss_floor(STEPS, loss) == pytest.approx(floor, abs=2e-4)


def test_interval_of_a_noisy_rate_covers() -> None:
    hits = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(STEPS))
        fit = fit_linear(STEPS, 3.0 * 0.99**STEPS * np.exp(noise), 0.0)
        assert fit is not None
        hits += fit.rate_low <= 0.99 <= fit.rate_high
    # A binomial at 95 % has standard deviation 3.1.
    assert 180 <= hits <= 199


def test_too_few_rows_give_no_fit() -> None:
    assert fit_linear(STEPS[:5], np.ones(5), 0.0) is None
    assert stable_window(STEPS[:2], np.ones(2)) is None


def test_window_leaves_out_jumps_and_the_proxy_artefact() -> None:
    loss = 0.1 + 2.0 * 0.98**STEPS
    loss[:6] *= [50, 20, 80, 30, 10, 4]
    window = stable_window(STEPS, loss)
    assert window is not None
    assert window.start == 6
    gap, proxy = loss - 0.1, loss - loss.min()
    # The definition: to its last row the proxy is fair within a factor two, beyond it is not.
    assert gap[window.last] <= 2.02 * proxy[window.last]
    assert gap[window.last + 5] > 1.98 * proxy[window.last + 5]
    assert stable_window(STEPS, loss) == window


def test_window_of_a_monotone_run_starts_at_the_start() -> None:
    window = stable_window(STEPS, 3.0 * 0.98**STEPS)
    assert window is not None
    assert window.start == 0


def test_cleaning_counts_what_it_drops() -> None:
    log = pd.DataFrame(
        {
            "step": [0, 2, 1, 2, 3, 4, 5, 6],
            "loss": [4.0, 9.0, 3.0, 2.0, np.nan, np.inf, -1.0, 0.0],
            "grad_norm_sq": [1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        }
    )
    series = clean_series(log)
    assert series.steps.tolist() == [0, 1, 2]
    assert series.loss.tolist() == [4.0, 3.0, 2.0]
    assert series.dropped == {"missing_or_not_finite": 2, "not_positive": 2, "repeated_step": 1}
    assert np.isnan(series.lr).all()
    with pytest.raises(InputError, match="no column 'loss'"):
        clean_series(pd.DataFrame({"step": [1]}))
    with pytest.raises(InputError, match="no row"):
        clean_series(pd.DataFrame({"step": [1], "loss": ["x"]}))
