"""The noise of mini-batch gradients, measured while a run goes (theory.md section 13)."""

from __future__ import annotations

from collections.abc import Sequence

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
