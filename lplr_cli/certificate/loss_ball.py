"""β and α of a loss over balls (docs/theory.md, section 9, "β over a ball").

∇²L = J̃ᵀ W J̃ + (1/n) Σ q_ic ∇²f_ic with W = ∇²_f ℓ. Over a ball the first part is at most ||√w J̃||², w the bound of W
there, and the norm of the second at most α, the smaller of (1/n) Σ sup|q_ic| h_ic and L_J sup||q̃||.
"""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lplr_cli.certificate.network import SmoothMLP, euclidean, in_double
from lplr_cli.certificate.networks import directions_of, graph_bounds, read_network
from lplr_cli.certificate.norms import kernel_norm_upper
from lplr_cli.certificate.path import CERTIFIED
from lplr_cli.certificate.pieces import Smoothness
from lplr_cli.certificate.proved import Proved
from lplr_cli.certificate.rounding import RoundedBounds
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS
from lplr_cli.linalg import gamma
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY, Network, empirical_ntk
from lplr_cli.ntk.structured import InputProducts

_UP = 1 + 1e-10
_U = 2.0**-53
# ``auto`` is tight while the cubes of the widths, times the samples, stay below this: milliseconds a ball.
_TIGHT = 3e7
# Part of the memory that the products of the inputs may take from one ball to the next.
_KEPT = 8
_NOTHING = Smoothness(math.inf, math.inf)


class Bounds(Protocol):
    """Bounds of a network over balls around one θ; see :class:`lplr_cli.certificate.BallBounds`."""

    n: int
    outputs: int
    f: Tensor
    jacobian_error: float

    def over(self, radius: float) -> Any:
        """On the ball of this radius, a :class:`Proved`."""

    def forward_error(self, over: Any) -> Tensor:
        """≥ ||f̂ − f|| at every θ of the ball, (n,)."""

    def gradient_error(self, over: Any, size: Tensor, error: Tensor) -> float:
        """≥ ||∇L̂ − ∇L|| at every θ of the ball, from ≥ ||q_i|| and its error, (n,)."""


