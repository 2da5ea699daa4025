"""Logs without noise: the rate that rules at their end, by what predicts a held-out tail.

Without noise every law is refuted by its smallest misfit, and differences of an information criterion only measure
that misfit. What counts then is which law foretells rows that it has not seen. The loss is read through its decrement
per unit of time, which needs no floor and resolves the suboptimality down to rounding: a sum of exponentials stays
one, t^(−α) becomes t^(−α−1). Sums of many exponentials (least squares, the NTK regime) are fitted as non-negative
amplitudes on a fine grid of rates (Lawson and Hanson 1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from lplr_cli.diagnostics.decay import SUBLINEAR
from lplr_cli.diagnostics.fits import Data, fit_one
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.noise import Noise, fine_noise

# Decrements are read at this many nodes at most, down to this multiple of their noise.
NODES = 120
RESOLVED = 30.0
LEAST_NODES = 10
# A mixture describes the decrements when the logarithms differ by less.
DESCRIBES = 0.1
# Laws are fitted to these shares of the nodes, and foretell the rest.
SHARES = (2 / 3, 1 / 2, 1 / 3)
# A power law foretells every rest with an error below this share of its change; the longest one better than
# exponentials do by the second factor, or all rests together by the cube of it and none worse than by the third number.
FORETELLS, CLEARLY, AT_WORST = 0.15, 1.5, 0.25
# Readings share one mixture: its own error is room around them (docs/benchmarks.md).
WIDER = 1.015
# Readings of the rate at the end agree when they differ by less than this factor.
AGREE = 1.4
# The rate of the gap may be below that of the decrement by this factor; beyond, it is of modes too slow to be seen.
NEAR = 1.1
# The end is settled when the rates that are active differ by less (squared coefficient of variation, by their share
# of the decrement): 0 for one exponential, 1/(α + 1) for a power law, which is none below the second value.
SETTLED, DISPERSED = 0.1, 1 / 6
_RATES = 300
# Modes with less of the decrement at the end say nothing about the gap that is left.
_LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Tail:
    """The end of a log without noise.

    Attributes:
        verdict: linear, sublinear, undecided or none.
        rate, slowest, fastest: −log ρ a unit of time that rules at the end, and its range by four readings.
        first_rate: that at the start of the resolved rows.
        alpha: exponent of the power law.
        floor: L_∞ by the extrapolated decrement.
        modes: exponentials that the decrements hold.
        spread: of the active rates at the end; see :data:`SETTLED`.
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
                f"that is left, exponentials to {straight[-1]:.1%}"
            )
        reason = (
            f"without noise: exponentials foretell the last third to {straight[0]:.1%} of its change, a power law to "
            f"{power[0]:.1%}"
        )
        if self.verdict == "linear" and self.first_rate > 1.2 * self.rate:
            reason += f"; earlier rates are faster, up to {self.first_rate / self.rate:.3g} times"
        if self.verdict == "undecided":
            reason += "; several rates are still active at the end" if self.spread >= SETTLED else "; neither is clear"
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
        noise: as in :func:`decrements`.
    """
    least = max(LEAST_NODES, 0.25 * _changing(loss))
    # Fewer nodes have larger decrements, which are clear for longer.
    spans = ((*resolved(steps, loss, noise, count), count) for count in (NODES, NODES // 2, NODES // 4))
    first, last, count = next((span for span in spans if span[1] - span[0] >= least), (0, 0, 0))
    if not count:
        return None
    rows = slice(first, last + 1)
    nodes, fall, _ = decrements(steps[rows], loss[rows], nodes=count)
    if (fall <= 0).any():
        return None
    at = steps[rows][nodes]
    data = _data(0.5 * (at[1:] + at[:-1]), np.log(fall))
    mixture = Mixture.of(data, len(data.s))
    end, start = mixture.active(1.0), mixture.active(0.0)
    seen = [end.mean, *(_slope(data, share) for share in (0.1, 0.2))]
    readings = [*seen, end.of_gap]
    errors = _foretell(data)
    verdict = _verdict(mixture.error, errors, end.spread, max(seen) / max(min(seen), 1e-300))
    alpha, power_gap = _power(data, float(loss[last]))
    gap = power_gap if verdict == "sublinear" else end.gap * math.exp(data.shift) * data.span
    return Tail(
        verdict,
        math.sqrt(end.mean * max(end.of_gap, end.mean / NEAR)) / data.span,
        min(readings) / data.span / WIDER,
        max(readings) / data.span * WIDER,
        start.mean / data.span,
        alpha,
        min(max(float(loss[last]) - gap, 0.0), float(loss.min())),
        int((mixture.size > 0).sum()),
        end.spread,
        errors,
        first,
        last,
    )


def _power(data: Data, loss: float) -> tuple[float, float]:
    """Exponent of the power law behind the decrements and the gap it leaves, which is no more than the loss at the end.

    A decrement (t + t0)^(−α−1) leaves a gap of itself times (t + t0)/α.
    """
    fit = fit_one(SUBLINEAR, data, _white(data))
    reach = math.exp(data.shift + float(data.log_y[-1])) * (1 + math.exp(fit.p[1])) * data.span
    alpha = max(float(np.exp(fit.p[2])) - 1, reach / loss)
    return alpha, reach / alpha


def _changing(loss: Array) -> float:
    """Rows until the loss has come within a millionth of its range of its lowest."""
    above = np.flatnonzero(loss - loss.min() > 1e-6 * float(loss.max() - loss.min()))
    return float(above[-1] + 1) if len(above) else 0.0


def _data(t: Array, log_fall: Array) -> Data:
    shift, span = float(log_fall.mean()), float(t[-1] - t[0])
    return Data((t - t[0]) / span, log_fall - shift, float(t[0]), span, shift, 0.0, np.empty((len(t), 0)))


def _white(data: Data) -> Noise:
    return Noise(np.ones(len(data.s)))


@dataclass(frozen=True)
class Active:
    """The modes at one time: mean rate by their shares of the decrement and by those of the gap, spread, gap."""

    mean: float
    of_gap: float
    spread: float
    gap: float


@dataclass(frozen=True)
class Mixture:
    """Σ size exp(−rate s), sizes not negative: a decrement on scaled time.

    Attributes:
        size, rate: shape (modes,).
        error: root mean square of the log residual.
    """

    size: Array
    rate: Array
    error: float

    @classmethod
    def of(cls, data: Data, rows: int) -> Mixture:
        """Fit to the first ``rows`` rows, weighted relative to the decrement."""
        s, log_fall = data.s[:rows], data.log_y[:rows]
        steepest = float((-np.diff(log_fall) / np.diff(s)).max())
        rate = np.geomspace(0.3 / s[-1], max(1.2 * steepest, 20.0 / s[-1]), _RATES)
        design = np.exp(-np.outer(s, rate) - log_fall[:, None])
        norm = np.sqrt((design**2).sum(axis=0))
        size = nnls(design / norm, np.ones(rows), maxiter=50 * _RATES)[0]
        told = np.log(np.maximum((design / norm) @ size, 1e-300))
        return cls(size / norm, rate, float(np.sqrt(np.mean(told**2))))

    def log_value(self, s: Array) -> Array:
        """Logarithm of the decrement, shape of s."""
        return np.asarray(np.log(np.maximum(np.exp(-np.outer(s, self.rate)) @ self.size, 1e-300)))

    def active(self, s: float) -> Active:
        """The modes at time s."""
        fall = self.size * np.exp(-self.rate * s)
        seen = fall > _LEAST_SHARE * fall.sum()
        fall, rate = fall[seen], self.rate[seen]
        mean, gap = float((fall * rate).sum() / fall.sum()), float((fall / rate).sum())
        spread = float((fall * (rate - mean) ** 2).sum() / fall.sum()) / mean**2
        return Active(mean, float(fall.sum()) / gap, spread, gap)


def _foretell(data: Data) -> dict[str, tuple[float, ...]]:
    """Errors by law on the nodes behind each of :data:`SHARES`, as a share of their change, of fits to those before."""
    n, pairs = len(data.s), []
    for share in SHARES:
        stop = max(round(share * n), min(LEAST_NODES, n - 3))
        before = np.arange(n) < stop
        power = fit_one(SUBLINEAR, data.rows(before), _white(data).rows(before))
        told = (
            Mixture.of(data, stop).log_value(data.s[stop:]),
            np.log(np.maximum(SUBLINEAR.value(power.p, data.s[stop:])[0], 1e-300)),
        )
        change = max(float(np.ptp(data.log_y[stop - 1 :])), 1e-12)
        pairs.append([float(np.sqrt(np.mean((log - data.log_y[stop:]) ** 2))) / change for log in told])
    exponentials, powers = zip(*pairs, strict=True)
    return {"exponentials": exponentials, "power": powers}


def _slope(data: Data, share: float) -> float:
    """−slope of the logarithm over the last ``share`` of the nodes."""
    keep = slice(-max(4, round(share * len(data.s))), None)
    return -float(np.polyfit(data.s[keep], data.log_y[keep], 1)[0])


def _verdict(error: float, errors: dict[str, tuple[float, ...]], spread: float, apart: float) -> str:
    straight, power = np.array(errors["exponentials"]), np.array(errors["power"])
    if error >= DESCRIBES:
        return "none"
    # Of all rests together; errors below a ten-thousandth are all the same.
    score = float(np.log(np.maximum(straight, 1e-4) / np.maximum(power, 1e-4)).sum())
    clearly = score > len(SHARES) * math.log(CLEARLY)
    if spread < SETTLED and apart < AGREE and not clearly:
        return "linear"
    far = power.max() < FORETELLS and straight[-1] > CLEARLY * power[-1]
    if spread > DISPERSED and (far or (clearly and power[0] < AT_WORST and power.min() < FORETELLS)):
        return "sublinear"
    return "undecided"
