"""What two steps of a loop in a row tell together: how far the parameters moved, and the noise of the gradients."""

from __future__ import annotations

from torch import Tensor

from lplr_cli.runs import BATCH_NOISE, UPDATE
from lplr_cli.training.tracked import TrackedParameters


class Neighbours:
    """||θ_t − θ_{t−1}||, and the variance of mini-batch gradients.

    Batches of neighbouring steps are (nearly) independent and the parameters (nearly) the same, so that ½ ||g − g'||²
    has the mean tr Cov(g), up to a relative error of the order of η times the curvature. Reshuffled batches b of n
    give b⁻¹ tr Σ n/(n − 1), as if drawn with replacement (theory.md section 13).

    Args:
        tracked: whose parameters and gradients.
        every: steps between two measurements of the noise, each of which costs a copy of the gradient; 0 for none.
        updates: steps between two measured updates, each of which costs a copy of the parameters.
    """

    def __init__(self, tracked: TrackedParameters, every: int, updates: int) -> None:
        self._tracked, self._every, self._updates = tracked, every, updates
        self._gradients: list[Tensor] | None = None
        self._noise: float | None = None
        self._update: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the log that :meth:`row` fills."""
        return (UPDATE, BATCH_NOISE) if self._every else (UPDATE,)

    def see(self, step: int) -> None:
        """``step`` before its update."""
        self._update = self._tracked.moved()
        if step % self._updates == 0:
            self._tracked.mark()
        if self._gradients is not None:
            self._noise = self._tracked.half_square_distance(self._gradients)
            self._gradients = None
        if self._every and step % self._every == 0:
            self._gradients = self._tracked.gradients()

    def row(self, *, gradient: bool) -> dict[str, float | None]:
        """What is known for the row of the step that was seen last.

        Args:
            gradient: whether the row has a gradient norm, beside which its noise stands.
        """
        found = {UPDATE: self._update}
        if gradient and self._every:
            found[BATCH_NOISE], self._noise = self._noise, None
        return found