class CertifiedCurvature:
    """Bounds of ∇²L for one network, data and loss, on balls around any θ.

    Args:
        module: an MLP, or a network of other operations with bounds; its trained parameters say what θ is made of, in
            the order of ``named_parameters``.
        inputs: all training inputs (n, …).
        targets: (n, C).
        loss: with its scale.
        method: of :class:`lplr_cli.certificate.BallBounds`; ``auto`` is tight only where that is as cheap. Of a graph
            ``tight`` pushes many derivatives through the network, ``fast`` none, and ``auto`` what pays on a few
            samples.
        memory: bytes for the kernel.

    Raises:
        NoCertificateError: no bound is proved for this network.
    """

    kind = CERTIFIED
    largest = math.inf

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: Loss,
        *,
        method: str = "auto",
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.module, self.loss, self.memory = module, loss, memory
        self.x = in_double(inputs)
        self.network = read_network(module, inputs.shape[1:])
        if isinstance(self.network, SmoothMLP):
            self.x = self.x.double().flatten(1)
            method = _method(self.network, len(self.x), method)
        self.method = method
        # Of a graph: how many directions are pushed, settled at the first ball.
        self._directions: int | None = None
        self.y = targets.reshape(len(inputs), -1).double()
        # The bounds of |q| by its scale hold for probabilities only.
        loss.check_targets(self.y)
        self.shapes = {k: p.shape for k, p in module.named_parameters() if p.requires_grad}
        fits = 8 * len(self.x) ** 2 <= memory // _KEPT
        self.products = InputProducts(self.x) if fits else None

    @property
    def is_mlp(self) -> bool:
        """Whether the bounds are those of an MLP, whose cost is known beforehand."""
        return isinstance(self.network, SmoothMLP)

    def ball(self, centre: Tensor) -> LossBall:
        """For balls around θ = ``centre``, (P,)."""
        return LossBall(self, centre)

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """θ by name."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        return {k: v.view(shape) for (k, shape), v in zip(self.shapes.items(), torch.split(theta, sizes), strict=True)}

    def bounds(self, values: dict[str, Tensor]) -> Bounds:
        """Those of the network around θ by name."""
        if isinstance(self.network, SmoothMLP):
            return RoundedBounds(self.network.with_trained(list(values.values())), self.x, method=self.method)
        network = self.network.with_trained(values)
        if self._directions is None:
            self._directions = directions_of(self.method, network, self.x)
        return graph_bounds(self.module, network, self.x, self._directions)


def _method(network: SmoothMLP, n: int, method: str) -> str:
    """``tight`` for ``auto`` where it is as cheap as the rest, else ``fast``."""
    cost = n * sum(float(len(layer.weight)) ** 3 for layer in network.layers[1:-1])
    return ("tight" if cost <= _TIGHT else "fast") if method == "auto" else method


class LossBall:
    """The loss around one centre; :meth:`at` costs a few passes over the activations for each radius."""

    def __init__(self, curvature: CertifiedCurvature, centre: Tensor) -> None:
        self._c = curvature
        values = curvature.values(centre)
        self.at_centre = curvature.bounds(values)
        chosen = Network.from_module(curvature.module, values=values)
        kernel = empirical_ntk(
            chosen,
            curvature.x,
            engine="structured",
            memory=curvature.memory,
            bound_rounding=True,
            products=curvature.products,
        )
        assert kernel.formation_error is not None
        self.kernel, self.formation = kernel.matrix, kernel.formation_error
        # No radius changes it.
        self._kernel_norm = kernel_norm_upper(self.kernel)

    def at(self, radius: float) -> Smoothness:
        """On the ball of this radius."""
        over: Proved = self.at_centre.over(radius)
        loss, f, n, reach = self._c.loss, self.at_centre.f, self.at_centre.n, over.f_reach
        q = (loss.gradients(f, self._c.y).abs() + loss.gradient_change(reach) + self.gradient_rounding(reach)) * _UP
        q = q.clamp_max(loss.scale) if loss.classifies else q
        each = float((q * over.hessians).sum()) / n
        alpha = min(each, over.l_j * float(torch.linalg.vector_norm(q)) / math.sqrt(n)) * _UP
        weights = loss.curvature_over(f, reach) * _UP
        heaviest = float(weights.max())
        weighted = self._norm(weights) + math.sqrt(heaviest) * over.l_j * radius
        beta = (weighted**2 + alpha) * _UP
        plain = self._norm(None) + over.l_j * radius if loss.classifies else weighted / math.sqrt(heaviest) * _UP
        gauss_newton = 2 * math.sqrt(heaviest) * weighted * over.l_j
        if loss.classifies:
            gauss_newton += loss.hessian_lipschitz * plain**2 * float(over.jacobians.max())
        rest = float((q * over.thirds).sum()) / n + over.l_j * heaviest * plain
        loss_error, gradient_error = self.rounding(over, q)
        found = Smoothness(beta, alpha, gauss_newton * _UP, rest * _UP, loss_error * _UP, gradient_error * _UP)
        return found if all(math.isfinite(v) for v in astuple(found)) else _NOTHING

    def _norm(self, weights: Tensor | None) -> float:
        """An upper bound of ||√w J̃|| at the centre, (n, C) weights or none."""
        norm, heaviest = self._kernel_norm, 1.0
        if weights is not None and self._c.loss.classifies:
            root = weights.reshape(-1).sqrt().to(self.kernel)
            norm, heaviest = kernel_norm_upper(self.kernel * root[:, None] * root[None, :]), float(weights.max())
        elif weights is not None:
            heaviest = float(weights.max())
            return math.sqrt(heaviest) * self._norm(None) * _UP
        square = norm * _UP + heaviest * self.formation
        return (math.sqrt(square) + math.sqrt(heaviest) * self.at_centre.jacobian_error) * _UP

    def gradient_rounding(self, reach: Tensor) -> Tensor:
        """Rounding of every entry of q, (n, C): of a few elementary functions and a sum over the outputs."""
        c = self._c.y.shape[1]
        size = 1 + self.at_centre.f.abs() + reach + self._c.y.abs()
        largest = size.amax(dim=1, keepdim=True).expand_as(reach)
        return (2 * ELEMENTARY_ULPS + c) * 4 * _U * self._c.loss.scale * largest

    def rounding(self, over: Proved, q: Tensor) -> tuple[float, float]:
        """|L̂ − L| and ||∇L̂ − ∇L|| at every θ of the ball, for any order of summation, by norms layer by layer."""
        loss, n, outputs = self._c.loss, self.at_centre.n, self.at_centre.outputs
        f_error, size = self.at_centre.forward_error(over), euclidean(q)
        q_error = loss.smoothness * f_error + euclidean(self.gradient_rounding(over.f_reach))
        magnitude = (
            loss.scale
            * outputs
            * (1 + euclidean(self.at_centre.f) + euclidean(over.f_reach) + euclidean(self._c.y)).square()
        )
        summed = gamma(n * outputs + 256, torch.float64) * float(magnitude.mean())
        loss_error = float((size * f_error + loss.smoothness * f_error.square()).mean()) + summed
        return loss_error, self.at_centre.gradient_error(over, size, q_error)
