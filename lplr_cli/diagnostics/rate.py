"""Linear convergence rate: an exponential with floor, and its slope on a window (theory.md section 8)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

# A fit with fewer points than this says nothing about its own uncertainty.
MIN_POINTS = 8


def loss_floor(steps: NDArray[np.float64], loss: NDArray[np.float64]) -> float:
    """L_∞ of L = L_∞ + A exp(-k t), fitted to log L; 0 ≤ L_∞ < min L.

    The residuals are those of the logarithm, which suits multiplicative noise. Several decay constants, spread over
    the time scales of the series, start the search. The answer decides where the terminal loss is a fair proxy of L*;
    it is an estimate.
    """
    if len(loss) < MIN_POINTS:
        return 0.0
    # A thousand points carry the shape; more would only take time.
    keep = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), 1000)).round().astype(int))
    t = (steps[keep] - steps[keep[0]]) / max(1.0, steps[keep[-1]] - steps[keep[0]])
    y = np.log(loss[keep])
    lowest = float(loss.min())

    def residuals(p: NDArray[np.float64]) -> NDArray[np.float64]:
        # p: log amplitude, log decay, and the floor as a logit of its share in the lowest loss.
        floor = lowest / (1 + np.exp(-p[2]))
        value: NDArray[np.float64] = np.log(floor + np.exp(p[0] - np.exp(np.minimum(p[1], 50.0)) * t)) - y
        return value

    best_cost, best_floor = math.inf, 0.0
    for decay in (0.5, 2.0, 8.0, 40.0):
        for share in (-4.0, 2.0):
            start = np.array([float(y[0]), math.log(decay), share])
            fit = optimize.least_squares(
                residuals,
                start,
                bounds=([-700.0, -10.0, -30.0], [700.0, 10.0, 30.0]),
                loss="soft_l1",
                max_nfev=200,
            )
            if fit.cost < best_cost:
                best_cost, best_floor = float(fit.cost), lowest / (1 + math.exp(-float(fit.x[2])))
    return best_floor


@dataclass(frozen=True)
class LinearFit:
    """log(L_t - L*) = a - k t on a window.

    Attributes:
        rate: ρ = exp(-k), the factor a step.
        rate_low, rate_high: 95 % interval of ρ, with Newey-West errors, which allow for correlated residuals.
        half_life: steps in which the suboptimality halves; None when it does not decrease.
        r_squared: of the fit to the logarithm.
        l_star: the L* that was subtracted.
        points: how many rows the fit used.
    """

    rate: float
    rate_low: float
    rate_high: float
    half_life: float | None
    r_squared: float
    l_star: float
    points: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def fit_linear(steps: NDArray[np.float64], loss: NDArray[np.float64], l_star: float) -> LinearFit | None:
    """Least squares of log(L - L*) on the step; None with fewer than :data:`MIN_POINTS` usable rows."""
    usable = loss > l_star
    t, y = steps[usable], np.log(loss[usable] - l_star)
    count = len(t)
    if count < MIN_POINTS or t[0] == t[-1]:
        return None
    centred = t - t.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / spread
    residual = y - y.mean() - slope * centred
    total = float(((y - y.mean()) ** 2).sum())
    r_squared = 1.0 - float(residual @ residual) / total if total > 0 else 1.0
    # Newey and West 1987, with the lag of their 1994 rule of thumb.
    score = centred * residual
    lags = min(count - 1, int(4 * (count / 100) ** (2 / 9)) + 1)
    variance = float(score @ score)
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(score[lag:] @ score[:-lag])
    error = math.sqrt(max(variance, 0.0) * count / (count - 2)) / spread
    reach = float(stats.t.ppf(0.975, count - 2)) * error
    return LinearFit(
        math.exp(slope),
        math.exp(slope - reach),
        math.exp(slope + reach),
        -math.log(2) / slope if slope < 0 else None,
        r_squared,
        l_star,
        count,
    )
