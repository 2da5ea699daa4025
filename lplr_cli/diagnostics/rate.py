"""Convergence rate of a loss series: which law, which rate, how sure (theory.md section 8).

Linear, two-rate and sublinear curves with a floor (:mod:`lplr_cli.diagnostics.decay`) are fitted to the log of the
loss with AR(1) errors. The Bayesian information criterion of that likelihood, which is the one corrected for
autocorrelation, chooses the law; intervals are profile likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lplr_cli.diagnostics.decay import CURVES, LINEAR, SUBLINEAR, TWO_RATE, Curve, Exponentials
from lplr_cli.diagnostics.least_squares import MAX_CORRELATION, Array, minimise, restricted_correlation, whiten

# A fit with fewer rows than this says nothing about its own uncertainty.
MIN_POINTS = 8
# Rows used at most, evenly spread: beyond, the statistical error is far below that of any model.
MAX_POINTS = 20_000
# Evidence asked for: a difference of the criterion of 6 is odds of 20 to 1 (Kass and Raftery 1995).
EVIDENCE = 6.0
# Relative resolution of a log loss; residuals below it are rounding.
_RESOLUTION = 1e-13
_THINNED = 200


@dataclass(frozen=True)
class _Data:
    """Scaled data of a fit: time in [0, 1], log of the loss with mean 0."""

    s: Array
    log_y: Array
    span: float
    shift: float


@dataclass(frozen=True)
class CurveFit:
    """One curve fitted to one series.

    Attributes:
        curve: the family.
        p: its parameters, on scaled data.
        phi: AR(1) correlation of the errors of the log loss.
        sigma: standard deviation of its innovations.
        bic: information criterion, in units of −2 log likelihood.
        data: what was fitted.
    """

    curve: Curve
    p: Array
    phi: float
    sigma: float
    bic: float
    data: _Data

    @property
    def floor(self) -> float:
        """L_∞ in the units of the loss."""
        return float(self.p[-1] * math.exp(self.data.shift))

    @property
    def degrees(self) -> float:
        """Degrees of freedom of σ: rows, counted as what they are worth under their correlation, less parameters."""
        phi = max(self.phi, 0.0)
        return max(len(self.data.s) * (1 - phi) / (1 + phi) - len(self.p), 2.0)

    def predict(self, steps: Array, first: float) -> Array:
        """The curve at ``steps``, in the units of the loss; ``first`` is the first step of the fit."""
        scaled = (np.asarray(steps, dtype=np.float64) - first) / self.data.span
        return self.curve.value(self.p, scaled)[0] * math.exp(self.data.shift)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Profile-likelihood interval of the focus parameter, as fitted (a logarithm); an open end is infinite.

        φ is raised by half a standard error, because it is itself an estimate and too small a one makes intervals
        too short; the simulations of docs/benchmarks.md show the coverage that results.
        """
        curve, data, count = self.curve, self.data, len(self.data.s)
        lower, upper = curve.bounds(count)
        phi = min(self.phi + 0.5 * math.sqrt((1 - self.phi**2) / count), MAX_CORRELATION)

        def residual(p: Array) -> tuple[Array, Array]:
            return curve.log_residual(p, data.s, data.log_y)

        best = minimise(residual, self.p, lower, upper, phi)
        sigma = max(math.sqrt(best.cost / max(count - len(self.p), 1)), _RESOLUTION)
        reach = float(special.stdtrit(self.degrees, 0.5 + level / 2))
        warm = {float(best.p[curve.focus]): best.p}

        def excess(value: float) -> float:
            low, high = lower.copy(), upper.copy()
            low[curve.focus] = high[curve.focus] = value
            start = warm[min(warm, key=lambda known: abs(known - value))].copy()
            start[curve.focus] = value
            found = minimise(residual, start, low, high, phi, 40)
            warm[value] = found.p
            return math.sqrt(max(found.cost - best.cost, 0.0)) / sigma - reach

        centre = float(best.p[curve.focus])
        width = reach * min(max(sigma * _standard_error(best.jacobian, curve.focus), 1e-13), 0.5)
        return (
            _crossing(excess, centre, -width, float(lower[curve.focus]), reach),
            _crossing(excess, centre, width, float(upper[curve.focus]), reach),
        )


