"""Cleaning of logs, PL ratio and stable window."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lplr_cli.diagnostics import (
    RunFacts,
    analyse_pl_ratio,
    clean_series,
    envelope,
    given_window,
    parse_window,
    pl_ratio,
    rolling_envelope,
    settled_row,
    stable_window,
)
from lplr_cli.diagnostics.series import numbers
from lplr_cli.errors import InputError

STEPS = np.arange(400.0)


def quadratic_log(mu: float = 0.3, floor: float = 0.1, eta: float = 0.05) -> pd.DataFrame:
    """Gradient descent on floor + (mu/2) x²: the PL ratio is mu at every step, exactly."""
    x = 2.0 * (1 - eta * mu) ** STEPS
    return pd.DataFrame({"step": STEPS, "loss": floor + 0.5 * mu * x**2, "grad_norm_sq": (mu * x) ** 2, "lr": eta})


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


@pytest.mark.parametrize("l_star", [0.1, "fit"])
def test_a_quadratic_has_its_own_constant(l_star: str | float) -> None:
    result = analyse_pl_ratio(clean_series(quadratic_log()), l_star=l_star)
    assert result.pl_ratio.min == pytest.approx(0.3, rel=1e-4)
    assert result.pl_ratio.median == pytest.approx(0.3, rel=1e-4)
    assert result.l_star == pytest.approx(0.1, rel=1e-6)


def test_the_bracket_holds_the_true_ratio() -> None:
    result = analyse_pl_ratio(clean_series(quadratic_log()))
    inside = result.table[result.table["in_window"] & (result.table["suboptimality"] > 0)]
    assert len(inside) > 50
    assert (inside["pl_ratio_star"] <= 0.3 * (1 + 1e-12)).all()
    assert (inside["pl_ratio"] >= 0.3 * (1 - 1e-12)).all()
    # On the window the proxy is fair within a factor of two, beyond it diverges.
    assert inside["pl_ratio"].max() <= 0.6 * (1 + 1e-6)
    assert result.table["pl_ratio"].iloc[-2] > 3
    assert result.pl_ratio_star.min is not None
    assert result.pl_ratio_proxy.min is not None
    assert result.pl_ratio_star.min <= 0.3 <= result.pl_ratio_proxy.min


def test_rules_of_l_star() -> None:
    log = quadratic_log()
    log.loc[399, "loss"] = log["loss"][395]
    series = clean_series(log)
    found = {rule: analyse_pl_ratio(series, l_star=rule).l_star for rule in ("min", "terminal", "zero", "fit")}
    assert found["zero"] == 0.0
    assert found["min"] == log["loss"].min() < found["terminal"] == log["loss"].iloc[-1]
    assert found["fit"] == pytest.approx(0.1, rel=1e-5)
    assert analyse_pl_ratio(series, l_star="0.05").l_star_rule == "given"
    for bad in ("lowest", "nan", 1e9):
        with pytest.raises(InputError):
            analyse_pl_ratio(series, l_star=bad)


def test_sensitivity_of_the_window() -> None:
    flat = analyse_pl_ratio(clean_series(quadratic_log()), l_star=0.1, window=(50, 150))
    assert flat.sensitivity["relative"] == pytest.approx(0.0, abs=1e-9)
    log = quadratic_log()
    log["grad_norm_sq"] *= np.where((STEPS > 150) & (STEPS < 165), 0.5, 1.0)
    dip = analyse_pl_ratio(clean_series(log), l_star=0.1, window=(50, 150))
    assert dip.pl_ratio.min == pytest.approx(0.3)
    assert dip.sensitivity["stop_later"] == pytest.approx(0.15)
    assert dip.sensitivity["stop_earlier"] == pytest.approx(0.3)
    assert dip.sensitivity["relative"] == pytest.approx(0.5)


def test_identity_with_the_rayleigh_quotient() -> None:
    log = quadratic_log()
    star = 0.5 * log["grad_norm_sq"] / log["loss"]
    facts = RunFacts(loss_scale=0.5, residual_rayleigh=[(10, star[10]), (30, star[30] * 1.01)])
    result = analyse_pl_ratio(clean_series(log), facts=facts)
    assert result.identity_probes == 2
    assert result.identity_error == pytest.approx(0.01 / 1.01, rel=1e-9)


def test_identity_with_the_gradient_that_the_kernel_gives() -> None:
    log = quadratic_log()
    square = log["grad_norm_sq"]
    pairs = [(10, square[10]), (30, square[30] * 1.01), (10.5, 1.0)]
    result = analyse_pl_ratio(clean_series(log), facts=RunFacts(loss_name="cross-entropy", kernel_gradient=pairs))
    assert result.identity_probes == 2
    assert result.identity_error == pytest.approx(0.01 / 1.01, rel=1e-9)
    # Gradients of mini-batches are others.
    noisy = analyse_pl_ratio(clean_series(log), facts=RunFacts(exact=False, kernel_gradient=pairs))
    assert (noisy.identity_probes, noisy.identity_error) == (0, None)


def test_factor_over_mu() -> None:
    facts = RunFacts(mu_certified=0.1, mu_estimated=-3.0)
    result = analyse_pl_ratio(clean_series(quadratic_log()), l_star=0.1, facts=facts)
    record = result.to_dict()
    assert record["pl_ratio_over_mu_certified"] == pytest.approx(3.0)
    assert record["pl_ratio_over_mu_estimated"] is None


def test_rolling_envelope_ignores_a_single_dip() -> None:
    ratio = np.full(101, 2.0)
    ratio[50] = 1e-6
    assert rolling_envelope(ratio, 41)[50] > 1.9
    assert (rolling_envelope(ratio, 5)[48:53] < 2).all()
    assert rolling_envelope(np.array([np.nan, 1.0, np.inf]), 3).tolist() == [1.0, 1.0, 1.0]


def test_no_gradients_is_said() -> None:
    with pytest.raises(InputError, match="gradient norm"):
        analyse_pl_ratio(clean_series(pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})))


def test_window_leaves_out_jumps_and_the_proxy_artefact() -> None:
    loss = 0.1 + 2.0 * 0.98**STEPS
    loss[:6] *= [50, 20, 80, 30, 10, 4]
    first, cause = settled_row(STEPS, loss)
    assert (first, cause) == (6, "loss")
    window = stable_window(STEPS, loss, 0.1, first, cause)
    assert window is not None
    assert window.start == 6
    assert "last jump of the loss" in window.explanation
    gap, proxy = loss - 0.1, loss - loss.min()
    # The definition: to its last row the proxy is fair within a factor two, beyond it is not.
    assert gap[window.last] <= 2 * proxy[window.last]
    assert gap[window.last + 1] > 2 * proxy[window.last + 1]
    assert stable_window(STEPS[:2], np.ones(2), 0.0) is None


def test_drift_and_sharpness_move_the_start() -> None:
    loss = 3.0 * 0.98**STEPS
    assert settled_row(STEPS, loss) == (0, "")
    drift = np.linspace(0, 0.1, 400)
    drift[20:] += 1.0
    assert settled_row(STEPS, loss, drift) == (20, "drift")
    sharpness = [(0.0, 100.0), (50.0, 20.0), (100.0, 19.0), (300.0, 90.0)]
    assert settled_row(STEPS, loss, drift, sharpness) == (50, "sharpness")
    # A jump in the second half is the run's own, not a start to leave out.
    late = loss * np.where(STEPS > 300, 5.0, 1.0)
    assert settled_row(STEPS, late) == (0, "")


def test_given_windows() -> None:
    assert parse_window("10:20") == (10.0, 20.0)
    assert parse_window("10:") == (10.0, np.inf)
    assert parse_window(":20") == (-np.inf, 20.0)
    for text in ("10", "20:10", "a:b", "1:2:3", "5:5", "nan:3"):
        with pytest.raises(InputError, match="--window"):
            parse_window(text)
    window = given_window(STEPS, (9.5, 20))
    assert (window.start, window.stop, window.rule) == (10, 20, "given")
    with pytest.raises(InputError, match="holds 1 usable"):
        given_window(STEPS, (9.5, 10.5))


def test_cleaning_counts_what_it_drops() -> None:
    log = pd.DataFrame(
        {
            "step": [0, 1, 2, 3, 4, 5, 6],
            "loss": [4.0, 3.0, 2.0, np.nan, np.inf, -1.0, 0.0],
            "grad_norm_sq": [1.0] * 7,
        }
    )
    series = clean_series(log)
    assert series.steps.tolist() == [0, 1, 2]
    assert series.dropped == {"missing": 1, "infinite": 1, "not_positive": 2, "superseded": 0, "repeated_step": 0}
    assert "1 with an infinite loss" in series.counts()
    assert np.isnan(series.lr).all()
    for bad, match in (({"step": [1]}, "no column 'loss'"), ({"step": [1], "loss": ["x"]}, "no row")):
        with pytest.raises(InputError, match=match):
            clean_series(pd.DataFrame(bad))


def test_a_restart_supersedes_what_it_writes_again() -> None:
    log = pd.DataFrame({"step": [0, 1, 2, 3, 4, 2, 3, 4, 5], "loss": [9, 8, 7, 6, 50.0, 6.5, 6, 5, 4]})
    series = clean_series(log)
    assert series.loss.tolist() == [9, 8, 6.5, 6, 5, 4]
    assert series.dropped["superseded"] == 3
    # A restart that ended early hides the later rows too: they are of a past that did not happen.
    short = clean_series(pd.DataFrame({"step": [0, 1, 2, 3, 4, 2], "loss": [9, 8, 7, 6, 5, 6.5]}))
    assert short.loss.tolist() == [9, 8, 6.5]


def test_rows_out_of_order_are_sorted_not_dropped() -> None:
    series = clean_series(pd.DataFrame({"step": [0, 2, 1, 3], "loss": [9.0, 7.0, 8.0, 6.0]}))
    assert series.loss.tolist() == [9, 8, 7, 6]
    assert series.reordered == 1
    assert sum(series.dropped.values()) == 0


def test_metrics_in_rows_of_their_own_are_joined() -> None:
    log = pd.DataFrame(
        {
            "step": [0, 0, 1, 1],
            "loss": [3.0, np.nan, 2.0, np.nan],
            "grad_norm": [np.nan, 2.0, np.nan, 1.0],
            "lr": [np.nan, 0.1, np.nan, 0.2],
        }
    )
    series = clean_series(log)
    assert series.grad_norm_sq.tolist() == [4.0, 1.0]
    assert series.lr.tolist() == [0.1, 0.2]


def test_one_step_several_columns_of_a_name() -> None:
    frame = pd.DataFrame([[0, 1.0, 2.0]], columns=["step", "loss", "loss"])
    with pytest.raises(InputError, match="several columns"):
        clean_series(frame)


def test_whole_numbers_beyond_float64_are_none() -> None:
    column = pd.Series([1, 10**400, "2.5", None, -(10**400)], dtype=object)
    assert np.array_equal(numbers(column), [1.0, np.nan, 2.5, np.nan, np.nan], equal_nan=True)
