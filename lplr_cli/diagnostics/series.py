"""A training log as clean arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.errors import InputError


@dataclass(frozen=True)
class LossSeries:
    """Rows of a log with a usable loss, in the order of the steps.

    Attributes:
        steps: strictly increasing, shape (T,).
        loss: positive and finite, shape (T,).
        grad_norm_sq: ||∇L||², NaN where the log has none, shape (T,).
        lr: step size, NaN where the log has none, shape (T,).
        dropped: rows left out, by reason.
    """

    steps: NDArray[np.float64]
    loss: NDArray[np.float64]
    grad_norm_sq: NDArray[np.float64]
    lr: NDArray[np.float64]
    dropped: dict[str, int]

    @property
    def has_gradients(self) -> bool:
        """Whether any row has a gradient norm."""
        return bool(np.isfinite(self.grad_norm_sq).any())


def clean_series(log: pd.DataFrame) -> LossSeries:
    """Arrays from a log with columns step, loss and, where there are, grad_norm_sq and lr.

    Rows without a loss (inside an epoch of mini-batches) are passed over; rows whose loss is NaN, infinite or not
    positive, and earlier rows of a step that was logged again, are dropped and counted.

    Raises:
        InputError: no step or loss column, or no row left.
    """
    for column in ("step", "loss"):
        if column not in log.columns:
            raise InputError(f"the log has no column {column!r}", f"its columns are {', '.join(map(str, log.columns))}")
    raw = pd.to_numeric(log["loss"], errors="coerce").to_numpy(dtype=np.float64)
    step = pd.to_numeric(log["step"], errors="coerce").to_numpy(dtype=np.float64)
    grad = _column(log, "grad_norm_sq")
    lr = _column(log, "lr")
    finite = np.isfinite(raw) & np.isfinite(step)
    positive = finite & (raw > 0)
    dropped = {
        "missing_or_not_finite": int((~finite).sum()),
        "not_positive": int((finite & ~positive).sum()),
    }
    kept = np.flatnonzero(positive)
    # The last row of a repeated step is the one that a restart wrote.
    order = kept[np.lexsort((kept, step[kept]))]
    last_of_step = np.append(np.diff(step[order]) > 0, True) if len(order) else np.zeros(0, dtype=bool)
    dropped["repeated_step"] = int((~last_of_step).sum())
    order = order[last_of_step]
    if len(order) == 0:
        raise InputError("the log has no row with a positive, finite loss", "check its loss column")
    return LossSeries(step[order], raw[order], grad[order], lr[order], dropped)


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    if name not in table.columns:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
