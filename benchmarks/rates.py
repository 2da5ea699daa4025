"""Does fit-rate name the law that made the data, and do its intervals cover? A simulation with planted truths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplr_cli.diagnostics import fit_rate

SERIES = int(os.environ.get("LPLR_BENCH_SERIES", "1000"))
NOISE = ((0.02, 0.0), (0.02, 0.5), (0.05, 0.0), (0.02, 0.9))
LENGTHS = (200, 1000)


@dataclass(frozen=True)
class Setting:
    """A planted law: L = floor + A exp(−k s), or floor + A (1 + s/t0)^−α, for s = t/T in [0, 1]."""

    law: str
    focus: float
    floor: float
    rows: int
    sigma: float
    phi: float

    def truth(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The curve without noise."""
        s = steps / self.rows
        decay = np.exp(-self.focus * s) if self.law == "linear" else (1 + s / 0.05) ** -self.focus
        return self.floor + 2.0 * decay

    def sample(self, seed: int) -> NDArray[np.float64]:
        """The curve times the exponential of AR(1) noise of standard deviation σ."""
        rng = np.random.default_rng([seed, self.rows, round(1000 * self.focus), round(100 * self.phi)])
        innovation = rng.normal(0.0, self.sigma * np.sqrt(1 - self.phi**2), self.rows)
        noise = np.empty(self.rows)
        noise[0] = rng.normal(0.0, self.sigma)
        for i in range(1, self.rows):
            noise[i] = self.phi * noise[i - 1] + innovation[i]
        return self.truth(np.arange(self.rows, dtype=np.float64)) * np.exp(noise)


def settings() -> Iterator[Setting]:
    """The grid of the table."""
    for law, focus, floor in (("linear", 6.0, 0.0), ("linear", 6.0, 0.05), ("sublinear", 1.0, 0.0)):
        for rows in LENGTHS:
            for sigma, phi in NOISE:
                yield Setting(law, focus, floor, rows, sigma, phi)


def _one(item: tuple[Setting, int]) -> tuple[str, bool | None]:
    setting, seed = item
    steps = np.arange(setting.rows, dtype=np.float64)
    fit = fit_rate(steps, setting.sample(seed))
    assert fit is not None
    if fit.verdict == "undecided":
        return fit.verdict, None
    if setting.law == "sublinear":
        if fit.alpha is None:
            return "linear", None
        low, high = fit.alpha_low or 0.0, fit.alpha_high or np.inf
        return "sublinear", low <= setting.focus <= high
    if fit.rate is None:
        return "sublinear", None
    rate = float(np.exp(-setting.focus / setting.rows))
    return "linear", (fit.rate_low or 0.0) <= rate <= (fit.rate_high or 1.0)


def report(series: int = SERIES) -> str:
    """A Markdown table; see docs/benchmarks.md."""
    head = (
        "| law | floor | rows | σ | φ | right law | other law | undecided | intervals that cover |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    rows = []
    covered: list[bool] = []
    with ProcessPoolExecutor() as pool:
        for setting in settings():
            found = list(pool.map(_one, [(setting, seed) for seed in range(series)], chunksize=20))
            right = [cover for verdict, cover in found if verdict == setting.law]
            undecided = sum(verdict == "undecided" for verdict, _ in found)
            hits = [bool(c) for c in right]
            covered += hits
            rows.append(
                f"| {setting.law} | {setting.floor:g} | {setting.rows:,} | {setting.sigma:g} | {setting.phi:g} "
                f"| {len(right) / series:.1%} | {(series - len(right) - undecided) / series:.1%} "
                f"| {undecided / series:.1%} | {np.mean(hits) if hits else np.nan:.1%} |"
            )
    return "\n".join([head, *rows, f"\nAll intervals together: {np.mean(covered):.2%} of {len(covered):,} cover."])


if __name__ == "__main__":
    print(report())
