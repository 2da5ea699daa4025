"""Eigenvalues of a kernel matrix, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from lplr_cli.errors import NumericalError
from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import Solve, cholesky
from lplr_cli.linalg.tiled import TiledMatrix
from lplr_cli.linalg.verified import LowerBound, lambda_min_lower, unit_roundoff

# Up to this size all eigenvalues are computed.
FULL_LIMIT = 3000
# Relative accuracy asked of eigenvectors by inverse Lanczos; eigenvalues are accurate to about its square.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """Spectrum of a symmetric positive semidefinite N × N matrix.

    Attributes:
        size: N.
        lambda_min: smallest eigenvalue as computed; may come out negative at the edge of precision.
        lambda_max: largest eigenvalue.
        trace: sum of all eigenvalues, from the diagonal.
        resolution: N u λ_max, the size of the error to expect of an eigenvalue (u the unit roundoff). An estimate,
            not a bound: the proved bound is that of :mod:`lplr_cli.linalg.verified`.
        eigenvalues: all of them, ascending, or the extremal ones that were asked for.
        complete: whether ``eigenvalues`` are all.
        residual: ||K v - λ_min v|| of the computed unit eigenvector; some eigenvalue of the given matrix lies within
            it of ``lambda_min``. None where all eigenvalues were computed.
        method: ``eigh``, ``cholesky+lanczos`` or ``lanczos``.
        dtype: of the arithmetic.
        lower: verified lower bound of λ_min, where it was asked for.
    """

    size: int
    lambda_min: float
    lambda_max: float
    trace: float
    resolution: float
    eigenvalues: NDArray[np.float64]
    complete: bool
    residual: float | None
    method: str
    dtype: str
    lower: LowerBound | None = None

    @property
    def lambda_min_lower(self) -> float | None:
        """The verified bound, None when it was not asked for or nothing can be said."""
        return self.lower.value if self.lower is not None and math.isfinite(self.lower.value) else None

    @property
    def effective_rank(self) -> float | None:
        """trace(K) / λ_max, the intrinsic dimension (Vershynin 2018, section 5.6)."""
        return self.trace / self.lambda_max if self.lambda_max > 0 else None

    @property
    def condition_number(self) -> float | None:
        """λ_max / λ_min, None when λ_min is not positive."""
        return self.lambda_max / self.lambda_min if self.lambda_min > 0 else None

    @property
    def digits(self) -> float:
        """Decimal digits that λ_min can have in this arithmetic, log10(|λ_min| / resolution), at least 0."""
        if self.lambda_min == 0 or self.resolution == 0:
            return 0.0
        return max(0.0, math.log10(abs(self.lambda_min) / self.resolution))


def spectrum(
    kernel: Tensor | TiledMatrix,
    *,
    extremal: int | None = None,
    full_limit: int = FULL_LIMIT,
    formation_error: float | None = None,
) -> Spectrum:
    """Eigenvalues of ``kernel``: all up to ``full_limit``, else the extremal ones.

    Args:
        kernel: symmetric (N, N), possibly in tiles; used as work space above ``full_limit``, and restored.
        extremal: how many eigenvalues at each end (1 by default); only used above ``full_limit``.
        full_limit: largest N of which all eigenvalues are computed.
        formation_error: bound of the error of ``kernel`` itself in operator norm. When it is given, a lower bound of
            λ_min is proved as well, at the cost of one more Cholesky factorisation.

    Raises:
        NumericalError: entries not finite, or no convergence.
    """
    count = len(kernel)
    if isinstance(kernel, TiledMatrix) and count <= max(full_limit, 2):
        kernel = kernel.gathered()
    diagonal = scratch.diagonal(kernel).double()
    whole = kernel if isinstance(kernel, Tensor) and count <= max(full_limit, 2) else diagonal
    if not bool(torch.isfinite(diagonal).all() and torch.isfinite(whole).all()):
        raise NumericalError("the kernel holds NaN or infinity", "check the checkpoint and the data")
    trace = float(diagonal.sum())
    if whole is kernel:
        return _all_of(whole, trace, formation_error)
    return _ends_of(kernel, trace, min(extremal or 1, count - 2), formation_error)


def _all_of(kernel: Tensor, trace: float, formation_error: float | None) -> Spectrum:
    """Every eigenvalue."""
    try:
        values = torch.linalg.eigvalsh(kernel).double().cpu().numpy()
    except RuntimeError as error:
        # torch raises its LinAlgError, a RuntimeError.
        raise NumericalError(f"eigenvalues did not converge ({error})", "check the kernel") from error
    low, high = float(values[0]), float(values[-1])
    lower: LowerBound | None = None
    if formation_error is not None:
        lower = lambda_min_lower(kernel, low, formation_error=formation_error)
    return Spectrum(
        size=len(kernel),
        lambda_min=low,
        lambda_max=high,
        trace=trace,
        resolution=len(kernel) * unit_roundoff(kernel.dtype) * max(abs(low), abs(high)),
        eigenvalues=values,
        complete=True,
        residual=None,
        method="eigh",
        dtype=_name(kernel.dtype),
        lower=lower,
    )


def _ends_of(kernel: Tensor | TiledMatrix, trace: float, k: int, formation_error: float | None) -> Spectrum:
    """The k smallest and the k largest eigenvalues."""
    top = _largest(kernel, k)
    high = float(top[-1])
    lower: LowerBound | None = None
    if formation_error is None:
        low, residual = _smallest(kernel, k, high, _TOLERANCE)
    else:
        # A rough value is enough here: the second factorisation, shifted closely below λ_min, gives the bound and then
        # the eigenvalues in a few steps.
        low, residual = _smallest(kernel, 1, high, 1e-2)
        found: list[NDArray[np.float64]] = []
        lower = lambda_min_lower(
            kernel,
            float(low[0]),
            formation_error=formation_error,
            use=lambda solve: found.append(_bottom(solve, kernel, k, _TOLERANCE)),
        )
        low, residual = _rayleigh(kernel, found[0]) if found else _smallest(kernel, k, high, _TOLERANCE)
    return Spectrum(
        size=len(kernel),
        lambda_min=float(low[0]),
        lambda_max=high,
        trace=trace,
        resolution=len(kernel) * unit_roundoff(kernel.dtype) * high,
        eigenvalues=np.concatenate([low, top]),
        complete=False,
        residual=residual,
        method="cholesky+lanczos",
        dtype=_name(kernel.dtype),
        lower=lower,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def start_vector(size: int) -> NDArray[np.float64]:
    """The fixed start of every Lanczos iteration, so that results repeat bit by bit."""
    return np.random.default_rng(20250729).standard_normal(size)


def _product(kernel: Tensor | TiledMatrix, v: NDArray[np.float64]) -> NDArray[np.float64]:
    if isinstance(kernel, TiledMatrix):
        return kernel.product(v)
    vector = torch.as_tensor(v.reshape(len(kernel), -1), dtype=kernel.dtype, device=kernel.device)
    image = torch.cat([kernel[rows] @ vector for rows in scratch.strips(kernel)])
    result: NDArray[np.float64] = image.double().cpu().numpy().reshape(v.shape)
    return result


def _lanczos_vectors(k: int, count: int) -> int:
    return min(count, 8 + 2 * k)


def _largest(kernel: Tensor | TiledMatrix, k: int) -> NDArray[np.float64]:
    count = len(kernel)
    try:
        values: NDArray[np.float64] = eigsh(
            LinearOperator(kernel.shape, matvec=lambda v: _product(kernel, v), dtype=np.float64),
            k=k,
            which="LA",
            v0=start_vector(count),
            ncv=_lanczos_vectors(k, count),
            tol=1e-10,
            return_eigenvectors=False,
        )
    except ArpackError as error:
        raise NumericalError("Lanczos did not converge", "check the checkpoint and the data") from error
    return np.sort(values)


def _smallest(
    kernel: Tensor | TiledMatrix, k: int, scale: float, tolerance: float
) -> tuple[NDArray[np.float64], float]:
    """The k smallest eigenvalues by Lanczos on (K + sI)⁻¹, with s the least shift that Cholesky accepts."""
    shift = 0.0
    for _ in range(60):
        with cholesky(kernel, -shift) as solve:
            vectors = None if solve is None else _bottom(solve, kernel, k, tolerance)
        if vectors is not None:
            return _rayleigh(kernel, vectors)
        shift = 4 * shift if shift else 2 * len(kernel) * unit_roundoff(kernel.dtype) * scale
    raise NumericalError("the kernel is far from positive semidefinite", "check the model")


def _bottom(solve: Solve, like: Tensor | TiledMatrix, k: int, tolerance: float) -> NDArray[np.float64]:
    """Unit eigenvectors to the k largest eigenvalues of the inverse that ``solve`` applies, (N, k)."""
    count = len(like)

    def apply(v: NDArray[np.float64]) -> NDArray[np.float64]:
        right = torch.as_tensor(v.reshape(count, 1), dtype=like.dtype, device=like.device)
        result: NDArray[np.float64] = solve(right).double().cpu().numpy().reshape(v.shape)
        return result

    try:
        _, vectors = eigsh(
            LinearOperator((count, count), matvec=apply, dtype=np.float64),
            k=k,
            which="LA",
            v0=start_vector(count),
            ncv=_lanczos_vectors(k, count),
            tol=tolerance,
        )
    except ArpackError as error:
        raise NumericalError("inverse Lanczos did not converge", "ask for fewer eigenvalues") from error
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=0)
    return unit


def _rayleigh(kernel: Tensor | TiledMatrix, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Rayleigh quotients of unit vectors, ascending, and the residual of the smallest.

    Their error is quadratic in that of the vectors.
    """
    images = _product(kernel, vectors)
    values = np.sum(vectors * images, axis=0)
    best = int(np.argmin(values))
    return np.sort(values), float(np.linalg.norm(images[:, best] - values[best] * vectors[:, best]))


def operator_norm(matrix: Tensor) -> float:
    """||A||_op of a symmetric matrix, estimated to about ten digits (all eigenvalues up to :data:`FULL_LIMIT`)."""
    if len(matrix) <= FULL_LIMIT:
        values = torch.linalg.eigvalsh(matrix)
        return float(values.abs().max())
    operator = LinearOperator(matrix.shape, matvec=lambda v: _product(matrix, v), dtype=np.float64)
    value = eigsh(operator, k=1, which="LM", v0=start_vector(len(matrix)), return_eigenvectors=False)
    return float(abs(value[0]))
