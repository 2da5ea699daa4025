"""The paper's controlled run (P section 6.1, Figure 1): M1 to M5."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from lplr_cli.ablation.statements import Row, Series, Statement, along, probed, records, series
from lplr_cli.diagnostics import PLRatio, analyse_pl_ratio, clean_series
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory

# Of a run: its beginning, in which all that is early happens, and its end.
_EARLY, _LATE = 0.2, 0.05
# Parts of λ0: the most that the whole change may be, and what the plateau may vary by.
_MODEST, _FLAT = 0.5, 0.1
_SMALL = 0.5
# How far the ratio may go from its median, and how far it is above the kernel's μ.
_SLOWLY, _ABOVE = 2.0, 10.0
# How much steeper the end is than the middle.
_ACCELERATES = 2.0


def judge_mnist(frame: pd.DataFrame, out: Path) -> list[Statement]:
    """M1 to M5 on the first run that finished, T1 on all.

    Args:
        frame: the table of results.
        out: the sweep directory.
    """
    rows = records(frame)
    run = next((r for r in rows if r["status"] == "finished"), None)
    if run is None:
        return [Statement("M1", "a run finished", None, "none did")]
    name = str(run["run"])
    steps, low = probed(out, name)
    ratio = _ratio(out, name)
    return [
        _lambda_min(steps, low),
        _drift(series(out, name, "drift")),
        _bounded(ratio),
        _above(ratio, low),
        _phases(ratio, run),
        *along(rows),
    ]


def _ratio(out: Path, name: str) -> PLRatio | None:
    try:
        return analyse_pl_ratio(clean_series(RunDirectory.open(out / name).log()))
    except InputError:
        return None


def _lambda_min(steps: Series, low: Series) -> Statement:
    early = steps <= _EARLY * steps[-1]
    start, plateau = low[0], low[~early] if (~early).any() else low[-1:]
    change, spread = abs(low[-1] / start - 1), (plateau.max() - plateau.min()) / start
    falls, lowest = bool(low[early].min() < start), int(steps[np.argmin(low)])
    return Statement(
        "M1",
        "λ_min of the subset falls early and then stays on a plateau, positive throughout: it falls below its start "
        f"in the first {_EARLY:.0%} of the run, varies by less than {_FLAT:.0%} of it afterwards and ends within "
        f"{_MODEST:.0%}",
        bool(falls and spread < _FLAT and change < _MODEST and (low > 0).all()),
        f"start {start:.3g}, lowest {low.min():.3g} at step {lowest}, end {low[-1]:.3g} "
        f"({100 * (low[-1] / start - 1):+.3g} %); plateau varies by {100 * spread:.3g} %",
    )


def _drift(drift: Series) -> Statement:
    early = max(2, int(_EARLY * len(drift)))
    back = int((np.diff(drift[:early]) < 0).sum())
    grows = bool((np.diff(drift[early:]) >= 0).all())
    return Statement(
        "M2",
        f"the drift oscillates at first, then grows monotonically to a small value: it goes back at two steps or more "
        f"of the first {_EARLY:.0%}, at none later, and ends below {_SMALL:g}",
        bool(back >= 2 and grows and drift[-1] < _SMALL),
        f"back at {back} early steps, afterwards {'never' if grows else 'again'}; end {drift[-1]:.3g}",
    )


def _bounded(ratio: PLRatio | None) -> Statement:
    text = (
        "the PL ratio with the terminal proxy is bounded below on the window and varies slowly there: its minimum and "
        f"nineteen of twenty rows lie within a factor {_SLOWLY:g} of its median"
    )
    if ratio is None or ratio.window is None or not ratio.pl_ratio.median or not ratio.pl_ratio.min:
        return Statement("M3", text, None, "no stable window")
    least, median = ratio.pl_ratio.min, ratio.pl_ratio.median
    inside = ratio.table.loc[ratio.table["in_window"], "pl_ratio"]
    most = float(inside.quantile(0.95))
    return Statement(
        "M3",
        text,
        least >= median / _SLOWLY and most <= median * _SLOWLY,
        f"minimum {least:.3g}, median {median:.3g}, 95 % quantile {most:.3g}; window {ratio.window.start:g} to "
        f"{ratio.window.stop:g}",
    )


def _above(ratio: PLRatio | None, low: Series) -> Statement:
    text = f"on the window it is much larger than μ from λ_min: {_ABOVE:g} times 2 λ_min of the subset or more"
    if ratio is None or ratio.window is None or ratio.pl_ratio.min is None:
        return Statement("M4", text, None, "no stable window")
    mu = 2 * float(low.max())
    return Statement(
        "M4",
        text,
        bool(ratio.pl_ratio.min >= _ABOVE * mu),
        f"minimum {ratio.pl_ratio.min:.3g} against at most {mu:.3g}",
        "2 λ_min is for s = 1 (the paper's ½ would halve it)",
    )


def _phases(ratio: PLRatio | None, run: Row) -> Statement:
    text = (
        "the suboptimality has a transient, a long linear stretch and an acceleration that the proxy makes: the fitted "
        f"law is linear, and the slope of the last {_LATE:.0%} is {_ACCELERATES:g} times that of the window or more"
    )
    if ratio is None or ratio.window is None:
        return Statement("M5", text, None, "no stable window")
    table = ratio.table[ratio.table["suboptimality"] > 0]
    late = table[table["step"] > (1 - _LATE) * table["step"].max()]
    middle = table[table["in_window"]]
    slopes = [_slope(part) for part in (middle, late)]
    factor = math.exp(slopes[0])
    return Statement(
        "M5",
        text,
        bool(run["law"] in ("linear", "two_rate") and slopes[1] <= _ACCELERATES * slopes[0] < 0),
        f"law {run['law']}; contraction {factor:.6g} a step on the window, {math.exp(slopes[1]):.6g} at the end",
    )


def _slope(table: pd.DataFrame) -> float:
    """Of the logarithm of the suboptimality, a step."""
    if len(table) < 2:
        return math.nan
    return float(np.polyfit(table["step"], np.log(table["suboptimality"]), 1)[0])
