"""Curves that a loss may follow: exponentials and a power law, which are offered as laws, and a stretched exponential,
a logarithm and a decay that an annealed step size slows, which only say what a curve looks like when no law holds. Each
has a floor.

All work on scaled data: time s in [0, 1] over the rows of the fit, losses of geometric mean 1. A curve is
m(s; p) > 0. Rates, amplitudes and exponents enter by their logarithms and so stay positive; the floor enters as it
is, with the bound 0, so that a loss without a floor can be fitted exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lplr_cli.diagnostics.least_squares import Array

# An exponent above this cannot be told from an exponential on any usual range.
MAX_EXPONENT = 6.0
MIN_EXPONENT = 0.05


@dataclass(frozen=True)
class Curve(ABC):
    """One family of curves.

    Attributes:
        name: as in outputs.
        parameters: names of p.
        focus: index of the parameter that intervals are given for.
    """

    name: str
    parameters: tuple[str, ...]
    focus: int

    @abstractmethod
    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian: shapes (n,), (n, p)."""

    @abstractmethod
    def bounds(self, rows: int) -> tuple[Array, Array]:
        """The box of p for a fit of ``rows`` rows."""

    @abstractmethod
    def starts(self, s: Array, y: Array) -> list[Array]:
        """Starting points, best first, for data s, y of moderate length."""

    def box(self, rows: int, ceiling: float) -> tuple[Array, Array]:
        """:meth:`bounds` with the floor at most ``ceiling``."""
        lower, upper = self.bounds(rows)
        upper[-1] = min(float(upper[-1]), ceiling)
        return lower, upper


def _non_negative_starts(bases: Array, y: Array, keep: int) -> list[tuple[int, Array]]:
    """Amplitudes of y ≈ Σ c_j basis_j + floor with weights 1/y, for many candidate bases at once.

    Args:
        bases: shape (candidates, terms, n).
        y: shape (n,).
        keep: how many of the best candidates to return.

    Returns:
        Pairs of candidate and coefficients (terms + 1, the floor last; clipped to be positive), least log-residual
        first.
    """
    candidates, terms, n = bases.shape
    # Within what the squares below can hold; a start need not be exact.
    y = np.clip(y, 1e-60, 1e60)
    design = np.concatenate([bases, np.ones((candidates, 1, n))], axis=1) / y
    gram = design @ design.transpose(0, 2, 1)
    right = design.sum(axis=2)
    ridge = 1e-10 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(terms + 1)
    found: list[tuple[float, int, Array]] = []
    # With and without the floor: clipping a negative one would leave the rest ill fitted.
    for size in (terms + 1, terms):
        part = np.linalg.solve((gram + ridge)[:, :size, :size], right[:, :size, None])[..., 0]
        coefficients = np.zeros((candidates, terms + 1))
        coefficients[:, :size] = part
        low = 1e-6 * np.abs(coefficients).max(axis=1, keepdims=True) + 1e-300
        coefficients[:, :terms] = np.maximum(coefficients[:, :terms], low)
        coefficients[:, terms] = np.maximum(coefficients[:, terms], 0.0)
        fitted = np.einsum("ct,ctn->cn", coefficients, design)
        cost = (np.log(np.maximum(fitted, 1e-300)) ** 2).sum(axis=1)
        found += [(float(c), i, coefficients[i]) for i, c in enumerate(cost) if np.isfinite(c)]
    found.sort(key=lambda item: item[0])
    return [(i, c) for _, i, c in found[:keep]]


def _rate_bounds(rows: int) -> tuple[float, float]:
    """Of log k on scaled time: from a decay of a thousandth over all rows to ten e-folds a row."""
    return float(np.log(1e-3)), float(np.log(10.0 * rows))


