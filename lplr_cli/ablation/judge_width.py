"""The paper's widths (P section 6.2, Table 1): W1 to W5, the boundary, R1 to R4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from lplr_cli.ablation.statements import Row, Statement, along, every, probed, records, series, span
from lplr_cli.diagnostics import envelope, pl_ratio

# λ_min from width to width, and how far it may go from its start on the widths that stay.
_DOUBLES, _SMALL = (1.5, 3.0), 15.0
_NARROW, _ORDER = 1.5, 10.0
# The boundary: where "within the first epochs" ends, what "nearly constant" and "a large part" are, and comparable.
_FIRST, _CONSTANT, _LARGE, _COMPARABLE = 0.05, 0.1, 0.5, 2.0
# The window of the PL minimum, the same part of the steps of every run.
_MIDDLE = 0.1, 0.8


_WINDOW = f"from {_MIDDLE[0]:.0%} to {_MIDDLE[1]:.0%} of the steps"


def judge_width(frame: pd.DataFrame, out: Path) -> list[Statement]:
    """W1 to W5 and the boundary on the grid of widths, R1 to R4 on the run that recovers the widest, T1 and T2 on all.

    Args:
        frame: the table of results.
        out: the sweep directory.
    """
    rows = records(frame)
    grid = [r for r in rows if r["follows"] is None and r["status"] in ("finished", "diverged")]
    if len(grid) < 4:
        return [Statement("W1", "four widths were run", None, f"{len(grid)} of 4 ended")]
    narrow, wide = grid[:-1], grid[-1]
    judged = [_start(grid), _kept(narrow, out), *_regime(narrow, out), _boundary(wide, narrow, out)]
    recovered = next((r for r in rows if r["follows"] is not None), None)
    if recovered is None:
        missing = "nothing left, so nothing was recovered"
        again = [Statement(f"R{i}", "recovery with a smaller step", None, missing) for i in range(1, 5)]
    else:
        again = _recovery(recovered, wide, narrow, out)
    return [*judged, *again, *along(rows)]


def change(row: Row) -> float:
    """P's NTK drift: the change of λ_min in per cent of its start."""
    return float(100 * (row["lambda_min_end"] / row["lambda_min_start"] - 1))


def _start(grid: Sequence[Row]) -> Statement:
    low = [r["lambda_min_start"] for r in grid]
    ratios = [b / a for a, b in pairwise(low)]
    least, most = _DOUBLES
    return Statement(
        "W1",
        f"λ_min at the start grows monotonically with width, roughly doubling (each ratio in {least:g} to {most:g})",
        all(v > 0 for v in low) and all(least <= r <= most for r in ratios),
        f"λ_min {span(low)}; ratios {span(ratios)}",
    )


def _kept(narrow: Sequence[Row], out: Path) -> Statement:
    changes = [change(r) for r in narrow]
    low = [float(probed(out, str(r["run"]))[1].min()) for r in narrow]
    return Statement(
        "W2",
        f"over the first three widths its drift stays small and λ_min positive: within {_SMALL:g} % of its start and "
        "above 0 at every probe",
        all(abs(c) < _SMALL for c in changes) and all(v > 0 for v in low),
        f"change of λ_min {span(changes)} % (K in operator norm {span([r['ntk_drift_percent'] for r in narrow])} %); "
        f"lowest {span(low)}",
    )


def _regime(narrow: Sequence[Row], out: Path) -> list[Statement]:
    losses, drifts = [r["loss_final"] for r in narrow], [r["drift"] for r in narrow]
    ratios = [_lowest(r, out) for r in narrow]
    return [
        Statement(
            "W3",
            "the terminal loss falls monotonically over the first three widths",
            all(b < a for a, b in pairwise(losses)),
            f"loss {span(losses)}",
        ),
        Statement(
            "W4",
            f"the parameter drift stays in a narrow range over them: largest over smallest at most {_NARROW:g}",
            max(drifts) <= _NARROW * min(drifts),
            f"drift {span(drifts)}",
        ),
        Statement(
            "W5",
            f"the PL minimum, {_WINDOW}, stays in one order of magnitude over them: a factor below {_ORDER:g}",
            None if any(map(math.isnan, ratios)) else max(ratios) < _ORDER * min(ratios),
            f"minimum {span(ratios)}",
        ),
    ]


