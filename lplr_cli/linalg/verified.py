"""A rigorous lower bound of λ_min from floating-point Cholesky.

If floating-point Cholesky of a symmetric matrix A runs to completion, then A + ΔA = RᵀR for some
|ΔA_ij| ≤ φ √(a_ii a_jj) with φ = γ_{N+1}/(1 - γ_{N+1}) (Demmel 1989; Higham 2002, theorem 10.3), whatever the
order of the sums. As a matrix with entries at most φ √(a_ii a_jj) has norm at most φ trace(A),

    λ_min(A) ≥ -φ trace(A)                                            (Rump, BIT 46, 2006)

Applied to A = fl(K - cI) this gives λ_min(K) ≥ c - φ trace(A) - u max_i |k_ii - c| - η, the third term for the rounding
of the shift and η for underflow. A bound for the error of K itself in operator norm is subtracted as well. All scalar
arithmetic of the bound is rounded outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import Solve, cholesky

# Additions to N in the index of γ. Blocked kernels may multiply by reciprocals of the diagonal instead of dividing,
# one rounding more an element; the rest is spare.
_EXTRA_ROUNDINGS = 8


def unit_roundoff(dtype: torch.dtype) -> float:
    """u, half the distance from 1 to the next number: 2⁻⁵³ in float64."""
    return torch.finfo(dtype).eps / 2


def gamma(k: int, dtype: torch.dtype) -> float:
    """An upper bound of γ_k = k u / (1 - k u); infinite when k u ≥ 1/2."""
    ku = k * unit_roundoff(dtype)
    return math.nextafter(ku / (1 - ku) * (1 + 2**-50), math.inf) if ku < 0.5 else math.inf


@dataclass(frozen=True)
class LowerBound:
    """λ_min(K) ≥ ``value`` for the exact matrix K of which a rounded one was given.

    Attributes:
        value: the bound; zero or below it certifies nothing, -inf when no factorisation succeeded.
        shift: c of the factorisation that succeeded.
        factorisation_error: φ trace(A) and the rounding of the shift.
        formation_error: bound of ||K_computed - K||_op that was subtracted.
        attempts: factorisations tried.
    """

    value: float
    shift: float
    factorisation_error: float
    formation_error: float
    attempts: int


def _slack(kernel: Tensor, c: float) -> float:
    """Everything to subtract from c after a Cholesky of fl(K - cI) that ran to completion."""
    diagonal = scratch.diagonal(kernel).double().cpu()
    count = len(diagonal)
    dtype = kernel.dtype
    phi = gamma(count + 1 + _EXTRA_ROUNDINGS, dtype)
    phi = math.inf if phi >= 1 else phi / (1 - phi)
    shifted = (diagonal - c).abs()
    # float64 sums of float64 numbers: γ_N relative, as all terms are non-negative.
    trace = float(shifted.sum()) * (1 + gamma(count + 2, torch.float64))
    u = unit_roundoff(dtype)
    underflow = count * count * torch.finfo(dtype).smallest_normal
    total = phi * trace * (1 + 4 * u) + u * float(shifted.max()) * (1 + 4 * u) + underflow
    return total * (1 + 2**-48)


def lambda_min_lower(
    kernel: Tensor,
    estimate: float,
    *,
    formation_error: float = 0.0,
    attempts: int = 8,
    use: Callable[[Solve], None] | None = None,
) -> LowerBound:
    """A lower bound of λ_min of the exact matrix behind ``kernel``.

    Args:
        kernel: symmetric (N, N); one triangle is read.
        estimate: approximate λ_min, from any method; decides only how sharp the bound is.
        formation_error: bound of the operator norm of computed minus exact matrix.
        attempts: factorisations to spend; the first succeeds unless λ_min is at the edge of precision.
        use: called with the solver of the factorisation that succeeded, whose shift lies closely below λ_min.

    Returns:
        The bound. ``kernel`` is used as work space and restored. Cost: one Cholesky an attempt.
    """
    count = len(kernel)
    best = LowerBound(-math.inf, -math.inf, math.inf, formation_error, 0)
    if count == 0 or not math.isfinite(estimate):
        return best
    unit = unit_roundoff(kernel.dtype) * float(scratch.diagonal(kernel).double().abs().sum())
    # What Cholesky loses in practice is far below the a priori bound: a few units of rounding in λ_max.
    margin = max(0.01 * abs(estimate), 4 * unit)
    tried = 0
    for tried in range(1, attempts + 1):
        # Rounded to the dtype of the matrix, so that the shift applied is the shift that counts.
        applied = float(torch.tensor(estimate - margin, dtype=kernel.dtype))
        with cholesky(kernel, applied) as solve:
            succeeded = solve is not None
            if solve is not None and use is not None:
                use(solve)
        if succeeded:
            slack = _slack(kernel, applied)
            value = math.nextafter(applied - slack, -math.inf)
            value = math.nextafter(value - formation_error, -math.inf)
            best = LowerBound(value, applied, slack, formation_error, tried)
            break
        margin *= 2
    else:
        best = LowerBound(-math.inf, -math.inf, math.inf, formation_error, tried)
    return best
