"""Curves fitted to a series under one common noise, and how much a free smooth curve would better them.

The noise is estimated once, beside the best curve and a free one (:mod:`lplr_cli.diagnostics.noise`), and then held
for all: differences between curves are differences of fit, not of noise, and no curve can hide what it misses behind a
long memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lplr_cli.diagnostics.decay import CURVES, LABELS, LINEAR, SHIFTED, SUBLINEAR, TWO_RATE, Curve, Exponentials
from lplr_cli.diagnostics.fit_data import Data
from lplr_cli.diagnostics.least_squares import Array, minimise
from lplr_cli.diagnostics.noise import MAX_CORRELATION, Noise, local_scale, orthonormal, restricted_correlation
from lplr_cli.diagnostics.profile import crossing, standard_error

# Relative resolution of a log loss; residuals below it are rounding.
RESOLUTION = 1e-13
# A curve whose errors a free curve would better with a p-value below the first does not fit, below the second for sure.
REJECTED, CERTAIN = 1e-3, 1e-5
# Errors below this relative size do not matter to a fit, however regular they are.
NEGLIGIBLE = 1e-9
# Laws that fit less well than this are doubted: one in twenty of those that are right.
DOUBTED = 0.05
# Slow noise may explain what a free curve betters when its memory fits so often into the rows. What a wrong law leaves
# over lasts as long as they do: such noise must explain all that is doubted, and be less than this share of the rest.
_SPELLS, _SMALL = 4.0, 0.5
_THINNED = 150
# Part of the loss below which a curve has vanished.
_VANISHED = 1e-3
# A descent ends where a step lowers the cost by less: of a start, of a fit under a noise that is not the last, of one
# under the last.
_ROUGH, NEAR, SHARP = 1e-3, 1e-7, 1e-13
# Steps of the solver on a profile; many more where so many parameters make up for each other.
_ITERATIONS, _MANY = 40, 7
# Parameters of the largest law.
_MOST = 5


@dataclass(frozen=True)
class CurveFit:
    """One curve fitted to one series.

    Attributes:
        curve: the family.
        p: its parameters, on scaled data.
        data: what was fitted.
        noise: under which the fit is the most likely one.
        cost: sum of squares of the whitened errors.
    """

    curve: Curve
    p: Array
    data: Data
    noise: Noise
    cost: float

    @property
    def floor(self) -> float:
        """L_∞ in the units of the loss."""
        return float(self.p[-1] * math.exp(self.data.shift))

    @property
    def bic(self) -> float:
        """:func:`criterion` of the fit; comparable under one noise."""
        return criterion(self.cost, len(self.p), len(self.data.s))

    @property
    def surprise(self) -> float:
        """−2 log likelihood with the price of the parameters; comparable between kinds of noise."""
        return surprise(self.cost, self.noise, len(self.p), len(self.data.s))

    @property
    def lasts(self) -> bool:
        """Whether the memory of the noise lasts as long as the rows, and does not come back :data:`_SPELLS` times."""
        return self.noise.phi >= MAX_CORRELATION or (1 - self.noise.phi) * len(self.data.s) < _SPELLS

    @property
    def innovation(self) -> float:
        """Standard deviation of the whitened errors."""
        n = len(self.data.s)
        return max(math.sqrt(self.cost / max(n - len(self.p) - self.data.period, 1)), RESOLUTION)

    @property
    def sigma(self) -> float:
        """Standard deviation of the log loss about the curve, at the rows' typical level."""
        level = self.innovation * self.noise.spread * float(np.median(self.noise.scale))
        return level / float(np.median(np.exp(self.data.log_y))) if self.noise.additive else level

    @property
    def degrees(self) -> float:
        """Degrees of freedom: rows, counted as what they are worth under their correlation, less what was fitted."""
        return max(len(self.data.s) * self.noise.worth - len(self.p) - self.data.period, 2.0)

    def predict(self, steps: Array) -> Array:
        """The curve at ``steps``, in the units of the loss."""
        s = (np.asarray(steps, dtype=np.float64) - self.data.first) / self.data.span
        return self.curve.value(self.p, s)[0] * math.exp(self.data.shift)

    def residual(self, p: Array) -> tuple[Array, Array]:
        """Whitened errors and their Jacobian."""
        return self.noise.residual(*self.curve.value(p, self.data.s), self.data.log_y)

    def interval(self, level: float = 0.95, index: int | None = None) -> tuple[float, float]:
        """Profile-likelihood interval of a parameter (the focus), as fitted (a logarithm); an open end is infinite.

        The noise is the cautious one, as correlation is itself an estimate and too small a one makes intervals too
        short; docs/benchmarks.md has the coverage that results. A floor that the fit puts above 0 is free on the way:
        where the bound stops it the likelihood falls faster than its quantiles allow (Self and Liang 1987), and a law
        without a floor would be missed too often.
        """
        focus = self.curve.focus if index is None else index
        cautious = replace(self, noise=self.noise.cautious())
        lower, upper = self.curve.box(len(self.data.s), self.data.ceiling)
        best = minimise(cautious.residual, self.p, lower, upper)
        if best.p[-1] > 0:
            lower[-1] = -np.inf
        sigma = replace(cautious, cost=best.cost).innovation
        reach = float(special.stdtrit(cautious.degrees, 0.5 + level / 2))
        warm = {float(best.p[focus]): best.p}

        def excess(value: float) -> float:
            low, high = lower.copy(), upper.copy()
            low[focus] = high[focus] = value
            start = warm[min(warm, key=lambda known: abs(known - value))].copy()
            start[focus] = value
            found = minimise(
                cautious.residual, start, low, high, _ITERATIONS if len(start) < _MANY else 10 * _ITERATIONS
            )
            warm[value] = found.p
            return math.sqrt(max(found.cost - best.cost, 0.0)) / sigma - reach

        centre = float(best.p[focus])
        width = reach * min(max(sigma * standard_error(best.jacobian, focus), 1e-13), 0.5)
        return (
            crossing(excess, centre, -width, float(lower[focus]), reach),
            crossing(excess, centre, width, float(upper[focus]), reach),
        )

    def misfit(self) -> float:
        """p-value of the curve against the same with a free curve on top; 1 where the errors are at rounding.

        F test of :attr:`Data.free` beside the tangent of the curve, under the cautious noise. Parameters at a bound
        have no tangent.
        """
        cautious = replace(self, noise=self.noise.cautious())
        error, jacobian = cautious.residual(self.p)
        return _free_test(error, jacobian[:, self._inside()], cautious._free(), self.data.period)[0]

    def excess(self) -> float:
        """Variance that a free curve takes off the whitened errors, as a share of what it leaves."""
        error, jacobian = self.residual(self.p)
        basis = orthonormal(jacobian[:, self._inside()])
        error = error - basis @ (basis.T @ error)
        left = _free_test(error, jacobian[:, self._inside()], self._free())[1]
        rest = max(float(left @ left), len(error) * NEGLIGIBLE**2)
        return max(float(error @ error) / rest - 1, 0.0)

    def whiteness(self) -> float:
        """p-value of the innovations' correlations (Ljung and Box 1978), beside a free curve; 1 at rounding."""
        error, jacobian = self.residual(self.p)
        left = _free_test(error, jacobian[:, self._inside()], self._free())[1]
        n, lags = len(left), min(10, len(left) // 5)
        total = float(left @ left)
        if lags < 1 or total <= n * NEGLIGIBLE**2:
            return 1.0
        correlation = np.array([float(left[lag:] @ left[:-lag]) for lag in range(1, lags + 1)]) / total
        statistic = n * (n + 2) * float((correlation**2 / (n - np.arange(1, lags + 1))).sum())
        return float(stats.chi2.sf(statistic, lags))

    def _inside(self) -> NDArray[np.bool_]:
        lower, upper = self.curve.box(len(self.data.s), self.data.ceiling)
        inside: NDArray[np.bool_] = (self.p > lower) & (self.p < upper)
        return inside

    def _free(self) -> Array:
        """Whitened columns of the free curve."""
        m = self.curve.value(self.p, self.data.s)[0]
        return self.noise.residual(m, self.data.free * m[:, None], self.data.log_y)[1]


def criterion(cost: float, parameters: int, rows: int) -> float:
    """Information criterion of a sum of whitened squares, in units of −2 log likelihood.

    The variance is estimated, too, beside up to :data:`_MOST` parameters: so many rows tell nothing about which curve
    it is, of a dozen nearly half.
    """
    worth = max(rows - _MOST, 1)
    return worth * math.log(max(cost, rows * NEGLIGIBLE**2) / rows) + price(parameters, rows)


def surprise(cost: float, noise: Noise, parameters: int, rows: int) -> float:
    """−2 log likelihood of a sum of squares whitened by ``noise``, with the price of the parameters."""
    return (
        rows * math.log(max(cost, rows * NEGLIGIBLE**2) / rows) + 2 * math.log(noise.spread) + price(parameters, rows)
    )


def price(parameters: int, rows: int) -> float:
    """What parameters must earn: log n each (Schwarz 1978), more in short series, as AIC's correction has it.

    With a dozen rows five parameters fit noise (Hurvich and Tsai 1989).
    """
    return parameters * math.log(rows) * rows / max(rows - parameters - 1, 1)


def _free_test(error: Array, tangent: Array, free: Array, lost: int = 0) -> tuple[float, Array]:
    """p-value of an F test of the columns ``free`` beside ``tangent``, and what both leave of the error.

    ``lost`` degrees of freedom went into the means of a pattern before.
    """
    basis = orthonormal(tangent)
    error = error - basis @ (basis.T @ error)
    added = orthonormal(free - basis @ (basis.T @ free))
    left = error - added @ (added.T @ error)
    k, degrees = added.shape[1], len(error) - basis.shape[1] - added.shape[1] - lost
    rest = max(float(left @ left), len(error) * NEGLIGIBLE**2)
    if k == 0 or degrees < 3:
        return 1.0, left
    gained = max(float(error @ error) - rest, 0.0)
    return float(stats.f.sf(gained / k / (rest / degrees), k, degrees)), left


def _fit(curve: Curve, data: Data, noise: Noise, start: Array | None, fall: float = SHARP) -> CurveFit:
    """The most likely parameters under ``noise``, from ``start`` or from the curve's own starts."""
    n = len(data.s)
    lower, upper = curve.box(n, data.ceiling)
    if start is None:
        keep = np.zeros(n, dtype=bool)
        keep[np.unique(np.linspace(0, n - 1, min(n, _THINNED)).round().astype(int))] = True
        thin = CurveFit(curve, np.empty(0), data.rows(keep), replace(noise.rows(keep), phi=0.0, theta=0.0), 0.0)
        starts = curve.starts(thin.data.s, np.exp(thin.data.log_y))
        rough = [minimise(thin.residual, one, lower, upper, 15, _ROUGH) for one in starts]
        start = min(rough, key=lambda found: found.cost).p
    fit = CurveFit(curve, start, data, noise, 0.0)
    found = minimise(fit.residual, start, lower, upper, fall=fall)
    p = curve.ordered(found.p) if isinstance(curve, Exponentials) else found.p
    return replace(fit, p=p, cost=found.cost)


def fit_one(curve: Curve, data: Data, noise: Noise, fall: float = SHARP) -> CurveFit:
    """Fit one curve under a known noise; ``fall`` as in :func:`lplr_cli.diagnostics.least_squares.minimise`."""
    return _fit(curve, data, noise, None, fall)


def fit_plain(data: Data, curves: Sequence[Curve] = CURVES) -> dict[str, CurveFit]:
    """Fit every curve by itself, all rows alike: where :func:`fit_all` begins."""
    plain = Noise(np.ones(len(data.s)))
    return {curve.name: _fit(curve, data, plain, None, NEAR) for curve in curves}


def fit_all(fits: dict[str, CurveFit]) -> dict[str, CurveFit]:
    """Fit every curve under one noise, which is estimated beside the best of them; a periodic pattern is taken off.

    Where the best misfits, slow noise that the free curve has absorbed is tried as the explanation: it is one when the
    curve fits with it, and when it forgets several times within the rows (:data:`_SPELLS`) or is small. Beside a curve
    that leaves less than :data:`NEGLIGIBLE` there is no noise to estimate: all rows count alike.

    Args:
        fits: of :func:`fit_plain`.
    """
    data = _best(fits).data
    if _best(fits).sigma <= NEGLIGIBLE:
        # Its differences are the bends of the curve, then rounding: as scales they silence the rows that decay.
        return fits
    scale = _scale(data)
    for attempt in range(2):
        best = _best(fits)
        noise = _noise_beside(best, scale)
        if attempt == 0 and data.grain is None:
            data = _without_pattern(replace(best, noise=noise))
            if data.period:
                scale = _scale(data)
                noise = _noise_beside(replace(best, data=data), scale)
        fits = _refit(fits, data, noise, SHARP if attempt else NEAR)
    return _under_slow_noise(fits) or fits


def _under_slow_noise(fits: dict[str, CurveFit]) -> dict[str, CurveFit] | None:
    """The fits under the noise beside the best curve or law alone, where that explains its misfit.

    Power laws and several exponentials resemble each other: where one is the best law, noise beside the other is tried.
    """
    law = _best({name: fit for name, fit in fits.items() if fit.curve not in (*LABELS, SHIFTED)})
    other = None if law.curve is LINEAR else fits.get((TWO_RATE if law.curve is SUBLINEAR else SUBLINEAR).name)
    for best in (_best(fits), law, *([other] if other else [])):
        if best.misfit() < REJECTED and (noise := _slow_noise(best)) is not None:
            return _refit(fits, best.data, noise)
    return None


def _slow_noise(fit: CurveFit) -> Noise | None:
    """Noise beside the curve alone, where it explains what a free curve betters; None where it does not."""
    noise = _noise_beside(fit, _scale(fit.data), free=False)
    lasts = replace(fit, noise=noise).lasts
    if lasts and fit.excess() >= _SMALL:
        return None
    asked = DOUBTED if lasts else REJECTED
    return noise if _fit(fit.curve, fit.data, noise, fit.p).misfit() >= asked else None


def beside_its_own_noise(fit: CurveFit) -> CurveFit:
    """The curve fitted under noise that is estimated beside it alone: what it misses counts as slow noise."""
    scale = _scale(fit.data)
    for _ in range(2):
        fit = _fit(fit.curve, fit.data, _noise_beside(fit, scale, free=False), fit.p, NEAR)
    return fit


def _scale(data: Data) -> Array:
    """Relative size of the noise from row to row."""
    return local_scale(data.log_y, data.digit) if data.grain is None else data.grain


def _best(fits: dict[str, CurveFit]) -> CurveFit:
    return min(fits.values(), key=lambda fit: fit.bic)


def _refit(fits: dict[str, CurveFit], data: Data, noise: Noise, fall: float = SHARP) -> dict[str, CurveFit]:
    return {name: _fit(fit.curve, data, noise, fit.p, fall) for name, fit in fits.items()}


def _without_pattern(fit: CurveFit) -> Data:
    """The data less a pattern that repeats (batches in the same order every epoch, the beat of momentum).

    The period is the lag at which the innovations correlate most, by five standard errors and 0.3 at least, with less
    correlation at some shorter lag, and four repetitions at least; the pattern is the mean error by phase.
    """
    data, n = fit.data, len(fit.data.s)
    error, jacobian = fit.residual(fit.p)
    white = _free_test(error, jacobian, fit._free())[1]
    lags = n // 4
    if lags < 4 or not float(white @ white) > n * RESOLUTION**2:
        return data
    size = 2 ** math.ceil(math.log2(2 * n))
    power = np.abs(np.fft.rfft(white - white.mean(), size)) ** 2
    correlation = np.fft.irfft(power)[: lags + 1]
    correlation = correlation / correlation[0]
    lowest = np.minimum.accumulate(correlation)
    found = np.flatnonzero((correlation > max(0.3, 5 / math.sqrt(n))) & (correlation > lowest + 0.3))
    found = found[found >= 3]
    if len(found) == 0:
        return data
    peak = float(correlation[found].max())
    period = int(found[correlation[found] > 0.85 * peak][0])
    # The first of a run of large lags is its shoulder: go up to the top.
    while period < lags and correlation[period + 1] > correlation[period]:
        period += 1
    row = np.rint(data.s * data.span / float(np.median(np.diff(data.s)) * data.span)).astype(int) % period
    raw, tangent = replace(fit, noise=replace(fit.noise, phi=0.0, theta=0.0)).residual(fit.p)
    raw = _free_test(raw, tangent, replace(fit, noise=replace(fit.noise, phi=0.0, theta=0.0))._free())[1]
    raw = -raw * fit.noise.scale
    if fit.noise.additive:
        raw = raw / np.exp(data.log_y)
    count = np.maximum(np.bincount(row, minlength=period), 1)
    pattern = np.bincount(row, raw, minlength=period) / count
    return replace(data, log_y=data.log_y - pattern[row], period=period)


def _noise_beside(fit: CurveFit, scale: Array, free: bool = True) -> Noise:
    """Noise of the errors of ``fit``, beside a free curve or not."""
    data = fit.data
    m, jacobian = fit.curve.value(fit.p, data.s)
    additive = float(scale.max()) > 1.5 * float(scale.min())
    # A curve that vanishes below the loss still has errors.
    noise = Noise(scale * np.maximum(m, _VANISHED * np.exp(data.log_y)) if additive else scale, additive)
    noise = replace(noise, scale=noise.scale / float(np.exp(np.log(noise.scale).mean())))
    error, tangent = noise.residual(m, jacobian, data.log_y)
    design = np.column_stack([tangent, replace(fit, noise=noise)._free()]) if free else tangent
    found = restricted_correlation(error, design)
    return replace(noise, phi=found.phi, theta=found.theta, phi_high=found.phi_high, theta_high=found.theta_high)
