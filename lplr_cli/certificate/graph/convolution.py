"""Upper bounds of the operator norm of a convolution with its stride and groups (docs/theory.md, section 10).

With zeros outside, a convolution of an h × w image is part of the circular one on a torus of at least (h + k − 1) ×
(w + k − 1) points, which the Fourier transform takes apart: its norm is the largest over the frequencies of the norm
of a matrix of c_out rows. A stride s folds s × s frequencies into one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.certificate.norms import largest_eigenvalue_upper, norm_upper
from lplr_cli.linalg import gamma

# Convolutions as small as this are written out as the matrices that they are: zeros outside the image count.
WRITTEN_OUT = 400
# Error of a twiddle factor, and of a product with it, relative to one: a few units of rounding.
TWIDDLE = 16 * torch.finfo(torch.float64).eps
_UP = 1 + 1e-12


def convolution_norm_upper(
    weight: Tensor, image: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> float:
    """≥ ||W||_op of a two-dimensional convolution with zeros outside the image.

    Args:
        weight: (c_out, c_in / groups, kh, kw), float64.
        image: h and w of what it meets.
        stride, padding: along h and w.
        groups: of channels.
    """
    entries = weight.shape[1] * image[0] * image[1]
    if entries <= WRITTEN_OUT:
        basis = torch.eye(entries, dtype=weight.dtype).reshape(-1, weight.shape[1], *image)
        return max(norm_upper(F.conv2d(basis, part, None, stride, padding).flatten(1)) for part in weight.chunk(groups))
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return 0.0 if largest == 0 else math.inf
    exponent = math.frexp(largest)[1]
    scaled = torch.ldexp(weight, torch.tensor(-exponent))
    try:
        return max(math.ldexp(norm_on_circle(part, image, stride), exponent) * _UP for part in scaled.chunk(groups))
    except OverflowError:
        return math.inf


def norm_on_circle(weight: Tensor, image: tuple[int, int], stride: tuple[int, int]) -> float:
    """Of one group with entries of at most one."""
    symbol = _symbol(weight, image, stride)
    short = symbol if symbol.shape[1] <= symbol.shape[2] else symbol.mH
    gram = short @ short.mH
    # Hermitian A + iB as the symmetric matrix [[A, −B], [B, A]], whose eigenvalues are the same, each twice.
    a, b = gram.real, gram.imag
    whole = torch.cat([torch.cat([a, -b], dim=2), torch.cat([b, a], dim=2)], dim=1)
    whole = (whole + whole.mT) / 2
    square = float(largest_eigenvalue_upper(whole).max())
    frobenius = float(torch.linalg.matrix_norm(symbol).max()) * _UP
    # γ of a complex inner product, in the norm of the matrix and twice for its two halves.
    square += 4 * gamma(4 * short.shape[2] + 8, weight.dtype) * frobenius**2
    taps = weight.shape[2] * weight.shape[3]
    wrong = (TWIDDLE + gamma(2 * taps + 8, weight.dtype)) * math.sqrt(taps) * float(torch.linalg.vector_norm(weight))
    return math.sqrt(square) * _UP + wrong * _UP


def _symbol(weight: Tensor, image: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The matrices whose largest norm is that of the circular convolution, (frequencies, c_out, c_in · folded)."""
    phases = [phase_matrix(size, k, s) for size, k, s in zip(image, weight.shape[2:], stride, strict=True)]
    rows, columns = phases
    # Real weights: −f has the conjugates of f.
    rows = rows[: len(rows) // 2 + 1]
    # (folded frequency, alias, tap) of both axes, over the taps.
    symbol = torch.einsum("oikl,fak,gbl->fgoiab", weight.to(rows.dtype), rows, columns)
    return symbol.flatten(4).flatten(3).flatten(0, 1) / math.sqrt(stride[0] * stride[1])


def phase_matrix(size: int, taps: int, stride: int) -> Tensor:
    """e^{−2πi ωj/N} for ω = f + a N/s, (N/s, s, taps), N the first multiple of s that holds the image and a kernel."""
    count = stride * math.ceil((size + taps - 1) / stride)
    folded = torch.arange(count // stride)[:, None] + (count // stride) * torch.arange(stride)[None, :]
    turns = (folded[:, :, None] * torch.arange(taps)) % count
    angle = turns.double() * (2 * math.pi / count)
    return torch.complex(angle.cos(), -angle.sin())
