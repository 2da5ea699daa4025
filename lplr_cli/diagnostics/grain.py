"""The last digit of a log: losses written with few digits are steps, and how high these are is known.

Rounding is no noise of the run: it is as large as the last digit, the same in every row whatever the loss, and where
the loss changes by less than a digit a row, rows repeat and then jump. Where nothing else scatters the rows, those that
repeat stand for the middle of their plateau, and errors of all are those of a digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.noise import fine_noise

Array = NDArray[np.float64]
# Beyond so many digits the arithmetic that made the losses is coarser.
_DECIMALS, _DIGITS = 12, 9
# Other noise is seen when it is larger than the digit's by this factor.
_SEEN = 3.0
# A smooth curve turns seldom however it is rounded: this share of its changes at most.
_TURNS = 0.1
# Rows that are left at least when repeated ones are dropped.
_LEAST = 12
# Larger numbers are all whole.
_LARGEST = 1e15


@dataclass(frozen=True)
class Grain:
    """What a log that is coarser than its noise tells.

    Attributes:
        noise: standard deviation of the rounding, relative to the loss, shape (T,).
        kept: a row of each run of equal losses, shape (T,).
        steps: of the middles of these runs at the rows that are kept, shape (T,).
    """

    noise: Array
    kept: NDArray[np.bool_]
    steps: Array


def last_digit(loss: Array) -> Array | None:
    """Size of the last digit of each row, shape (T,); None for losses written in full.

    Rows have a number of decimals in common, or of significant digits; the coarser reading counts.
    """
    decimals = next((d for d in range(_DECIMALS + 1) if _whole(loss, np.full(len(loss), d))), None)
    power = np.floor(np.log10(loss))
    digits = next((k for k in range(1, _DIGITS + 1) if _whole(loss, k - 1 - power)), None)
    found = []
    if decimals is not None:
        found.append(np.full(len(loss), 10.0**-decimals))
    if digits is not None:
        found.append(10.0 ** (power + 1 - digits))
    return max(found, key=lambda one: float(np.median(one)), default=None)


def rounding(loss: Array) -> Array | None:
    """Standard deviation of the rounding to the last digit, relative to each row, shape (T,); None where losses are
    written in full.
    """
    digit = last_digit(loss) if len(loss) >= _LEAST else None
    return None if digit is None else np.asarray(digit / math.sqrt(12.0) / loss)


def _whole(loss: Array, decimals: Array) -> bool:
    """Whether all rows are whole multiples of their last digit; some rows are tried first."""
    for rows in (slice(0, None, max(len(loss) // 50, 1)), slice(None)):
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = loss[rows] * 10.0 ** decimals[rows]
            if scaled.max() > _LARGEST or not (np.abs(scaled - np.rint(scaled)) <= 4e-16 * scaled).all():
                return False
    return True


def grain_of(steps: Array, loss: Array) -> Grain | None:
    """The rounding of a log, where it is all that scatters the rows; None elsewhere.

    Args:
        steps: increasing, shape (T,).
        loss: normal numbers, shape (T,).
    """
    noise = rounding(loss)
    if noise is None:
        return None
    if float(np.median(fine_noise(np.log(loss)) / noise)) > _SEEN or _to_and_fro(loss) > _TURNS:
        return None
    starts = np.flatnonzero(np.append(True, loss[1:] != loss[:-1]))
    ends = np.append(starts[1:], len(loss)) - 1
    middle = (starts + ends) // 2
    kept, at = np.zeros(len(loss), dtype=bool), steps.copy()
    kept[middle], at[middle] = True, 0.5 * (steps[starts] + steps[ends])
    return Grain(noise, kept, at) if len(middle) >= _LEAST else None


def _to_and_fro(loss: Array) -> float:
    """Share of the changes of a series that go against the one before."""
    change = np.diff(loss)
    change = change[change != 0]
    return float(np.mean(change[1:] * change[:-1] < 0)) if len(change) > 1 else 0.0
