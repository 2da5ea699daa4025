"""Rows where a norm stands far above its neighbourhood: gradients and updates that jump, often before the loss does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Rows before that a row is compared with; fewer than the least are no neighbourhood.
_BEFORE, _LEAST = 20, 8
# Above the median of the logarithms before by this many of their robust standard deviations, and at least this factor.
_DEVIATIONS, _FACTOR = 6.0, 3.0


@dataclass(frozen=True)
class Surge:
    """A row whose value is ``times`` the median of the rows before it."""

    step: float
    times: float


def surges(steps: Array, values: Array) -> tuple[Surge, ...]:
    """Rows whose value is more than three times the median of the twenty known ones before, and beyond their scatter.

    A row that directly follows a surge belongs to it.

    Args:
        steps: (T,).
        values: positive norms, NaN where they are not known, (T,).
    """
    known = np.flatnonzero(np.isfinite(values) & (values > 0))
    level, found, last = np.log(values[known]), [], -2
    for i in range(_LEAST, len(known)):
        before = level[max(0, i - _BEFORE) : i]
        middle = float(np.median(before))
        scatter = 1.4826 * float(np.median(np.abs(before - middle)))
        rise = float(level[i]) - middle
        if rise > max(_DEVIATIONS * scatter, float(np.log(_FACTOR))):
            if i > last + 1:
                found.append(Surge(float(steps[known[i]]), float(np.exp(rise))))
            last = i
    return tuple(found)
