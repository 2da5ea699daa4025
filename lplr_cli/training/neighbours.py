"""What two steps of a loop in a row tell together: how far the parameters moved, and the noise of the gradients."""

from __future__ import annotations

from typing import Any

from lplr_cli.runs import BATCH_NOISE, UPDATE
from lplr_cli.training.tracked import TrackedParameters, Value

# Rows with norms to one measurement of an update or of the noise, each of which costs as much as three norms.
NEIGHBOURS_EVERY = 4


class Neighbours:
    """||θ_t − θ_{t−1}||, and the variance of mini-batch gradients.

    Batches of neighbouring steps are (nearly) independent and the parameters (nearly) the same, so that ½ ||g − g'||²
    has the mean tr Cov(g), up to a relative error of the order of η times the curvature. Reshuffled batches b of n
    give b⁻¹ tr Σ n/(n − 1), as if drawn with replacement (theory.md section 13).

    Args:
        tracked: whose parameters and gradients.
        norms_every: steps between two rows with norms.
        noise: whether the noise is measured.
    """

    def __init__(self, tracked: TrackedParameters, norms_every: int, *, noise: bool) -> None:
        self._tracked = tracked
        self._every = NEIGHBOURS_EVERY * norms_every if noise else 0
        self._updates = norms_every if norms_every == 1 else NEIGHBOURS_EVERY * norms_every
        self._noise: Value | None = None
        self._update: Value | None = None
        self._is_marked = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the log that :meth:`fill` fills."""
        return (UPDATE, BATCH_NOISE) if self._every else (UPDATE,)

    def see(self, step: int) -> None:
        """``step`` before its update."""
        if self._is_marked:
            self._update, self._is_marked = self._tracked.moved(), False
        else:
            self._update = None
        if step % self._updates == 0:
            self._tracked.mark()
            self._is_marked = True
        if self._every and step % self._every <= 1:
            if step % self._every:
                self._noise = self._tracked.gradients_changed()
            else:
                self._tracked.keep_gradients()

    def fill(self, row: dict[str, Any]) -> None:
        """What is known for the row of the step that was seen last; the noise stands beside a gradient norm."""
        if self._update is not None:
            row[UPDATE] = self._update
        if self._noise is not None and "grad_norm_sq" in row:
            row[BATCH_NOISE], self._noise = self._noise, None
