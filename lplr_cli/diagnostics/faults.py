"""Faults of a log that are no part of its course: single rows that stand out, and spikes that recover at once."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.noise import stretch_edges

Array = NDArray[np.float64]
# In units of the noise, and at least this much of the loss.
_SIZE = 6.0
_SHARE = 0.01
JUMP_FACTOR = 12.0
# Where the log begins, a step is that of a smooth decay when the next two go on, each by this share of the first.
_FIRST, _GOES_ON = 5, 0.15
# A spike has recovered after this share of the rows, or it is part of the course; so it is when spikes fill too much.
_LONGEST = 1 / 15
_LONGEST_ROWS = 20
_MOST = 0.45
# What is added to a spike for its tail, in lengths of it: less where that would fill too much.
_TAILS = (1.5, 1.0, 0.5, 0.0)
# Behind a spike the loss is expected where it would have gone at this share of its pace, as it slows.
_GOES_DOWN = 0.75


def spikes(log_loss: Array, noise: Array | None = None) -> NDArray[np.bool_]:
    """Rows that are faults, shape (T,): :func:`outliers`, and :func:`excursions` of what is left.

    With fewer than eight rows there are none.

    Args:
        log_loss: shape (T,).
        noise: that each row has at least, shape (T,), for instance of its last digit.
    """
    count = len(log_loss)
    found = np.zeros(count, dtype=bool)
    if count < 8:
        return found
    noise = local_noise(log_loss, noise)
    alone = outliers(log_loss, noise)
    left = np.flatnonzero(~alone)
    for tail in _TAILS:
        found = alone.copy()
        found[left[excursions(log_loss[left], noise[left], tail)]] = True
        if found.sum() <= _MOST * count:
            return found
    return alone


def noise_level(log_loss: Array) -> float:
    """Standard deviation of white noise with the median absolute second difference of the series."""
    second = log_loss[1:-1] - 0.5 * (log_loss[:-2] + log_loss[2:])
    return 1.4826 * float(np.median(np.abs(second - np.median(second)))) / math.sqrt(1.5) if len(second) else 0.0


def local_noise(log_loss: Array, least: Array | None = None) -> Array:
    """:func:`noise_level` of the stretches of :func:`stretch_edges`, interpolated, shape (T,).

    Noise of one size on the loss grows on its logarithm while the loss falls: beside that of all rows the late ones
    would be full of faults. ``least`` is the noise that each row has at least.
    """
    count = len(log_loss)
    edges = stretch_edges(count)
    level = [noise_level(log_loss[a:b]) for a, b in pairwise(edges)]
    found = np.interp(np.arange(count), 0.5 * (edges[1:] + edges[:-1]), level)
    return found if least is None else np.maximum(found, least)


def outliers(log_loss: Array, noise: Array | float = 0.0) -> NDArray[np.bool_]:
    """Rows that stand out from both sides, shape (T,).

    A row is one when it lies above (or below) all but one of its three neighbours on each side, by more than six
    times the noise and 1 %. Monotone stretches have no such row, however steep. ``noise`` as in :func:`spikes`.
    """
    count = len(log_loss)
    threshold = np.maximum(_SIZE * np.maximum(noise, noise_level(log_loss)), _SHARE)

    def outstanding(values: Array) -> NDArray[np.bool_]:
        # The last row may begin a change; the one before must stand out from it, too.
        padded = np.concatenate([[np.inf, np.inf, -np.inf], values, [-np.inf, np.inf, np.inf]])
        near = np.stack([padded[k : k + count] for k in (0, 1, 2, 4, 5, 6)])
        near.partition(4, axis=0)
        flags: NDArray[np.bool_] = values - near[4] > threshold
        return flags

    return outstanding(log_loss) | outstanding(-log_loss)


def excursions(log_loss: Array, noise: Array | float = 0.0, tail: float = _TAILS[0]) -> NDArray[np.bool_]:
    """Spikes over several rows, shape (T,): a sudden rise after which the loss is soon back.

    A spike starts where the loss rises within a row by more than six times the noise and 5 %, and ends where it is
    back at the median of the five rows before, plus twice the noise, which falls on at three quarters of the pace of
    the ten rows before; at that pace in the logarithm of the rows, or at that level, where it does not come back so
    far. ``tail`` of its length is added to it. One that is not back after a fifteenth of the rows, or twenty, is no
    spike, unless another stands on it and has as long again; one that the log ends in is when half of it is gone.
    ``noise`` as in :func:`spikes`.
    """
    count = len(log_loss)
    found = np.zeros(count, dtype=bool)
    level = np.maximum(np.broadcast_to(noise, count), noise_level(log_loss))
    longest = max(3, min(round(_LONGEST * count), _LONGEST_ROWS))
    end = 0
    jumps = (np.flatnonzero(np.diff(log_loss) > np.maximum(_SIZE * level[1:], 0.05)) + 1).tolist()
    for number, start in enumerate(jumps):
        if start < end or start < 5:
            continue
        before = float(np.median(log_loss[max(start - 5, 0) : start])) + 2 * float(level[start])
        pace = min(float(np.median(np.diff(log_loss[max(start - 11, 0) : start]))), 0.0)
        last = start
        for further in jumps[number + 1 :]:
            # A spike on a spike has as long to recover.
            if further > last + longest or (log_loss[start:further] <= before).any():
                break
            last = further
        after = log_loss[start : last + longest + 1]
        row = np.arange(3, len(after) + 3)
        # It may slow by little, as a power law does, or stay.
        for gone in (_GOES_DOWN * row, start * np.log1p(row / start), 0 * row):
            back = np.flatnonzero(after <= before + pace * gone)
            if len(back):
                break
        if not len(back) and last + longest >= count and after[-1] - before < 0.5 * (after.max() - before):
            found[start:] = True
        if len(back):
            end = start + int(back[0])
            found[start : min(end + int(tail * (end - last + 1)), count)] = True
    return found


def _decays(change: Array) -> bool:
    """Whether three steps are those of a decay that slows smoothly."""
    if len(change) < 3:
        return False
    follows = change / change[0]
    return bool(1 > follows[1] > follows[2] > _GOES_ON)


def shifts(log_loss: Array, least: float = 0.05, noise: Array | None = None) -> NDArray[np.intp]:
    """Rows at which the level changes at once and stays changed, largest change first; spikes must be gone.

    Row i is one when the step to it differs from the median of the ten steps around by more than ``least`` and
    :data:`JUMP_FACTOR` times the noise (at least ``noise``, as in :func:`spikes`), and the medians of the five rows
    before and after it, less that trend, differ by six tenths of it. The first steps of a smooth decay are none: the
    next two go the same way, ever less, by a share of :data:`_GOES_ON` at least.
    """
    count = len(log_loss)
    if count < 12:
        return np.zeros(0, dtype=np.intp)
    change = np.diff(log_loss)
    level = np.maximum(local_noise(log_loss, noise), noise_level(log_loss))[1:]
    threshold = np.maximum(least, JUMP_FACTOR * level)
    threshold = np.broadcast_to(threshold, len(change))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(change, 5, mode="reflect"), 11)
    # Rows whose steps are small beside the threshold need no median.
    near = np.flatnonzero(np.abs(change) > 0.5 * threshold)
    sizes = []
    for i in near.tolist():
        trend = float(np.median(windows[i]))
        jump = change[i] - trend
        before, after = log_loss[max(i - 4, 0) : i + 1], log_loss[i + 1 : i + 6]
        apart = 0.5 * (len(before) + len(after))
        stays = float(np.median(after) - np.median(before)) - trend * apart
        if i < _FIRST and _decays(change[i : i + 3]):
            continue
        if abs(jump) > threshold[i] and stays * jump > 0 and abs(stays) > 0.6 * abs(jump):
            sizes.append((abs(jump), i + 1))
    return np.array([i for _, i in sorted(sizes, reverse=True)], dtype=np.intp)
