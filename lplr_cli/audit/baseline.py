"""The figures of a run against those of an earlier one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lplr_cli.audit.figures import Figures


@dataclass(frozen=True)
class Change:
    """A figure beside that of a baseline.

    Attributes:
        now, before: the figure and that of the baseline.
        worse: relative change to the bad side.
        uncertainty: relative; what moving the window, or the interval of the rate, makes of either: the larger one.
        failed: whether it is worse by more than the tolerance and the uncertainty, or missing.
    """

    now: float | None
    before: float | None
    worse: float | None
    uncertainty: float
    failed: bool

    def line(self, name: str) -> str:
        """What to say of a change that failed."""
        if self.worse is None:
            return f"{name} is missing, the baseline has {self.before:.6g}"
        return f"{name} worse than the baseline by {self.worse:.1%} ({self.now:.6g} against {self.before:.6g})"


def compare(now: Figures, before: Figures, tolerance: float) -> dict[str, Change]:
    """PL ratio and decay rate must not fall, drift must not grow, by more than ``tolerance`` of the baseline's.

    A change within what either figure would change by itself, with another window, is no failure.
    """
    pairs = {
        "pl_ratio_min": (_ratio(now), _ratio(before), -1.0, max(_of_window(now), _of_window(before))),
        "decay_rate": (_decay(now), _decay(before), -1.0, max(_of_rate(now), _of_rate(before))),
        "drift_max": (now.drift_max, before.drift_max, 1.0, 0.0),
    }
    changes = {}
    for name, (new, old, sign, own) in pairs.items():
        worse = None if new is None or old is None or old == 0 else sign * (new / old - 1)
        failed = (worse is not None and worse > max(tolerance, own)) or (new is None and old is not None)
        changes[name] = Change(new, old, worse, own, failed)
    return changes


def _ratio(figures: Figures) -> float | None:
    return None if figures.pl_ratio is None else figures.pl_ratio.min


def _decay(figures: Figures) -> float | None:
    """−log ρ."""
    rate = None if figures.rate is None else figures.rate.rate
    return -math.log(rate) if rate is not None and 0 < rate < 1 else None


def _of_window(figures: Figures) -> float:
    """What moving an end of the window does to the smallest PL ratio, relative."""
    return figures.window_sensitivity or 0.0


def _of_rate(figures: Figures) -> float:
    """How far the interval of −log ρ reaches from it, relative."""
    rate, decay = figures.rate, _decay(figures)
    if rate is None or decay is None:
        return 0.0
    ends = [-math.log(v) for v in (rate.rate_low, rate.rate_high) if v is not None and 0 < v < 1]
    return max((abs(end / decay - 1) for end in ends), default=0.0)
