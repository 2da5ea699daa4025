"""Where a profile of the likelihood crosses its threshold, on either side of the best fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lplr_cli.diagnostics.least_squares import Array


def crossing(excess: Callable[[float], float], centre: float, width: float, limit: float, reach: float) -> float:
    """Where the profile crosses its threshold on the side of ``width``; infinite when it does not before ``limit``."""
    inner = (centre, -reach)
    for _ in range(12):
        x = max(centre + width, limit) if width < 0 else min(centre + width, limit)
        outer = (x, excess(x))
        if outer[1] >= 0:
            return _root(excess, inner, outer)
        if x == limit:
            break
        inner, width = outer, 1.7 * width
    return math.copysign(math.inf, width)


def standard_error(jacobian: Array, focus: int) -> float:
    """Of parameter ``focus`` for errors of variance 1 and their Jacobian, shape (n, p)."""
    scale = np.sqrt((jacobian**2).sum(axis=0))
    if scale[focus] == 0:
        return math.inf
    _, r = np.linalg.qr(jacobian[:, scale > 0] / scale[scale > 0])
    position = int((scale[:focus] > 0).sum())
    unit = np.zeros(r.shape[0])
    unit[position] = 1.0
    return float(np.linalg.norm(np.linalg.lstsq(r.T, unit, rcond=1e-12)[0]) / scale[focus])


def _root(f: Callable[[float], float], inner: tuple[float, float], outer: tuple[float, float]) -> float:
    """Zero of a nearly linear increasing function between two points (Illinois variant of regula falsi)."""
    (a, fa), (b, fb) = inner, outer
    for _ in range(20):
        x = b - fb * (b - a) / (fb - fa) if fb != fa else 0.5 * (a + b)
        fx = f(x)
        if abs(fx) < 5e-3 or abs(b - a) < 1e-12 * (1 + abs(a)):
            return x
        if fx > 0:
            b, fb = x, fx
            fa *= 0.5
        else:
            a, fa = x, fx
            fb *= 0.5
    return x