def _crossing(excess: Callable[[float], float], centre: float, width: float, limit: float, reach: float) -> float:
    """Where the profile crosses its threshold on the side of ``width``; infinite when it does not before ``limit``."""
    inner = (centre, -reach)
    for _ in range(12):
        x = max(centre + width, limit) if width < 0 else min(centre + width, limit)
        outer = (x, excess(x))
        if outer[1] >= 0:
            return _root(excess, inner, outer)
        if x == limit:
            break
        inner, width = outer, 1.7 * width
    return math.copysign(math.inf, width)


def _standard_error(jacobian: Array, focus: int) -> float:
    scale = np.sqrt((jacobian**2).sum(axis=0))
    if scale[focus] == 0:
        return math.inf
    _, r = np.linalg.qr(jacobian[:, scale > 0] / scale[scale > 0])
    position = int((scale[:focus] > 0).sum())
    unit = np.zeros(r.shape[0])
    unit[position] = 1.0
    return float(np.linalg.norm(np.linalg.lstsq(r.T, unit, rcond=1e-12)[0]) / scale[focus])


def _root(f: Callable[[float], float], inner: tuple[float, float], outer: tuple[float, float]) -> float:
    """Zero of a nearly linear increasing function between two points (Illinois variant of regula falsi)."""
    (a, fa), (b, fb) = inner, outer
    for _ in range(20):
        x = b - fb * (b - a) / (fb - fa) if fb != fa else 0.5 * (a + b)
        fx = f(x)
        if abs(fx) < 5e-3 or abs(b - a) < 1e-12 * (1 + abs(a)):
            return x
        if fx > 0:
            b, fb = x, fx
            fa *= 0.5
        else:
            a, fa = x, fx
            fb *= 0.5
    return x


def _scaled(steps: Array, loss: Array) -> _Data:
    keep = np.arange(len(loss))
    if len(loss) > MAX_POINTS:
        keep = np.unique(np.linspace(0, len(loss) - 1, MAX_POINTS).round().astype(int))
    t, log_y = steps[keep], np.log(loss[keep])
    shift = float(log_y.mean())
    span = float(t[-1] - t[0])
    return _Data((t - t[0]) / span, log_y - shift, span, shift)


def fit_curve(curve: Curve, steps: Array, loss: Array) -> CurveFit:
    """Fit one curve by maximum likelihood of AR(1) errors on the log of the loss.

    Args:
        curve: one of :data:`lplr_cli.diagnostics.decay.CURVES`.
        steps: increasing, shape (T,), T ≥ :data:`MIN_POINTS`.
        loss: positive, shape (T,).
    """
    data = _scaled(steps, loss)
    count = len(data.s)
    lower, upper = curve.bounds(count)
    keep = np.unique(np.linspace(0, count - 1, min(count, _THINNED)).round().astype(int))
    s, log_y = data.s[keep], data.log_y[keep]
    rough = [
        minimise(lambda p: curve.log_residual(p, s, log_y), start, lower, upper, max_iterations=40)
        for start in curve.starts(s, np.exp(log_y))
    ]

    def residual(p: Array) -> tuple[Array, Array]:
        return curve.log_residual(p, data.s, data.log_y)

    p = min(rough, key=lambda found: found.cost).p
    p = minimise(residual, p, lower, upper).p
    phi = 0.0
    for _ in range(4):
        before = phi
        phi = restricted_correlation(*residual(p)).phi
        p = minimise(residual, p, lower, upper, phi).p
        if abs(phi - before) < 0.005:
            break
    raw = residual(p)[0]
    white = whiten(raw, phi)
    cost = max(float(white @ white), count * _RESOLUTION**2)
    bic = count * math.log(cost / count) - math.log1p(-phi * phi) + (len(p) + 2) * math.log(count)
    sigma = math.sqrt(cost / max(count - len(p), 1))
    if isinstance(curve, Exponentials):
        p = curve.ordered(p)
    return CurveFit(curve, p, phi, sigma, bic, data)


