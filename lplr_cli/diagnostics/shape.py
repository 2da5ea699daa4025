"""What a curve looks like when no law holds: stretches that fall, stay flat or rise, and where it changes.

The log of the loss is cut into the fewest parabolas that describe it, by the Bayesian information criterion and dynamic
programming over at most 120 blocks (Jackson et al. 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lplr_cli.diagnostics.least_squares import Array

BLOCKS = 120
MOST_STRETCHES = 8
_DEGREE = 2
# Blocks that a stretch holds at least.
_SHORTEST = 4
# A stretch is flat when it changes by less than this share of the whole range of log L, and than its noise explains.
_FLAT = 0.04


@dataclass(frozen=True)
class Stretch:
    """Rows ``first`` to ``last`` (both included) of a series and what they do: falls, flat or rises.

    Attributes:
        first, last: rows.
        start: step of the first row.
        trend: falls, flat or rises.
        change: of log L from its beginning to its end, of the parabola.
        slope_first, slope_last: of log L a unit of time, at both ends.
    """

    first: int
    last: int
    start: float
    trend: str
    change: float
    slope_first: float
    slope_last: float


def stretches(steps: Array, log_loss: Array) -> list[Stretch]:
    """Cut a series into stretches.

    Args:
        steps: increasing, shape (T,).
        log_loss: shape (T,), without spikes.
    """
    count = len(log_loss)
    edges = np.unique(np.linspace(0, count, min(BLOCKS, count) + 1).round().astype(int))
    size = np.diff(edges)
    t = np.add.reduceat(steps, edges[:-1]) / size
    y = np.add.reduceat(log_loss, edges[:-1]) / size
    s = (t - t[0]) / (t[-1] - t[0])
    second = y[1:-1] - 0.5 * (y[:-2] + y[2:])
    noise = max(1.4826 * float(np.median(np.abs(second))) / math.sqrt(1.5), 0.01 * float(np.ptp(y)), 1e-12)
    found = []
    for a, b in pairwise(_cuts(s, y, noise)):
        p = np.polynomial.Polynomial.fit(s[a:b], y[a:b], min(_DEGREE, b - a - 1))
        slope, span = p.deriv(), float(t[-1] - t[0])
        low, high = float(s[a]), float(s[b - 1])
        change = float(p(high) - p(low))
        flat = abs(change) < max(_FLAT * float(np.ptp(y)), 2.5 * noise, 0.005)
        trend = "flat" if flat else "falls" if change < 0 else "rises"
        first, last = int(edges[a]), int(edges[b]) - 1
        ends = float(slope(low)) / span, float(slope(high)) / span
        found.append(Stretch(first, last, float(steps[first]), trend, change, *ends))
    return found


def parabolas(s: Array, log_loss: Array) -> tuple[Array, int]:
    """Columns of the parabolas of :func:`stretches`, each on its own rows, shape (T, 3 pieces); how many pieces.

    Args:
        s: increasing, shape (T,).
        log_loss: shape (T,), without spikes.
    """
    found, row = stretches(s, log_loss), np.arange(len(s))
    inside = [(row >= one.first) & (row <= one.last) for one in found]
    columns = [
        (s - s[one.first]) ** k * keep for one, keep in zip(found, inside, strict=True) for k in range(_DEGREE + 1)
    ]
    return np.column_stack(columns), len(found)


def _cuts(s: Array, y: Array, noise: float) -> list[int]:
    """Block numbers where stretches begin, and the number of blocks."""
    n = len(s)
    cost = _costs(s, y) / noise**2
    penalty = (_DEGREE + 2) * math.log(n) + 4
    shortest = min(_SHORTEST, n)
    best = np.full((MOST_STRETCHES + 1, n + 1), np.inf)
    came = np.zeros((MOST_STRETCHES + 1, n + 1), dtype=int)
    best[0, 0] = 0.0
    for k in range(1, MOST_STRETCHES + 1):
        for b in range(shortest * k, n + 1):
            total = best[k - 1, : b - shortest + 1] + cost[: b - shortest + 1, b]
            came[k, b] = int(np.argmin(total))
            best[k, b] = float(total[came[k, b]])
    count = int(np.argmin(best[1:, n] + penalty * np.arange(1, MOST_STRETCHES + 1))) + 1
    cuts = [n]
    for k in range(count, 0, -1):
        cuts.append(int(came[k, cuts[-1]]))
    return cuts[::-1]


def _costs(s: Array, y: Array) -> Array:
    """Residual squares of the parabola through blocks a to b − 1, shape (n, n + 1); infinite where b ≤ a."""
    n = len(s)
    cost = np.full((n, n + 1), np.inf)
    for a in range(n):
        # Centred at the first block, so that the moments stay well conditioned.
        x = s[a:] - s[a]
        powers = np.cumsum(x[None, :] ** np.arange(2 * _DEGREE + 1)[:, None], axis=1)
        right = np.cumsum(y[a:] * x[None, :] ** np.arange(_DEGREE + 1)[:, None], axis=1)
        square = np.cumsum(y[a:] ** 2)
        index = np.add.outer(np.arange(_DEGREE + 1), np.arange(_DEGREE + 1))
        gram = powers[index].transpose(2, 0, 1)
        scale = np.sqrt(np.maximum(np.einsum("nii->ni", gram), 1e-300))
        scaled = gram / scale[:, :, None] / scale[:, None, :] + 1e-12 * np.eye(_DEGREE + 1)
        vector = right.T / scale
        solved = np.linalg.solve(scaled, vector[..., None])[..., 0]
        cost[a, a + 1 :] = np.maximum(square - (vector * solved).sum(axis=1), 0.0)
    return cost


def describe(found: list[Stretch]) -> str:
    """A few words: "falls, then rises from step 410"."""
    if len(found) > 1 and all(one.trend == "flat" for one in found):
        return f"{len(found)} plateaus, changes at {_list(one.start for one in found[1:])}"
    merged = _merged(found)
    if len(merged) > 5:
        return f"falls and rises in turn, {len(merged)} stretches"
    if len(merged) == 1:
        return _shape(found)
    words = [merged[0].trend if merged[0].trend != "flat" else "flat"]
    words += [f"then {one.trend} from step {one.start:g}" for one in merged[1:]]
    return ", ".join(words)


def _shape(found: list[Stretch]) -> str:
    trend = found[0].trend
    if trend == "flat":
        return "flat"
    before, after = found[0].slope_first, found[-1].slope_last
    if trend == "rises":
        return "rises throughout"
    changes = f", its pace changes at {_list(one.start for one in found[1:])}" if len(found) > 1 else ""
    pace = "ever faster" if after < 1.5 * before else "ever slower" if after > before / 1.5 else "steadily"
    return f"falls {pace}, no offered law{changes}"


def _merged(found: list[Stretch]) -> list[Stretch]:
    """Neighbours of one trend joined."""
    merged = [found[0]]
    for one in found[1:]:
        if one.trend == merged[-1].trend:
            merged[-1] = replace(merged[-1], last=one.last, change=merged[-1].change + one.change)
        else:
            merged.append(one)
    return merged


def _list(steps: object) -> str:
    texts = [f"{step:g}" for step in steps]  # type: ignore[attr-defined]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
