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
_STEPS = 14
# First shift tried, relative to the estimate; what it is above one is spent on speed, not on soundness.
FIRST = 1.02
# The golden ratio, whose multiples are spread evenly modulo one.
_IRRATIONAL = 0.6180339887498949


def largest_eigenvalue_upper(g: Tensor) -> Tensor:
    """An upper bound of λ_max for each positive semidefinite matrix of a batch, (k, m, m) → (k,)."""
    k, m, _ = g.shape
    estimate = ritz_value(g)
    # Always valid: λ_max ≤ trace, with the rounding of the sum.
    trace = g.diagonal(dim1=1, dim2=2).sum(dim=1)
    bound: Tensor = trace * (1 + gamma(m + 2, g.dtype))
    open_ = torch.arange(k, device=g.device)
    factor = FIRST
    while len(open_) and factor < 4:
        t = factor * estimate[open_] + torch.finfo(g.dtype).tiny
        proved = proved_from(g if len(open_) == k else g[open_], t)
        done = proved.isfinite()
        bound[open_[done]] = torch.minimum(bound[open_[done]], proved[done])
        open_ = open_[~done]
        factor = 1 + 3 * (factor - 1)
    return bound


def proved_from(g: Tensor, t: Tensor) -> Tensor:
    """An upper bound of λ_max closely above t where Cholesky of tI - G runs to completion, else infinity; (k,)."""
    m = g.shape[1]
    phi = gamma(m + 10, g.dtype)
    phi = phi / (1 - phi) if phi < 1 else math.inf
    u = torch.finfo(g.dtype).eps / 2
    diagonal = g.diagonal(dim1=1, dim2=2).abs()
    work = -g
    work.diagonal(dim1=1, dim2=2).add_(t[:, None])
    _, info = torch.linalg.cholesky_ex(work)
    # φ trace(tI - G), the rounding of its diagonal, and products that underflow.
    slack = phi * (m * t + diagonal.sum(dim=1)) + u * (t + diagonal.amax(dim=1))
    slack = slack + m * m * torch.finfo(g.dtype).smallest_normal
    return torch.where(info == 0, (t + slack) * (1 + 8 * u), math.inf)


def ritz_value(g: Tensor) -> Tensor:
    """The largest Ritz value of a few Lanczos steps for each matrix: an estimate from below."""
    k, m, _ = g.shape
    # Neither constant nor orthogonal to constants: centred tensors have matrices that vanish on these.
    start = 1 + (_IRRATIONAL * torch.arange(m, dtype=g.dtype, device=g.device)) % 1
    # Vectors as rows: a row times a matrix, which is symmetric, is the product that torch makes fast for a few of them.
    v = (start / torch.linalg.vector_norm(start)).reshape(1, 1, m).repeat(k, 1, 1)
    least = 1e-12 * torch.linalg.matrix_norm(g)[:, None, None]
    diagonal: list[Tensor] = []
    below: list[Tensor] = []
    behind = torch.zeros_like(v)
    for step in range(steps := min(_STEPS, m)):
        image = torch.baddbmm(behind, v, g)
        diagonal.append(torch.bmm(v, image.mT))
        if step + 1 < steps:
            image.addcmul_(diagonal[-1], v, value=-1)
            size = torch.linalg.vector_norm(image, dim=2, keepdim=True)
            # An invariant subspace is found: what follows is zero and adds nothing.
            lasts = size > least
            below.append(size * lasts)
            behind, v = v * -below[-1], image * torch.where(lasts, 1 / size, 0.0)
    tridiagonal = torch.diag_embed(torch.cat(diagonal, dim=1)[:, :, 0])
    if below:
        tridiagonal += torch.diag_embed(torch.cat(below, dim=1)[:, :, 0], offset=-1)
    value: Tensor = torch.linalg.eigvalsh(tridiagonal)[:, -1]
    return value


def norm_upper(w: Tensor) -> float:
    """An upper bound of ||W||_op, from the Gram matrix on the shorter side and the rounding of forming it."""
    w, exponent = _scaled(w)
    short = w if w.shape[0] <= w.shape[1] else w.T
    k = short.shape[1]
    square = largest_eigenvalue_upper((short @ short.T)[None])[0]
    # |fl(WWᵀ) - WWᵀ| ≤ γ_k |W||W|ᵀ, of norm at most γ_k ||W||_F².
    rounding = gamma(k + 2, w.dtype) * float(w.square().sum()) * (1 + gamma(w.numel() + 2, w.dtype))
    return _unscaled(math.sqrt(float(square) + rounding) * (1 + 2**-50), exponent)


def operator_norms(a: Tensor) -> Tensor:
    """≥ ||A||_op of each of many matrices, (k, p, m) → (k,), by the Gram matrix of the shorter side.

    Entries are of magnitudes whose squares float64 holds.
    """
    square = a.square().sum(dim=(1, 2))
    short = a if a.shape[1] <= a.shape[2] else a.mT
    if short.shape[1] > 1:
        # |fl(AAᵀ) − AAᵀ| ≤ γ |A||A|ᵀ, of norm at most γ ||A||_F².
        grown = 1.01 * gamma(short.shape[2] + 8, a.dtype)
        square = torch.minimum(square, largest_eigenvalue_upper(short @ short.mT) + grown * square)
    found: Tensor = square.sqrt() * (1 + gamma(a[0].numel() + 16 if len(a) else 16, a.dtype))
    return found


def kernel_norm_upper(kernel: Tensor) -> float:
    """An upper bound of ||K||_op of a symmetric matrix: the smaller of ||K||_F and ||K||_∞, rounded upwards.

    An NTK is dominated by one eigenvalue, so the Frobenius norm is within a fraction of a percent.
    """
    squares, widest, exponent = [], 0.0, _exponent(kernel)
    for rows in torch.split(kernel, 256):
        strip = _times_power(rows, -exponent)
        squares.append(float(strip.square().sum()))
        widest = max(widest, float(strip.abs().sum(dim=1).max()))
    frobenius = math.sqrt(math.fsum(squares))
    grown = min(frobenius, widest) * (1 + gamma(len(kernel) * 256 + 8, kernel.dtype))
    return _unscaled(grown, exponent)


def frobenius_upper(t: Tensor) -> float:
    """An upper bound of the Euclidean norm of all entries; infinite where one is not finite."""
    if t.numel() == 0:
        return 0.0
    scaled, exponent = _scaled(t)
    root = math.sqrt(float(scaled.square().sum())) * (1 + gamma(t.numel() + 8, t.dtype))
    return _unscaled(root, exponent)


def _exponent(t: Tensor) -> int:
    """e with 2^(e-1) ≤ the largest |entry| < 2^e; 0 for zeros and what is not finite."""
    largest = float(t.abs().max())
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def _scaled(t: Tensor) -> tuple[Tensor, int]:
    """t 2⁻ᵉ with entries of at most 1, one of them at least ½, and e: squares of it neither overflow nor vanish.

    Exact but for entries below 2⁻¹⁰⁰⁰ of the largest, whose loss is far below the rounding that is added.
    """
    exponent = _exponent(t)
    return _times_power(t, -exponent), exponent


def _times_power(t: Tensor, exponent: int) -> Tensor:
    half = exponent // 2
    return t * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def _unscaled(value: float, exponent: int) -> float:
    """value 2ᵉ, upwards; zero, which comes of zeros alone, stays zero."""
    if not math.isfinite(value):
        return math.inf
    if value == 0:
        return 0.0
    try:
        return math.nextafter(math.ldexp(value, exponent), math.inf)
    except OverflowError:
        return math.inf
