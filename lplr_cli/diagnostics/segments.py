"""A log cut into segments, with a rate each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lplr_cli.diagnostics.answer import answer
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.rate import Reading, weigh

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
        rate, rate_low, rate_high: ρ a step with its 95 % interval; None unless linear or two_rate.
        lr: step size, where it is known and one; else None.
        decay_per_lr_step: −log ρ/lr; None without a rate or a step size.
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
    size = lr[rows]
    one_size = float(size[0]) if np.isfinite(size).all() and np.ptp(size) <= 1e-9 * size[0] else None
    start, stop = float(steps[rows][0]), float(steps[rows][-1])
    trend = _trend(np.log(loss[inside])) if len(inside) > 1 else "flat"
    nothing = Segment(start, stop, rows.stop - rows.start, trend, None, None, None, None, one_size, None)
    if len(inside) < LEAST_ROWS:
        return nothing
    keep = inside[np.unique(np.linspace(0, len(inside) - 1, min(len(inside), _FITTED)).round().astype(int))]
    weighed = weigh(steps[keep], loss[keep], None if reading.grain is None else reading.grain[keep])
    part = Reading(weighed.verdict, "", weighed, None, None, 0, len(keep) - 1, np.ones(len(keep), dtype=bool), ())
    fit = answer(part, steps[keep])
    linear = fit.verdict in ("linear", "two_rate")
    rate = fit.rate if linear else None
    return Segment(
        start,
        stop,
        rows.stop - rows.start,
        trend,
        fit.verdict,
        rate,
        fit.rate_low if linear else None,
        fit.rate_high if linear else None,
        one_size,
        None if not rate or not one_size else -math.log(rate) / one_size,
    )


def _trend(log_loss: Array) -> str:
    """From the first fifth to the last, against twice the standard error of their difference."""
    fifth = max(len(log_loss) // 5, 1)
    change = float(np.median(log_loss[-fifth:]) - np.median(log_loss[:fifth]))
    noise = float(np.median(np.abs(np.diff(log_loss)))) * 2.5 / math.sqrt(fifth)
    return "flat" if abs(change) <= max(noise, 1e-12) else "falls" if change < 0 else "rises"
