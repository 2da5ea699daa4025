"""Eigenvalues of a kernel matrix, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lplr_cli.errors import NumericalError
from lplr_cli.ntk.verified import unit_roundoff

# Up to this size all eigenvalues are computed.
FULL_LIMIT = 3000


@dataclass(frozen=True)
class Spectrum:
    """Spectrum of a symmetric positive semidefinite N × N matrix.

    Attributes:
        size: N.
        lambda_min: smallest eigenvalue as computed; may come out negative at the edge of precision.
        lambda_max: largest eigenvalue.
        trace: sum of all eigenvalues, from the diagonal.
        resolution: N u λ_max, the size of the error to expect of an eigenvalue (u the unit roundoff). An estimate,
            not a bound: the proved bound is that of :mod:`lplr_cli.ntk.verified`.
        eigenvalues: all of them, ascending, or the extremal ones that were asked for.
        complete: whether ``eigenvalues`` are all.
        residual: ||K v - λ_min v|| of the computed unit eigenvector; some eigenvalue of the given matrix lies within
            it of ``lambda_min``. None where all eigenvalues were computed.
        method: ``eigh``, ``cholesky+lanczos`` or ``lanczos``.
        dtype: of the arithmetic.
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


def spectrum(kernel: Tensor, *, extremal: int | None = None, full_limit: int = FULL_LIMIT) -> Spectrum:
    """Eigenvalues of ``kernel``: all up to ``full_limit``, else the extremal ones.

    Args:
        kernel: symmetric (N, N).
        extremal: how many eigenvalues at each end (1 by default); only used above ``full_limit``.
        full_limit: largest N of which all eigenvalues are computed.

    Raises:
        NumericalError: entries not finite, or no convergence.
    """
    count = len(kernel)
    diagonal = kernel.diagonal().double()
    if not bool(torch.isfinite(diagonal).all()) or (count <= full_limit and not bool(torch.isfinite(kernel).all())):
        raise NumericalError("the kernel holds NaN or infinity", "check the checkpoint and the data")
    trace = float(diagonal.sum())
    name = str(kernel.dtype).removeprefix("torch.")
    if count <= full_limit:
        try:
            values = torch.linalg.eigvalsh(kernel).double().cpu().numpy()
        except RuntimeError as error:
            # torch raises its LinAlgError, a RuntimeError.
            raise NumericalError(f"eigenvalues did not converge ({error})", "check the kernel") from error
        resolution = count * unit_roundoff(kernel.dtype) * float(max(abs(values[0]), abs(values[-1])))
        return Spectrum(count, float(values[0]), float(values[-1]), trace, resolution, values, True, None, "eigh", name)
    k = min(extremal or 1, count - 2)
    top = _largest(kernel, k)
    low, residual = _smallest(kernel, k, float(top[-1]))
    resolution = count * unit_roundoff(kernel.dtype) * float(top[-1])
    return Spectrum(
        count,
        float(low[0]),
        float(top[-1]),
        trace,
        resolution,
        np.concatenate([low, top]),
        False,
        residual,
        "cholesky+lanczos",
        name,
    )


def start_vector(size: int) -> NDArray[np.float64]:
    """The fixed start of every Lanczos iteration, so that results repeat bit by bit."""
    return np.random.default_rng(20250729).standard_normal(size)


def _product(kernel: Tensor, v: NDArray[np.float64]) -> NDArray[np.float64]:
    vector = torch.as_tensor(v.reshape(len(kernel), -1), dtype=kernel.dtype, device=kernel.device)
    result: NDArray[np.float64] = (kernel @ vector).double().cpu().numpy().reshape(v.shape)
    return result


def _largest(kernel: Tensor, k: int) -> NDArray[np.float64]:
    operator = LinearOperator(kernel.shape, matvec=lambda v: _product(kernel, v), dtype=np.float64)
    values: NDArray[np.float64] = eigsh(
        operator, k=k, which="LA", v0=start_vector(len(kernel)), return_eigenvectors=False
    )
    return np.sort(values)


def _smallest(kernel: Tensor, k: int, scale: float) -> tuple[NDArray[np.float64], float]:
    """The k smallest eigenvalues by Lanczos on (K + sI)⁻¹, with s the least shift that Cholesky accepts."""
    count = len(kernel)
    shift = 0.0
    factor = torch.empty_like(kernel)
    info = torch.empty((), dtype=torch.int32, device=kernel.device)
    for _ in range(60):
        factor.copy_(kernel)
        factor.diagonal().add_(shift)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if int(info) == 0:
            break
        shift = 4 * shift if shift else 2 * count * unit_roundoff(kernel.dtype) * scale
    else:
        raise NumericalError("the kernel is far from positive semidefinite", "check the model")

    def solve(v: NDArray[np.float64]) -> NDArray[np.float64]:
        right = torch.as_tensor(v.reshape(count, 1), dtype=kernel.dtype, device=kernel.device)
        result: NDArray[np.float64] = torch.cholesky_solve(right, factor).double().cpu().numpy().reshape(v.shape)
        return result

    inverse = LinearOperator(kernel.shape, matvec=solve, dtype=np.float64)
    try:
        values, vectors = eigsh(inverse, k=k, which="LA", v0=start_vector(count), tol=1e-10)
    except ArpackNoConvergence as error:
        raise NumericalError("inverse Lanczos did not converge", "ask for fewer eigenvalues") from error
    order = np.argsort(-values)
    low = 1.0 / values[order] - shift
    v = vectors[:, order[0]]
    v = v / np.linalg.norm(v)
    image = _product(kernel, v)
    # The Rayleigh quotient is more accurate than the inverse's eigenvalue.
    low[0] = float(v @ image)
    return low, float(np.linalg.norm(image - low[0] * v))


def operator_norm(matrix: Tensor) -> float:
    """||A||_op of a symmetric matrix, estimated to about ten digits (all eigenvalues up to :data:`FULL_LIMIT`)."""
    if len(matrix) <= FULL_LIMIT:
        values = torch.linalg.eigvalsh(matrix)
        return float(values.abs().max())
    operator = LinearOperator(matrix.shape, matvec=lambda v: _product(matrix, v), dtype=np.float64)
    value = eigsh(operator, k=1, which="LM", v0=start_vector(len(matrix)), return_eigenvectors=False)
    return float(abs(value[0]))
