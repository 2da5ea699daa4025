"""The noise of mini-batch gradients, measured while a run goes (theory.md section 13)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lplr_cli.training.tracked import TrackedParameters

# Parts that the data are split into for one measurement: its relative error is about √(2/parts) for noise in one
# direction, and falls with the number of directions.
MIN_PARTS, MAX_PARTS = 8, 32


def trace_of_noise(sizes: Sequence[int], squares: Sequence[float], square: float) -> float:
    """tr Σ from the mean gradients g_k of disjoint random parts that make up all samples; not below zero.

    With Cov(g_k − ∇L) = Σ (n/p_k − 1)/(n − 1), E Σ_k p_k ||g_k − ∇L||² = tr Σ n (K − 1)/(n − 1).

    Args:
        sizes: p_k, of sum n; K ≥ 2.
        squares: ||g_k||².
        square: ||∇L||² over all samples.
    """
    n = sum(sizes)
    if len(sizes) < 2:
        return 0.0
    between = sum(p * s for p, s in zip(sizes, squares, strict=True)) - n * square
    return max(between, 0.0) * (n - 1) / (n * (len(sizes) - 1))


class NeighbourNoise:
    """The variance of a loop's own gradients, from those of two steps in a row.

    Batches of neighbouring steps are (nearly) independent and the parameters (nearly) the same, so that ½ ||g − g'||²
    has the mean tr Cov(g), up to a relative error of the order of η times the curvature. Reshuffled batches b of n
    give b⁻¹ tr Σ n/(n − 1), as if drawn with replacement.

    Args:
        tracked: whose gradients.
        every: steps between two measurements; each costs a copy of the gradient.
    """

    def __init__(self, tracked: TrackedParameters, every: int) -> None:
        self._tracked, self._every = tracked, every
        self._kept: list[Tensor] | None = None
        self._found: float | None = None

    def see(self, step: int) -> None:
        """The gradients of ``step``, before the update."""
        if self._kept is not None:
            self._found = self._tracked.half_square_distance(self._kept)
            self._kept = None
        if step % self._every == 0:
            self._kept = self._tracked.gradients()

    def take(self) -> float | None:
        """What was measured since the last call."""
        found, self._found = self._found, None
        return found
