"""Upper bounds of operator norms that hold for the floating-point numbers given: no power iteration's lower estimate.

An estimate t of λ_max(G) is proved by a Cholesky factorisation of tI - G: when it runs to completion,
λ_max(G) ≤ t + φ trace(tI - G) with φ as in :mod:`lplr_cli.linalg.verified` (Rump, BIT 46, 2006).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lplr_cli.linalg import gamma

# Lanczos steps of the estimate, whose quality decides how tight the bound is and not whether it holds.
_STEPS = 10


def largest_eigenvalue_upper(g: Tensor) -> Tensor:
    """An upper bound of λ_max for each positive semidefinite matrix of a batch, (k, m, m) → (k,)."""
    k, m, _ = g.shape
    estimate = _ritz_value(g)
    # Always valid: λ_max ≤ trace, with the rounding of the sum.
    trace = g.diagonal(dim1=1, dim2=2).sum(dim=1)
    bound: Tensor = trace * (1 + gamma(m + 2, g.dtype))
    phi = gamma(m + 10, g.dtype)
    phi = phi / (1 - phi)
    u = torch.finfo(g.dtype).eps / 2
    open_ = torch.arange(k, device=g.device)
    factor = 1.02
    while len(open_) and factor < 4:
        t = factor * estimate[open_] + torch.finfo(g.dtype).tiny
        work = -g[open_]
        work.diagonal(dim1=1, dim2=2).add_(t[:, None])
        _, info = torch.linalg.cholesky_ex(work)
        done = info == 0
        slack = phi * (m * t + trace[open_]) + u * (t + trace[open_])
        proved = (t + slack) * (1 + 8 * u)
        bound[open_[done]] = torch.minimum(bound[open_[done]], proved[done])
        open_ = open_[~done]
        factor = 1 + 3 * (factor - 1)
    return bound


def _ritz_value(g: Tensor) -> Tensor:
    """The largest Ritz value of a few Lanczos steps for each matrix: an estimate from below."""
    k, m, _ = g.shape
    v = torch.full((k, m, 1), m**-0.5, dtype=g.dtype, device=g.device)
    before = torch.zeros_like(v)
    size = torch.linalg.matrix_norm(g)[:, None, None]
    steps = min(_STEPS, m)
    tridiagonal = torch.zeros((k, steps, steps), dtype=g.dtype, device=g.device)
    off = torch.zeros((k, 1, 1), dtype=g.dtype, device=g.device)
    for step in range(steps):
        image = g @ v - off * before
        along = (v * image).sum(dim=1, keepdim=True)
        image -= along * v
        tridiagonal[:, step, step] = along[:, 0, 0]
        off = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        # An invariant subspace is found: what follows is zero and adds nothing.
        ended = off <= 1e-12 * size
        off = off.masked_fill(ended, 0.0)
        if step + 1 < steps:
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = off[:, 0, 0]
        before, v = v, torch.where(ended, 0.0, image / torch.where(ended, 1.0, off))
    value: Tensor = torch.linalg.eigvalsh(tridiagonal)[:, -1]
    return value


def norm_upper(w: Tensor) -> float:
    """An upper bound of ||W||_op, from the Gram matrix on the shorter side and the rounding of forming it."""
    short = w if w.shape[0] <= w.shape[1] else w.T
    k = short.shape[1]
    square = largest_eigenvalue_upper((short @ short.T)[None])[0]
    # |fl(WWᵀ) - WWᵀ| ≤ γ_k |W||W|ᵀ, of norm at most γ_k ||W||_F².
    rounding = gamma(k + 2, w.dtype) * float(w.square().sum()) * (1 + gamma(w.numel() + 2, w.dtype))
    return math.nextafter(math.sqrt(float(square) + rounding) * (1 + 2**-50), math.inf)


def kernel_norm_upper(kernel: Tensor) -> float:
    """An upper bound of ||K||_op of a symmetric matrix: the smaller of ||K||_F and ||K||_∞, rounded upwards.

    An NTK is dominated by one eigenvalue, so the Frobenius norm is within a fraction of a percent.
    """
    strips = torch.split(kernel, 256)
    frobenius = math.sqrt(math.fsum(float(rows.square().sum()) for rows in strips))
    widest = max(float(rows.abs().sum(dim=1).max()) for rows in strips)
    return float(min(frobenius, widest) * (1 + gamma(len(kernel) * 256 + 8, kernel.dtype)))
