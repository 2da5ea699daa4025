"""The noise of mini-batch gradients along a log, beside their signal (theory.md section 13; McCandlish et al. 2018)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.diagnostics.facts import NO_FACTS, RunFacts
from lplr_cli.diagnostics.series import LossSeries

Array = NDArray[np.float64]
# Rows with a measurement that a figure of one end of the run rests on at least.
_LEAST = 3
# Gradient norms that are averaged for a ratio with the noise taken off.
_AVERAGED = 20


@dataclass(frozen=True)
class Level:
    """Over some rows: ``snr`` ||∇L||²/tr Cov(g), and ``scale`` tr Σ/||∇L||² in samples; None where it is not known.

    A scale of None beside an snr of 0 means that no signal stands above the noise.
    """

    snr: float | None
    scale: float | None


@dataclass(frozen=True)
class BatchNoise:
    """Signal and noise of mini-batch gradients; all of it estimates.

    Attributes:
        batch_size: b; None when unknown.
        start, middle, end: over the first tenth, all, and the last tenth of the rows. The scale is the batch size at
            which noise and signal are equal: beyond some times that, noise stops mattering.
        rows: that tell.
    """

    batch_size: int | None
    start: Level
    middle: Level
    end: Level
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def batch_noise(series: LossSeries, facts: RunFacts) -> BatchNoise | None:
    """Of a log that tells tr Σ beside exact gradients, or the variance of its own gradients; None for others.

    Args:
        series: of the log.
        facts: with the batch size, where it is known.
    """
    samples = np.isfinite(series.sample_noise)
    told = samples if samples.any() else np.isfinite(series.batch_noise)
    rows = np.flatnonzero(told & np.isfinite(series.steps))
    if not len(rows):
        return None
    # The variance of a batch's gradient, in the rows that tell.
    variance = facts.neighbour_share * series.batch_noise
    if samples.any():
        variance = series.sample_noise * (np.nan if facts.batch_variance is None else facts.batch_variance)
    count = max(_LEAST, len(rows) // 10)
    length = len(series.steps)
    first, last = int(rows[:count][-1]) + 1, int(rows[-count:][0])
    if not samples.any():
        first, last = max(first, length // 10), min(last, length - length // 10)

    # tr Σ in multiples of a batch's variance.
    size = (facts.batch_size or np.nan) / (facts.neighbour_share or np.nan)

    def level(part: slice) -> Level:
        square = float(np.nanmean(series.grad_norm_sq[part]))
        noise = float(np.nanmean(variance[part])) if np.isfinite(variance[part]).any() else np.nan
        signal = square if samples.any() else max(square - noise, 0.0)
        trace = float(np.nanmean(series.sample_noise[part])) if samples.any() else noise * size
        snr = signal / noise if noise > 0 else np.nan
        scale = trace / signal if signal > 0 else np.nan
        return Level(*(float(v) if np.isfinite(v) else None for v in (snr, scale)))

    return BatchNoise(
        facts.batch_size,
        level(slice(0, first)),
        level(slice(0, length)),
        level(slice(last, length)),
        len(rows),
    )


def corrected_ratio(series: LossSeries, facts: RunFacts = NO_FACTS) -> Array:
    """½ (||g||² − tr Cov(g))/L with the means of moving windows for each, NaN where the log tells no noise, (T,).

    The mean of ||g||² over batches is ||∇L||² + tr Cov(g); what is left after the subtraction has no bias, and is 0
    where no signal stands above the noise.
    """
    known = np.isfinite(series.grad_norm_sq)
    if not np.isfinite(series.batch_noise).any() or not known.any():
        return np.full(len(series.loss), np.nan)
    span = max(1, round(_AVERAGED * len(known) / int(known.sum())))

    def rolled(values: Array) -> Array:
        found = pd.Series(values).rolling(4 * span, min_periods=1, center=True).mean()
        return np.asarray(found.ffill().bfill(), dtype=np.float64)

    signal = np.maximum(rolled(series.grad_norm_sq) - facts.neighbour_share * rolled(series.batch_noise), 0.0)
    ratio = 0.5 * signal / rolled(series.loss)
    ratio[~known] = np.nan
    return ratio
