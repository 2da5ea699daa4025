"""The rate of a whole log: on which rows and by which clock, what it depends on, and theory's rate beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.diagnostics.answer import RateFit, Steps, answer
from lplr_cli.diagnostics.clock import Clock, changes_of, lr_clock, step_clock
from lplr_cli.diagnostics.effective import effective_rate
from lplr_cli.diagnostics.facts import NO_FACTS, RunFacts
from lplr_cli.diagnostics.fit_data import MIN_POINTS, scaled
from lplr_cli.diagnostics.fits import DOUBTED, REJECTED, CurveFit, fit_all, fit_plain
from lplr_cli.diagnostics.laws import EVIDENCE, SHORT
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.pl import envelope, pl_ratio
from lplr_cli.diagnostics.rate import Reading, read
from lplr_cli.diagnostics.segments import Segment, segments_of
from lplr_cli.diagnostics.series import LossSeries
from lplr_cli.diagnostics.window import Window, given_window, settled_row, stable_window
from lplr_cli.errors import InputError
from lplr_cli.shown import Shown

MODEL = (
    "L_t = m(t) with multiplicative or additive ARMA(1,1) noise, m one of: linear L_inf + A rho^t; two_rate "
    "L_inf + A_1 rho_1^t + A_2 rho_2^t; sublinear L_inf + A (1 + t/t0)^(-alpha); chosen by BIC under one noise and "
    "held against a free curve; without noise by what foretells a held-out tail; none where no law holds; intervals by "
    "profile likelihood, 95 %"
)
# A start that settles later than this share of the rows is a part of the log, not its window.
_EARLY = 0.1


@dataclass(frozen=True)
class Promised:
    """What the theory promises of a run, None where it promises nothing.

    Attributes:
        eta: step size of plain full-batch gradient descent.
        mu_certified, rate_certified: μ proved on the ball around the start, and 1 − ημ.
        mu_estimated, rate_estimated: the same of estimated constants.
        rate_path, path_from_step: proved along the path, for every step from that one on.
        pl_ratio_min, rate_from_pl_ratio: the smallest PL ratio on the stable window, and 1 − ημ with it.
        noise_floor: L − L* that mini-batches keep up.
    """

    eta: float | None = None
    mu_certified: float | None = None
    rate_certified: float | None = None
    mu_estimated: float | None = None
    rate_estimated: float | None = None
    rate_path: float | None = None
    path_from_step: int | None = None
    pl_ratio_min: float | None = None
    rate_from_pl_ratio: float | None = None
    noise_floor: float | None = None

    @property
    def rates(self) -> list[float]:
        """Those that are known."""
        each = (self.rate_path, self.rate_certified, self.rate_estimated, self.rate_from_pl_ratio)
        return [rate for rate in each if rate is not None]


@dataclass(frozen=True, repr=False)
class Convergence(Shown):
    """How a log converges.

    Attributes:
        fit: law and constants, time in steps.
        window: the rows of the fit: from where the start has settled to the end of the log (L_∞ is fitted, so the end
            needs no care), or as given.
        clock: the time in which the law holds: "step", or "lr_step", the sum of the step sizes in units of their mean,
            so that one unit is a step on average.
        sensitivity: ρ (or α, when sublinear) of the same law with an end of the window moved by 20 % of its length.
        decay_per_lr_step, decay_per_lr_step_low, decay_per_lr_step_high: −log ρ per unit of the sum of step sizes,
            comparable with μ and between schedules; None without step sizes or when sublinear.
        lr: (lowest, highest) step size on the window; None when unknown.
        segments: the log cut where the step size jumps or, where no law holds for all of it, where the curve changes:
            a rate each, in the sum of the step sizes where they vary within it.
        effective: ρ(t) as a series with its band; see :func:`lplr_cli.diagnostics.effective.effective_rate`.
        theory: 1 − ημ for each μ that is known and positive, for full-batch gradient descent with one step size.
        notes: what a reader must know to read the rate right.
        table: step, loss, fitted, suboptimality, in_window, effective_rate and its band a row.
    """

    fit: RateFit
    window: Window
    clock: str
    sensitivity: dict[str, float | None]
    decay_per_lr_step: float | None
    decay_per_lr_step_low: float | None
    decay_per_lr_step_high: float | None
    lr: tuple[float, float] | None
    segments: tuple[Segment, ...]
    effective: pd.DataFrame
    theory: Promised
    notes: tuple[str, ...]
    table: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": MODEL,
            "window": self.window.to_dict(),
            "clock": self.clock,
            **self.fit.to_dict(),
            "sensitivity": self.sensitivity,
            "decay_per_lr_step": self.decay_per_lr_step,
            "decay_per_lr_step_low": self.decay_per_lr_step_low,
            "decay_per_lr_step_high": self.decay_per_lr_step_high,
            "lr": None if self.lr is None else {"min": self.lr[0], "max": self.lr[1]},
            "segments": [segment.to_dict() for segment in self.segments],
            "effective_rate": self.effective.to_dict("records"),
            "theory": asdict(self.theory),
            "notes": list(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """The series with the fitted curve."""
        return self.table


def analyse_rate(
    series: LossSeries,
    *,
    window: tuple[float, float] | None = None,
    facts: RunFacts = NO_FACTS,
    smoothing: float | None = None,
) -> Convergence:
    """The rate of a clean series.

    Args:
        series: eight rows at least.
        window: first and last step; None for the rule.
        facts: what is known of the run beside its log.
        smoothing: factor of a moving average that the log went through; None to recognise one.

    Raises:
        InputError: too few rows, on the window or at all; the log is no moving average of that factor.
    """
    steps, loss = series.steps, series.loss
    chosen, settled = _window(series, window, facts)
    rows = chosen.rows
    lr: Array = np.asarray(pd.Series(series.lr[rows]).ffill(), dtype=np.float64)
    jumps = changes_of(lr)
    known = [*jumps, *([settled - chosen.first] if settled > chosen.first else [])]
    clock, reading = _read(steps[rows], loss[rows], lr, known, smoothing)
    if reading is None:
        raise InputError(
            f"{len(loss[rows])} usable rows are too few to fit a rate", f"{MIN_POINTS} at least, isolated faults aside"
        )
    fit = _before_the_loss_is_lost(answer(reading, steps[rows]), float(steps[rows][0]), series.lost_from)
    sensitivity = _sensitivity(reading, series, chosen, clock)
    segments = segments_of(steps[rows], loss[rows], lr, jumps, reading)
    kept = reading.kept
    effective = effective_rate(steps[rows][kept], loss[rows][kept], reading)
    known_lr = lr[np.isfinite(lr)]
    span = (float(known_lr.min()), float(known_lr.max())) if len(known_lr) else None
    return Convergence(
        fit,
        chosen,
        clock.name,
        sensitivity,
        *clock.per_lr(fit),
        span,
        segments,
        effective,
        _theory(series, fit, chosen, facts),
        tuple(_notes(fit, clock, reading, span, facts)),
        _table(series, chosen, clock.time, reading, fit, effective),
    )


def _before_the_loss_is_lost(fit: RateFit, first: float, lost: float | None) -> RateFit:
    """A law of all rows that have a finite loss is one of a part of a log that goes on without."""
    if lost is None or fit.verdict == "none":
        return fit
    return replace(fit, part=fit.part or Steps(first, fit.last_step), last_step=lost)


def _window(series: LossSeries, window: tuple[float, float] | None, facts: RunFacts) -> tuple[Window, int]:
    """The rows of the fit, and the row from which the start has settled."""
    steps, loss = series.steps, series.loss
    if window is not None:
        chosen = given_window(steps, window)
        return chosen, chosen.first
    first, cause = settled_row(steps, loss, series.drift, facts.sharpness)
    begin = first if first <= _EARLY * len(steps) and len(steps) - first >= MIN_POINTS else 0
    explanation = (
        f"steps {steps[begin]:g} to {steps[-1]:g}: from "
        + (f"after the last jump of the {cause}" if begin else "the start")
        + f" to the {'end of the log' if series.lost_from is None else 'last finite loss'}, as the floor is fitted"
    )
    return Window(begin, len(steps) - 1, float(steps[begin]), float(steps[-1]), 0.0, "settled", explanation), first


def _read(
    steps: Array, loss: Array, lr: Array, known: list[int], smoothing: float | None
) -> tuple[Clock, Reading | None]:
    """By the step, or by the sum of the step sizes where that says more: a law of all rows before one of a part,
    undecided before none. Of two laws of all rows that of the sum counts unless the evidence is against it.
    """
    plain, other = step_clock(steps, lr), lr_clock(steps, lr)
    reading = read(steps, loss, known, smoothing)
    again = None if reading is None or other is None else read(other.time, loss, known, smoothing)
    if reading is None or other is None or again is None:
        return plain, reading
    says, told = _says(reading), _says(again)
    # A part is named in steps.
    better = told > says and told != _PART
    if told == says == _MOST:
        better = again.weighed.chosen.surprise < reading.weighed.chosen.surprise + EVIDENCE
    return (other, again) if better else (plain, reading)


# See _says.
_PART, _MOST = 2, 3


def _says(reading: Reading) -> int:
    """How much: a law of all rows, of a part, several laws possible, or none."""
    if reading.verdict in ("none", "undecided"):
        return int(reading.verdict == "undecided")
    return _MOST if reading.whole else _PART


def _sensitivity(reading: Reading, series: LossSeries, window: Window, clock: Clock) -> dict[str, float | None]:
    """ρ or α of the chosen curve on moved windows; None where an end cannot move or too few rows are left.

    A start found by rule does not move back over the jump that it lies behind.
    """
    found: dict[str, float | None] = dict.fromkeys(("start_earlier", "start_later", "stop_earlier", "stop_later"))
    if reading.verdict == "none" or reading.tail is not None or reading.smoothing is not None:
        return found
    curve = reading.weighed.chosen.curve
    # Outside the window only the steps are known as time.
    steps, count = series.steps.copy(), len(series.steps) if clock.name == "step" else window.last + 1
    steps[window.rows] = clock.time
    kept = np.ones(len(steps), dtype=bool)
    kept[window.rows] = reading.kept
    whole = Window(window.first + reading.first, window.first + reading.last, 0.0, 0.0, 0.0, "settled", "")
    for name, rows in whole.moved(count).items():
        if rows == whole.rows or (name == "start_earlier" and window.rule == "settled"):
            continue
        inside = np.flatnonzero(kept[rows]) + rows.start
        if len(inside) >= MIN_POINTS:
            plain = fit_plain(scaled(steps[inside], series.loss[inside]), [curve])
            found[name] = _focus(fit_all(plain)[curve.name])
    return found


def _focus(fit: CurveFit) -> float:
    value = float(np.exp(fit.p[fit.curve.focus]))
    return value if fit.curve.name == "sublinear" else float(np.exp(-value / fit.data.span))


def _table(
    series: LossSeries, window: Window, time: Array, reading: Reading, fit: RateFit, effective: pd.DataFrame
) -> pd.DataFrame:
    steps, loss, rows = series.steps, series.loss, window.rows
    table = pd.DataFrame({"step": steps, "loss": loss, "fitted": np.nan, "suboptimality": loss - (fit.l_inf or 0.0)})
    table["in_window"] = False
    table.loc[table.index[rows], "in_window"] = True
    if reading.tail is None and reading.verdict != "none":
        part = slice(window.first + reading.first, window.first + reading.last + 1)
        inside = time[reading.first : reading.last + 1]
        table.loc[table.index[part], "fitted"] = reading.weighed.chosen.predict(inside)
    for column in effective.columns[1:]:
        table[column] = (
            np.interp(steps, effective["step"], effective[column], left=np.nan, right=np.nan)
            if len(effective)
            else np.nan
        )
    return table


def _theory(series: LossSeries, fit: RateFit, window: Window, facts: RunFacts) -> Promised:
    """1 − ημ (theory.md section 2, C2) for the μ that are known."""
    lowest = None
    if series.has_gradients:
        floor = min(fit.l_inf or 0.0, float(series.loss.min()))
        fair = stable_window(series.steps, series.loss, floor, window.first)
        if fair is not None:
            ratio = pl_ratio(series.loss, series.grad_norm_sq, float(series.loss.min()))
            lowest = envelope(ratio[fair.rows]).min

    def rate(mu: float | None) -> float | None:
        return None if facts.eta is None or mu is None or mu <= 0 else 1 - facts.eta * mu

    return Promised(
        eta=facts.eta,
        mu_certified=facts.mu_certified,
        rate_certified=rate(facts.mu_certified),
        mu_estimated=facts.mu_estimated,
        rate_estimated=rate(facts.mu_estimated),
        rate_path=facts.rate_path,
        path_from_step=facts.rate_path_from,
        pl_ratio_min=lowest,
        rate_from_pl_ratio=rate(lowest),
        noise_floor=facts.noise_floor,
    )


# Where losses are read, for people.
_READ_AT = {"epochs": " at the ends of epochs", "own-batch": ", each of its own batch"}


def _floors(fit: RateFit, predicted: float, at: str | None) -> str:
    """The floor that mini-batches predict beside the one of the curve."""
    text = f"the noise of the mini-batches keeps the losses{_READ_AT.get(at or '', '')} about {predicted:.3g} above L*"
    if not fit.l_inf:
        return f"{text} (predicted, an estimate)"
    share = predicted / fit.l_inf
    if share > 2:
        return f"{text} (predicted, an estimate), above the floor of the fit, {fit.l_inf:.3g}: not reached yet"
    return f"{text} (predicted, an estimate), {min(share, 1):.2g} of the floor of the fit, {fit.l_inf:.3g}"


def _of_undecided(fit: RateFit) -> Iterator[str]:
    if fit.rate is not None:
        yield "undecided: the constants are those of the linear law, not evidence for it"
    if fit.points < SHORT:
        yield f"{fit.points} rows: too few to tell a law from another one; some hundred decide most cases"


def _notes(fit: RateFit, clock: Clock, reading: Reading, lr: tuple[float, float] | None, facts: RunFacts) -> list[str]:
    notes = []
    law = fit.verdict in ("linear", "two_rate", "sublinear")
    if facts.other_loss:
        notes.append(f"the loss is {facts.other_loss}: the theory's rate is for the squared loss")
    if fit.verdict == "undecided":
        notes += _of_undecided(fit)
    if lr is not None and lr[0] != lr[1] and clock.name == "step":
        notes.append(
            f"the step size varies from {lr[0]:g} to {lr[1]:g}: ρ is per step at the step's size, decay_per_lr_step is "
            "per unit of the sum of step sizes"
        )
    if clock.name == "lr_step":
        notes.append(
            "the law holds in the sum of the step sizes, not in steps, as the step size varies: ρ and the half-life "
            "are for steps of the mean size"
        )
    if facts.momentum:
        notes.append(
            f"with momentum {facts.momentum:g} a step moves up to 1/(1 − momentum) = {1 / (1 - facts.momentum):.3g} "
            "times its step size: theory's rate does not apply"
        )
    if facts.noise_floor is not None:
        notes.append(_floors(fit, facts.noise_floor, facts.noise_read_at))
    if fit.smoothing is not None:
        notes.append(f"the log is a moving average, S = {fit.smoothing:g} S + {1 - fit.smoothing:.3g} L: it was undone")
    if law and reading.tail is None and REJECTED <= fit.misfit < DOUBTED:
        notes.append(
            f"the law may not be exact: a free curve on top of it fits better (p = {fit.misfit:.2g}; below "
            f"{DOUBTED:g} on one in twenty exact laws); the interval speaks of noise alone"
        )
    return notes