class Exponentials(Curve):
    """m = c + Σ_j exp(a_j − k_j s); p = (a_1, log k_1, …, c). Slowest rate first after :meth:`ordered`."""

    def __init__(self, terms: int) -> None:
        names = [f"{kind}_{j + 1}" for j in range(terms) for kind in ("log_amplitude", "log_rate")]
        super().__init__({1: "linear", 2: "two_rate"}.get(terms, f"{terms}_rates"), (*names, "floor"), 1)

    @property
    def terms(self) -> int:
        """How many exponentials."""
        return len(self.parameters) // 2

    def rate_at(self, p: Array, s: float) -> float:
        """−d log(m − c)/ds: the mean rate by the shares of the gap."""
        rate = np.exp(p[1:-1:2])
        gap = np.exp(p[:-1:2] - rate * s)
        return float((gap * rate).sum() / gap.sum())

    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian."""
        jacobian = np.empty((len(s), len(p)))
        m = np.full(len(s), p[-1])
        for j in range(self.terms):
            k = np.exp(p[2 * j + 1])
            term = np.exp(p[2 * j] - k * s)
            m += term
            jacobian[:, 2 * j] = term
            jacobian[:, 2 * j + 1] = -k * s * term
        jacobian[:, -1] = 1.0
        return m, jacobian

    def bounds(self, rows: int) -> tuple[Array, Array]:
        """Amplitudes are free within what a double holds, rates as the rows resolve them, the floor is not negative."""
        low, high = _rate_bounds(rows)
        return np.array([-600.0, low] * self.terms + [0.0]), np.array([600.0, high] * self.terms + [np.inf])

    def starts(self, s: Array, y: Array) -> list[Array]:
        """Rates from a geometric grid, amplitudes and floor by weighted linear least squares."""
        high = _rate_bounds(len(s))[1]
        log_rates = np.linspace(np.log(0.1), min(high, np.log(300.0)), 14 if self.terms == 1 else 9)
        choices = list(combinations(log_rates.tolist(), self.terms))
        bases = np.exp(-np.exp(np.array(choices))[:, :, None] * s)
        starts = []
        for index, coefficients in _non_negative_starts(bases, y, 3 if self.terms == 1 else 5):
            p = np.empty(len(self.parameters))
            p[0:-1:2] = np.log(coefficients[:-1])
            p[1::2] = choices[index]
            p[-1] = coefficients[-1]
            starts.append(p)
        if self.terms == 1:
            # Losses over hundreds of decades lie beyond what the linear least squares above hold.
            slope, level = np.polyfit(s, np.log(y), 1)
            starts.append(np.array([level, np.log(max(-slope, 1e-3)), 0.0]))
        return starts

    def ordered(self, p: Array) -> Array:
        """The same curve with its slowest rate first."""
        order = np.argsort(p[1:-1:2])
        return np.concatenate([*(p[2 * j : 2 * j + 2] for j in order), p[-1:]])


class PowerLaw(Curve):
    """m = c + exp(a) (1 + s/t0)^{-α}; p = (a, log t0, log α, c)."""

    def __init__(self) -> None:
        super().__init__("sublinear", ("log_amplitude", "log_t0", "log_alpha", "floor"), 2)

    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian."""
        a, t0, alpha, floor = p[0], np.exp(p[1]), np.exp(p[2]), p[3]
        ratio = s / t0
        logs = np.log1p(ratio)
        term = np.exp(a - alpha * logs)
        return floor + term, np.column_stack(
            [term, term * alpha * ratio / (1 + ratio), -alpha * logs * term, 1 + 0 * s]
        )

    def bounds(self, rows: int) -> tuple[Array, Array]:
        """t0 from a hundredth of a row to a hundred times the range, α in [MIN_EXPONENT, MAX_EXPONENT]."""
        return (
            np.array([-600.0, np.log(0.01 / rows), np.log(MIN_EXPONENT), 0.0]),
            np.array([600.0, np.log(100.0), np.log(MAX_EXPONENT), np.inf]),
        )

    def starts(self, s: Array, y: Array) -> list[Array]:
        """t0 and α from a grid, amplitude and floor by weighted linear least squares."""
        log_t0 = np.linspace(np.log(0.3 / len(s)), np.log(3.0), 8)
        choices = [(t, np.log(a)) for t in log_t0 for a in (0.25, 0.5, 1.0, 2.0, 4.0)]
        bases = np.array([[np.exp(-np.exp(la) * np.log1p(s / np.exp(t)))] for t, la in choices])
        return [np.array([np.log(c[0]), *choices[i], c[1]]) for i, c in _non_negative_starts(bases, y, 4)]


