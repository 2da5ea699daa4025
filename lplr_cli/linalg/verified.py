"""A rigorous lower bound of λ_min from floating-point Cholesky.

If floating-point Cholesky of a symmetric matrix A runs to completion, then A + ΔA = RᵀR for some
|ΔA_ij| ≤ φ √(a_ii a_jj) with φ = γ_{N+1}/(1 - γ_{N+1}) (Demmel 1989; Higham 2002, theorem 10.3), whatever the
order of the sums, as long as triangular systems are solved by substitution: a diagonal element may be divided by or
multiplied by its rounded reciprocal, but no diagonal block may be inverted, which GPU libraries do. So a matrix on
another device is factorised on the CPU, by LAPACK. As a matrix with entries at most φ √(a_ii a_jj) has norm at most
φ trace(A),

    λ_min(A) ≥ -φ trace(A)                                            (Rump, BIT 46, 2006)

Applied to A = fl(K - cI) this gives λ_min(K) ≥ c - φ trace(A) - u max_i |k_ii - c| - η, the third term for the rounding
of the shift and η for underflow: N² times the smallest normal number, above Rump's 4N (2N + 4 + max a_ii) times the
smallest subnormal one (what of it grows with a_ii is within the spare roundings of φ). A bound for the error of K
itself in operator norm is subtracted as well. All scalar arithmetic of the bound is rounded outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import Solve, cholesky
from lplr_cli.linalg.precision import full_precision
from lplr_cli.linalg.tiled import TiledMatrix

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


def _slack(kernel: Tensor | TiledMatrix, c: float) -> float:
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


def _on_cpu(
    kernel: Tensor | TiledMatrix, use: Callable[[Solve], None] | None
) -> tuple[Tensor | TiledMatrix, Callable[[Solve], None] | None]:
    """The matrix where Cholesky's bound holds; solvers handed to ``use`` still take vectors of the first device."""
    if isinstance(kernel, TiledMatrix):
        return kernel, use
    device = kernel.device
    if device.type == "cpu" or use is None:
        return kernel.cpu(), use
    return kernel.cpu(), lambda solve: use(lambda b: solve(b.cpu()).to(device))


def lambda_min_lower(
    kernel: Tensor | TiledMatrix,
    estimate: float,
    *,
    formation_error: float = 0.0,
    attempts: int = 8,
    use: Callable[[Solve], None] | None = None,
) -> LowerBound:
    """A lower bound of λ_min of the exact matrix behind ``kernel``.

    Args:
        kernel: symmetric (N, N); one triangle is read. It is copied to the CPU where it lies elsewhere.
        estimate: approximate λ_min, from any method; decides only how sharp the bound is.
        formation_error: bound of the operator norm of computed minus exact matrix.
        attempts: factorisations to spend; the first succeeds unless λ_min is at the edge of precision.
        use: called with the solver of the factorisation that succeeded, whose shift lies closely below λ_min.

    Returns:
        The bound. ``kernel`` is used as work space and restored. Cost: one Cholesky an attempt.
    """
    kernel, use = _on_cpu(kernel, use)
    count = len(kernel)
    if count == 0 or not math.isfinite(estimate):
        return LowerBound(-math.inf, -math.inf, math.inf, formation_error, 0)
    unit = unit_roundoff(kernel.dtype) * float(scratch.diagonal(kernel).double().abs().sum())
    # What Cholesky loses in practice is far below the a priori bound: a few units of rounding in λ_max.
    margin = max(0.01 * abs(estimate), 4 * unit)
    for tried in range(1, attempts + 1):
        slack, shift = shifted_bound(kernel, estimate - margin, use)
        if slack is not None:
            value = math.nextafter(shift - slack, -math.inf)
            value = math.nextafter(value - formation_error, -math.inf)
            return LowerBound(value, shift, slack, formation_error, tried)
        margin *= 2
    return LowerBound(-math.inf, -math.inf, math.inf, formation_error, attempts)


def shifted_bound(
    kernel: Tensor | TiledMatrix, shift: float, use: Callable[[Solve], None] | None = None
) -> tuple[float | None, float]:
    """δ and c with λ_min(``kernel``) ≥ c - δ from one factorisation of K - cI; None for δ where it broke down.

    Args:
        kernel: symmetric (N, N) on the CPU; restored afterwards.
        shift: c before it is rounded to the dtype of the matrix, so that the shift applied is the shift that counts.
        use: called with the solver, where there is one.
    """
    applied = float(torch.tensor(shift, dtype=kernel.dtype))
    with full_precision(), cholesky(kernel, applied) as solve:
        succeeded = solve is not None
        if solve is not None and use is not None:
            use(solve)
    return (_slack(kernel, applied) if succeeded else None), applied
