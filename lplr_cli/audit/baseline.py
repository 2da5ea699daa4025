"""The figures of a run against those of an earlier one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lplr_cli.audit.figures import Figures


@dataclass(frozen=True)
class Change:
    """A figure beside that of a baseline; ``worse`` is the relative change to the bad side."""

    now: float | None
    before: float | None
    worse: float | None
    failed: bool

    def line(self, name: str) -> str:
        """What to say of a change that failed."""
        if self.worse is None:
            return f"{name} is missing, the baseline has {self.before:.6g}"
        return f"{name} worse than the baseline by {self.worse:.1%} ({self.now:.6g} against {self.before:.6g})"


def compare(now: Figures, before: Figures, tolerance: float) -> dict[str, Change]:
    """PL ratio and decay rate must not fall, drift must not grow, by more than ``tolerance`` of the baseline's."""
    pairs = {
        "pl_ratio_min": (_ratio(now), _ratio(before), -1.0),
        "decay_rate": (_decay(now), _decay(before), -1.0),
        "drift_max": (now.drift_max, before.drift_max, 1.0),
    }
    changes = {}
    for name, (new, old, sign) in pairs.items():
        worse = None if new is None or old is None or old == 0 else sign * (new / old - 1)
        failed = (worse is not None and worse > tolerance) or (new is None and old is not None)
        changes[name] = Change(new, old, worse, failed)
    return changes


def _ratio(figures: Figures) -> float | None:
    return None if figures.pl_ratio is None else figures.pl_ratio.min


def _decay(figures: Figures) -> float | None:
    """−log ρ."""
    rate = None if figures.rate is None else figures.rate.rate
    return -math.log(rate) if rate is not None and 0 < rate < 1 else None
