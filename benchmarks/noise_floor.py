"""The noise floor that is predicted from the last iterate of a run, against the one that the run shows.

Planted least squares: n samples of a d-dimensional Gaussian with a spread spectrum, targets with noise, SGD by a plain
loop over batches. Predicted: Σ and H at the last θ through random vectors, as the commands do it. Measured: the mean
loss at the ends of the second half of the epochs less the least-squares minimum, and L_∞ of fit-rate less the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lplr_cli.batches import REPLACEMENT, RESHUFFLED, Batches
from lplr_cli.curvature import GradientNoise, StepRule
from lplr_cli.diagnostics import fit_rate
from lplr_cli.losses import SQUARED
from lplr_cli.ntk import Network

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A planted problem: data, how batches are drawn, how steps are made, and how many."""

    x: Array
    y: Array
    batches: Batches
    rule: StepRule
    epochs: int

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.batches.sampling}{', momentum' if self.rule.momentum else ''}"


def case(seed: int) -> Case:
    """One of the planted problems."""
    random = np.random.default_rng(seed)
    n, d = int(random.integers(60, 500)), int(random.integers(2, 16))
    scale = np.geomspace(1, random.uniform(0.2, 1), d)
    x = random.standard_normal((n, d)) * scale
    y = x @ random.standard_normal(d) + random.uniform(0.3, 2) * random.standard_normal(n)
    size = int(random.integers(2, max(3, n // 8)))
    sampling = (RESHUFFLED, REPLACEMENT)[seed % 2]
    momentum = 0.8 if seed % 4 >= 2 else 0.0
    values = np.linalg.eigvalsh(2 * x.T @ x / n)
    # Batches are less well conditioned than all data: stay well below their threshold.
    eta = random.uniform(0.02, 0.3) * (1 - momentum) / (values[-1] * (1 + 2 * d / size))
    batches = Batches(n, size, sampling)
    per_epoch = -(-n // size)
    settle = 10 * (1 - momentum) / (eta * values[0]) / per_epoch
    epochs = int(min(max(2 * settle, 200), 4000))
    return Case(x, y, batches, StepRule(eta, momentum=momentum), epochs)


def run(c: Case, seed: int) -> tuple[Array, Array]:
    """Losses at the ends of epochs, and the last θ."""
    random = np.random.default_rng(seed + 10_000)
    n, d = c.x.shape
    theta, velocity = np.zeros(d), np.zeros(d)
    losses = [float(np.mean((c.x @ theta - c.y) ** 2))]
    per_epoch, b = -(-n // c.batches.size), c.batches.size
    for _ in range(c.epochs):
        order = random.permutation(n)
        for k in range(per_epoch):
            rows = random.integers(0, n, b) if c.batches.sampling == REPLACEMENT else order[k * b : (k + 1) * b]
            x = c.x[rows]
            velocity = c.rule.momentum * velocity + 2 * x.T @ (x @ theta - c.y[rows]) / len(rows)
            theta = theta - c.rule.lr * velocity
        losses.append(float(np.mean((c.x @ theta - c.y) ** 2)))
    return np.array(losses), theta


def predicted(c: Case, theta: Array) -> float:
    """From the last iterate alone."""
    layer = torch.nn.Linear(len(theta), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(theta[None]))
    found = GradientNoise(
        Network.from_module(layer), torch.from_numpy(c.x), torch.from_numpy(c.y[:, None]), SQUARED.values
    )
    floor = found.floor(c.rule, c.batches)
    assert floor is not None
    return floor


def minimum(c: Case) -> float:
    """L*."""
    theta = np.linalg.lstsq(c.x, c.y, rcond=None)[0]
    return float(np.mean((c.x @ theta - c.y) ** 2))


def tail_floor(c: Case, losses: Array) -> float:
    """E[L − L*] as the second half of the run shows it."""
    return float(losses[len(losses) // 2 :].mean()) - minimum(c)


def report(count: int = 100) -> str:
    """How often the prediction lies within a factor 2 of the run, and of fit-rate where that names a law."""
    shown: dict[str, list[tuple[float, float]]] = {}
    for seed in range(count):
        c = case(seed)
        losses, theta = run(c, seed)
        fit = fit_rate(np.arange(len(losses), dtype=float), losses)
        fitted = math.nan if fit is None or fit.l_inf is None else fit.l_inf - minimum(c)
        guess = predicted(c, theta)
        shown.setdefault(c.label, []).append((guess / tail_floor(c, losses), guess / fitted))
    shown["all"] = [pair for pairs in list(shown.values()) for pair in pairs]
    lines = [
        "| batches | problems | within a factor 2 | predicted/measured, 5 to 95 % | fit-rate names a floor | within |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, pairs in shown.items():
        ratios = np.array([a for a, _ in pairs])
        named = np.array([b for _, b in pairs if math.isfinite(b)])
        low, high = np.quantile(ratios, [0.05, 0.95])
        lines.append(
            f"| {label} | {len(pairs)} | {_inside(ratios)} | {low:.2f} to {high:.2f} | {len(named)} "
            f"| {_inside(named)} |"
        )
    return "\n".join(lines)


def _inside(ratios: Array) -> int:
    return int(((ratios >= 0.5) & (ratios <= 2)).sum())


if __name__ == "__main__":
    print(report())
