"""Loss curves of known truth for fit-rate and pl-ratio: planted laws under many noises, curves that follow no offered
law, and gradient descent on problems whose constants are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from lplr_cli.diagnostics.decay import COSINE, LINEAR, RAMP, SUBLINEAR, TWO_RATE, Curve
from lplr_cli.diagnostics.noise import Noise

Array = NDArray[np.float64]
Answer = Literal["linear", "sublinear", "none", "undecided"]


@dataclass(frozen=True)
class Sample:
    """One log and its truth.

    Attributes:
        loss: shape (T,); the steps are 0 … T − 1.
        rate: −log ρ a step that rules at the end of the log, where one does.
        alpha: exponent of the power law, where it is one.
        lr: step sizes, where the log has them.
        grad_norm_sq: where the log has it.
        mu: PL constant along the run, measured with the true L*.
        l_star: the true L*.
        law: the curve that was planted, where one was under noise that is known.
        noise: under it.
    """

    loss: Array
    rate: float | None = None
    alpha: float | None = None
    lr: Array | None = None
    grad_norm_sq: Array | None = None
    mu: float | None = None
    l_star: float | None = None
    law: Curve | None = None
    noise: Noise | None = None


@dataclass(frozen=True)
class Case:
    """A family of samples and the answers that are right.

    Attributes:
        group: heading of the table.
        name: of the family.
        right: verdicts that are right; two_rate counts as linear.
        part: whether a law for a named part of the log is right, too.
        open: whether the signal is too thin to ask for an answer: then only wrong ones count.
        thin: lengths at which it is.
        make: (rows, generator of random numbers) → sample.
        rows: lengths to try.
    """

    group: str
    name: str
    right: tuple[Answer, ...]
    make: Callable[[int, np.random.Generator], Sample]
    part: bool = False
    open: bool = False
    rows: tuple[int, ...] = (200, 1000)
    thin: tuple[int, ...] = ()


# --- noise on the logarithm ---------------------------------------------------------------------------------------


def white(n: int, rng: np.random.Generator, sigma: float) -> Array:
    """Independent normal values."""
    return rng.normal(0.0, sigma, n)


def ar(n: int, rng: np.random.Generator, sigma: float, phi: float) -> Array:
    """AR(1) of standard deviation ``sigma``."""
    burn = 400
    innovations = rng.normal(0.0, sigma * np.sqrt(1 - phi * phi), n + burn)
    values: Array = lfilter([1.0], [1.0, -phi], innovations)[burn:]
    return values


def arma(n: int, rng: np.random.Generator, sigma: float, phi: float, theta: float) -> Array:
    """ARMA(1,1) of standard deviation ``sigma``."""
    burn = 400
    scale = sigma * np.sqrt((1 - phi**2) / (1 + 2 * phi * theta + theta**2))
    values: Array = lfilter([1.0, theta], [1.0, -phi], rng.normal(0.0, scale, n + burn))[burn:]
    return values


def epochs(n: int, rng: np.random.Generator, sigma: float) -> Array:
    """The same order of batches in every epoch of twenty steps, and white noise."""
    batches: Array = np.resize(rng.normal(0.0, sigma, 20), n)
    return batches + rng.normal(0.0, 0.5 * sigma, n)


NOISES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "white 2 %": lambda n, rng: white(n, rng, 0.02),
    "white 5 %": lambda n, rng: white(n, rng, 0.05),
    "AR(0.5)": lambda n, rng: ar(n, rng, 0.02, 0.5),
    "AR(0.9)": lambda n, rng: ar(n, rng, 0.02, 0.9),
    "ARMA(0.8, 0.4)": lambda n, rng: arma(n, rng, 0.02, 0.8, 0.4),
    "white + AR(0.95)": lambda n, rng: white(n, rng, 0.02) + ar(n, rng, 0.02, 0.95),
    "t3": lambda n, rng: rng.standard_t(3, n) * 0.02 / np.sqrt(3),
    "epochs": lambda n, rng: epochs(n, rng, 0.02),
}


# φ and θ of those that are no white noise; of white + AR(0.95) in equal parts by their autocovariances. t3 and epochs
# count as white noise, which tells less.
PROCESSES: dict[str, tuple[float, float]] = {
    "AR(0.5)": (0.5, 0.0),
    "AR(0.9)": (0.9, 0.0),
    "ARMA(0.8, 0.4)": (0.8, 0.4),
    "white + AR(0.95)": (0.95, -0.7239),
}


def _time(n: int) -> Array:
    return np.arange(n) / n


def exponential(n: int, floor: float, k: float = 6.0) -> Array:
    """floor + 2 exp(−k s)."""
    return floor + 2.0 * np.exp(-k * _time(n))


def power(n: int, alpha: float = 1.0, t0: float = 0.05, floor: float = 0.0) -> Array:
    """floor + 2 (1 + s/t0)^−α."""
    return floor + 2.0 * (1 + _time(n) / t0) ** -alpha


def two_rates(n: int) -> Array:
    """A slow mode of four e-folds and one five times as fast."""
    return 0.01 + 0.5 * np.exp(-4 * _time(n)) + 1.5 * np.exp(-20 * _time(n))


def _noisy(
    curve: Callable[[int], Array], law: Curve, noise: str, **truth: float
) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        rate = truth["k"] / n if "k" in truth else None
        phi, theta = PROCESSES.get(noise, (0.0, 0.0))
        under = Noise(np.ones(n), phi=phi, theta=theta)
        loss = curve(n) * np.exp(NOISES[noise](n, rng))
        return Sample(loss, rate, truth.get("alpha"), law=law, noise=under)

    return make


def _additive(
    curve: Callable[[int], Array], law: Curve, **truth: float
) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        rate = truth["k"] / n if "k" in truth else None
        loss = curve(n) + rng.normal(0.0, 0.01, n)
        return Sample(loss, rate, truth.get("alpha"), law=law, noise=Noise(np.ones(n), additive=True))

    return make


def _smoothed(curve: Callable[[int], Array], **truth: float) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        raw = curve(n) * np.exp(rng.normal(0.0, 0.05, n))
        values: Array = lfilter([0.1], [1.0, -0.9], raw, zi=[0.9 * raw[0]])[0]
        return Sample(values, truth["k"] / n if "k" in truth else None, truth.get("alpha"))

    return make


def _laws() -> list[Case]:
    found = []
    for noise in NOISES:
        for floor in (0.0, 0.05):
            curve = lambda n, floor=floor: exponential(n, floor)  # noqa: E731
            found.append(Case("linear", f"floor {floor:g}, {noise}", ("linear",), _noisy(curve, LINEAR, noise, k=6.0)))
        found.append(Case("two rates", noise, ("linear",), _noisy(two_rates, TWO_RATE, noise, k=4.0)))
        found.append(Case("power law", f"α = 1, {noise}", ("sublinear",), _noisy(power, SUBLINEAR, noise, alpha=1.0)))
    half = lambda n: power(n, 0.5, 0.01)  # noqa: E731
    found += [
        Case("power law", "α = 0.5, white 2 %", ("sublinear",), _noisy(half, SUBLINEAR, "white 2 %", alpha=0.5)),
        # In 200 rows two exponentials behind another factor are as likely, within 5 of −2 log likelihood.
        Case("power law", "α = 1, smoothed", ("sublinear",), _smoothed(power, alpha=1.0), thin=(200,)),
        Case("linear", "additive noise", ("linear",), _additive(lambda n: exponential(n, 0.05), LINEAR, k=6.0)),
        Case("linear", "smoothed", ("linear",), _smoothed(lambda n: exponential(n, 0.05), k=6.0)),
        Case("power law", "additive noise", ("sublinear",), _additive(power, SUBLINEAR, alpha=1.0)),
        Case("linear", "one row × 1.3", ("linear",), _one_spike),
        Case("linear", "noise 10⁻⁴", ("linear",), _tiny_noise),
        Case("power law", "spikes that recover", ("sublinear",), _llm),
    ]
    found += [
        Case("many rates", f"{rates} rates, AR(0.8) of {sigma:.1%}", ("linear",), _many(rates, sigma))
        for rates in (3, 4, 6)
        for sigma in (0.001, 0.01)
    ]
    return found


def many_rates(n: int, rates: int) -> Array:
    """A slow mode of five e-folds and others up to twenty times as fast."""
    loss: Array = 0.02 + np.exp(-np.outer(_time(n), np.geomspace(5.0, 100.0, rates))).sum(axis=1)
    return loss


def _many(rates: int, sigma: float) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        gap = many_rates(n, rates)[-2:] - 0.02
        return Sample(many_rates(n, rates) * np.exp(ar(n, rng, sigma, 0.8)), float(np.log(gap[0] / gap[1])))

    return make


def _one_spike(n: int, rng: np.random.Generator) -> Sample:
    loss = exponential(n, 0.05) * np.exp(white(n, rng, 0.005))
    loss[int(0.45 * n)] *= 1.3
    return Sample(loss, 6.0 / n)


def _tiny_noise(n: int, rng: np.random.Generator) -> Sample:
    return Sample(exponential(n, 0.05) * np.exp(white(n, rng, 1e-4)), 6.0 / n)


def _llm(n: int, rng: np.random.Generator) -> Sample:
    """A power law with a floor, noise of 1 % and a few spikes that decay over some rows."""
    log = np.log(power(n, 0.7, 0.01, 0.1)) + ar(n, rng, 0.01, 0.5)
    for at in rng.integers(n // 10, n - 5, 5):
        length = int(rng.integers(1, 6))
        tail = np.arange(min(n - at, 5 * length))
        log[at : at + len(tail)] += rng.uniform(0.2, 0.8) * np.exp(-tail / length)
    return Sample(np.exp(log), alpha=0.7)


# --- no offered law, or one on a part -----------------------------------------------------------------------------


def _shape(log_curve: Callable[[Array], Array], curve: Curve | None = None) -> Callable[..., Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        noise = Noise(np.ones(n), phi=0.3)
        return Sample(np.exp(log_curve(_time(n)) + ar(n, rng, 0.02, 0.3)), law=curve, noise=noise)

    return make


def _falls_and_rises(s: Array) -> Array:
    rise: Array = np.maximum(s - 0.75, 0) / 0.25
    return np.log(0.05 + 1.5 * np.exp(-8 * s)) + float(np.log(2.6 / 0.054)) * rise**2


def _catapult(n: int, rng: np.random.Generator) -> Sample:
    """Slow progress broken by catapults: a rise over some rows, then a fast recovery."""
    log = -1.0 * _time(n)
    for at in np.sort(rng.uniform(0.1, 0.9, 4) * n).astype(int):
        up, down = int(rng.integers(4, 9)), int(rng.integers(10, 25))
        shape = np.concatenate([np.linspace(0, 1, up), np.exp(-np.arange(down * 4) / down)])
        stop = min(n, at + len(shape))
        log[at:stop] += rng.uniform(1.5, 3.0) * shape[: stop - at]
    return Sample(np.exp(log + white(n, rng, 0.002)))


def _step_decay(known: bool) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        """Noise floors that follow a step size divided by ten at a half and at three quarters."""
        s = _time(n)
        lr = np.select([s < 0.5, s < 0.75], [0.1, 0.01], 0.001)
        gap = np.empty(n)
        gap[0] = 2.0
        for t in range(1, n):
            gap[t] = gap[t - 1] + (200.0 / n) * lr[t] * (2.0 * lr[t] - gap[t - 1])
        loss = (0.02 + gap) * np.exp(white(n, rng, 0.02))
        return Sample(loss, lr=lr if known else None)

    return make


def _warm_up(n: int, rng: np.random.Generator) -> Sample:
    lr = np.minimum(np.arange(n) / (0.2 * n), 1.0)
    return Sample((0.02 + 2 * np.exp(-6.0 / n * np.cumsum(lr))) * np.exp(white(n, rng, 0.01)), 6.0 / n)


def _oscillating(n: int, rng: np.random.Generator) -> Sample:
    """Heavy ball on one mode: the envelope decays, the loss beats twice a period."""
    t = np.arange(n)
    beat = 0.15 + np.cos(2 * np.pi * t / 40) ** 2
    return Sample((2 * np.exp(-5 * t / n) * beat + 0.01) * np.exp(white(n, rng, 0.01)), 5.0 / n)


def _walk(n: int, rng: np.random.Generator) -> Sample:
    return Sample(np.exp(np.cumsum(rng.normal(0, 0.03, n))))


def _none() -> list[Case]:
    piece = np.piecewise
    shapes: list[tuple[str, Callable[[Array], Array], bool]] = [
        ("falls, then rises", _falls_and_rises, False),
        ("grows slowly at the end", lambda s: np.log(0.1 + np.exp(-9 * s) + 0.05 * np.maximum(s - 0.5, 0)), False),
        ("plateau, then drop", lambda s: np.log(0.02 + 2 * np.exp(-12 * np.maximum(s - 0.5, 0))), True),
        ("two phases, accelerating", lambda s: piece(s, [s < 0.5], [lambda x: -1.5 * x, lambda x: 3.25 - 8 * x]), True),
        ("three plateaus", lambda s: np.select([s < 0.2, s < 0.6], [1.0, 0.2], -0.8) + 0 * s, False),
        ("exp(−t²)", lambda s: -6 * s**2, False),
        ("stretched exponential 0.5", lambda s: -8 * np.sqrt(s), False),
        ("stretched exponential 0.35", lambda s: -6 * s**0.35, False),
        ("logarithm", lambda s: np.log(1 - 0.8 * np.log1p(100 * s) / np.log(101)), False),
        ("rises", lambda s: 0.8 * s, False),
        ("cosine schedule, lr unknown", lambda s: np.log(0.02 + 2 * np.exp(-5 * s - 1.6 * np.sin(np.pi * s))), False),
        ("linear schedule, lr unknown", lambda s: np.log(0.02 + 2 * np.exp(-5 * (2 * s - s * s))), False),
    ]
    # Two exponentials describe 200 rows under an annealed step size to 3 (line) and 6 (cosine) of −2 log likelihood,
    # 1,000 rows to 13 and 32.
    annealed = {"cosine schedule, lr unknown": COSINE, "linear schedule, lr unknown": RAMP}
    found = [Case("no law", name, ("none",), _shape(curve, annealed.get(name)), part) for name, curve, part in shapes]
    found += [
        Case("no law", "catapults", ("none",), _catapult, True),
        Case("no law", "step decay, lr unknown", ("none",), _step_decay(False), True),
        Case("no law", "step decay, lr known", ("none",), _step_decay(True), True),
        Case("no law", "warm-up, lr unknown", ("none",), _warm_up, True),
        Case("no law", "oscillating", ("none", "linear"), _oscillating),
        Case("no law", "flat", ("none", "undecided"), _shape(lambda s: 0 * s)),
        Case("no law", "random walk", ("none", "undecided"), _walk, open=True),
        Case("no law", "cubic slowing", ("none",), _shape(lambda s: -3 * (1 - (1 - s) ** 3) + 0.4 * np.sin(9 * s))),
    ]
    return found


# --- problems with known constants, noise-free --------------------------------------------------------------------


def _quadratic(condition: float, l_star: float, modes: int, length: float) -> Callable[..., Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        """Gradient descent with η = 1/β on ½ Σ h x² + L*; ``length`` e-folds of the slowest mode at most."""
        h = np.geomspace(1.0 / condition, 1.0, modes)
        steps = min(n, int(length / (-2 * np.log1p(-h[0]))) if modes else n)
        start = rng.normal(size=modes)
        return _descend(h, start, l_star, 1.0, max(steps, 60))

    return make


def _descend(h: Array, start: Array, l_star: float, eta: float, steps: int) -> Sample:
    t = np.arange(steps)
    squares = start**2 * np.abs(1 - eta * h) ** (2.0 * t[:, None])
    gap, grad = 0.5 * squares @ h, squares @ h**2
    seen = gap > 1e-13 * max(l_star, 1e-250)
    last = int(np.flatnonzero(seen)[-1])
    end = squares[last - 1 : last + 1] @ h
    mu = float(np.min(0.5 * grad[seen] / gap[seen]))
    return Sample(l_star + gap, float(np.log(end[0] / end[1])), grad_norm_sq=grad, mu=mu, l_star=l_star)


def _wishart(samples: int, features: int, l_star: float) -> Callable[..., Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        x = rng.normal(size=(samples, features)) / np.sqrt(samples)
        h = np.linalg.eigvalsh(x.T @ x)
        return _descend(h / h[-1], rng.normal(size=features), l_star, 1.0, n)

    return make


def _logistic(separable: bool) -> Callable[[int, np.random.Generator], Sample]:
    def make(n: int, rng: np.random.Generator) -> Sample:
        """Full-batch gradient descent; the linear rate of the other kind is that of the last rows."""
        x = rng.normal(size=(80, 4))
        weights = rng.normal(size=4)
        noise = 0.0 if separable else 1.5
        y = np.sign(x @ weights + noise * rng.normal(size=80))
        z = x * y[:, None]
        eta = 4.0 / np.linalg.eigvalsh(z.T @ z / 80)[-1]
        if separable:
            z[np.abs(x @ weights) < 0.3] *= 2.0
        theta, loss, grad = np.zeros(4), np.empty(n), np.empty(n)
        for t in range(n):
            margin = z @ theta
            slope = z.T @ (-1 / (1 + np.exp(margin))) / 80
            loss[t], grad[t] = np.logaddexp(0, -margin).mean(), slope @ slope
            theta -= eta * slope
        return Sample(loss, grad_norm_sq=grad)

    return make


def _denormal(n: int, rng: np.random.Generator) -> Sample:
    del rng
    loss = 0.01 ** np.arange(min(n, 170), dtype=float)
    return Sample(loss[loss > 0], -float(np.log(0.01)))


def _exact() -> list[Case]:
    found = []
    for condition in (3.0, 10.0, 100.0):
        for l_star in (0.0, 0.1):
            for modes in (2, 20):
                name = f"quadratic, condition {condition:g}, {modes} modes, L* = {l_star:g}"
                found.append(Case("exact", name, ("linear",), _quadratic(condition, l_star, modes, 20.0)))
    found += [
        Case("exact", "least squares 100 × 50, L* = 0", ("linear",), _wishart(100, 50, 0.0)),
        Case("exact", "least squares 100 × 50, L* = 0.1", ("linear",), _wishart(100, 50, 0.1)),
        Case("exact", "least squares 100 × 20, L* = 0.1", ("linear",), _wishart(100, 20, 0.1)),
        Case("exact", "logistic, not separable", ("linear",), _logistic(False)),
        Case("exact", "logistic, separable", ("sublinear",), _logistic(True), rows=(1000,), open=True),
        Case("exact", "losses below the normal range", ("linear",), _denormal, rows=(200,)),
        Case("exact", "exponential", ("linear",), lambda n, rng: Sample(exponential(n, rng.uniform(0, 0.2)), 6 / n)),
        Case("exact", "power law", ("sublinear",), lambda n, rng: Sample(power(n, rng.uniform(0.4, 2)))),
        Case("exact", "stretched exponential", ("none",), lambda n, rng: Sample(np.exp(-8 * _time(n) ** 0.5))),
        Case("exact", "logarithm", ("none",), lambda n, rng: Sample(2 - 0.3 * np.log1p(100 * _time(n)))),
        Case("exact", "exp(−t²)", ("none",), lambda n, rng: Sample(np.exp(-6 * _time(n) ** 2))),
    ]
    return found


def _short() -> list[Case]:
    found = []
    for rows in (12, 20, 40):
        kinds: list[tuple[str, Answer, Callable[[int], Array]]] = [
            ("linear", "linear", lambda n: exponential(n, 0.05)),
            ("power law", "sublinear", power),
            ("power law, α = 0.5", "sublinear", lambda n: power(n, 0.5, 0.02)),
        ]
        for name, answer, curve in kinds:
            straight = answer == "linear"
            make = _noisy(curve, LINEAR if straight else SUBLINEAR, "white 2 %", **({"k": 6.0} if straight else {}))
            found.append(Case("short", name, (answer,), make, open=True, rows=(rows,)))
    return found


CASES: tuple[Case, ...] = (*_laws(), *_none(), *_exact(), *_short())
