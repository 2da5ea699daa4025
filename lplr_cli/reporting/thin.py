"""Fewer points for pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def thin(count: int, most: int) -> NDArray[np.intp]:
    """Evenly spread indices of at most ``most`` out of ``count`` points, the first and the last included."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.intp))
