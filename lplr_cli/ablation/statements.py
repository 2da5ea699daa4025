"""What the paper observed (P sections 6.2 and 6.3), judged on our runs.

A statement is judged by the rule written beside it, fixed before the runs, and a statement that does not hold is
reported so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.ablation.recover import NTK_DRIFT
from lplr_cli.runs import RunDirectory

Row = dict[str, Any]
# How near λ_min must stay to its start, and the smallest share of the median that a PL ratio may fall to.
_KEPT, _BOUNDED = 0.15, 0.5


@dataclass(frozen=True)
class Statement:
    """One observation of the paper, judged on our runs.

    Attributes:
        key: W1 to W5, R1 to R4, or S1 to S4.
        text: the observation, with the rule it is judged by.
        holds: None when the runs do not tell.
        figures: what it was judged on.
    """

    key: str
    text: str
    holds: bool | None
    figures: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"key": self.key, "text": self.text, "holds": self.holds, "figures": self.figures}


_TEXT = ("run", "status", "regime", "law", "departures", "follows", "error")


def _records(frame: pd.DataFrame) -> list[Row]:
    """Rows with NaN for a missing number, which no comparison lets pass, and None for missing text."""
    records = []
    for row in frame.to_dict("records"):
        records.append({str(k): (None if k in _TEXT else math.nan) if pd.isna(v) else v for k, v in row.items()})
    return records


def _span(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


def _kept(row: Row) -> float:
    """λ_min at the end over that at the start."""
    return float(row["lambda_min_end"] / row["lambda_min_start"])


def _shape(row: Row) -> float:
    """The smallest PL ratio over the median one."""
    return float(row["pl_ratio_min"] / row["pl_ratio_median"])


def judge_width(frame: pd.DataFrame, out: Path) -> list[Statement]:
    """W1 to W5 on the grid of widths, R1 to R4 on the run that recovers the widest.

    Args:
        frame: the table of results.
        out: the sweep directory.
    """
    rows = _records(frame)
    grid = [r for r in rows if r["follows"] is None and r["status"] in ("finished", "diverged")]
    if len(grid) < 4:
        return [Statement("W1", "four widths were run", None, f"{len(grid)} of 4 ended")]
    narrow, wide = grid[:-1], grid[-1]
    found = [_positive(grid), *_regime(narrow), _left(wide)]
    recovered = next((r for r in rows if r["follows"] is not None), None)
    if recovered is None:
        missing = "nothing left, so nothing was recovered"
        return found + [Statement(f"R{i}", "recovery with a smaller step", None, missing) for i in range(1, 5)]
    loss = RunDirectory.open(out / str(recovered["run"])).log()["loss"].to_numpy(dtype=np.float64)
    return [
        *found,
        _drifts_back(recovered, wide, narrow),
        *_regime_again(recovered, wide),
        _falls(recovered, wide, loss),
    ]


def _positive(grid: Sequence[Row]) -> Statement:
    low = [r["lambda_min_start"] for r in grid]
    ratios = [b / a for a, b in pairwise(low)]
    return Statement(
        "W1",
        "λ_min of the NTK is positive at initialisation and doubles from width to width (each ratio in 1.5 to 3)",
        all(v > 0 for v in low) and all(1.5 <= r <= 3 for r in ratios),
        f"λ_min {_span(low)}; ratios {_span(ratios)}",
    )


def _regime(narrow: Sequence[Row]) -> list[Statement]:
    """Of the widths that stay in the local regime."""
    names = ", ".join(str(r["width"]) for r in narrow)
    drifts, ntk = [r["drift"] for r in narrow], [r["ntk_drift_percent"] for r in narrow]
    kept, shape = [_kept(r) for r in narrow], [_shape(r) for r in narrow]
    return [
        Statement(
            "W2",
            f"widths {names} drift little: ‖θ_T − θ_0‖ stays below 0.5",
            all(d < 0.5 for d in drifts),
            f"drift {_span(drifts)}",
        ),
        Statement(
            "W3",
            f"widths {names} keep their kernel: NTK drift below {NTK_DRIFT:.0%}, λ_min within 15 % of its start",
            all(v < 100 * NTK_DRIFT for v in ntk) and all(abs(k - 1) < _KEPT for k in kept),
            f"NTK drift {_span(ntk)} %; λ_min end/start {_span(kept)}",
        ),
        Statement(
            "W4",
            f"widths {names} keep a PL ratio bounded from below: its minimum on the window at least half its median",
            all(s >= _BOUNDED for s in shape),
            f"minimum {_span([r['pl_ratio_min'] for r in narrow])}; minimum/median {_span(shape)}",
        ),
    ]


def _left(wide: Row) -> Statement:
    return Statement(
        "W5",
        f"width {wide['width']} at the same step leaves the local regime (rule of --recover)",
        wide["regime"] == "left",
        wide["departures"] or "it stayed",
    )


def _drifts_back(r: Row, wide: Row, narrow: Sequence[Row]) -> Statement:
    small, most = f"step {r['lr']:.3g} instead of {wide['lr']:.3g}", max(n["drift"] for n in narrow)
    return Statement(
        "R1",
        f"with a smaller step width {wide['width']} drifts no more than the narrower ones",
        r["drift"] <= most,
        f"{small}: drift {r['drift']:.3g} against {most:.3g} at most (it was {wide['drift']:.3g})",
    )


def _regime_again(r: Row, wide: Row) -> list[Statement]:
    return [
        Statement(
            "R2",
            f"its kernel stays: NTK drift below {NTK_DRIFT:.0%}, λ_min within 15 % of its start",
            r["ntk_drift_percent"] < 100 * NTK_DRIFT and abs(_kept(r) - 1) < _KEPT,
            f"NTK drift {r['ntk_drift_percent']:.3g} % (was {wide['ntk_drift_percent']:.3g} %); "
            f"λ_min end/start {_kept(r):.3g} (was {_kept(wide):.3g})",
        ),
        Statement(
            "R3",
            "its PL ratio is bounded from below again: minimum on the window at least half the median",
            bool(r["pl_ratio_min"] >= _BOUNDED * r["pl_ratio_median"]),
            f"minimum {r['pl_ratio_min']:.3g}, median {r['pl_ratio_median']:.3g}",
        ),
    ]


def _falls(r: Row, wide: Row, loss: np.ndarray[Any, np.dtype[np.float64]]) -> Statement:
    rises = int((np.diff(loss) > 0).sum())
    return Statement(
        "R4",
        "its loss falls at every step and linearly",
        bool((np.diff(loss) <= 0).all()) and r["law"] in ("linear", "two_rate"),
        f"{rises} steps rise; law {r['law']}, loss {loss[-1]:.3g} (was {wide['loss_final']:.3g})",
    )


def judge_cnn(frame: pd.DataFrame, out: Path) -> list[Statement]:
    """S1 to S4 on the seeds; arguments as of :func:`judge_width`."""
    rows = [r for r in _records(frame) if r["status"] == "finished"]
    if not rows:
        return [Statement("S1", "three seeds were run", None, "none finished")]
    laws = [str(r["law"]) for r in rows]
    shape = [_shape(r) for r in rows]
    tails, lows = [], []
    for r in rows:
        run = RunDirectory.open(out / str(r["run"]))
        drift = run.log()["drift"].to_numpy(dtype=np.float64)
        tails.append(float(drift[-1] / drift[int(0.8 * (len(drift) - 1))] - 1))
        lows += run.probes()["lambda_min"].tolist()
    return [
        Statement(
            "S1",
            "the loss falls linearly (law linear or two_rate) for every seed",
            all(law in ("linear", "two_rate") for law in laws),
            f"laws {', '.join(laws)}",
        ),
        Statement(
            "S2",
            "the PL ratio stays bounded from below on the window: minimum at least a tenth of the median",
            all(s >= 0.1 for s in shape),
            f"minimum {_span([r['pl_ratio_min'] for r in rows])}; minimum/median {_span(shape)}",
        ),
        Statement(
            "S3",
            "the drift saturates: it grows by less than 10 % over the last fifth of the run",
            all(t < 0.1 for t in tails),
            f"growth {_span([100 * t for t in tails])} %; final drift {_span([r['drift'] for r in rows])}",
        ),
        Statement(
            "S4",
            "beyond the paper: λ_min of the full-output NTK is positive at start and end, on a subset",
            all(v > 0 for v in lows),
            f"λ_min {_span(lows)} (start and end of each seed)",
        ),
    ]
