"""The stable window: the rows on which a PL ratio or a rate is read, found by rule (theory.md section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.faults import shifts, spikes
from lplr_cli.diagnostics.grain import rounding
from lplr_cli.errors import InputError

# The start lies behind the last level shift: a step that stands out by this share and JUMP_FACTOR times the noise.
JUMP_SHARE = 0.05
# Between two probes the sharpness jumps when it changes by more than this factor.
SHARPNESS_FACTOR = 1.5
# The window ends where the terminal proxy of L* would change the ratio by more than this share …
PROXY_TOLERANCE = 1.0
# … or where the loss stands less than this many times the noise of its last tenth above its lowest value.
ABOVE_NOISE = 30.0
# Rounding of a loss that was accumulated over many samples, in units of itself, with room for a gap of some digits.
_ROUNDING = 3e-13
# Rows that a window has at least; of long logs more, as a few between a transient and a bad proxy tell nothing.
_FEW, _ENOUGH = 3, 10
# By how much of the window's length its ends are moved to see how much they matter.
SENSITIVITY = 0.2


@dataclass(frozen=True)
class Window:
    """Rows ``first`` to ``last`` (both included) of a series, with the steps they stand for.

    Attributes:
        first, last: row numbers.
        start, stop: step numbers.
        floor: estimate of L_∞ that decided the end.
        rule: "stable" by rule, "given" by the user.
        explanation: one line for people.
    """

    first: int
    last: int
    start: float
    stop: float
    floor: float
    rule: str
    explanation: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = asdict(self)
        del record["first"], record["last"]
        return record

    @property
    def rows(self) -> slice:
        """The rows as a slice."""
        return slice(self.first, self.last + 1)

    def moved(self, count: int) -> dict[str, slice]:
        """The rows with one end moved by :data:`SENSITIVITY` of the length, within a series of ``count`` rows."""
        by = max(1, round(SENSITIVITY * (self.last - self.first + 1)))
        return {
            "start_earlier": slice(max(self.first - by, 0), self.last + 1),
            "start_later": slice(min(self.first + by, self.last), self.last + 1),
            "stop_earlier": slice(self.first, max(self.last - by, self.first) + 1),
            "stop_later": slice(self.first, min(self.last + by, count - 1) + 1),
        }


def settled_row(
    steps: NDArray[np.float64],
    loss: NDArray[np.float64],
    drift: NDArray[np.float64] | None = None,
    sharpness: Sequence[tuple[float, float]] = (),
) -> tuple[int, str]:
    """The row after the last jump in the first half, and what jumped.

    The rule: spikes are left out first. A jump of the loss is a level shift
    (:func:`lplr_cli.diagnostics.faults.shifts`): a step that stands out from the steps around it by :data:`JUMP_SHARE`
    of the loss and :data:`lplr_cli.diagnostics.faults.JUMP_FACTOR` times the noise, and after which the median of five
    rows stays on the other side. One row never is one, nor are the first steps of a smooth decay. A jump of the drift
    is a step of more than the same share of its largest value and ten times its median change; one of the sharpness a
    pair of probes between which it changes by more than :data:`SHARPNESS_FACTOR`.

    Args:
        steps: shape (T,).
        loss: positive, shape (T,).
        drift: shape (T,), with NaN where unknown.
        sharpness: (step, sharpness) a probe.
    """
    count = len(loss)
    half = count // 2
    first, cause = 0, ""
    digit = rounding(loss)
    rows = np.flatnonzero(~spikes(np.log(loss), digit))
    jumps = rows[shifts(np.log(loss[rows]), JUMP_SHARE, None if digit is None else digit[rows])] if len(rows) else rows
    jumps = jumps[jumps <= half]
    if len(jumps):
        first, cause = int(jumps.max()), "loss"
    if drift is not None and count > 3 and np.isfinite(drift).all() and drift.max() > 0:
        change = np.abs(np.diff(drift))
        typical = float(np.median(change[half:]))
        jumps = np.flatnonzero(change[:half] > max(JUMP_SHARE * float(drift.max()), 10 * typical))
        if len(jumps) and int(jumps[-1]) + 1 > first:
            first, cause = int(jumps[-1]) + 1, "drift"
    last = _last_jump(steps[: half + 1], sharpness)
    return (last, "sharpness") if last > first else (first, cause)


def _last_jump(steps: NDArray[np.float64], sharpness: Sequence[tuple[float, float]]) -> int:
    """The row of the last probe among ``steps`` before which the sharpness jumps; 0 for none."""
    last = 0
    for (_, before), (step, after) in pairwise(sharpness):
        row = int(np.searchsorted(steps, step))
        jumps = before > 0 and after > 0 and max(before / after, after / before) > SHARPNESS_FACTOR
        last = max(last, row) if jumps and row < len(steps) else last
    return last


def stable_window(
    steps: NDArray[np.float64],
    loss: NDArray[np.float64],
    floor: float,
    first: int = 0,
    cause: str = "",
) -> Window | None:
    """The window of a positive, finite loss series; None when the rule leaves fewer rows than a fiftieth of the log,
    three at least and ten at most.

    The rule: go through the rows from ``first`` on and stop before the first stretch of rows (a hundredth of them) that
    all come too near to the lowest loss min L. Near is L_t − min L below min L − L_∞, as the terminal proxy of L* would
    then change the ratio by more than :data:`PROXY_TOLERANCE`; and below :data:`ABOVE_NOISE` times the noise, which is
    the median change from row to row over the last tenth, rounding at least: on a plateau the gap is noise, whatever
    L_∞ is.

    Args:
        steps: shape (T,).
        loss: shape (T,).
        floor: L_∞, estimated from the rows after the start.
        first: the first row, from :func:`settled_row`.
        cause: what settled there, from the same.
    """
    count = len(loss)
    if count < 3 or first >= count:
        return None
    lowest = float(loss[first:].min())
    late = np.abs(np.diff(loss[-max(count // 10, 4) :]))
    noise = max(float(np.median(late)), _ROUNDING * lowest)
    proxy, level = max(lowest - floor, 0.0) / PROXY_TOLERANCE, ABOVE_NOISE * noise
    fair = np.flatnonzero((loss - lowest >= max(proxy, level)) & (np.arange(count) >= first))
    # The rows up to the first that the proxy spoils, not islands beyond it.
    last = first - 1
    if len(fair):
        gaps = np.flatnonzero(np.diff(fair) > max(1, count // 100))
        last = int(fair[gaps[0]] if len(gaps) else fair[-1])
    if last - first + 1 < max(_FEW, min(_ENOUGH, count // 50)):
        return None
    end = (
        f"where the terminal loss stops being a proxy of L* within a factor {1 + PROXY_TOLERANCE:g}"
        if proxy >= level
        else f"where the loss is less than {ABOVE_NOISE:g} times its late noise above its lowest"
    )
    explanation = (
        f"steps {steps[first]:g} to {steps[last]:g}: from "
        + (f"after the last jump of the {cause} (step {steps[first]:g})" if first else "the start")
        + f" to {end} (estimated floor {floor:.3g})"
    )
    return Window(first, last, float(steps[first]), float(steps[last]), floor, "stable", explanation)


def parse_window(text: str) -> tuple[float, float]:
    """``a:b`` as two steps; an empty end is open.

    Raises:
        InputError: it is something else.
    """
    parts = text.split(":")
    try:
        if len(parts) != 2:
            raise ValueError
        low = float(parts[0]) if parts[0].strip() else -np.inf
        high = float(parts[1]) if parts[1].strip() else np.inf
        if not low < high:
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"--window {text!r} is no pair of steps a:b", "for instance 100:2000, or 100: to the end"
        ) from error
    return low, high


def given_window(steps: NDArray[np.float64], bounds: tuple[float, float], floor: float = 0.0) -> Window:
    """The rows whose steps lie in ``bounds``.

    Raises:
        InputError: fewer than three rows do.
    """
    inside = np.flatnonzero((steps >= bounds[0]) & (steps <= bounds[1]))
    if len(inside) < 3:
        raise InputError(
            f"the window {bounds[0]:g}:{bounds[1]:g} holds {len(inside)} usable rows",
            f"three at least are needed; the log runs from {steps[0]:g} to {steps[-1]:g}",
        )
    first, last = int(inside[0]), int(inside[-1])
    start, stop = float(steps[first]), float(steps[last])
    return Window(first, last, start, stop, floor, "given", f"steps {start:g} to {stop:g}, as given")
