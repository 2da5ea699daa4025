"""The rate of a log as a series: local slopes of the log suboptimality, with a band."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import special

from lplr_cli.diagnostics.faults import noise_level
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.rate import Reading
from lplr_cli.diagnostics.tails import decrements

POINTS = 40
# A window of the slope holds this share of the rows, and this many at least.
_SHARE, _ROWS = 1 / 12, 7
# Rows whose suboptimality stands less above its noise have no logarithm to speak of.
_ABOVE = 3.0
_BLOCKS = 240


def effective_rate(steps: Array, loss: Array, reading: Reading) -> pd.DataFrame:
    """ρ(t) = exp(d log(L − L_∞)/dt) at up to :data:`POINTS` steps, with a pointwise 95 % band.

    L_∞ is that of the reading, 0 where there is no law; without noise the slope is that of the decrements, which need
    no floor. The band speaks of noise (of scatter about the local line without noise), given L_∞.

    Args:
        steps, loss: rows without spikes, shape (T,).
        reading: of these rows.

    Returns:
        Columns step, effective_rate, effective_rate_low, effective_rate_high.
    """
    if reading.tail is not None:
        t, log_gap, sigma = _decrements(steps, loss, reading)
    else:
        t, log_gap, sigma = _suboptimality(steps, loss, reading)
    width = max(_ROWS, round(_SHARE * len(t)))
    if len(t) < width:
        return pd.DataFrame(
            columns=["step", "effective_rate", "effective_rate_low", "effective_rate_high"], dtype=float
        )
    starts = np.unique(np.linspace(0, len(t) - width, min(POINTS, len(t) - width + 1)).round().astype(int))
    rows = []
    for start in starts.tolist():
        window = slice(start, start + width)
        slope, error = _slope(t[window], log_gap[window], sigma[window])
        middle = float(t[window].mean())
        rows.append([middle, *(math.exp(min(x, 700.0)) for x in (slope, slope - error, slope + error))])
    return pd.DataFrame(rows, columns=["step", "effective_rate", "effective_rate_low", "effective_rate_high"])


def _decrements(steps: Array, loss: Array, reading: Reading) -> tuple[Array, Array, Array]:
    first, last = reading.resolved
    rows = slice(first, last + 1)
    known = None if reading.grain is None else reading.grain[reading.kept][rows]
    nodes, fall, noise = decrements(steps[rows], loss[rows], known)
    at = steps[rows][nodes]
    return 0.5 * (at[1:] + at[:-1]), np.log(fall), noise / fall


def _suboptimality(steps: Array, loss: Array, reading: Reading) -> tuple[Array, Array, Array]:
    fit = reading.weighed.chosen
    if reading.verdict == "none":
        # Errors about a curve that does not fit are no noise.
        floor, sigma, worth = 0.0, noise_level(np.log(loss)), 1.0
    else:
        floor, sigma, worth = min(reading.floor, float(loss.max())), fit.sigma, fit.noise.worth
    steps, loss, rows = _blocks(steps, loss)
    sigma /= math.sqrt(rows * worth)
    gap = loss - floor
    relative = sigma * loss
    clear = gap > _ABOVE * sigma * loss
    return steps[clear], np.log(gap[clear]), relative[clear] / gap[clear]


def _blocks(steps: Array, loss: Array) -> tuple[Array, Array, float]:
    """Means of at most :data:`_BLOCKS` blocks, and rows a block: noise may be as large as the loss, its mean is not."""
    edges = np.unique(np.linspace(0, len(loss), min(len(loss), _BLOCKS) + 1).round().astype(int))
    size = np.diff(edges)
    means = (np.add.reduceat(values, edges[:-1]) / size for values in (steps, loss))
    return next(means), next(means), float(size.mean())


def _slope(t: Array, y: Array, sigma: Array) -> tuple[float, float]:
    """Slope of a line and its 95 % half width: of the noise, or of the scatter about the line where that is larger."""
    x = t - t.mean()
    square = float(x @ x)
    slope = float(x @ y) / square
    left = y - y.mean() - slope * x
    scatter = math.sqrt(float(left @ left) / max(len(t) - 2, 1))
    quantile = float(special.stdtrit(max(len(t) - 2, 1), 0.975))
    return slope, quantile * max(float(np.sqrt(np.mean(sigma**2))), scatter) / math.sqrt(square)
