"""Logs without noise: the rate that rules at their end, by what predicts a held-out tail.

Without noise every law is refuted by its smallest misfit, and differences of an information criterion only measure
that misfit. What counts then is which law foretells rows that it has not seen. The loss is read through its decrement
per unit of time, which needs no floor and resolves the suboptimality down to rounding: a sum of exponentials stays
one, t^(−α) becomes t^(−α−1). Sums of many exponentials (least squares, the NTK regime) are fitted by
:mod:`lplr_cli.diagnostics.mixture`. They describe a power law, too, with ever slower modes: which of the two it is
shows in how well a power law fits, and in whether the rate at the end depends on the slowest mode that is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lplr_cli.diagnostics.decay import SUBLINEAR
from lplr_cli.diagnostics.fit_data import Data
from lplr_cli.diagnostics.fits import CurveFit, fit_one
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.mixture import Mixture
from lplr_cli.diagnostics.noise import Noise, fine_noise

# Decrements are read at this many nodes at most, down to this multiple of their noise.
NODES = 120
RESOLVED = 30.0
LEAST_NODES = 10
# A mixture describes the decrements when the logarithms differ by less.
DESCRIBES = 0.1
# Laws are fitted to these shares of the nodes, and foretell the rest.
SHARES = (2 / 3, 1 / 2, 1 / 3)
# Exponentials that miss the last third by this share of its change foretell nothing.
FORETELLS = 0.5
# e-folds of the slowest mode over the rows, for readings of the rate at the end; the first is that of the answer.
SLOWEST = (0.3, 0.03, 0.003)
# Readings share one mixture: its own error is room around them (docs/benchmarks.md).
WIDER = 1.015
# Readings of the rate of the gap agree when they differ by less than the first factor, local slopes by the second.
AGREE, NEAR_SLOPES = 1.1, 1.4
# Where they do not agree the rate of the gap is not believed to be below that of the decrement by more than this.
NEAR = 1.1
# The end is settled when the rates that are active differ by less (squared coefficient of variation, by their share
# of the decrement): 0 for one exponential, 1/(α + 1) for a power law, which is none below the second value.
SETTLED, DISPERSED = 0.1, 1 / 6
# A power law is it when it fits the logarithms of the decrements behind this share of the nodes, where a transient is
# over, to the second number (root mean square; docs/benchmarks.md).
BEHIND, FITS = 1 / 3, 1e-3
# Where the differences of a log are the bends of a steep fall, losses are taken to be rounded to this, and a mixture
# must describe them to the second number.
_ROUNDED, _DESCRIBED = 2.0**-51, 0.01


@dataclass(frozen=True)
class Tail:
    """The end of a log without noise.

    Attributes:
        verdict: linear, sublinear, undecided or none.
        rate, slowest, fastest: −log ρ a unit of time that rules at the end, and its range by several readings.
        first_rate: that at the start of the resolved rows.
        alpha: exponent of the power law.
        floor: L_∞ by the extrapolated decrement.
        modes: exponentials that the decrements hold.
        spread: of the active rates at the end; see :data:`SETTLED`.
        error: of the mixture, relative to the decrements (root mean square).
        errors: of the foretold rest as a share of its change, by law; one for each of :data:`SHARES`.
        first, last: rows that are resolved.
    """

    verdict: str
    rate: float
    slowest: float
    fastest: float
    first_rate: float
    alpha: float
    floor: float
    modes: int
    spread: float
    error: float
    errors: dict[str, tuple[float, ...]]
    first: int
    last: int

    @property
    def reason(self) -> str:
        """One line for people."""
        straight, power = self.errors["exponentials"], self.errors["power"]
        if self.verdict == "sublinear":
            return (
                f"without noise: a power law foretells the log from its first third to {power[-1]:.1%} of the change "
                "that is left; of exponentials, ever slower ones would be needed"
            )
        reason = (
            f"without noise: exponentials foretell the last third to {straight[0]:.1%} of its change, a power law to "
            f"{power[0]:.1%}"
        )
        if self.verdict == "linear" and self.first_rate > 1.2 * self.rate:
            reason += f"; earlier rates are faster, up to {self.first_rate / self.rate:.3g} times"
        if self.verdict == "linear" and self.spread >= SETTLED:
            reason += "; several rates are still active at the end: this is the one that rules there"
        if self.verdict == "undecided":
            reason += (
                "; slower rates than the log can show may follow" if self.spread >= SETTLED else "; neither is clear"
            )
        return reason


def decrements(steps: Array, loss: Array, noise: Array | None = None, nodes: int = NODES) -> tuple[Array, Array, Array]:
    """Rows of the nodes (m + 1), decrement per unit of time between them (m), its noise (m).

    Args:
        steps, loss: shape (T,).
        noise: relative to the loss where it is known, shape (T,); found by :func:`fine_noise` when None.
        nodes: how many decrements at most.
    """
    at = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), nodes + 1)).round().astype(int))
    apart = np.diff(steps[at])
    local = (fine_noise(np.log(loss)) if noise is None else noise)[at] * loss[at]
    return at, -np.diff(loss[at]) / apart, 1.4 * np.maximum(local[1:], local[:-1]) / apart


def resolved(steps: Array, loss: Array, noise: Array | None = None, nodes: int = NODES) -> tuple[int, int]:
    """First and last row of the stretch that ends where decrements vanish in noise or rounding, and falls throughout.

    Equal when there is none. Near its end single decrements are clear by chance: the last stretch counts that is half
    as long as the longest.
    """
    first, last = 0, len(loss) - 1
    for _ in range(2):
        if last - first < LEAST_NODES:
            return 0, 0
        rows = slice(first, last + 1)
        at, fall, error = decrements(steps[rows], loss[rows], None if noise is None else noise[rows], nodes)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], fall > RESOLVED * error, [False]])))
        starts, stops = edges[::2], edges[1::2]
        if not len(starts):
            return 0, 0
        length = stops - starts
        run = int(np.flatnonzero(2 * length >= length.max())[-1])
        first, last = first + int(at[starts[run]]), first + int(at[stops[run]])
    return first, last


def analyse_tail(steps: Array, loss: Array, noise: Array | None = None) -> Tail | None:
    """The law at the end of a log without noise; None where its decrements are not resolved.

    Args:
        steps: increasing, shape (T,).
        loss: positive, shape (T,).
        noise: as in :func:`decrements`; where it is not known the differences of a steep fall may hide that there is
            none, and rounding is tried.
    """
    if noise is not None:
        return _analysed(steps, loss, noise)
    found = _analysed(steps, loss, fine_noise(np.log(loss)))
    if found is not None:
        return found
    found = _analysed(steps, loss, np.full(len(loss), _ROUNDED))
    return found if found is not None and found.error < _DESCRIBED else None


def _analysed(steps: Array, loss: Array, noise: Array) -> Tail | None:
    least = max(LEAST_NODES, 0.25 * _changing(loss))
    # Fewer nodes have larger decrements, which are clear for longer.
    spans = ((*resolved(steps, loss, noise, count), count) for count in (NODES, NODES // 2, NODES // 4))
    first, last, count = next((span for span in spans if span[1] - span[0] >= least), (0, 0, 0))
    if not count:
        return None
    rows = slice(first, last + 1)
    nodes, fall, error = decrements(steps[rows], loss[rows], noise[rows], count)
    if (fall <= 0).any():
        return None
    falls = _Falls.of(steps[rows][nodes], fall, error)
    mixture, power = falls.mixture(SLOWEST[0]), falls.power(round(BEHIND * len(fall)), len(fall))
    end, start = mixture.active(1.0), mixture.active(0.0)
    gaps = [end.of_gap, *falls.other_gaps()]
    slopes = [end.mean, *(falls.slope(share) for share in (0.1, 0.2))]
    errors = falls.foretell()
    verdict = _verdict(mixture.error, power.rms, end.spread, _apart(gaps), _apart(slopes))
    if verdict == "linear" and errors["exponentials"][0] >= FORETELLS:
        verdict = "undecided"
    agree = _apart(gaps) < AGREE
    rate = float(np.median(gaps)) if agree else math.sqrt(end.mean * max(end.of_gap, end.mean / NEAR))
    readings = gaps if agree else gaps + slopes
    gap = power.gap(float(loss[last])) if verdict == "sublinear" else end.gap * math.exp(falls.shift) * falls.span
    return Tail(
        verdict,
        rate / falls.span,
        min(readings) / falls.span / WIDER,
        max(readings) / falls.span * WIDER,
        start.mean / falls.span,
        power.alpha(float(loss[last])),
        min(max(float(loss[last]) - gap, 0.0), float(loss.min())),
        len(mixture.size),
        end.spread,
        mixture.error,
        errors,
        first,
        last,
    )


def _apart(readings: Sequence[float]) -> float:
    """By which factor they differ."""
    return max(readings) / max(min(readings), 1e-300)


@dataclass(frozen=True)
class _Power:
    """A power law fitted to decrements: (t + t0)^(−α−1) leaves a gap of itself times (t + t0)/α.

    Attributes:
        fit: to the logarithms of the decrements. rms: root mean square of its error.
        reach: what the decrement at the end would leave were α = 1.
    """

    fit: CurveFit
    rms: float
    reach: float

    def alpha(self, loss: float) -> float:
        """The exponent; the gap is no more than the loss at the end."""
        return max(float(np.exp(self.fit.p[2])) - 1, self.reach / loss)

    def gap(self, loss: float) -> float:
        """L − L_∞ at the end."""
        return self.reach / self.alpha(loss)


@dataclass(frozen=True)
class _Falls:
    """Decrements between nodes on scaled time.

    Attributes:
        ends: of the nodes, from 0 to 1, shape (m + 1,).
        fall: of geometric mean 1, shape (m,). noise: relative to it, shape (m,).
        span, shift: of the scales.
    """

    ends: Array
    fall: Array
    noise: Array
    span: float
    shift: float

    @classmethod
    def of(cls, at: Array, fall: Array, error: Array) -> _Falls:
        """Of decrements ``fall`` with their noise, between the times ``at``."""
        shift, span = float(np.log(fall).mean()), float(at[-1] - at[0])
        return cls((at - at[0]) / span, np.exp(np.log(fall) - shift), error / fall, span, shift)

    def mixture(self, slowest: float, first: int = 0, stop: int | None = None) -> Mixture:
        """Of the decrements ``first`` to ``stop``, on time from there on; ``slowest`` in e-folds of the whole."""
        rows = slice(first, stop)
        ends = self.ends[first : None if stop is None else stop + 1]
        length = float(ends[-1] - ends[0])
        return Mixture.of(ends - ends[0], self.fall[rows], self.noise[rows], slowest * length)

    def other_gaps(self) -> list[float]:
        """The rate of the gap at the end with slower modes, and of the last half and quarter alone."""
        found = [self.mixture(slowest).active(1.0).of_gap for slowest in SLOWEST[1:]]
        half = len(self.fall) // 2
        if half >= LEAST_NODES:
            found.append(self.mixture(SLOWEST[0], half).active(1.0 - float(self.ends[half])).of_gap)
        return found

    def slope(self, share: float) -> float:
        """−slope of the logarithm over the last ``share`` of the nodes."""
        keep = slice(-max(4, round(share * len(self.fall))), None)
        return -float(np.polyfit(self._middles[keep], np.log(self.fall[keep]), 1)[0])

    def power(self, first: int, stop: int) -> _Power:
        """A power law fitted to the decrements ``first`` to ``stop``."""
        data = Data(self._middles, np.log(self.fall), 0.0, self.span, self.shift, 0.0, np.empty((len(self.fall), 0)))
        rows = np.arange(len(self.fall))
        fit = fit_one(SUBLINEAR, data.rows((rows >= first) & (rows < stop)), Noise(np.ones(stop - first)))
        reach = math.exp(self.shift) * float(self.fall[-1]) * (1 + math.exp(fit.p[1])) * self.span
        return _Power(fit, math.sqrt(fit.cost / (stop - first)), reach)

    def foretell(self) -> dict[str, tuple[float, ...]]:
        """Errors by law behind each of :data:`SHARES`, as a share of the change there, of fits to what is before."""
        n, log_fall, pairs = len(self.fall), np.log(self.fall), []
        for share in SHARES:
            stop = max(round(share * n), min(LEAST_NODES, n - 3))
            length = float(self.ends[stop])
            power = self.power(0, stop).fit
            told = (
                self.mixture(SLOWEST[0] / length, 0, stop).log_value(self.ends[stop:]),
                np.log(np.maximum(SUBLINEAR.value(power.p, self._middles[stop:])[0], 1e-300)),
            )
            change = max(float(np.ptp(log_fall[stop - 1 :])), 1e-12)
            pairs.append([float(np.sqrt(np.mean((log - log_fall[stop:]) ** 2))) / change for log in told])
        exponentials, powers = zip(*pairs, strict=True)
        return {"exponentials": exponentials, "power": powers}

    @property
    def _middles(self) -> Array:
        return np.asarray(0.5 * (self.ends[1:] + self.ends[:-1]))


def _verdict(error: float, power: float, spread: float, gaps: float, slopes: float) -> str:
    """By the error of the mixture, the spread of its rates, and the factors that readings are apart."""
    if error >= DESCRIBES:
        return "none"
    if spread > DISPERSED and power < FITS:
        return "sublinear"
    settled = spread < SETTLED and slopes < NEAR_SLOPES
    return "linear" if gaps < AGREE or settled else "undecided"


def _changing(loss: Array) -> float:
    """Rows until the loss has come within a millionth of its range of its lowest."""
    above = np.flatnonzero(loss - loss.min() > 1e-6 * float(loss.max() - loss.min()))
    return float(above[-1] + 1) if len(above) else 0.0
