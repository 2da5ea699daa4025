"""The rate of a whole log: where it is fitted, what it depends on, and theory's rate beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.diagnostics.facts import NO_FACTS, RunFacts
from lplr_cli.diagnostics.pl import envelope, pl_ratio
from lplr_cli.diagnostics.rate import MIN_POINTS, CurveFit, RateFit, fit_curve, fit_rate, select
from lplr_cli.diagnostics.series import LossSeries
from lplr_cli.diagnostics.window import SENSITIVITY, Window, given_window, settled_row, stable_window
from lplr_cli.errors import InputError

MODEL = (
    "log L_t = log m(t) + AR(1) noise, m one of: linear L_inf + A rho^t; two_rate L_inf + A_1 rho_1^t + A_2 rho_2^t; "
    "sublinear L_inf + A (1 + t/t0)^(-alpha); maximum likelihood, chosen by BIC; intervals by profile likelihood, 95 %"
)


@dataclass(frozen=True)
class Convergence:
    """How a log converges.

    Attributes:
        fit: law and constants, time in steps.
        window: the rows of the fit: from the stable window's start to the end of the log (L_∞ is fitted, so the end
            needs no care), or as given.
        sensitivity: ρ (or α, when sublinear) of the same law with an end of the window moved by 20 % of its length.
        decay_per_lr_step, decay_per_lr_step_low, decay_per_lr_step_high: −log ρ per unit of the sum of step sizes,
            comparable with μ and between schedules; None without step sizes or when sublinear.
        lr: (lowest, highest) step size on the window; None when unknown.
        theory: 1 − ημ for each μ that is known and positive, for full-batch gradient descent with one step size.
        notes: what a reader must know to read the rate right.
        table: step, loss, fitted, suboptimality, in_window a row.
    """

    fit: RateFit
    window: Window
    sensitivity: dict[str, float | None]
    decay_per_lr_step: float | None
    decay_per_lr_step_low: float | None
    decay_per_lr_step_high: float | None
    lr: tuple[float, float] | None
    theory: dict[str, float | None]
    notes: tuple[str, ...]
    table: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": MODEL,
            "window": self.window.to_dict(),
            **self.fit.to_dict(),
            "sensitivity": self.sensitivity,
            "decay_per_lr_step": self.decay_per_lr_step,
            "decay_per_lr_step_low": self.decay_per_lr_step_low,
            "decay_per_lr_step_high": self.decay_per_lr_step_high,
            "lr": None if self.lr is None else {"min": self.lr[0], "max": self.lr[1]},
            "theory": self.theory,
            "notes": list(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """The series with the fitted curve."""
        return self.table


def analyse_rate(
    series: LossSeries, *, window: tuple[float, float] | None = None, facts: RunFacts = NO_FACTS
) -> Convergence:
    """The rate of a clean series.

    Args:
        series: eight rows at least.
        window: first and last step; None for the rule.
        facts: what is known of the run beside its log.

    Raises:
        InputError: too few rows, on the window or at all.
    """
    steps, loss = series.steps, series.loss
    if window is not None:
        chosen = given_window(steps, window)
    else:
        first, cause = settled_row(steps, loss, series.drift, facts.sharpness)
        chosen = _to_the_end(steps, first if len(steps) - first >= MIN_POINTS else 0, cause)
    rows = chosen.rows
    selection = select(steps[rows], loss[rows])
    if selection is None:
        raise InputError(
            f"{len(loss[rows])} usable rows are too few to fit a rate", f"{MIN_POINTS} at least, isolated faults aside"
        )
    fit = selection.rate()
    sensitivity = _sensitivity(series, chosen, selection.chosen)
    per_lr = _per_lr_step(series, rows, fit)
    lr = series.lr[rows][np.isfinite(series.lr[rows])]
    span = (float(lr.min()), float(lr.max())) if len(lr) else None
    table = pd.DataFrame({"step": steps, "loss": loss, "fitted": np.nan, "suboptimality": loss - fit.l_inf})
    table["in_window"] = False
    table.loc[table.index[rows], "in_window"] = True
    table.loc[table.index[rows], "fitted"] = selection.chosen.predict(steps[rows], selection.first)
    return Convergence(
        fit,
        chosen,
        sensitivity,
        *per_lr,
        span,
        _theory(series, fit, chosen, facts),
        tuple(_notes(fit, sensitivity, span, facts)),
        table,
    )


def _to_the_end(steps: NDArray[np.float64], first: int, cause: str) -> Window:
    explanation = (
        f"steps {steps[first]:g} to {steps[-1]:g}: from "
        + (f"after the last jump of the {cause}" if first else "the start")
        + " to the end of the log, as the floor is fitted"
    )
    return Window(first, len(steps) - 1, float(steps[first]), float(steps[-1]), 0.0, "settled", explanation)


def _focus(fit: CurveFit) -> float:
    value = float(np.exp(fit.p[fit.curve.focus]))
    return value if fit.curve.name == "sublinear" else float(np.exp(-value / fit.data.span))


def _sensitivity(series: LossSeries, window: Window, chosen: CurveFit) -> dict[str, float | None]:
    """ρ or α of the chosen curve on moved windows; None where an end cannot move or too few rows are left.

    A start found by rule does not move back over the jump that it lies behind.
    """
    found: dict[str, float | None] = {}
    for name, rows in window.moved(len(series.steps)).items():
        behind_a_jump = name == "start_earlier" and window.rule == "settled"
        usable = rows != window.rows and rows.stop - rows.start >= MIN_POINTS and not behind_a_jump
        found[name] = _focus(fit_curve(chosen.curve, series.steps[rows], series.loss[rows])) if usable else None
    return found


def _per_lr_step(series: LossSeries, rows: slice, fit: RateFit) -> tuple[float | None, float | None, float | None]:
    lr, steps = pd.Series(series.lr[rows]).ffill().to_numpy(), series.steps[rows]
    if fit.rate is None or not np.isfinite(lr).all() or (lr <= 0).any():
        return None, None, None
    if lr.min() == lr.max():
        values = [None if v is None or v <= 0 else -np.log(v) / lr[0] for v in (fit.rate, fit.rate_high, fit.rate_low)]
        return values[0], values[1], values[2]
    # The trapezoidal rule between rows: logs of epochs know the step size at their ends only.
    elapsed = np.append(0.0, np.cumsum(0.5 * (lr[1:] + lr[:-1]) * np.diff(steps)))
    again = fit_rate(elapsed, series.loss[rows])
    if again is None or again.rate is None:
        return None, None, None
    values = [None if v is None or v <= 0 else float(-np.log(v)) for v in (again.rate, again.rate_high, again.rate_low)]
    return values[0], values[1], values[2]


def _theory(series: LossSeries, fit: RateFit, window: Window, facts: RunFacts) -> dict[str, float | None]:
    """1 − ημ (theory.md section 2, C2) for the μ that are known."""
    lowest = None
    if series.has_gradients:
        fair = stable_window(series.steps, series.loss, fit.l_inf, window.first)
        if fair is not None:
            ratio = pl_ratio(series.loss, series.grad_norm_sq, float(series.loss.min()))
            lowest = envelope(ratio[fair.rows]).min

    def rate(mu: float | None) -> float | None:
        return None if facts.eta is None or mu is None or mu <= 0 else 1 - facts.eta * mu

    return {
        "eta": facts.eta,
        "mu_certified": facts.mu_certified,
        "rate_certified": rate(facts.mu_certified),
        "mu_estimated": facts.mu_estimated,
        "rate_estimated": rate(facts.mu_estimated),
        "pl_ratio_min": lowest,
        "rate_from_pl_ratio": rate(lowest),
    }


def _notes(
    fit: RateFit, sensitivity: dict[str, float | None], lr: tuple[float, float] | None, facts: RunFacts
) -> list[str]:
    notes = []
    if facts.other_loss:
        notes.append(f"the loss is {facts.other_loss}: the theory's rate is for the squared loss")
    if fit.verdict == "undecided":
        notes.append("undecided: the constants are those of the linear law, not evidence for it")
    if lr is not None and lr[0] != lr[1]:
        notes.append(
            f"the step size varies from {lr[0]:g} to {lr[1]:g}: ρ is per step at the step's size, decay_per_lr_step is "
            "per unit of the sum of step sizes"
        )
    if facts.momentum:
        notes.append(
            f"with momentum {facts.momentum:g} a step moves up to 1/(1 − momentum) = {1 / (1 - facts.momentum):.3g} "
            "times its step size: theory's rate does not apply"
        )
    values = [v for v in sensitivity.values() if v is not None]
    low, high = (fit.alpha_low, fit.alpha_high) if fit.rate is None else (fit.rate_low, fit.rate_high)
    if values and low is not None and high is not None and (min(values) < low or max(values) > high):
        name = "α" if fit.rate is None else "ρ"
        notes.append(
            f"the law is not exact: moving an end of the window by {SENSITIVITY:.0%} moves {name} between "
            f"{min(values):.6g} and {max(values):.6g}, beyond the interval, which speaks of noise alone"
        )
    return notes