def spikes(log_loss: Array) -> NDArray[np.bool_]:
    """Rows that stand out from both sides: isolated faults of a log, shape (T,).

    A row is one when it lies above (or below) all but one of its three neighbours on each side, by more than six
    times the noise (median absolute second difference) and 1 %. Monotone stretches have no such row, however steep.
    """
    count = len(log_loss)
    if count < MIN_POINTS:
        return np.zeros(count, dtype=bool)
    second = log_loss[1:-1] - 0.5 * (log_loss[:-2] + log_loss[2:])
    noise = 1.4826 * float(np.median(np.abs(second - np.median(second)))) / math.sqrt(1.5)
    threshold = max(6 * noise, 0.01)

    def outstanding(values: Array) -> NDArray[np.bool_]:
        padded = np.concatenate([np.full(3, np.inf), values, np.full(3, np.inf)])
        near = np.stack([padded[k : k + count] for k in (0, 1, 2, 4, 5, 6)])
        near.partition(4, axis=0)
        flags: NDArray[np.bool_] = values - near[4] > threshold
        return flags

    return outstanding(log_loss) | outstanding(-log_loss)


@dataclass(frozen=True)
class RateFit:
    """Which law a loss follows on a window, and its constants.

    Attributes:
        verdict: linear, two_rate (linear convergence in the end, with a faster mode before), sublinear or undecided.
        reason: one line for people.
        rate: ρ, the factor of the suboptimality a unit of time (a step); of the slowest mode; None if sublinear.
        rate_low, rate_high: its 95 % interval; None at an open end.
        half_life, half_life_low, half_life_high: units of time in which the suboptimality halves.
        alpha, alpha_low, alpha_high: exponent of the power law; None unless sublinear.
        l_inf: L_∞ of the chosen curve, estimated.
        r_squared: of the chosen curve on log(L − L_∞), over the rows where L − L_∞ stands above the noise.
        sigma: standard deviation of the log loss about the curve.
        autocorrelation: φ of these deviations from row to row.
        points: rows the fit used.
        spikes: rows left out as isolated faults.
        delta_bic: by curve, the information criterion less that of the best; null for a curve that was not fitted.
        curves: parameters by curve, in the units of the log.
    """

    verdict: str
    reason: str
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    half_life: float | None
    half_life_low: float | None
    half_life_high: float | None
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    l_inf: float
    r_squared: float | None
    sigma: float
    autocorrelation: float
    points: int
    spikes: int
    delta_bic: dict[str, float]
    curves: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """Fits of all curves to one series, and which of them the evidence names.

    Attributes:
        chosen: the curve whose constants are reported.
        verdict, reason: as in :class:`RateFit`.
        fits: by name of the curve.
        constant_bic: criterion of a loss that stays where it is.
        first: step of the first row.
        dropped: rows left out as spikes.
    """

    chosen: CurveFit
    verdict: str
    reason: str
    fits: dict[str, CurveFit]
    constant_bic: float
    first: float
    dropped: int

    @property
    def floor(self) -> float:
        """L_∞ of the chosen curve."""
        return self.chosen.floor

    def rate(self) -> RateFit:
        """The constants with their intervals."""
        fit, span = self.chosen, self.chosen.data.span
        rate: _Interval = _NOTHING
        half: _Interval = _NOTHING
        alpha: _Interval = _NOTHING
        low, high = fit.interval()
        middle = float(fit.p[fit.curve.focus])
        if fit.curve is SUBLINEAR:
            alpha = _interval(lambda a: a, middle, low, high)
        else:
            # A fast decay is a small ρ and a short half-life: the ends change places.
            rate = _interval(lambda k: math.exp(-k / span), middle, high, low)
            half = _interval(lambda k: math.log(2) * span / k, middle, high, low)
        best = min(f.bic for f in self.fits.values())
        return RateFit(
            self.verdict,
            self.reason,
            *rate,
            *half,
            *alpha,
            l_inf=fit.floor,
            r_squared=_r_squared(fit),
            sigma=fit.sigma / math.sqrt(1 - fit.phi**2),
            autocorrelation=fit.phi,
            points=len(fit.data.s),
            spikes=self.dropped,
            delta_bic={**{k: f.bic - best for k, f in self.fits.items()}, "constant": self.constant_bic - best},
            curves={k: _parameters(f) for k, f in self.fits.items()},
        )


