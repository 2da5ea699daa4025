"""The stable window: the rows on which a PL ratio or a rate is read, found by rule (theory.md section 8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.rate import loss_floor

# A step is a jump when the loss changes by this many times the typical relative change of the second half …
JUMP_FACTOR = 10.0
# … and by at least this share of itself.
JUMP_SHARE = 0.05
# The window ends where the terminal proxy of L* would change the ratio by more than this share.
PROXY_TOLERANCE = 1.0


@dataclass(frozen=True)
class Window:
    """Rows ``first`` to ``last`` (both included) of a series, with the steps they stand for.

    Attributes:
        first, last: row numbers.
        start, stop: step numbers.
        floor: estimate of L_∞ that decided the end.
        explanation: one line for people.
    """

    first: int
    last: int
    start: float
    stop: float
    floor: float
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


def stable_window(steps: NDArray[np.float64], loss: NDArray[np.float64]) -> Window | None:
    """The window of a positive, finite loss series; None when the rule leaves fewer than three rows.

    Start: after the last jump in the first half, a jump being a step that changes the loss by more than
    :data:`JUMP_SHARE` and by more than :data:`JUMP_FACTOR` times the median relative change of the second half.
    End: the last row with L_t - L_∞ ≤ (1 + :data:`PROXY_TOLERANCE`) (L_t - L_T), L_∞ from
    :func:`lplr_cli.diagnostics.rate.loss_floor` on the rows after the start.
    """
    count = len(loss)
    if count < 3:
        return None
    change = np.abs(np.diff(np.log(loss)))
    half = count // 2
    typical = float(np.median(change[half:])) if count > 3 else 0.0
    jumps = np.flatnonzero(change[:half] > max(JUMP_SHARE, JUMP_FACTOR * typical))
    first = int(jumps[-1]) + 1 if len(jumps) else 0
    floor = loss_floor(steps[first:], loss[first:])
    terminal = float(loss[first:].min())
    fair = np.flatnonzero((loss - floor <= (1 + PROXY_TOLERANCE) * (loss - terminal)) & (np.arange(count) >= first))
    # The rows up to the first that the proxy spoils, not islands beyond it.
    last = first - 1
    if len(fair):
        gaps = np.flatnonzero(np.diff(fair) > max(1, count // 100))
        last = int(fair[gaps[0]] if len(gaps) else fair[-1])
    if last - first + 1 < 3:
        return None
    explanation = (
        f"steps {steps[first]:g} to {steps[last]:g}: from "
        + (f"after the last jump of the loss (step {steps[first]:g})" if first else "the start")
        + f" to where the terminal loss stops being a proxy of L* within a factor {1 + PROXY_TOLERANCE:g}"
        + f" (estimated floor {floor:.3g})"
    )
    return Window(first, last, float(steps[first]), float(steps[last]), floor, explanation)
