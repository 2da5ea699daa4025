"""The time in which a rate is told: steps, or the sum of the step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.answer import RateFit

Array = NDArray[np.float64]
# A change of the step size within a row by more than this factor is a jump; more jumps than this are a schedule.
JUMP = 1.1
MOST_JUMPS = 12


@dataclass(frozen=True)
class Clock:
    """A time for every row.

    Attributes:
        name: "step" or "lr_step".
        time: increasing, shape (T,); the sum of the step sizes is told in units of their mean.
        size: step sizes that a unit of time adds up to; None where they are unknown or differ from unit to unit.
    """

    name: str
    time: Array
    size: float | None

    def per_lr(self, fit: RateFit) -> tuple[float | None, float | None, float | None]:
        """−log ρ per unit of the sum of step sizes, with its interval."""
        values = (fit.rate, fit.rate_high, fit.rate_low)
        low_to_high = [None if v is None or v <= 0 or self.size is None else -math.log(v) / self.size for v in values]
        # ρ = 1 gives 0, not −0.
        low_to_high = [v if v is None else v + 0.0 for v in low_to_high]
        return low_to_high[0], low_to_high[1], low_to_high[2]


def step_clock(steps: Array, lr: Array) -> Clock:
    """Steps as time."""
    constant = _usable(lr) and lr.max() <= lr.min() * (1 + 1e-9)
    return Clock("step", steps, float(lr[0]) if constant else None)


def lr_clock(steps: Array, lr: Array) -> Clock | None:
    """The sum of the step sizes as time, one unit a step of mean size; None where sizes are unknown or all the same."""
    if not _usable(lr) or lr.max() <= lr.min() * (1 + 1e-9) or len(steps) < 2:
        return None
    apart = np.diff(steps)
    # A row a step has the loss before the step and the size of it; between sparser rows the trapezoidal rule is as good
    # as any, as they know the step size at their ends only.
    size_between = lr[:-1] if (apart == 1).all() else 0.5 * (lr[1:] + lr[:-1])
    elapsed = np.append(0.0, np.cumsum(size_between * apart))
    size = float(elapsed[-1] / (steps[-1] - steps[0]))
    time = steps[0] + elapsed / size
    return Clock("lr_step", time, size) if (np.diff(time) > 0).all() else None


def _usable(lr: Array) -> bool:
    return len(lr) > 0 and bool(np.isfinite(lr).all() and (lr > 0).all())


def changes_of(lr: Array) -> list[int]:
    """Rows at which the step size jumps; none where it is unknown or changes more often than a piecewise schedule.

    Jumps in neighbouring rows are a ramp, as those of a warm-up.
    """
    if not _usable(lr):
        return []
    jumps = np.abs(np.diff(np.log(lr))) > math.log(JUMP)
    alone = jumps & ~np.append(False, jumps[:-1]) & ~np.append(jumps[1:], False)
    rows = np.flatnonzero(alone) + 1
    return rows.tolist() if len(rows) <= MOST_JUMPS else []