_Interval = tuple[float | None, float | None, float | None]
_NOTHING: _Interval = (None, None, None)


def _interval(to: Callable[[float], float], *logarithms: float) -> _Interval:
    """Value, low and high end of ``to`` of exponentials; None for an open end."""
    value, low, high = (to(math.exp(v)) if math.isfinite(v) else None for v in logarithms)
    return value, low, high


def select(steps: Array, loss: Array) -> Selection | None:
    """Fit every curve and weigh the evidence; None with fewer than :data:`MIN_POINTS` rows.

    Args:
        steps: increasing, shape (T,); any unit of time, for instance the sum of the step sizes.
        loss: positive and finite, shape (T,).
    """
    bad = spikes(np.log(loss)) if len(loss) else np.zeros(0, dtype=bool)
    steps, loss = steps[~bad], loss[~bad]
    if len(loss) < MIN_POINTS:
        return None
    fits = {curve.name: fit_curve(curve, steps, loss) for curve in CURVES}
    one, two, power = (fits[c.name] for c in (LINEAR, TWO_RATE, SUBLINEAR))
    constant = _constant_bic(one.data)
    # The simpler of the two linear laws unless the evidence for the second rate is strong.
    straight = two if two.bic < one.bic - EVIDENCE else one
    gap = power.bic - straight.bic
    if constant < min(straight.bic, power.bic) + EVIDENCE:
        chosen, verdict = straight, "undecided"
        reason = "the loss does not fall measurably more than its noise"
    elif abs(gap) < EVIDENCE:
        chosen, verdict = straight, "undecided"
        reason = f"the evidence between linear and sublinear is thin (ΔBIC {gap:+.1f}, {EVIDENCE:g} is asked for)"
    elif gap > 0:
        chosen, verdict = straight, straight.curve.name
        reason = f"ΔBIC {gap:.1f} against sublinear" + (
            f", {one.bic - two.bic:.1f} for a second rate" if straight is two else ""
        )
    else:
        chosen, verdict = power, "sublinear"
        reason = f"ΔBIC {-gap:.1f} against linear"
    return Selection(chosen, verdict, reason, fits, constant, float(steps[0]), int(bad.sum()))


def fit_rate(steps: Array, loss: Array) -> RateFit | None:
    """:func:`select`, with intervals."""
    selection = select(steps, loss)
    return None if selection is None else selection.rate()


def _constant_bic(data: _Data) -> float:
    count = len(data.log_y)
    ones = np.ones((count, 1))
    phi = restricted_correlation(data.log_y, ones).phi
    white, level = whiten(data.log_y, phi), whiten(ones, phi)[:, 0]
    white = white - level * float(level @ white) / float(level @ level)
    cost = max(float(white @ white), count * _RESOLUTION**2)
    return count * math.log(cost / count) - math.log1p(-phi * phi) + 3 * math.log(count)


def _r_squared(fit: CurveFit) -> float | None:
    y = np.exp(fit.data.log_y)
    model = fit.curve.value(fit.p, fit.data.s)[0]
    floor = float(fit.p[-1])
    noise = 3 * fit.sigma / math.sqrt(1 - fit.phi**2)
    usable = (y > floor) & (model - floor > noise * model)
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
    """In the units of the log: amplitudes at the first row, rates a unit of time, t0 in units of time."""
    values: dict[str, float] = {}
    for name, value in zip(fit.curve.parameters, fit.p.tolist(), strict=True):
        if name.startswith("log_amplitude"):
            values[name.removeprefix("log_")] = _exp(value + fit.data.shift)
        elif name.startswith("log_rate"):
            values["rho" + name.removeprefix("log_rate")] = math.exp(-_exp(value) / fit.data.span)
        elif name == "log_t0":
            values["t0"] = _exp(value) * fit.data.span
        elif name == "log_alpha":
            values["alpha"] = _exp(value)
        else:
            values["l_inf"] = value * math.exp(fit.data.shift)
    return values
