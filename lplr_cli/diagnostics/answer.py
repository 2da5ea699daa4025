"""The answer of a rate fit: verdict, constants with intervals, and what they are conditional on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lplr_cli.diagnostics.decay import MORE_RATES, SUBLINEAR, Exponentials
from lplr_cli.diagnostics.fits import RESOLUTION, CurveFit
from lplr_cli.diagnostics.laws import EVIDENCE
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.rate import Reading, read

_NO_NOISE = "no noise"
VERDICTS = ("linear", "two_rate", "sublinear", "undecided", "none")


@dataclass(frozen=True)
class Steps:
    """The steps from ``start`` to ``stop``, both included."""

    start: float
    stop: float


@dataclass(frozen=True)
class Deviations:
    """How a loss deviates from its law.

    Attributes:
        model: what they are taken for, in words.
        phi: correlation from row to row.
        theta: of the moving average beside it; 0 for none.
        period: rows of a pattern that was taken off before; None for none.
    """

    model: str
    phi: float
    theta: float
    period: int | None


@dataclass(frozen=True)
class RateFit:
    """Which law a loss follows, and its constants.

    Attributes:
        verdict: linear, two_rate (linear convergence in the end, with a faster mode before), sublinear, undecided
            (the data do not tell), or none (no offered law holds).
        reason: one line for people.
        looks_like: what the curve looks like where no law holds for all of it, else None.
        part: the steps that the law holds for, where they are not the whole window or the log goes on without a finite
            loss; else None.
        last_step: of the window, or where such a log goes on.
        rate: ρ, the factor of the suboptimality a unit of time (a step); of the slowest mode; None if sublinear or
            none.
        rate_low, rate_high: its 95 % interval; None at an open end.
        half_life, half_life_low, half_life_high: units of time in which the suboptimality halves.
        alpha, alpha_low, alpha_high: exponent of the power law; None unless sublinear.
        l_inf: L_∞ of the law, estimated; None if none.
        r_squared: of the law on log(L − L_∞), over the rows where L − L_∞ stands above the noise.
        sigma: standard deviation of the log loss about the curve.
        autocorrelation: φ of these deviations from row to row.
        noise: what the deviations are like.
        misfit: p-value of the law against a free curve on top of it: below 0.05 on one in twenty exact laws.
        smoothing: factor of a moving average that was undone, None for none.
        conditional_on: what the interval takes for granted.
        points: rows the fit used.
        spikes: rows left out as isolated faults.
        delta_bic: by curve, the information criterion less that of the best.
        curves: parameters by curve, in the units of the log.
    """

    verdict: str
    reason: str
    looks_like: str | None
    part: Steps | None
    last_step: float
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    half_life: float | None
    half_life_low: float | None
    half_life_high: float | None
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    l_inf: float | None
    r_squared: float | None
    sigma: float
    autocorrelation: float
    noise: Deviations
    misfit: float
    smoothing: float | None
    conditional_on: str
    points: int
    spikes: int
    delta_bic: dict[str, float]
    curves: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def between(self, low: str, high: str) -> str:
        """What ``rate_low`` to ``rate_high`` are, for people."""
        if self.conditional_on.startswith(_NO_NOISE):
            return f"{low} to {high} by other readings of the end"
        return f"95 % interval {low} to {high}"

    @property
    def law(self) -> str:
        """Verdict and part, for people."""
        text = {"two_rate": "linear, with two rates", "sublinear": "sublinear (power law)"}.get(
            self.verdict, self.verdict
        )
        if self.part is None:
            return text
        start, stop = self.part.start, self.part.stop
        return f"{text}, from step {start:g} on" if stop >= self.last_step else f"{text}, steps {start:g} to {stop:g}"

    @property
    def about(self) -> str:
        """What the curve looks like, where no law holds for all of it, and the reason."""
        if self.looks_like is None:
            return self.reason
        whole = "the whole log " if self.verdict != "none" else ""
        return f"{whole}{self.looks_like}; {self.reason}"

    @property
    def says(self) -> str:
        """Verdict, part and looks on one line."""
        return self.law if self.looks_like is None else f"{self.law}: {self.looks_like}"


def fit_rate(steps: Array, loss: Array) -> RateFit | None:
    """:func:`lplr_cli.diagnostics.rate.read` of a series, with intervals; None with too few rows.

    Args:
        steps: increasing, shape (T,); any unit of time, for instance the sum of the step sizes.
        loss: positive and finite, shape (T,).
    """
    steps, loss = np.asarray(steps, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    reading = read(steps, loss)
    return None if reading is None else answer(reading, steps)


def answer(reading: Reading, steps: Array) -> RateFit:
    """A reading with its intervals; ``steps`` are those of all its rows, by whatever clock it was read."""
    fit, weighed = reading.weighed.chosen, reading.weighed
    best = min(f.bic for f in weighed.fits.values())
    rate, half, alpha = _constants(reading)
    part = None if reading.whole else _ends(reading, steps)
    return RateFit(
        reading.verdict,
        reading.reason,
        reading.looks_like,
        part,
        float(steps[-1]),
        *rate,
        *half,
        *alpha,
        l_inf=None if reading.verdict == "none" else reading.floor,
        r_squared=None if reading.verdict == "none" or reading.tail else _r_squared(fit),
        sigma=fit.sigma,
        autocorrelation=fit.noise.phi,
        noise=_noise(fit),
        misfit=weighed.misfit,
        smoothing=reading.smoothing,
        conditional_on="no law, no interval" if rate == alpha == _NOTHING else _conditions(reading),
        points=len(fit.data.s),
        spikes=reading.spikes,
        delta_bic={**{k: f.bic - best for k, f in weighed.fits.items()}, "constant": weighed.constant_bic - best},
        curves={k: _parameters(f) for k, f in weighed.fits.items()},
    )


def _ends(reading: Reading, steps: Array) -> Steps:
    return Steps(float(steps[reading.first]), float(steps[reading.last]))


_Interval = tuple[float | None, float | None, float | None]
_NOTHING: _Interval = (None, None, None)


def _constants(reading: Reading) -> tuple[_Interval, _Interval, _Interval]:
    """Rate, half-life and exponent with their intervals; none of a loss that may as well stay where it is."""
    tail, fit = reading.tail, reading.weighed.chosen
    stays = tail is None and reading.weighed.constant_bic < fit.bic + EVIDENCE
    if reading.verdict == "none" or (reading.verdict == "undecided" and stays):
        return _NOTHING, _NOTHING, _NOTHING
    if tail is not None and reading.verdict == "sublinear":
        return _NOTHING, _NOTHING, (tail.alpha, None, None)
    if tail is not None:
        values = np.log(np.maximum([tail.rate, tail.slowest, tail.fastest], 1e-300)).tolist()
        return _rates(values[0], values[1], values[2], 1.0)
    low, high = fit.interval()
    # No narrower than what floats resolve.
    low, high = low - RESOLUTION, high + RESOLUTION
    middle = float(fit.p[fit.curve.focus])
    if fit.curve is SUBLINEAR:
        return _NOTHING, _NOTHING, _interval(lambda a: a, middle, low, high)
    if fit.curve in MORE_RATES:
        # Of several rates the mean that rules at the end, with the relative width of the slowest.
        at_end = [_at_end(fit), *(_at_end(f) for f in reading.weighed.fits.values() if _has_one_more(f, fit))]
        low, high, middle = low - middle + min(at_end), high - middle + max(at_end), at_end[0]
    return _rates(middle, low, high, fit.data.span)


def _has_one_more(fit: CurveFit, than: CurveFit) -> bool:
    return fit.curve in MORE_RATES and len(fit.p) == len(than.p) + 2


def _at_end(fit: CurveFit) -> float:
    """Logarithm of the rate of the gap at the last row, on scaled time."""
    assert isinstance(fit.curve, Exponentials)
    return math.log(fit.curve.rate_at(fit.p, 1.0))


def _rates(middle: float, low: float, high: float, span: float) -> tuple[_Interval, _Interval, _Interval]:
    # A fast decay is a small ρ and a short half-life: the ends change places.
    rate = _interval(lambda k: math.exp(-k / span), middle, high, low)
    half = _interval(lambda k: math.log(2) * span / k, middle, high, low)
    return rate, half, _NOTHING


def _interval(to: Callable[[float], float], *logarithms: float) -> _Interval:
    """Value, low and high end of ``to`` of exponentials; None for an open end."""
    value, low, high = (to(math.exp(v)) if math.isfinite(v) else None for v in logarithms)
    return value, low, high


def _noise(fit: CurveFit) -> Deviations:
    process = "ARMA(1,1)" if fit.noise.theta else "AR(1)"
    model = f"{process} of {'L with a scale that varies' if fit.noise.additive else 'log L'}"
    return Deviations(model, fit.noise.phi, fit.noise.theta, fit.data.period or None)


def _conditions(reading: Reading) -> str:
    if reading.tail is not None:
        return f"{_NO_NOISE}: it is the range of four readings of the end of the log, not an interval of confidence"
    noise = _noise(reading.weighed.chosen)
    text = f"the law on these rows and on {noise.model} as noise"
    if noise.period:
        text += f" after a pattern of {noise.period} rows was taken off"
    if reading.smoothing is not None:
        text += f" after a moving average of factor {reading.smoothing:g} was undone"
    return text


def _r_squared(fit: CurveFit) -> float | None:
    y = np.exp(fit.data.log_y)
    model = fit.curve.value(fit.p, fit.data.s)[0]
    floor = float(fit.p[-1])
    usable = (y > floor) & (model - floor > 3 * fit.sigma * model)
    if usable.sum() < 3:
        return None
    observed = np.log(y[usable] - floor)
    total = float(((observed - observed.mean()) ** 2).sum())
    rest = float(((observed - np.log(model[usable] - floor)) ** 2).sum())
    return 1 - rest / total if total > 0 else None


def _exp(value: float) -> float:
    """exp, infinite beyond float64."""
    return math.exp(value) if value < 709.0 else math.inf


def _parameters(fit: CurveFit) -> dict[str, float]:
    """In the units of the log: amplitudes at the first row, rates a unit of time, times in units of time."""
    values: dict[str, float] = {}
    for name, value in zip(fit.curve.parameters, fit.p.tolist(), strict=True):
        if name.startswith(("log_amplitude", "log_slope")):
            values[name.removeprefix("log_")] = _exp(value + fit.data.shift)
        elif name.startswith("log_rate"):
            values["rho" + name.removeprefix("log_rate")] = math.exp(-_exp(value) / fit.data.span)
        elif name == "log_t0":
            values["t0"] = _exp(value) * fit.data.span
        elif name == "log_scale":
            values["tau"] = _exp(-value) * fit.data.span
        elif name in ("log_alpha", "log_beta"):
            values[name.removeprefix("log_")] = _exp(value)
        else:
            values["l_inf"] = _exp(math.log(value) + fit.data.shift) if value > 0 else 0.0
    return values
