"""β and α of a loss over balls, for smooth MLPs (docs/theory.md, section 9, "β over a ball").

∇²L = J̃ᵀ W J̃ + (1/n) Σ q_ic ∇²f_ic with W = ∇²_f ℓ. Over a ball the first part is at most ||√w J̃||², w the bound of W
there, and the norm of the second at most α, the smaller of (1/n) Σ sup|q_ic| h_ic and L_J sup||q̃||.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from lplr_cli.certificate.ball import BallBounds, Over
from lplr_cli.certificate.network import SmoothMLP, euclidean
from lplr_cli.certificate.norms import kernel_norm_upper
from lplr_cli.certificate.path import CERTIFIED
from lplr_cli.certificate.pieces import Smoothness
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS
from lplr_cli.linalg import gamma
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY, Network, empirical_ntk

_UP = 1 + 1e-10
_U = 2.0**-53
# What the whole real line is to an activation: beyond, its derivatives are constant to all digits.
_FAR = 1e3
# Accuracy assumed of elementary functions, relative to 1 + |z| + |value|.
_ELEMENTARY = 2 * ELEMENTARY_ULPS * _U
# ``auto`` is tight while the cubes of the widths, times the samples, stay below this: milliseconds a ball.
_TIGHT = 3e7
_NOTHING = Smoothness(math.inf, math.inf)


@dataclass(frozen=True)
class _Rounded:
    """One layer over a ball, each (n,): ||â − a|| of what it meets, ||z||, and ||ẑ − z||."""

    a_error: Tensor
    z: Tensor
    z_error: Tensor


class CertifiedCurvature:
    """Bounds of ∇²L for one network, data and loss, on balls around any θ.

    Args:
        module: an MLP; its trained parameters say what θ is made of, in the order of ``named_parameters``.
        inputs: all training inputs (n, …).
        targets: (n, C).
        loss: with its scale.
        method: of :class:`BallBounds`; ``auto`` is tight only where that is as cheap.
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
        self.network = SmoothMLP.from_module(module)
        self.module, self.loss, self.memory = module, loss, memory
        self.x = inputs.flatten(1).double()
        cost = len(self.x) * sum(float(len(layer.weight)) ** 3 for layer in self.network.layers[1:-1])
        self.method = ("tight" if cost <= _TIGHT else "fast") if method == "auto" else method
        self.y = targets.reshape(len(inputs), -1).double()
        # The bounds of |q| by its scale hold for probabilities only.
        loss.check_targets(self.y)
        self.shapes = {k: p.shape for k, p in module.named_parameters() if p.requires_grad}

    def ball(self, centre: Tensor) -> LossBall:
        """For balls around θ = ``centre``, (P,)."""
        return LossBall(self, centre)

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """θ by name."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        return {k: v.view(shape) for (k, shape), v in zip(self.shapes.items(), torch.split(theta, sizes), strict=True)}


class LossBall:
    """The loss around one centre; :meth:`at` costs a few passes over the activations for each radius."""

    def __init__(self, curvature: CertifiedCurvature, centre: Tensor) -> None:
        self._c = curvature
        values = curvature.values(centre)
        self._network = curvature.network.with_trained(list(values.values()))
        self._bounds = BallBounds(self._network, curvature.x, method=curvature.method)
        chosen = Network.from_module(curvature.module, values=values)
        kernel = empirical_ntk(chosen, curvature.x, engine="structured", memory=curvature.memory, bound_rounding=True)
        assert kernel.formation_error is not None
        self._kernel, self._formation = kernel.matrix, kernel.formation_error
        self._frobenius = [float(torch.linalg.vector_norm(layer.weight)) * _UP for layer in self._network.layers]

    def at(self, radius: float) -> Smoothness:
        """On the ball of this radius."""
        over, loss = self._bounds.over(radius), self._c.loss
        f, n = self._bounds.f, self._bounds.n
        reach = over.reach[-1]
        q = (loss.gradients(f, self._c.y).abs() + loss.gradient_change(reach) + self._gradient_rounding(reach)) * _UP
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
            gauss_newton += loss.hessian_lipschitz * plain**2 * float(over.forward[-1].max())
        rest = float((q * over.thirds).sum()) / n + over.l_j * heaviest * plain
        loss_error, gradient_error = self._rounding(over, radius, q)
        found = Smoothness(beta, alpha, gauss_newton * _UP, rest * _UP, loss_error * _UP, gradient_error * _UP)
        return found if all(math.isfinite(v) for v in astuple(found)) else _NOTHING

    def _norm(self, weights: Tensor | None) -> float:
        """An upper bound of ||√w J̃|| at the centre, (n, C) weights or none."""
        kernel, heaviest = self._kernel, 1.0
        if weights is not None and self._c.loss.classifies:
            root = weights.reshape(-1).sqrt().to(kernel)
            kernel, heaviest = kernel * root[:, None] * root[None, :], float(weights.max())
        elif weights is not None:
            heaviest = float(weights.max())
            return math.sqrt(heaviest) * self._norm(None) * _UP
        square = kernel_norm_upper(kernel) * _UP + heaviest * self._formation
        return (math.sqrt(square) + math.sqrt(heaviest) * self._bounds.jacobian_error) * _UP

    def _gradient_rounding(self, reach: Tensor) -> Tensor:
        """Rounding of q itself, (n, C): of a few elementary functions and a sum over the outputs."""
        c = self._c.y.shape[1]
        size = 1 + self._bounds.f.abs() + reach + self._c.y.abs()
        return (2 * ELEMENTARY_ULPS + c) * 4 * _U * self._c.loss.scale * size.amax(dim=1, keepdim=True)

    def _rounding(self, over: Over, radius: float, q: Tensor) -> tuple[float, float]:
        """|L̂ − L| and ||∇L̂ − ∇L|| at every θ of the ball, for any order of summation, by norms layer by layer."""
        loss, n, outputs = self._c.loss, self._bounds.n, self._bounds.outputs
        forward = self._forward_rounding(over, radius)
        f_error, size = forward[-1].z_error, euclidean(q)
        q_error = loss.smoothness * f_error + euclidean(self._gradient_rounding(over.reach[-1]))
        magnitude = (
            loss.scale
            * outputs
            * (1 + euclidean(self._bounds.f) + euclidean(over.reach[-1]) + euclidean(self._c.y)).square()
        )
        summed = gamma(n * outputs + 256, torch.float64) * float(magnitude.mean())
        loss_error = float((size * f_error + loss.smoothness * f_error.square()).mean()) + summed
        return loss_error, self._backward_rounding(over, radius, size, q_error, forward)

    def _forward_rounding(self, over: Over, radius: float) -> list[_Rounded]:
        """For each layer at every θ of the ball."""
        first, _ = self._steepest
        found: list[_Rounded] = []
        a_error = torch.zeros(self._bounds.n, dtype=torch.float64)
        for level, layer in enumerate(self._network.layers):
            a, c = over.activations[level], layer.scale
            spectral, frobenius = self._norms(level, radius)
            bias = float(torch.linalg.vector_norm(layer.bias)) + radius
            grown = gamma(layer.weight.shape[1] + 8, torch.float64)
            z = c * spectral * a + bias
            z_error = (c * spectral * a_error + grown * (c * frobenius * (a + a_error) + bias)) * _UP
            found.append(_Rounded(a_error, z, z_error))
            if level + 1 < len(self._network.layers):
                units = math.sqrt(layer.weight.shape[0])
                value = over.activations[level + 1] + first * z_error
                a_error = (first * z_error + _ELEMENTARY * (units + z + z_error + value)) * _UP
        return found

    def _norms(self, level: int, radius: float) -> tuple[float, float]:
        """||W_l||_op and || |W_l| ||_op over the ball."""
        moved = radius if self._network.layers[level].weight_trained else 0.0
        return self._bounds.weight_norms[level] + moved, self._frobenius[level] + moved

    def _backward_rounding(
        self, over: Over, radius: float, size: Tensor, error: Tensor, forward: list[_Rounded]
    ) -> float:
        """||∇L̂ − ∇L||, from ||q_i|| ≤ ``size`` and its error, (n,)."""
        layers, (first, second) = self._network.layers, self._steepest
        summed = gamma(2 * self._bounds.n + 256, torch.float64)
        wrong = 0.0
        for level in range(len(layers) - 1, -1, -1):
            layer, c, at = layers[level], layers[level].scale, forward[level]
            s, a = size * euclidean(over.backward[level]), over.activations[level]
            if layer.weight_trained:
                each = error * (a + at.a_error) + s * at.a_error
                wrong += (c * float((each + summed * (s + error) * (a + at.a_error)).mean())) ** 2
            if layer.bias_trained:
                wrong += float((error + summed * (s + error)).mean()) ** 2
            if level:
                spectral, frobenius = self._norms(level, radius)
                grown = gamma(layer.weight.shape[0] + 8, torch.float64)
                handed = c * (spectral * error + grown * frobenius * (s + error))
                e, below = c * spectral * s + handed, forward[level - 1]
                slope_error = second * below.z_error + _ELEMENTARY * (1 + below.z + below.z_error)
                error = (first * handed + slope_error * e + 8 * _U * first * e) * _UP
        return math.sqrt(wrong) * _UP

    @property
    def _steepest(self) -> tuple[float, float]:
        """sup |φ'| and sup |φ''| over the real line."""
        phi, far = self._network.activation, torch.tensor([_FAR], dtype=torch.float64)
        return float(phi.sup_first(-far, far)), float(phi.sup_second(-far, far))
