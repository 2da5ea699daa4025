"""Sharpness: the largest eigenvalue of the loss Hessian, by Lanczos on Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.curvature.products import DEFAULT_MEMORY, LossCurvature, PerSample
from lplr_cli.errors import InputError
from lplr_cli.linalg.lanczos import Ritz, lanczos
from lplr_cli.losses import SQUARED, Loss
from lplr_cli.ntk.network import Network

Vector = NDArray[np.float64]
# The start of every iteration for extremal eigenvalues, so that results repeat bit by bit.
_SEED = 20250729
# Rounding makes 1e-6 in float32; a part of the derivative that is missing far more.
_ASYMMETRY = 1e-3


@dataclass(frozen=True)
class Sharpness:
    """λ_max(∇²L), an estimate from below (a Rayleigh quotient).

    Attributes:
        value: the estimate.
        residual: ||H v − value · v|| of its unit vector: an eigenvalue lies that near, to rounding.
        products: Hessian-vector products spent.
        converged: whether the residual met the tolerance.
    """

    value: float
    residual: float
    products: int
    converged: bool


def start_vector(size: int) -> Vector:
    """A fixed Gaussian vector, (P,)."""
    return np.random.default_rng(_SEED).standard_normal(size)


def per_sample(loss: Loss | PerSample) -> PerSample:
    """The values of the samples, of a known loss or of a function that gives them."""
    return loss.values if isinstance(loss, Loss) else loss


def sharpness(
    network: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss | PerSample = SQUARED,
    memory: int = DEFAULT_MEMORY,
    tolerance: float = 1e-3,
    max_products: int = 100,
) -> Sharpness:
    """λ_max of the Hessian of L = (1/n) Σ ℓ(f_i, y_i) over all given samples.

    Args:
        network: f and θ.
        inputs: (n, …).
        targets: (n, C), or what ``loss`` takes.
        loss: a known one, or (f (m, C), y) → values of the samples (m,).
        memory: bytes for graphs and Lanczos vectors.
        tolerance: residual, relative to the value. The value's own error is of the order of its square.
        max_products: Hessian-vector products to spend.

    Raises:
        InputError: see :class:`lplr_cli.curvature.LossCurvature`.
    """
    basis = basis_size(network.parameter_count, memory // 2)
    curvature = LossCurvature(network, inputs, targets, per_sample(loss), memory=memory - memory // 2)
    return largest(curvature.hessian, curvature.size, tolerance=tolerance, max_products=max_products, basis=basis)


def largest(
    product: Callable[[Vector], Vector],
    size: int,
    *,
    tolerance: float = 1e-3,
    max_products: int = 100,
    basis: int | None = None,
) -> Sharpness:
    """The largest eigenvalue of any symmetric operator; arguments as in :func:`sharpness`."""
    ritz = lanczos(
        product,
        start_vector(size),
        steps=max_products,
        tolerance=tolerance,
        low_too=False,
        relative_to_norm=True,
        basis=basis,
    )
    check_symmetric(ritz)
    return Sharpness(float(ritz.high[-1]), float(ritz.high_residuals[-1]), ritz.steps, ritz.converged)


def check_symmetric(ritz: Ritz, scale: float = 0.0) -> None:
    """Refuse products that are no Hessian's: autograd was misled somewhere in the model.

    Args:
        ritz: of the operator.
        scale: norm of what the operator is a difference of, whose rounding is in it.

    Raises:
        InputError: the asymmetry is far above rounding.
    """
    own = float(np.abs(np.concatenate([ritz.low, ritz.high])).max())
    if ritz.asymmetry * own > _ASYMMETRY * max(own, scale):
        raise InputError(
            f"products with the Hessian are not symmetric (relative {ritz.asymmetry:.1g})",
            "an operation of the model hides derivatives from autograd (detach, once_differentiable)",
        )


def basis_size(size: int, memory: int) -> int:
    """Vectors of ``size`` float64 numbers that Lanczos may keep in ``memory`` bytes, its own two beside them."""
    return max(5, memory // (8 * size) - 2)
