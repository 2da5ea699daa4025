"""What a preset judges: observations of the paper, each by a rule that was fixed before the runs.

A statement that does not hold is reported so, and one that the runs do not tell is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.runs import RunDirectory

Row = dict[str, Any]
Series = NDArray[np.float64]
TEXT = ("run", "status", "regime", "law", "departures", "path_breaks", "follows", "error")


@dataclass(frozen=True)
class Statement:
    """One observation of the paper, judged on our runs.

    Attributes:
        key: M1 to M5, W1 to W5, B (the boundary), R1 to R4 or C1 to C4 as in the paper's order; T1, T2, C5 and
            C6 are beyond the paper.
        text: the observation, with the rule it is judged by.
        holds: None when the runs do not tell.
        figures: what it was judged on.
        differs: where our setting is not the paper's, as far as it matters to this statement; empty where it does not.
    """

    key: str
    text: str
    holds: bool | None
    figures: str
    differs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "key": self.key,
            "text": self.text,
            "holds": self.holds,
            "figures": self.figures,
            "differs": self.differs or None,
        }


def records(frame: pd.DataFrame) -> list[Row]:
    """Rows with NaN for a missing number, which no comparison lets pass, and None for missing text."""
    found = []
    for row in frame.to_dict("records"):
        found.append({str(k): (None if k in TEXT else math.nan) if pd.isna(v) else v for k, v in row.items()})
    return found


def span(values: Sequence[float]) -> str:
    """Figures for people, to three digits."""
    return ", ".join(f"{v:.3g}" for v in values)


def every(parts: Sequence[bool | None]) -> bool | None:
    """Whether all hold; unknown where none fails and one is unknown."""
    return False if False in parts else None if None in parts else True


def series(out: Path, name: str, column: str) -> Series:
    """A column of the log of a run, where it is known."""
    log = RunDirectory.open(out / name).log()
    return log[column].dropna().to_numpy(dtype=np.float64)


def probed(out: Path, name: str) -> tuple[Series, Series]:
    """Steps of the probes of a run, and λ_min there."""
    probes = RunDirectory.open(out / name).probes()
    return tuple(probes[c].to_numpy(dtype=np.float64) for c in ("step", "lambda_min"))  # type: ignore[return-value]


def along(rows: Sequence[Row]) -> list[Statement]:
    """T1 and T2, beyond the paper: what is proved along the paths of the runs that stayed, and of those that left.

    Args:
        rows: of the table of results.
    """
    finished = [r for r in rows if r["status"] == "finished"]
    stayed = [r for r in finished if r["regime"] in ("stayed", "recovered")]
    left = [r for r in finished if r["regime"] in ("left", "left again")]
    return [*([_proved(stayed)] if stayed else []), *([_broken(left)] if left else [])]


def _all_or_unknown(rows: Sequence[Row], holds: Callable[[Row], bool]) -> bool | None:
    """Whether it holds for every run; None where the path of one has no certificate."""
    return None if any(math.isnan(r["path_share_certified"]) for r in rows) else all(map(holds, rows))


def _proved(stayed: Sequence[Row]) -> Statement:
    def whole(r: Row) -> bool:
        return bool(r["path_share_certified"] == 1 and r["path_rate"] < 1 and r["path_rate_from_step"] <= 5)

    figures = (
        f"{r['run']}: share {r['path_share_certified']:.4g}, μ {r['mu_path']:.4g}, rate {r['path_rate']:.6g} "
        f"from step {r['path_rate_from_step']:.0f}"
        for r in stayed
    )
    return Statement(
        "T1",
        "beyond the paper: the conclusion of its Theorem 5.7 is proved along the path of each run that stays "
        "(share 1, a rate from step 5 or before on)",
        _all_or_unknown(stayed, whole),
        "; ".join(figures),
    )


def _broken(left: Sequence[Row]) -> Statement:
    figures = (f"{r['run']}: {r['path_breaks']}; share {r['path_share_certified']:.4g}" for r in left)
    return Statement(
        "T2",
        "beyond the paper: for the run that leaves, the proof breaks at a step that is named",
        _all_or_unknown(left, lambda r: bool(r["path_breaks"])),
        "; ".join(figures),
    )