def _boundary(wide: Row, narrow: Sequence[Row], out: Path) -> Statement:
    drift = series(out, str(wide["run"]), "drift")
    moves = np.abs(np.diff(drift))
    jump = int(np.argmax(moves)) + 1
    late = drift[max(1, len(drift) // 10) :]
    spread = float((late.max() - late.min()) / drift[-1])
    loss, least = [r["loss_final"] for r in narrow], _lowest(wide, out)
    others = min(_lowest(r, out) for r in narrow)
    parts = [
        jump <= _FIRST * len(drift) and wide["regime"] == "left",
        spread <= _CONSTANT,
        wide["lambda_min_end"] <= (1 - _LARGE) * wide["lambda_min_start"],
        least < others,
        wide["loss_final"] <= _COMPARABLE * max(loss),
    ]
    return Statement(
        "B",
        f"width {wide['width']} at the same step leaves: its drift jumps in the first {_FIRST:.0%} of the steps and "
        f"then varies by at most {_CONSTANT:.0%}; λ_min loses {_LARGE:.0%} or more; the PL minimum lies below the "
        f"narrower ones; the loss ends within a factor {_COMPARABLE:g} of theirs",
        every([bool(p) for p in parts]),
        f"drift {wide['drift']:.3g}, jump at step {jump}, varies by {100 * spread:.3g} % later; λ_min "
        f"{change(wide):+.3g} %; PL minimum {least:.3g} against {others:.3g}; loss "
        f"{wide['loss_final']:.3g} against {max(loss):.3g}",
        "the paper's drift there is 1.870",
    )


def _lowest(row: Row, out: Path) -> float:
    """The PL minimum with the terminal proxy over the middle of the run; NaN without one."""
    loss, square = (series(out, str(row["run"]), c) for c in ("loss", "grad_norm_sq"))
    part = slice(*(int(share * len(loss)) for share in _MIDDLE))
    lowest = envelope(pl_ratio(loss, square, float(loss.min()))[part]).min
    return math.nan if lowest is None else lowest


def _recovery(r: Row, wide: Row, narrow: Sequence[Row], out: Path) -> list[Statement]:
    most, small = max(n["drift"] for n in narrow), f"step {r['lr']:.3g} instead of {wide['lr']:.3g}"
    changes = [change(n) for n in narrow]
    own, others = _lowest(r, out), [_lowest(n, out) for n in (*narrow, wide)]
    largest = math.nan if any(map(math.isnan, others)) else max(others)
    return [
        Statement(
            "R1",
            f"with a smaller step the drift of width {wide['width']} falls back to that of the narrower nets",
            r["drift"] <= most,
            f"{small}: {r['drift']:.3g} against {most:.3g} at most (it was {wide['drift']:.3g})",
            "the paper's fall from 1.870 to 0.158",
        ),
        Statement(
            "R2",
            "its NTK drift falls to that of a narrower net",
            abs(change(r)) <= max(map(abs, changes)),
            f"change of λ_min {change(r):+.3g} % against {max(map(abs, changes)):.3g} % at most (it was "
            f"{change(wide):+.3g} %); operator norm of K {r['ntk_drift_percent']:.3g} % (it was "
            f"{wide['ntk_drift_percent']:.3g} %)",
        ),
        Statement(
            "R3",
            "its terminal loss falls too",
            r["loss_final"] < wide["loss_final"],
            f"{r['loss_final']:.3g} (it was {wide['loss_final']:.3g})",
        ),
        Statement(
            "R4",
            "its PL minimum is the largest of the study",
            own > largest,
            f"{own:.3g} against {largest:.3g} at most",
        ),
    ]
