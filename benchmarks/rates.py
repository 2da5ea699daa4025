"""Does fit-rate name the law that made the data, say so where there is none, and do its intervals cover?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.rate_cases import CASES, Case, Sample
from lplr_cli.diagnostics import Convergence, analyse_rate, clean_series

SERIES = int(os.environ.get("LPLR_BENCH_SERIES", "40"))


def log_of(sample: Sample) -> pd.DataFrame:
    """The sample as a log."""
    table = pd.DataFrame({"step": np.arange(len(sample.loss), dtype=float), "loss": sample.loss})
    for name in ("lr", "grad_norm_sq"):
        values = getattr(sample, name)
        if values is not None:
            table[name] = values
    return table


def sample_of(case: Case, rows: int, seed: int) -> Sample:
    """Sample number ``seed`` of a case."""
    return case.make(rows, np.random.default_rng([seed, rows, *case.name.encode()]))


@dataclass(frozen=True)
class Outcome:
    """What the tool said of one sample.

    Attributes:
        answer: right, wrong, or undecided.
        said: the verdict.
        covered: whether the interval holds the truth; None without a law or a known truth.
        error: of −log ρ, relative, where the truth is known.
    """

    answer: str
    said: str
    covered: bool | None
    error: float | None


def judge(case: Case, sample: Sample, result: Convergence) -> Outcome:
    """Hold a result against the truth."""
    fit = result.fit
    verdict = "linear" if fit.verdict == "two_rate" else fit.verdict
    part = fit.part
    right = verdict in case.right or (case.part and part is not None and verdict == "linear")
    answer = "right" if right else "undecided" if verdict == "undecided" else "wrong"
    covered = error = None
    if right and verdict == "linear" and fit.rate and sample.rate is not None:
        covered = (fit.rate_low or 0.0) <= np.exp(-sample.rate) <= (fit.rate_high or 1.0)
        error = abs(np.log(fit.rate) / sample.rate + 1)
    if right and verdict == "sublinear" and sample.alpha is not None:
        covered = (fit.alpha_low or 0.0) <= sample.alpha <= (fit.alpha_high or np.inf)
    said = fit.verdict + ("" if part is None else "*")
    return Outcome(answer, said, covered, error)


@dataclass(frozen=True)
class Cell:
    """Outcomes of all samples of one case and length."""

    case: Case
    rows: int
    outcomes: tuple[Outcome, ...]

    def share(self, answer: str) -> float:
        """Of the samples."""
        return float(np.mean([o.answer == answer for o in self.outcomes]))

    @property
    def coverage(self) -> float | None:
        """Share of intervals that hold the truth."""
        known = [o.covered for o in self.outcomes if o.covered is not None]
        return float(np.mean(known)) if known else None

    @property
    def misses(self) -> bool:
        """Beyond the targets: at most 2 % wrong, at least 90 % right where the signal allows."""
        return self.share("wrong") > 0.02 or (not self.case.open and self.share("right") < 0.9)

    def row(self) -> str:
        """Of the Markdown table."""
        counts = pd.Series([o.said for o in self.outcomes]).value_counts()
        errors = [o.error for o in self.outcomes if o.error is not None]
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        cover = "" if self.coverage is None else f"{self.coverage:.0%}"
        worst = f"{max(errors):.1%}" if errors else ""
        return (
            f"| {self.case.group} | {self.case.name} | {self.rows:,} | {self.share('right'):.0%} "
            f"| {self.share('wrong'):.0%} | {self.share('undecided'):.0%} | {cover} | {worst} | {said} "
            f"| {'misses' if self.misses else ''} |"
        )


def cells(cases: Sequence[Case] = CASES, series: int = SERIES) -> list[Cell]:
    """Run the grid, one process."""
    found = []
    for case in cases:
        for rows in case.rows:
            outcomes = []
            for seed in range(series):
                sample = sample_of(case, rows, seed)
                outcomes.append(judge(case, sample, analyse_rate(clean_series(log_of(sample)))))
            found.append(Cell(case, rows, tuple(outcomes)))
            print(found[-1].row(), file=sys.stderr, flush=True)
    return found


HEAD = (
    "| group | curve | rows | right | wrong | undecided | cover | worst error of the rate | said | |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---|---|"
)


def report(series: int = SERIES) -> str:
    """A Markdown table; see docs/benchmarks.md."""
    found = cells(series=series)
    covered = [o.covered for cell in found for o in cell.outcomes if o.covered is not None]
    return "\n".join(
        [HEAD, *(cell.row() for cell in found), f"\nIntervals that cover: {np.mean(covered):.2%} of {len(covered):,}."]
    )


if __name__ == "__main__":
    print(report())