class Stretched(Curve):
    """m = c + exp(a − (k (s + s0))^β), s0 = 0 unless ``origin``; slower than an exponential for β < 1, faster above.

    p = (a, log k, log β, c), with log s0 before c where the time that had gone by at the first row is fitted.
    """

    def __init__(self, name: str = "stretched", origin: bool = False) -> None:
        extra = ("log_origin",) if origin else ()
        super().__init__(name, ("log_amplitude", "log_scale", "log_beta", *extra, "floor"), 2)
        self._origin = origin

    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian."""
        beta, origin = np.exp(p[2]), np.exp(p[3]) if self._origin else 0.0
        time = np.maximum(s + origin, 1e-300)
        logs = p[1] + np.log(time)
        inner = np.exp(np.minimum(beta * logs, 700.0))
        term = np.exp(p[0] - inner)
        columns = [term, -beta * inner * term, -beta * logs * inner * term]
        shift = [-beta * inner * term * origin / time] if self._origin else []
        return p[-1] + term, np.column_stack([*columns, *shift, 1 + 0 * s])

    def bounds(self, rows: int) -> tuple[Array, Array]:
        """k as the rates of exponentials with more room, β from a seventh to four, s0 up to all rows."""
        low, high = _rate_bounds(rows)
        shift = ([np.log(1e-2 / rows)], [0.0]) if self._origin else ([], [])
        return (
            np.array([-600.0, low, np.log(0.15), *shift[0], 0.0]),
            np.array([600.0, high + 12.0, np.log(4.0), *shift[1], np.inf]),
        )

    def starts(self, s: Array, y: Array) -> list[Array]:
        """k and β from a grid, amplitude and floor by weighted linear least squares; s0 a row."""
        choices = [(k, np.log(b)) for b in (0.3, 0.5, 0.7, 1.4, 2.0) for k in np.linspace(-1.0, 7.0, 9)]
        origin = 1 / len(s) if self._origin else 0.0
        bases = np.array([[np.exp(-((np.exp(k) * (s + origin)) ** np.exp(b)))] for k, b in choices])
        shift = [np.log(origin)] if self._origin else []
        found = _non_negative_starts(bases, y, 4)
        return [np.array([np.log(c[0]), *choices[i], *shift, c[1]]) for i, c in found]


class Logarithm(Curve):
    """m = c + exp(b) log((1 + 1/t0) / (1 + s/t0)); p = (b, log t0, c), c the value at the end."""

    def __init__(self) -> None:
        super().__init__("logarithm", ("log_slope", "log_t0", "floor"), 0)

    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian."""
        slope, t0 = np.exp(p[0]), np.exp(p[1])
        term = slope * (np.log1p(1 / t0) - np.log1p(s / t0))
        change = slope * (s / (t0 + s) - 1 / (t0 + 1))
        return p[2] + term, np.column_stack([term, change, 1 + 0 * s])

    def bounds(self, rows: int) -> tuple[Array, Array]:
        """t0 as for the power law."""
        return np.array([-600.0, np.log(0.01 / rows), 0.0]), np.array([600.0, np.log(100.0), np.inf])

    def starts(self, s: Array, y: Array) -> list[Array]:
        """t0 from a grid, slope and end by weighted linear least squares."""
        choices = np.linspace(np.log(0.3 / len(s)), np.log(3.0), 8)
        bases = np.array([[np.log1p(np.exp(-t)) - np.log1p(s * np.exp(-t))] for t in choices])
        return [np.array([np.log(c[0]), choices[i], c[1]]) for i, c in _non_negative_starts(bases, y, 3)]


class Annealed(Curve):
    """m = c + exp(a − k g(s)): the decay of one mode while the step size falls over all rows; p = (a, log k, q, c).

    Like a cosine, to (1 − q)/(1 + q) of what it was, g = s + q sin(πs)/π; or like a line, to 1 − q, g = s − q s²/2.
    """

    def __init__(self, name: str, bend: Callable[[Array], Array]) -> None:
        super().__init__(name, ("log_amplitude", "log_rate", "depth", "floor"), 1)
        self._bend = bend

    def value(self, p: Array, s: Array) -> tuple[Array, Array]:
        """m and its Jacobian."""
        k, bend = np.exp(p[1]), self._bend(s)
        time = s + p[2] * bend
        term = np.exp(p[0] - k * time)
        return p[3] + term, np.column_stack([term, -k * time * term, -k * bend * term, 1 + 0 * s])

    def bounds(self, rows: int) -> tuple[Array, Array]:
        """k as the rates of exponentials, q from a constant step size to one that ends at 0."""
        low, high = _rate_bounds(rows)
        return np.array([-600.0, low, 0.0, 0.0]), np.array([600.0, high, 1.0, np.inf])

    def starts(self, s: Array, y: Array) -> list[Array]:
        """k and q from a grid, amplitude and floor by weighted linear least squares."""
        choices = [(k, q) for q in (0.5, 0.95) for k in np.linspace(-1.0, 4.0, 9)]
        bases = np.array([[np.exp(-np.exp(k) * (s + q * self._bend(s)))] for k, q in choices])
        return [np.array([np.log(c[0]), *choices[i], c[1]]) for i, c in _non_negative_starts(bases, y, 3)]


LINEAR = Exponentials(1)
TWO_RATE = Exponentials(2)
# Asked where no other curve fits; the last only tells how much one more rate matters.
MORE_RATES: tuple[Exponentials, ...] = tuple(Exponentials(terms) for terms in (3, 4, 5, 6))
SUBLINEAR = PowerLaw()
STRETCHED = Stretched()
# Of a log whose first rows were left out; beside many rates, which resemble it.
SHIFTED = Stretched("stretched_from_before", origin=True)
LOGARITHM = Logarithm()
COSINE = Annealed("annealed_cosine", lambda s: np.asarray(np.sin(np.pi * s) / np.pi))
RAMP = Annealed("annealed_line", lambda s: -0.5 * s * s)
LAWS: tuple[Curve, ...] = (LINEAR, TWO_RATE, SUBLINEAR)
LABELS: tuple[Curve, ...] = (STRETCHED, LOGARITHM, COSINE, RAMP)
CURVES: tuple[Curve, ...] = LAWS + LABELS
