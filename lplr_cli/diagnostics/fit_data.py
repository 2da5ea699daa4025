"""The rows of a log as a fit sees them: thinned, scaled, with the columns of a free curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.faults import shifts
from lplr_cli.diagnostics.grain import rounding
from lplr_cli.diagnostics.least_squares import Array

# A fit with fewer rows than this says nothing about its own uncertainty.
MIN_POINTS = 8
# Rows used at most, evenly spread: beyond, the statistical error is far below that of any model.
MAX_POINTS = 5_000
# Level shifts that the free curve may have.
_STEPS = 6


@dataclass(frozen=True)
class Data:
    """Scaled data of a fit: time in [0, 1], log of the loss with mean 0.

    Attributes:
        s, log_y: shape (n,).
        first, span, shift: of the scales.
        ceiling: the highest floor that the late losses allow, scaled.
        free: columns of a free smooth curve on the logarithm, shape (n, K); see :func:`smooth_columns`.
        period: rows of a pattern that repeats and was taken off; 0 for none.
        grain: relative noise of each row where it is known, shape (n,); see :mod:`lplr_cli.diagnostics.grain`.
        digit: rounding of each row, likewise; a part of its noise.
    """

    s: Array
    log_y: Array
    first: float
    span: float
    shift: float
    ceiling: float
    free: Array
    period: int = 0
    grain: Array | None = None
    digit: Array | None = None

    def rows(self, keep: NDArray[np.bool_]) -> Data:
        """The same scales on fewer rows."""
        grain, digit = (None if one is None else one[keep] for one in (self.grain, self.digit))
        return replace(self, s=self.s[keep], log_y=self.log_y[keep], free=self.free[keep], grain=grain, digit=digit)


def thinned(count: int) -> NDArray[np.intp]:
    """Rows of ``count`` that a fit uses."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(np.intp))


def scaled(steps: Array, loss: Array, grain: Array | None = None, changes: Sequence[int] = ()) -> Data:
    """Scale a series, thinned evenly to :data:`MAX_POINTS` rows.

    Args:
        steps: increasing, shape (T,), T ≥ :data:`MIN_POINTS`.
        loss: positive, shape (T,).
        grain: relative noise of each row where it is known, shape (T,).
        changes: rows where something is known to change, for the free curve.
    """
    keep = thinned(len(loss))
    t, log_y = steps[keep], np.log(loss[keep])
    shift, span = float(log_y.mean()), float(t[-1] - t[0])
    log_y = log_y - shift
    # The lowest stretch decides, and of it a high quantile, so that noise about a floor does not press it down.
    stretches = np.array_split(log_y, min(10, len(log_y) // 4))
    ceiling = min(float(np.quantile(part, 0.75)) for part in stretches)
    s = (t - t[0]) / span
    known = np.searchsorted(keep, np.asarray(changes[:_STEPS], dtype=np.intp))
    digit = rounding(loss[keep])
    free = smooth_columns(s, shifts(log_y, noise=digit)[:_STEPS], known)
    return Data(
        s,
        log_y,
        float(t[0]),
        span,
        shift,
        math.exp(min(ceiling, 700.0)),
        free,
        grain=None if grain is None else grain[keep],
        digit=digit,
    )


def smooth_columns(s: Array, steps: NDArray[np.intp], changes: NDArray[np.intp]) -> Array:
    """A free curve on the logarithm: cosines in time and log time, shifts at rows ``steps``, kinks at ``changes``.

    Returns:
        shape (n, K); K is smaller for short series.
    """
    n = len(s)
    log_time = np.log1p(n / 3 * s) / math.log1p(n / 3)
    even, early = min(8, n // 25 if n > 50 else n // 12), min(4, n // 50)
    waves = [np.cos(math.pi * j * s) for j in range(1, even + 1)]
    waves += [np.cos(math.pi * j * log_time) for j in range(1, early + 1)]
    waves += [(np.arange(n) >= row).astype(np.float64) for row in steps]
    inside = [row for row in changes.tolist() if 0 < row < n - 1]
    waves += [np.maximum(s - s[row], 0.0) for row in inside]
    return np.column_stack(waves) if waves else np.empty((n, 0))
