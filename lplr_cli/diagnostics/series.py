"""A training log as clean arrays, by a stated rule that counts what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.errors import InputError

CLEANING = (
    "rows without a loss, with an infinite or a non-positive one are left out; where the step goes back to one that "
    "was logged before, the log was restarted and the earlier rows from that step on are superseded; other rows are "
    "put in the order of their steps"
)
# A loss below zero by more than this share of the largest is no rounding of a zero.
_ROUNDING = 1e-6
# So many rows below zero, or one in so many, are scatter.
_FEW, _ONE_IN = 2, 50
# Rows without a loss at the end of a log are no gap when they are so many times those of its longest gap.
_GAPS = 3
# What a row may have beside its loss.
_EXTRAS = ("grad_norm_sq", "lr", "drift", "update_norm", "noise_trace", "grad_noise_sq")


@dataclass(frozen=True)
class LossSeries:
    """Rows of a log with a usable loss, in the order of the steps.

    Attributes:
        steps: strictly increasing, shape (T,).
        loss: positive and finite, shape (T,).
        grad_norm_sq: ||∇L||², NaN where the log has none, shape (T,).
        lr: step size, NaN where the log has none, shape (T,).
        drift: ||θ_t − θ_0||, NaN where the log has none, shape (T,).
        update_norm: ||θ_t − θ_{t−1}||, likewise.
        sample_noise: tr Σ of single samples' gradients, NaN where the log has none, shape (T,).
        batch_noise: variance of the row's own mini-batch gradient, likewise.
        dropped: rows left out, by reason (missing, infinite, not_positive, superseded, repeated_step).
        reordered: rows whose step is smaller than an earlier one, put in order.
        lost_from: step from which on the log goes on without a finite loss, as one that diverged; None where it ends
            with one.
        began_again: whether a restart went back to the first step.
    """

    steps: NDArray[np.float64]
    loss: NDArray[np.float64]
    grad_norm_sq: NDArray[np.float64]
    lr: NDArray[np.float64]
    drift: NDArray[np.float64]
    update_norm: NDArray[np.float64]
    sample_noise: NDArray[np.float64]
    batch_noise: NDArray[np.float64]
    dropped: dict[str, int]
    reordered: int
    lost_from: float | None = None
    began_again: bool = False

    @property
    def has_gradients(self) -> bool:
        """Whether any row has a gradient norm."""
        return bool(np.isfinite(self.grad_norm_sq).any())

    def counts(self) -> str:
        """What was left out or moved, for people; empty when nothing was."""
        names = {
            "missing": "without a loss",
            "infinite": "with an infinite loss",
            "not_positive": "with a loss that is not positive",
            "superseded": "superseded by a restart",
            "repeated_step": "of a step logged again",
        }
        parts = [f"{self.dropped[k]:,} {v}" for k, v in names.items() if self.dropped[k]]
        text = f"Rows left out: {', '.join(parts)}." if parts else ""
        if self.began_again:
            text += " The steps begin again at the first one: where these are several runs, only the last is read."
        if self.lost_from is not None:
            text += f" The log ends without a finite loss, from step {self.lost_from:g} on."
        if self.reordered:
            text += f"{' ' if text else ''}Rows out of order, sorted: {self.reordered:,}."
        return text


def clean_series(log: pd.DataFrame) -> LossSeries:
    """Arrays from a log with columns step and loss and, where there are, grad_norm_sq (or grad_norm), lr and drift.

    The rule is :data:`CLEANING`. Neighbouring rows of one step, as loggers write that put each metric into a row of
    its own, are merged; of two losses the later counts.

    Raises:
        InputError: no step or loss column, no row left, or a loss that goes below zero.
    """
    for column in ("step", "loss"):
        if column not in log.columns:
            present = ", ".join(map(str, log.columns[:40])) or "none"
            raise InputError(
                f"the log has no column {column!r}", f"name it with --column {column}=NAME; it has {present}"
            )
    step, loss = _column(log, "step"), _column(log, "loss")
    extras = {name: _column(log, name) for name in _EXTRAS}
    if "grad_norm_sq" not in log.columns and "grad_norm" in log.columns:
        with np.errstate(over="ignore"):
            extras["grad_norm_sq"] = _column(log, "grad_norm") ** 2
    _merge_rows_of_a_step(step, loss, extras)
    missing = np.isnan(loss) | np.isnan(step)
    infinite = ~missing & ~(np.isfinite(loss) & np.isfinite(step))
    usable = ~missing & ~infinite & (loss > 0)
    dropped = {
        "missing": int(missing.sum()),
        "infinite": int(infinite.sum()),
        "not_positive": int((~missing & ~infinite & ~usable).sum()),
    }
    _refuse_negative(step, loss)
    rows = np.flatnonzero(usable)
    superseded = _superseded(step[rows])
    dropped["superseded"] = int(superseded.sum())
    began_again = bool(superseded[:1].any())
    rows = rows[~superseded]
    reordered = int((step[rows] < np.maximum.accumulate(step[rows])).sum()) if len(rows) else 0
    order = rows[np.lexsort((rows, step[rows]))]
    last_of_step = np.append(np.diff(step[order]) > 0, True) if len(order) else np.zeros(0, dtype=bool)
    dropped["repeated_step"] = int((~last_of_step).sum())
    order = order[last_of_step]
    if len(order) == 0:
        raise InputError("the log has no row with a positive, finite loss", "check its loss column")
    kept = {name: values[order] for name, values in extras.items()}
    return LossSeries(
        step[order],
        loss[order],
        kept["grad_norm_sq"],
        kept["lr"],
        kept["drift"],
        kept["update_norm"],
        kept["noise_trace"],
        kept["grad_noise_sq"],
        dropped,
        reordered,
        _lost_from(step, loss),
        began_again,
    )


def _refuse_negative(step: NDArray[np.float64], loss: NDArray[np.float64]) -> None:
    """A loss that is not bounded below by zero has another law than its positive rows.

    A few rows below zero, as an estimate of a small loss has them, are left out.

    Raises:
        InputError: more than two rows and than one in fifty are below zero, or the last one is.
    """
    known = np.flatnonzero(np.isfinite(loss))
    values = loss[known]
    below = values < -_ROUNDING * np.abs(values).max(initial=0.0)
    if below.sum() > max(_FEW, len(values) / _ONE_IN) or below[-1:].any():
        first = f"{step[known[below.argmax()]]:g}"
        raise InputError(
            f"the loss is below zero in {int(below.sum()):,} of {len(values):,} rows, first at step {first}",
            "rates and PL ratios are of losses of at least 0: log it plus a constant that keeps it above",
        )


def _lost_from(step: NDArray[np.float64], loss: NDArray[np.float64]) -> float | None:
    """Where the rows begin that end a log without a finite loss; None for a gap as it has others, and for one row."""
    there = np.flatnonzero(np.isfinite(loss))
    if not len(there):
        return None
    last = int(there[-1])
    behind = last + 1 + np.flatnonzero(step[last + 1 :] > step[last])
    gap = int(np.diff(there).max(initial=1)) - 1
    infinite = bool(np.isinf(loss[behind]).any())
    return float(step[behind[0]]) if infinite or len(behind) > max(1, _GAPS * gap) else None


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    if name not in table.columns:
        return np.full(len(table), np.nan)
    column = table[name]
    if isinstance(column, pd.DataFrame):
        raise InputError(f"the log has several columns {name!r}", "rename all but one")
    return numbers(column)


def numbers(column: pd.Series) -> NDArray[np.float64]:
    """A column as float64; NaN for what is no number, and for whole numbers beyond float64."""
    try:
        return np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    except OverflowError:
        return np.array([_number(value) for value in column], dtype=np.float64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return np.nan


def _merge_rows_of_a_step(
    step: NDArray[np.float64], loss: NDArray[np.float64], extras: dict[str, NDArray[np.float64]]
) -> None:
    """Let a row with a loss have what neighbouring rows of its step, without a loss, know beside it."""
    same = np.flatnonzero(step[1:] == step[:-1])
    if not np.isnan(loss[np.concatenate([same, same + 1])]).any():
        return
    block = np.append(0, np.cumsum(step[1:] != step[:-1]))
    for values in extras.values():
        if np.isnan(values).any():
            grouped = pd.Series(values).groupby(block)
            values[:] = grouped.ffill().fillna(grouped.bfill()).to_numpy()


def _superseded(step: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows that a later restart wrote again, or would have: shape (T,)."""
    if len(step) < 2:
        return np.zeros(len(step), dtype=bool)
    _, first = np.unique(step, return_index=True)
    again = np.ones(len(step), dtype=bool)
    again[first] = False
    restart = again & np.append(False, step[1:] < step[:-1])
    later = np.where(restart, step, np.inf)
    # The smallest step that a restart behind this row went back to.
    behind = np.append(np.minimum.accumulate(later[::-1])[::-1][1:], np.inf)
    superseded: NDArray[np.bool_] = step >= behind
    return superseded
