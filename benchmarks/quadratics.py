"""Is gradient descent on strongly convex quadratics called linear, with the rate that rules at the end of the log?

``python -m benchmarks.quadratics`` draws problems of condition 2 to 10,000 with 2 to 100 modes (spectra that are
geometric, even, log-uniform or of a Wishart matrix), L* from 0 to 1, steps of 0.1/β to 1.5/β and logs of 60 to 3,000
rows that end after one to twenty e-folds of the slowest mode where the rows allow; see docs/benchmarks.md.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.diagnostics import analyse_pl_ratio, analyse_rate, clean_series

Array = NDArray[np.float64]
PROBLEMS = int(os.environ.get("LPLR_BENCH_SERIES", "100"))
# Suboptimality below this share of L* is rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Problem:
    """A log of gradient descent and its truth.

    Attributes:
        log: step, loss, grad_norm_sq.
        rate: −log of the factor of L − L* at the last step above rounding.
        mu: smallest ratio ½||∇L||²/(L − L*) along the log, above rounding.
        folds: e-folds of the slowest mode in the log.
    """

    log: pd.DataFrame
    rate: float
    mu: float
    folds: float


def spectrum(rng: np.random.Generator) -> Array:
    """Curvatures, the largest 1, ascending."""
    condition = float(np.exp(rng.uniform(np.log(2), np.log(1e4))))
    modes, kind = int(rng.choice([2, 3, 5, 10, 20, 50, 100])), rng.choice(["geometric", "even", "wishart", "log"])
    if kind == "geometric":
        return np.asarray(np.geomspace(1 / condition, 1, modes))
    if kind == "even":
        return np.linspace(1 / condition, 1, modes)
    if kind == "log":
        inner = np.sort(np.exp(rng.uniform(-np.log(condition), 0, modes)))
        inner[0], inner[-1] = 1 / condition, 1.0
        return np.asarray(inner)
    x = rng.normal(size=(int(modes * rng.uniform(1.3, 4)) + 1, modes))
    values = np.linalg.eigvalsh(x.T @ x)
    return np.asarray(values / values[-1])


def problem(number: int) -> Problem:
    """Problem ``number`` of the trial."""
    rng = np.random.default_rng([77, number])
    h = spectrum(rng)
    l_star, eta = float(rng.choice([0, 0.1, 0.01, 1.0])), float(rng.choice([1.0, 1.0, 0.5, 1.5, 0.1]))
    slowest = float((-2 * np.log(np.abs(1 - eta * h) + 1e-300)).min())
    steps = int(np.clip(float(rng.choice([1, 2, 3, 4, 6, 10, 20])) / slowest, 60, 3000))
    squares = rng.normal(size=len(h)) ** 2 * np.abs(1 - eta * h) ** (2.0 * np.arange(steps)[:, None])
    gap, square = 0.5 * squares @ h, squares @ h**2
    seen = np.flatnonzero(gap > _ROUNDING * max(l_star, 1e-250))
    last = max(int(seen[-1]), 1)
    log = pd.DataFrame({"step": np.arange(float(steps)), "loss": l_star + gap, "grad_norm_sq": square})
    rate = float(np.log(gap[last - 1] / gap[last]))
    return Problem(log, rate, float((0.5 * square[seen] / gap[seen]).min()), slowest * steps)


def report(problems: int = PROBLEMS) -> str:
    """Verdicts, errors of the rate and brackets; a Markdown table."""
    said: Counter[str] = Counter()
    errors: list[float] = []
    far: list[float] = []
    held = 0
    for number in range(problems):
        truth = problem(number)
        series = clean_series(truth.log)
        fit, ratio = analyse_rate(series).fit, analyse_pl_ratio(series)
        said[fit.verdict] += 1
        if fit.verdict in ("linear", "two_rate") and fit.rate is not None:
            error = abs(float(np.log(fit.rate)) / truth.rate + 1)
            (errors if truth.folds >= 1 else far).append(error)
        low, high = ratio.pl_ratio_star.min, ratio.pl_ratio_proxy.min
        # Without a window nothing is said from above; losses are rounded.
        held += (low or 0.0) * (1 - 1e-12) <= truth.mu <= (np.inf if high is None else high * (1 + 1e-5))
    rows = [
        ("verdicts", ", ".join(f"{name} {count}" for name, count in said.most_common())),
        ("error of −log ρ, median, 95 %, worst", ", ".join(f"{v:.2%}" for v in np.quantile(errors, [0.5, 0.95, 1]))),
        ("worst below one e-fold of the slowest mode", f"{max(far, default=0.0):.1%} of {len(far)}"),
        ("bracket holds the constant", f"{held} of {problems}"),
    ]
    return "\n".join([f"| {problems} quadratics | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


if __name__ == "__main__":
    print(report())
