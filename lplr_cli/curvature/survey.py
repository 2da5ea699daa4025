"""Everything that products tell of the Hessian at one θ: extremes, trace, norm, parts and density, within a memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.curvature.density import Quadrature, SpectralDensity, spectral_density
from lplr_cli.curvature.products import DEFAULT_MEMORY, LossCurvature, PerSample
from lplr_cli.curvature.sharpness import basis_size, check_symmetric, per_sample, start_vector
from lplr_cli.curvature.trace import TraceEstimate, xtrace
from lplr_cli.errors import InputError
from lplr_cli.linalg.lanczos import Ritz, lanczos
from lplr_cli.losses import Loss
from lplr_cli.ntk.network import Network

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]
# XTrace keeps its test vectors, their images, a basis of these and the basis' images, and the work on them.
_XTRACE = 5
# Called with what is being done, products done, and products at most.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Effort:
    """How much work a survey may be.

    Attributes:
        eigenvalues: at each end of H.
        products: for the extremes of an operator, at most.
        tolerance: residual, relative to the norm, at which an extreme counts as converged.
        trace_vectors: test vectors of XTrace, two products each; 0 leaves trace and norm out.
        density_vectors: start vectors of the quadrature; 0 leaves the density out.
        density_steps: products for each of them.
        parts: whether G and H − G are examined apart.

    Raises:
        InputError: a number that is too small.
    """

    eigenvalues: int = 5
    products: int = 200
    tolerance: float = 1e-4
    trace_vectors: int = 10
    density_vectors: int = 4
    density_steps: int = 40
    parts: bool = True

    def __post_init__(self) -> None:
        """Name what is out of range."""
        for name, value, least in (
            ("eigenvalues", self.eigenvalues, 1),
            ("products", self.products, 1),
            ("trace-vectors", self.trace_vectors, 0),
            ("density-vectors", self.density_vectors, 0),
            ("density-steps", self.density_steps, 2),
        ):
            if value < least:
                raise InputError(f"--{name} {value} is too small", f"give at least {least}")
        if self.trace_vectors == 1:
            raise InputError("--trace-vectors 1 gives no standard error", "give 0, or at least 2")
        if not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance {self.tolerance} is out of range", "give a number between 0 and 1")


@dataclass(frozen=True)
class Parts:
    """H = G + M apart (:mod:`lplr_cli.curvature.products`): both traces by XTrace, extremes by Lanczos."""

    gauss_newton: Ritz
    gauss_newton_trace: TraceEstimate | None
    rest: Ritz


@dataclass(frozen=True)
class Survey:
    """The Hessian of L = (1/n) Σ ℓ_i at one θ.

    Attributes:
        loss, gradient_norm_sq: L and ||∇L||² over the samples.
        n: samples.
        size: P.
        extremes: of H, k at each end; each Ritz value errs towards the middle.
        trace: trace and Frobenius norm of H; None where not asked for, or without room for two vectors.
        parts: None where not asked for.
        density: None where not asked for.
        method, batch: how products were made (:class:`LossCurvature`).
        products: spent on all of it, a product with G counted as one.
        resolution: u ||H|| √P of the passes' arithmetic, the size of the rounding to expect of a value: an estimate.
    """

    loss: float
    gradient_norm_sq: float
    n: int
    size: int
    extremes: Ritz
    trace: TraceEstimate | None
    parts: Parts | None
    density: SpectralDensity | None
    method: str
    batch: int
    products: int
    resolution: float


def survey(
    network: Network,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss | PerSample,
    *,
    effort: Effort | None = None,
    memory: int = DEFAULT_MEMORY,
    report: Report | None = None,
) -> Survey:
    """Examine the Hessian over all given samples.

    Args:
        network: f and θ.
        inputs: (n, …).
        targets: (n, C), or what ``loss`` takes.
        loss: a known one, or (f (m, C), y) → values of the samples (m,).
        effort: what to do.
        memory: bytes for graphs, work and vectors, beside the model and the data. Half of it goes to vectors: where
            they are many parameters, Lanczos restarts, and trace and density use fewer.
        report: told of the progress.

    Raises:
        InputError: see :class:`LossCurvature`; derivatives that the model hides.
        NumericalError: a product that is not finite.
    """
    effort = effort or Effort()
    size = network.parameter_count
    most = max(effort.products, _XTRACE * effort.trace_vectors, effort.density_steps) + 2
    vectors = min(memory // 2, 8 * size * most)
    room = basis_size(size, vectors)
    curvature = LossCurvature(network, inputs, targets, per_sample(loss), memory=memory - vectors)
    tell = report or (lambda what, done, most: None)
    extremes = _extremes(curvature.hessian, size, effort, room, lambda d, m: tell("extremes", d, m))
    trace = _trace(curvature.hessian, size, effort, room, lambda d, m: tell("trace", d, m))
    density = _density(curvature, effort, room, extremes, lambda d, m: tell("density", d, m))
    parts = _parts(curvature, effort, room, tell) if effort.parts else None
    gradient = curvature.gradient()
    return Survey(
        curvature.value(),
        float(gradient @ gradient),
        len(inputs),
        size,
        extremes,
        trace,
        parts,
        density,
        curvature.method,
        curvature.batch,
        curvature.products,
        torch.finfo(network.dtype).eps * norm(extremes) * math.sqrt(size),
    )


def norm(ends: Ritz) -> float:
    """The largest |Ritz value|."""
    return max(abs(float(ends.low[0])), abs(float(ends.high[-1])))


def _extremes(
    product: Product,
    size: int,
    effort: Effort,
    room: int,
    progress: Callable[[int, int], None],
    *,
    k: int | None = None,
    low_too: bool = True,
    scale: float = 0.0,
) -> Ritz:
    most = max(1, (min(room, size) - 3) // 2)
    found = lanczos(
        product,
        start_vector(size),
        k=min(k or effort.eigenvalues, most),
        steps=effort.products,
        tolerance=effort.tolerance,
        low_too=low_too,
        relative_to_norm=True,
        basis=room,
        progress=progress,
    )
    check_symmetric(found, scale)
    return found


def _trace(
    product: Product, size: int, effort: Effort, room: int, progress: Callable[[int, int], None]
) -> TraceEstimate | None:
    vectors = min(effort.trace_vectors, room // _XTRACE)
    return xtrace(product, size, vectors=vectors, progress=progress) if vectors >= 2 else None


def _density(
    curvature: LossCurvature, effort: Effort, room: int, extremes: Ritz, progress: Callable[[int, int], None]
) -> SpectralDensity | None:
    """The density; the iteration for the extremes began at a random vector, and serves as one more."""
    if not effort.density_vectors:
        return None
    return spectral_density(
        curvature.hessian,
        curvature.size,
        vectors=effort.density_vectors,
        steps=min(effort.density_steps, room),
        known=[Quadrature.of(extremes.alpha, extremes.beta)],
        progress=progress,
    )


def _parts(curvature: LossCurvature, effort: Effort, room: int, tell: Report) -> Parts:
    def rest(v: Vector) -> Vector:
        return curvature.hessian(v) - curvature.gauss_newton(v)

    size = curvature.size
    outer = _extremes(
        curvature.gauss_newton,
        size,
        effort,
        room,
        lambda d, m: tell("Gauss-Newton part", d, m),
        k=1,
        low_too=False,
    )
    trace = _trace(curvature.gauss_newton, size, effort, room, lambda d, m: tell("its trace", d, m))
    inner = _extremes(rest, size, effort, room, lambda d, m: tell("the rest", d, m), k=1, scale=float(outer.high[-1]))
    return Parts(outer, trace, inner)
