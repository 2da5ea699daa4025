"""A log cut into segments, with a rate each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lplr_cli.diagnostics.answer import RateFit, answer
from lplr_cli.diagnostics.clock import lr_clock, step_clock
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.rate import Reading, read

# A segment with fewer rows is shown, not fitted.
LEAST_ROWS = 12
_FITTED = 1_500


@dataclass(frozen=True)
class Segment:
    """Steps ``start`` to ``stop``.

    Attributes:
        start, stop: steps.
        rows: how many.
        trend: falls, flat or rises.
        verdict: of the rate fit on these rows; None when they are too few.
        rate, rate_low, rate_high: ρ a step (of mean size, where sizes vary) with its 95 % interval; None unless linear
            or two_rate.
        lr: step size, the mean where it varies; None where it is unknown.
        decay_per_lr_step, decay_per_lr_step_low, decay_per_lr_step_high: −log ρ/lr with its interval; None without a
            rate or a step size.
    """

    start: float
    stop: float
    rows: int
    trend: str
    verdict: str | None
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    lr: float | None
    decay_per_lr_step: float | None
    decay_per_lr_step_low: float | None
    decay_per_lr_step_high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def segments_of(steps: Array, loss: Array, lr: Array, jumps: Sequence[int], reading: Reading) -> tuple[Segment, ...]:
    """The log cut at ``jumps`` of the step size, or else where the curve changes; empty when nothing does.

    Args:
        steps, loss, lr: shape (T,).
        jumps: rows, increasing.
        reading: of these rows.
    """
    rows = np.flatnonzero(reading.kept)
    changed = [] if reading.looks_like is None else [int(rows[one.first]) for one in reading.found[1:]]
    cuts = list(jumps) or changed
    if not cuts:
        return ()
    edges = [0, *cuts, len(steps)]
    return tuple(_segment(steps, loss, lr, reading, slice(a, b)) for a, b in pairwise(edges) if b > a)


def _segment(steps: Array, loss: Array, lr: Array, reading: Reading, rows: slice) -> Segment:
    inside = np.flatnonzero(reading.kept[rows]) + rows.start
    clock = lr_clock(steps[rows], lr[rows]) or step_clock(steps[rows], lr[rows])
    start, stop = float(steps[rows][0]), float(steps[rows][-1])
    trend = _trend(np.log(loss[inside])) if len(inside) > 1 else "flat"
    fit = _fit(clock.time[inside - rows.start], loss[inside]) if len(inside) >= LEAST_ROWS else None
    linear = fit is not None and fit.verdict in ("linear", "two_rate")
    return Segment(
        start,
        stop,
        rows.stop - rows.start,
        trend,
        None if fit is None else fit.verdict,
        *((fit.rate, fit.rate_low, fit.rate_high) if fit is not None and linear else (None, None, None)),
        clock.size,
        *(clock.per_lr(fit) if fit is not None and linear else (None, None, None)),
    )


def _fit(time: Array, loss: Array) -> RateFit | None:
    """The law of all rows of a segment, which has no spikes; none where it holds for a part."""
    keep = np.unique(np.linspace(0, len(time) - 1, min(len(time), _FITTED)).round().astype(int))
    reading = read(time[keep], loss[keep])
    if reading is None:
        return None
    return answer(reading if reading.whole else replace(reading, verdict="none"), time[keep])


def _trend(log_loss: Array) -> str:
    """From the first fifth to the last, against twice the standard error of their difference."""
    fifth = max(len(log_loss) // 5, 1)
    change = float(np.median(log_loss[-fifth:]) - np.median(log_loss[:fifth]))
    noise = float(np.median(np.abs(np.diff(log_loss)))) * 2.5 / math.sqrt(fifth)
    return "flat" if abs(change) <= max(noise, 1e-12) else "falls" if change < 0 else "rises"
