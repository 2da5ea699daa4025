"""The Polyak-Łojasiewicz ratio of a loss series (theory.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pl_ratio(loss: ArrayLike, grad_norm_sq: ArrayLike, l_star: float) -> NDArray[np.float64]:
    """½ ||∇L||² / (L - L*) a step; NaN where L ≤ L*.

    Args:
        loss: L_t, shape (T,).
        grad_norm_sq: ||∇L_t||², shape (T,).
        l_star: the minimum L*, in the units of the loss. 0 gives the left end of the bracket of theory.md section 1,
            min L_t (or the terminal loss) its right end.
    """
    gap = np.asarray(loss, dtype=np.float64) - l_star
    ratio = np.full(gap.shape, np.nan)
    # A gap below the smallest normal number has no correct digit left.
    usable = gap > np.finfo(np.float64).tiny
    np.divide(0.5 * np.asarray(grad_norm_sq, dtype=np.float64), gap, out=ratio, where=usable)
    return ratio


@dataclass(frozen=True)
class Envelope:
    """Lower envelope of a ratio on a window: minimum, 5 % quantile and median, with the number of values."""

    min: float | None
    q05: float | None
    median: float | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def envelope(ratio: NDArray[np.float64]) -> Envelope:
    """Minimum, 5 % quantile and median of the finite values."""
    finite = ratio[np.isfinite(ratio)]
    if len(finite) == 0:
        return Envelope(None, None, None, 0)
    q05, median = np.quantile(finite, [0.05, 0.5])
    return Envelope(float(finite.min()), float(q05), float(median), len(finite))
