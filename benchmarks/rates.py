"""Does fit-rate name the law that made the data, say so where there is none, and do its intervals cover?

``python -m benchmarks.rates FILE [GROUP …]`` appends the outcome of every series to FILE as it comes, and a run that
was stopped goes on where it ended; every group of cases in a process of its own uses all cores.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.rate_cases import CASES, Case, Sample
from lplr_cli.diagnostics import Convergence, analyse_rate, clean_series
from lplr_cli.diagnostics.decay import LAWS, LINEAR, SUBLINEAR, TWO_RATE, Curve
from lplr_cli.diagnostics.fit_data import scaled
from lplr_cli.diagnostics.fits import DOUBTED, fit_one
from lplr_cli.diagnostics.laws import EVIDENCE

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
        answer: right, wrong, undecided, or thin (undecided, as is who knows the noise).
        said: the verdict.
        covered: whether the interval holds the truth; None without a law or a known truth.
        error: of −log ρ, relative, where the truth is known.
        misfit: p-value of a law that is right, against a free curve; None elsewhere.
    """

    answer: str
    said: str
    covered: bool | None
    error: float | None
    misfit: float | None


def told(sample: Sample) -> bool:
    """Whether a fit that knows the noise and the law, but for its constants, tells it from the other laws.

    By the evidence that the tool asks for; True where no noise is known.
    """
    if sample.law is None or sample.noise is None or (sample.loss <= 0).any():
        return True
    data = scaled(np.arange(len(sample.loss), dtype=float), sample.loss)
    others: tuple[Curve, ...] = {SUBLINEAR: (LINEAR, TWO_RATE), LINEAR: (SUBLINEAR,), TWO_RATE: (SUBLINEAR,)}.get(
        sample.law, LAWS
    )
    own, *rivals = (fit_one(curve, data, sample.noise).bic for curve in (sample.law, *others))
    return min(rivals) - own >= EVIDENCE


def judge(case: Case, sample: Sample, result: Convergence) -> Outcome:
    """Hold a result against the truth."""
    fit = result.fit
    verdict = "linear" if fit.verdict == "two_rate" else fit.verdict
    part = fit.part
    right = verdict in case.right or (case.part and part is not None and verdict == "linear")
    answer = "right" if right else "wrong"
    if not right and verdict == "undecided":
        answer = "undecided" if told(sample) else "thin"
    covered = error = None
    if right and verdict == "linear" and fit.rate and sample.rate is not None:
        covered = bool((fit.rate_low or 0.0) <= np.exp(-sample.rate) <= (fit.rate_high or 1.0))
        error = float(abs(np.log(fit.rate) / sample.rate + 1))
    if right and verdict == "sublinear" and sample.alpha is not None:
        covered = bool((fit.alpha_low or 0.0) <= sample.alpha <= (fit.alpha_high or np.inf))
    said = fit.verdict + ("" if part is None else "*")
    return Outcome(answer, said, covered, error, None if covered is None or part is not None else fit.misfit)


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
        """Beyond the targets: at most 2 % wrong, at least 90 % right of those that the signal tells."""
        asked = not self.case.open and self.rows not in self.case.thin
        return self.share("wrong") > 0.02 or (asked and self.share("right") < 0.9 * (1 - self.share("thin")))

    def row(self) -> str:
        """Of the Markdown table."""
        counts = pd.Series([o.said for o in self.outcomes]).value_counts()
        errors = [o.error for o in self.outcomes if o.error is not None]
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        cover = "" if self.coverage is None else f"{self.coverage:.0%}"
        worst = f"{max(errors):.1%}" if errors else ""
        answers = " | ".join(f"{self.share(answer):.0%}" for answer in ("right", "wrong", "undecided", "thin"))
        return (
            f"| {self.case.group} | {self.case.name} | {self.rows:,} | {len(self.outcomes)} | {answers} | {cover} "
            f"| {worst} | {said} | {'misses' if self.misses else ''} |"
        )


class Kept:
    """Outcomes in a file, a line a series, so that a long run can go on; or in memory alone.

    Args:
        path: of the file; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        records = [json.loads(line) for line in lines]
        self.known = {tuple(one["series"]): Outcome(**one["outcome"]) for one in records}

    def outcome(self, case: Case, rows: int, seed: int) -> Outcome:
        """Of one series, tried unless it is known."""
        key = (case.group, case.name, rows, seed)
        if key not in self.known:
            sample = sample_of(case, rows, seed)
            self.known[key] = judge(case, sample, analyse_rate(clean_series(log_of(sample))))
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"series": key, "outcome": asdict(self.known[key])}) + "\n")
        return self.known[key]


def cells(
    cases: Sequence[Case] = CASES, series: int = SERIES, path: Path | None = None, first: int = 0
) -> Iterator[Cell]:
    """Run the grid, one process; a cell as soon as it is done; series from number ``first`` on."""
    kept = Kept(path)
    for case in cases:
        for rows in case.rows:
            yield Cell(case, rows, tuple(kept.outcome(case, rows, first + seed) for seed in range(series)))


HEAD = (
    "| group | curve | rows | series | right | wrong | undecided | thin | cover | worst error of the rate | said | |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|"
)


def totals(found: Sequence[Cell]) -> str:
    """Coverage, and how often the note of a law that may not be exact stands beside a right one."""
    outcomes = [o for cell in found for o in cell.outcomes]
    covered = [o.covered for o in outcomes if o.covered is not None]
    doubted = [o.misfit < DOUBTED for o in outcomes if o.misfit is not None]
    if not covered:
        return f"{len(outcomes):,} series."
    return (
        f"{len(outcomes):,} series. Intervals that cover: {np.mean(covered):.2%} of {len(covered):,}. Right laws "
        f"doubted at {DOUBTED:g}: {np.mean(doubted):.2%} of {len(doubted):,}."
    )


def report(series: int = 1) -> str:
    """A Markdown table of a sample of the grid, the whole of which takes an hour of a core; see docs/benchmarks.md."""
    found = list(cells(series=series))
    return "\n".join([HEAD, *(cell.row() for cell in found), "", totals(found)])


def main() -> None:
    """The grid, or some groups of it, a row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="outcomes, a JSON line a series")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(dict.fromkeys(c.group for c in CASES)))
    parser.add_argument("--first", type=int, default=0, help="number of the first series, for some not yet seen")
    said = parser.parse_args()
    cases = [case for case in CASES if not said.groups or case.group in said.groups]
    print(HEAD, flush=True)
    found = []
    for cell in cells(cases, path=said.file, first=said.first):
        found.append(cell)
        print(cell.row(), flush=True)
    print("\n" + totals(found))


if __name__ == "__main__":
    main()
