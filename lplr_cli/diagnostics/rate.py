"""Which law a loss follows, or that it follows none (theory.md sections 8 and 12).

Laws are weighed against each other and against a free curve (:mod:`lplr_cli.diagnostics.laws`); logs without noise
are judged by what foretells their end (:mod:`lplr_cli.diagnostics.tails`). Where no law fits the whole
log, the answer is the law of what follows the last change, with the change named, or ``none`` with what the curve
looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics.decay import LINEAR, MORE_RATES, SUBLINEAR, TWO_RATE
from lplr_cli.diagnostics.faults import spikes
from lplr_cli.diagnostics.fit_data import MIN_POINTS, thinned
from lplr_cli.diagnostics.fits import NEGLIGIBLE, REJECTED, CurveFit, beside_its_own_noise
from lplr_cli.diagnostics.grain import grain_of, rounding
from lplr_cli.diagnostics.laws import Weighed, coloured, in_pieces, weigh
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.noise import fine_noise
from lplr_cli.diagnostics.shape import Stretch, describe, stretches
from lplr_cli.diagnostics.smoothing import recognise, unsmoothed
from lplr_cli.diagnostics.tails import Tail, analyse_tail
from lplr_cli.errors import InputError

# A law for a part must hold over this share of the rows, this many of them, and these e-folds of the suboptimality.
PART_SHARE, PART_ROWS, PART_FOLDS = 0.2, 30, 1.5
# Rows at most when parts are searched: each costs a fit of all curves.
_SEARCHED = 1_500
# Errors of a law that the last digit explains are smaller than so many of its standard deviations.
_GRAINS = 3.0
# Errors are misfit when they are larger than the noise by this factor; in a log whose relative noise is below the
# second value (float32 rounds at 6e-8) the largest of them.
_MISFIT, _SILENT = 20.0, 1e-6
# Rows of a series whose reading is kept, and how many readings are.
_REMEMBERED, _MOST_READINGS = 20_000, 6
# Laws of one kind.
_KINDS = {LINEAR.name: LINEAR.name, TWO_RATE.name: LINEAR.name, SUBLINEAR.name: SUBLINEAR.name}
# A law that misses a log without noise by less than this and tells the tail's rate within this share is exact.
_EXACT, _SAME = 1e-4, 0.005
# A pattern is named when it comes back this often.
_BEATS = 8
# A log is over where its decrements end to be resolved when no more than this share of the fall is left.
_OVER = 1e-3


@dataclass(frozen=True)
class Reading:
    """What a series says.

    Attributes:
        verdict, reason: as in :class:`lplr_cli.diagnostics.answer.RateFit`.
        weighed: of the whole series or of the part that the law holds for.
        tail: when the verdict rests on foretold rows, as there is no noise.
        looks_like: what the whole series looks like; None when a law holds for all of it.
        first: row where the part begins that the law holds for; 0 for the whole.
        last: its last row.
        kept: rows that are no spikes and repeat no other, shape (T,).
        found: stretches of the series; empty when a law holds for all of it.
        smoothing: factor of the moving average that was undone; None for none.
        grain: relative noise of each row where it is the rounding of its last digit, shape (T,); else None.
    """

    verdict: str
    reason: str
    weighed: Weighed
    tail: Tail | None
    looks_like: str | None
    first: int
    last: int
    kept: NDArray[np.bool_]
    found: tuple[Stretch, ...]
    smoothing: float | None = None
    grain: Array | None = None

    @property
    def resolved(self) -> tuple[int, int]:
        """First and last of the rows without spikes that the tail was read from."""
        assert self.tail is not None
        return self.tail.first, self.tail.last

    @property
    def whole(self) -> bool:
        """Whether the law holds for all rows."""
        return self.first == 0 and self.last == len(self.kept) - 1

    @property
    def spikes(self) -> int:
        """Rows left out as faults; not those that only repeat another."""
        return int((~self.kept if self.grain is None else np.isnan(self.grain)).sum())

    @property
    def floor(self) -> float:
        """L_∞ of the law, of the nearest when there is none."""
        return self.weighed.chosen.floor if self.tail is None else self.tail.floor


_READINGS: dict[tuple[bytes, bytes, tuple[int, ...], float | None], Reading | None] = {}


def read(steps: Array, loss: Array, changes: Sequence[int] = (), smoothing: float | None = None) -> Reading | None:
    """What a series says; None with fewer than :data:`MIN_POINTS` rows that are no spikes.

    Args:
        steps: increasing, shape (T,); any unit of time, for instance the sum of the step sizes.
        loss: positive and finite, shape (T,).
        changes: rows where something is known to change, for instance the step size.
        smoothing: factor of an exponential moving average to undo first; None to recognise one.

    Raises:
        InputError: the log is no moving average of that factor.
    """
    if len(loss) > _REMEMBERED:
        return _read_anew(steps, loss, changes, smoothing)
    # The rate, the PL ratio and the summary of a run each ask for the same rows.
    key = steps.tobytes(), loss.tobytes(), tuple(map(int, changes)), smoothing
    if key not in _READINGS:
        while len(_READINGS) >= _MOST_READINGS:
            _READINGS.pop(next(iter(_READINGS)))
        _READINGS[key] = _read_anew(steps, loss, changes, smoothing)
    return _READINGS[key]


def _read_anew(steps: Array, loss: Array, changes: Sequence[int], smoothing: float | None) -> Reading | None:
    if smoothing is not None:
        raw = unsmoothed(loss, smoothing)
        if raw is None:
            raise InputError(
                f"undoing a moving average of factor {smoothing:g} gives losses that are not positive",
                "check the factor: 0.9 for S = 0.9 S + 0.1 L",
            )
        kept = _usable(raw)
        if kept.sum() < MIN_POINTS:
            return None
        return replace(_read(steps, raw, changes, kept, weigh(steps[kept], raw[kept], more=True)), smoothing=smoothing)
    at, kept, grain = _coarse(steps, loss)
    if grain is not None and kept.sum() >= MIN_POINTS:
        whole = weigh(at[kept], loss[kept], grain[kept], _known(kept, changes), more=True)
        found = _read(at, loss, changes, kept, whole, grain)
        # Where rounding does not explain what a law leaves over, other noise may.
        if found.verdict != "none":
            return found
        kept = _usable(loss)
    if kept.sum() < MIN_POINTS:
        return None
    whole = weigh(steps[kept], loss[kept], None, _known(kept, changes), more=True)
    if kept.all():
        nearest = min(whole.fits.values(), key=lambda fit: fit.bic)
        factors = recognise(
            steps, loss, nearest, lambda: min(in_pieces(nearest), beside_its_own_noise(nearest).surprise)
        )
        behind = _of_average(steps, loss, changes, factors) if factors else None
        if behind is not None:
            return behind
    return _read(steps, loss, changes, kept, whole)


def _known(kept: NDArray[np.bool_], changes: Sequence[int]) -> list[int]:
    """Rows ``changes`` among those that are kept."""
    found: list[int] = np.searchsorted(np.flatnonzero(kept), changes).tolist()
    return found


def _of_average(steps: Array, loss: Array, changes: Sequence[int], factors: Sequence[float]) -> Reading | None:
    """What the series says behind a moving average, undecided where likely factors do not lead to one law; None where
    they lead to none: a likelihood under laws that do not hold is no evidence for the average. One exponential needs
    no other factor that decides.
    """
    tried = [read(steps, loss, changes, factor) for factor in factors]
    said = [one for one in tried if one is not None and one.verdict != "none"]
    if said and said[0].verdict == LINEAR.name:
        said = [one for one in said if one.verdict in _KINDS]
    if not any(one.verdict in _KINDS for one in said):
        return None
    return said[0] if len({_kind(one) for one in said}) == 1 else _unsettled(said)


def _kind(reading: Reading) -> str:
    return _KINDS.get(reading.verdict, reading.verdict)


def _unsettled(said: Sequence[Reading]) -> Reading:
    """Undecided between what likely factors of a moving average say."""
    says = ", ".join(sorted({f"{_kind(one)} with {one.smoothing:g}" for one in said}))
    straight = next((one for one in said if _kind(one) == LINEAR.name), said[0])
    reason = f"the log is a moving average of a factor that its rows do not settle: {says}"
    return replace(straight, verdict="undecided", reason=reason)


def _coarse(steps: Array, loss: Array) -> tuple[Array, NDArray[np.bool_], Array | None]:
    """Steps, rows to use, and the rows' relative noise where it is known to be the last digit's."""
    kept = _usable(loss)
    rows = np.flatnonzero(kept)
    grain = grain_of(steps[rows], loss[rows]) if len(rows) else None
    if grain is None:
        return steps, kept, None
    noise, at = np.full(len(loss), np.nan), steps.copy()
    noise[rows], kept[rows], at[rows] = grain.noise, grain.kept, grain.steps
    return at, kept, noise


def _usable(loss: Array) -> NDArray[np.bool_]:
    """Rows that are no spikes, and whose loss is a normal number: below, floats have no digits left."""
    if not len(loss):
        return np.zeros(0, dtype=bool)
    normal: NDArray[np.bool_] = loss >= np.finfo(np.float64).tiny
    kept = normal if normal.sum() >= MIN_POINTS else np.ones(len(loss), dtype=bool)
    rows = np.flatnonzero(kept)
    kept[rows] = ~spikes(np.log(loss[rows]), rounding(loss[rows]))
    return kept


def _read(
    steps: Array,
    loss: Array,
    changes: Sequence[int],
    kept: NDArray[np.bool_],
    whole: Weighed,
    grain: Array | None = None,
) -> Reading:
    rows = np.flatnonzero(kept)
    t, y = steps[rows], loss[rows]
    plain = Reading(whole.verdict, whole.reason, whole, None, whole.label, 0, len(loss) - 1, kept, (), grain=grain)
    noise = fine_noise(np.log(y)) if grain is None else grain[rows]
    exact = _misfit_rules(whole, noise) if grain is None else whole.verdict == "none" or _coarser(whole)
    if not exact and (whole.verdict != "none" or whole.label is not None):
        return plain
    found = stretches(t, np.log(y))
    plain = replace(plain, found=tuple(found), looks_like=whole.label or _shape_words(whole, found))
    if exact:
        told = _of_tail(plain, t, y, rows)
        if told is not None:
            return told
        if whole.label is None and whole.verdict != "none":
            # What is left over beside next to no noise is misfit, however the fit explains it.
            plain = replace(plain, verdict="none", reason=coloured(whole.chosen))
    if plain.verdict != "none" or whole.label is not None:
        return replace(plain, looks_like=whole.label, found=())
    known = np.searchsorted(rows, np.asarray(changes, dtype=np.int64)).tolist()
    return _of_part(plain, t, y, rows, known) or _in_doubt(plain)


def _in_doubt(plain: Reading) -> Reading:
    """Undecided where the misfit is one that some right law in a thousand shows, more of those with far rows."""
    if plain.verdict != "none" or not plain.weighed.doubtful:
        return plain
    return replace(plain, verdict="undecided", looks_like=None, found=())


def _misfit_rules(whole: Weighed, noise: Array) -> bool:
    """Whether the log has so little noise that what the nearest curve leaves over is misfit.

    Behind a long plateau, which any curve fits, errors are typically small: where there is next to no noise the largest
    errors count.
    """
    nearest = min(whole.fits.values(), key=lambda fit: fit.bic)
    least = NEGLIGIBLE if whole.misfit < REJECTED else 1e3 * NEGLIGIBLE
    error, noise = np.abs(_errors(nearest)), noise[thinned(len(noise))]
    # The median of normal errors is two thirds of their standard deviation.
    if float(np.median(error)) > 0.67 * least and float(np.median(error / noise)) > 0.67 * _MISFIT:
        return True
    typical = float(np.median(noise))
    large = error >= 0.1 * error.max()
    return typical < _SILENT and error.max() > least and float(np.median(error[large])) > _MISFIT * typical


def _errors(fit: CurveFit) -> Array:
    """Of the logarithm, row by row."""
    return np.asarray(np.log(np.maximum(fit.curve.value(fit.p, fit.data.s)[0], 1e-300)) - fit.data.log_y)


def _coarser(whole: Weighed) -> bool:
    """Whether what the nearest curve leaves over is more than the last digit of the rows."""
    nearest = min(whole.fits.values(), key=lambda fit: fit.bic)
    assert nearest.data.grain is not None
    return float(np.median(np.abs(_errors(nearest)) / nearest.data.grain)) > _GRAINS


def _shape_words(whole: Weighed, found: list[Stretch]) -> str:
    data = whole.chosen.data
    # The bends of what a curve misses come back a few times, too.
    beats = data.period and _BEATS * data.period <= len(data.s)
    return describe(found) + (f"; a pattern of {data.period} rows repeats" if beats else "")


def _of_tail(plain: Reading, t: Array, y: Array, rows: NDArray[np.intp]) -> Reading | None:
    """The law that foretells the end of a log without noise."""
    tail = analyse_tail(t, y, None if plain.grain is None else plain.grain[rows])
    if tail is None or tail.verdict not in ("linear", "sublinear", "undecided"):
        return None
    first, last = int(rows[tail.first]), int(rows[tail.last])
    law = plain.weighed.chosen
    lowest = float(y.min())
    left = float(np.abs(y[tail.last :] - y[tail.last]).max())
    over = left <= _OVER * (float(y[tail.first]) - lowest)
    # The first rows of a steep fall have no clear noise.
    early = tail.first <= 0.1 * len(t) and bool((np.diff(y[: tail.first + 1]) < 0).all())
    whole = early and over
    # Where the law and the tail tell the same rate the law's own is the sharper one.
    exact = whole and law.curve is not SUBLINEAR and law.sigma < _EXACT
    if tail.verdict == "linear" and exact and _same(law, tail):
        verdict = TWO_RATE.name if law.curve is TWO_RATE else LINEAR.name
        return replace(plain, verdict=verdict, reason=tail.reason, looks_like=None, found=())
    return replace(
        plain,
        verdict=tail.verdict,
        reason=tail.reason,
        tail=tail,
        first=0 if early else first,
        last=plain.last if over else last,
        looks_like=None if whole else plain.looks_like,
    )


def _same(law: CurveFit, tail: Tail) -> bool:
    rate = law.curve.rate_at(law.p, 1.0) if law.curve in MORE_RATES else math.exp(law.p[1])
    return abs(rate / law.data.span / tail.rate - 1) < _SAME


def _of_part(plain: Reading, t: Array, y: Array, rows: NDArray[np.intp], known: Sequence[int]) -> Reading | None:
    """The linear law of the rows behind a change, the earliest that it holds for."""
    count = len(t)
    cuts = {one.first for i, one in enumerate(plain.found) if i and _only_falls(plain.found[i:])} | set(known)
    # The change may lie within a stretch's first tenth.
    starts = sorted(cuts | {cut + (count - cut) // 10 for cut in cuts})
    for start in starts:
        left = count - start
        if left < max(PART_ROWS, PART_SHARE * count):
            continue
        keep = start + np.unique(np.linspace(0, left - 1, min(left, _SEARCHED)).round().astype(int))
        weighed = weigh(t[keep], y[keep], None if plain.grain is None else plain.grain[rows[keep]])
        if _holds(weighed, start in known):
            return replace(
                plain, verdict=weighed.verdict, reason=weighed.reason, weighed=weighed, first=int(rows[start])
            )
    return None


def _holds(weighed: Weighed, known: bool) -> bool:
    """Whether a part has a law worth naming; two rates or a power law, which any slowing curve resembles, only behind a
    known change.
    """
    if weighed.verdict == SUBLINEAR.name:
        return known
    straight = weighed.verdict == LINEAR.name or (known and weighed.verdict == TWO_RATE.name)
    return straight and _folds(weighed.chosen) >= PART_FOLDS


def _only_falls(found: Sequence[Stretch]) -> bool:
    """Whether the loss falls from here, at most to a plateau at the end."""
    return found[0].trend == "falls" and all(one.trend != "rises" for one in found)


def _folds(fit: CurveFit) -> float:
    """e-folds of the slowest mode over the rows of the fit."""
    return float(np.exp(fit.p[1]))
