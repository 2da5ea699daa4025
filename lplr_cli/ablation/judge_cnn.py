"""The paper's convolutional net (P section 6.3, Table 2): C1 to C4, and its kernel, which P has not: C5, C6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.ablation.statements import Row, Series, Statement, probed, records, series, span
from lplr_cli.analysis import LAZY
from lplr_cli.diagnostics import analyse_pl_ratio, clean_series
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory

# What the run of section 6.1 (preset paper-mnist) ends with: docs/reproduction.md.
MNIST_LOSS, MNIST_DRIFT = 0.105, 0.341
# Orders that L − min L falls by from the plateau, which is reached after this part of the epochs, to where the proxy
# spoils it; how straight that is.
_ORDERS, _PLATEAU, _PROXY, _STRAIGHT = 3.0, 0.05, 0.9, 0.95
# Seeds: largest over smallest, of L − min L as the median over the epochs, and of the final drift.
_BAND, _ALIKE = 3.0, 1.5
# A dip goes below this part of the median and lasts at most this part of the window.
_DIP, _SHORT, _LOWEST = 0.5, 0.2, 0.1
_SATURATED, _BACK = 0.1, 0.01


def judge_cnn(frame: pd.DataFrame, out: Path) -> list[Statement]:
    """C1 to C6 on the seeds of the paper's schedule.

    Args:
        frame: the table of results.
        out: the sweep directory.
    """
    rows = [r for r in records(frame) if r["status"] == "finished" and str(r["run"]).startswith("seed")]
    if not rows:
        return [Statement("C1", "three seeds were run", None, "none finished")]
    names = [str(r["run"]) for r in rows]
    losses = [series(out, name, "loss") for name in names]
    drifts = [_at_epochs(out, name) for name in names]
    lows = [probed(out, name)[1] for name in names]
    return [
        _falls(losses),
        _envelope(out, names, rows),
        _near_interpolation(losses),
        _saturates(drifts),
        Statement(
            "C5",
            "beyond the paper: λ_min of the full-output kernel is positive at start, middle and end, on a subset",
            all(bool((v > 0).all()) for v in lows),
            f"λ_min {'; '.join(span(v.tolist()) for v in lows)}",
        ),
        _lazy_from_the_middle(rows[0]),
    ]


def _lazy_from_the_middle(row: Row) -> Statement:
    text = "beyond the paper: from the middle on the kernel there predicts every loss of the first seed within 10 %"
    error = row.get("laziness_error_middle")
    if error is None or math.isnan(error):
        reason = row.get("lazy_reason")
        return Statement("C6", text, None, reason if isinstance(reason, str) else "not computed")
    return Statement(
        "C6",
        text,
        bool(error < LAZY),
        f"off by at most a factor {math.exp(error):.3g} (from the kernel at the start {_factor(row)}); alignment of K "
        f"with the residual {span([row[f'alignment_{when}'] for when in ('start', 'middle', 'end')])}",
        "the mean over mini-batches is predicted, without their noise",
    )


def _factor(row: Row) -> str:
    error = row["laziness_error_start"]
    return "unknown" if math.isnan(error) else f"{math.exp(error):.3g}"


def _at_epochs(out: Path, name: str) -> Series:
    log = RunDirectory.open(out / name).log()
    return log.loc[log["loss"].notna(), "drift"].to_numpy(dtype=np.float64)


def _falls(losses: Sequence[Series]) -> Statement:
    epochs = len(losses[0]) - 1
    part = slice(max(1, round(_PLATEAU * epochs)), round(_PROXY * epochs) + 1)
    with np.errstate(divide="ignore"):
        logs = np.log10(np.stack([v - v.min() for v in losses])[:, part])
    orders = (logs[:, 0] - logs[:, -1]).tolist()
    straight = [_straight(v) for v in logs]
    with np.errstate(invalid="ignore"):
        band = 10 ** float(np.median(logs.max(axis=0) - logs.min(axis=0)))
    return Statement(
        "C1",
        f"L − min L falls nearly linearly over about four orders with a narrow band: {_ORDERS:g} orders or more from "
        f"epoch {part.start} to {part.stop - 1}, r² of a line through its logarithm {_STRAIGHT:g} or more, the seeds "
        f"within a factor {_BAND:g}",
        all(o >= _ORDERS for o in orders) and all(s >= _STRAIGHT for s in straight) and band <= _BAND,
        f"orders {span(orders)}; r² {span(straight)}; band a factor {band:.3g}; the loss itself falls by "
        f"{span([math.log10(v[part.start] / v[-1]) for v in losses])} orders",
        "300 images and width 16 instead of 64",
    )


def _straight(values: Series) -> float:
    """r² of a line through them; 0 where one is not finite."""
    if not np.isfinite(values).all():
        return 0.0
    return float(np.corrcoef(np.arange(len(values)), values)[0, 1] ** 2)


def _envelope(out: Path, names: Sequence[str], rows: Sequence[Row]) -> Statement:
    text = (
        f"the PL ratio keeps a positive lower envelope with short dips: its minimum on the window is {_LOWEST:g} of "
        f"the median or more, and no stretch below {_DIP:g} of it lasts longer than {_SHORT:.0%} of the window"
    )
    stretches = [_longest(out, name) for name in names]
    if any(s is None for s in stretches):
        return Statement("C2", text, None, "no stable window")
    longest = [s for s in stretches if s is not None]
    shape = [r["pl_ratio_min"] / r["pl_ratio_median"] for r in rows]
    return Statement(
        "C2",
        text,
        all(s >= _LOWEST for s in shape) and all(s <= _SHORT for s in longest),
        f"minimum {span([r['pl_ratio_min'] for r in rows])}; of the median {span(shape)}; longest dip "
        f"{span([100 * s for s in longest])} % of the window",
    )


def _longest(out: Path, name: str) -> float | None:
    """Part of the window that the longest dip lasts; None without a window."""
    try:
        ratio = analyse_pl_ratio(clean_series(RunDirectory.open(out / name).log()))
    except InputError:
        return None
    inside = ratio.table.loc[ratio.table["in_window"], "pl_ratio"].to_numpy(dtype=np.float64)
    if ratio.window is None or not len(inside):
        return None
    below: NDArray[np.bool_] = inside < _DIP * np.median(inside)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], below.astype(int), [0]])))
    return float((edges[1::2] - edges[::2]).max(initial=0) / len(inside))


def _near_interpolation(losses: Sequence[Series]) -> Statement:
    ends = [float(v[-1]) for v in losses]
    return Statement(
        "C3",
        "the terminal loss is two orders below that of section 6.1: the mean at most a hundredth of paper-mnist's",
        float(np.mean(ends)) <= MNIST_LOSS / 100,
        f"{span(ends)} against {MNIST_LOSS:.3g}",
        "a sum over five outputs here, one there",
    )


def _saturates(drifts: Sequence[Series]) -> Statement:
    back = [float(np.diff(-d).max(initial=0.0) / d[-1]) for d in drifts]
    tails = [float(d[-1] / d[int(0.8 * (len(d) - 1))] - 1) for d in drifts]
    ends = [float(d[-1]) for d in drifts]
    return Statement(
        "C4",
        f"the drift grows monotonically (back by at most {_BACK:.0%} of its end at an epoch), saturates (below "
        f"{_SATURATED:.0%} over the last fifth), hardly differs between seeds (within a factor {_ALIKE:g}) and is "
        "larger than in section 6.1",
        all(b <= _BACK for b in back)
        and all(t < _SATURATED for t in tails)
        and max(ends) <= _ALIKE * min(ends)
        and min(ends) > MNIST_DRIFT,
        f"back by {span([100 * b for b in back])} %; growth {span([100 * t for t in tails])} %; final {span(ends)} "
        f"against {MNIST_DRIFT:.3g} there",
    )
