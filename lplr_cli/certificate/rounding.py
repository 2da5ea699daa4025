"""Rounding of loss and gradient of a smooth MLP at every θ of a ball (docs/theory.md, section 9, "Its arithmetic").

What rounding did below passes a layer as an exact linear map, with ||W||_op; what is new there is γ times ||W||_F and
the norms of what meets it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.ball import BallBounds, Over
from lplr_cli.certificate.network import SmoothMLP, euclidean
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS
from lplr_cli.linalg import gamma

_UP = 1 + 1e-10
_U = 2.0**-53
# What the whole real line is to an activation: beyond, its derivatives are constant to all digits.
_FAR = 1e3
# Accuracy assumed of elementary functions, relative to 1 + |z| + |value|.
_ELEMENTARY = 2 * ELEMENTARY_ULPS * _U


@dataclass(frozen=True)
class _Rounded:
    """One layer over a ball, each (n,): ||â − a|| of what it meets, ||z||, and ||ẑ − z||."""

    a_error: Tensor
    z: Tensor
    z_error: Tensor


class RoundedBounds(BallBounds):
    """The bounds of an MLP, and what rounding can do to a loss of its outputs.

    Args:
        network: the MLP at θ_0.
        inputs: (n, …).
        method: see :class:`BallBounds`.
    """

    def __init__(self, network: SmoothMLP, inputs: Tensor, *, method: str = "auto") -> None:
        super().__init__(network, inputs, method=method)
        self._frobenius = [float(torch.linalg.vector_norm(layer.weight)) * _UP for layer in network.layers]

    def forward_error(self, over: Over) -> Tensor:
        """≥ ||f̂ − f|| at every θ of the ball, for any order of summation, (n,)."""
        return self._forward_rounding(over, over.radius)[-1].z_error

    def gradient_error(self, over: Over, size: Tensor, error: Tensor) -> float:
        """≥ ||∇L̂ − ∇L|| at every θ of the ball, for any order of summation.

        Args:
            over: of the ball.
            size: ≥ ||q_i||, the gradient of each sample's loss, (n,).
            error: ≥ ||q̂_i − q_i||, (n,).
        """
        return self._backward_rounding(over, over.radius, size, error, self._forward_rounding(over, over.radius))

    def _forward_rounding(self, over: Over, radius: float) -> list[_Rounded]:
        """For each layer at every θ of the ball."""
        first, _ = self._steepest
        found: list[_Rounded] = []
        a_error = torch.zeros(self.n, dtype=torch.float64)
        for level, layer in enumerate(self.network.layers):
            a, c = over.activations[level], layer.scale
            spectral, frobenius = self._over_the_ball(level, radius)
            bias = float(torch.linalg.vector_norm(layer.bias)) + radius
            grown = gamma(layer.weight.shape[1] + 8, torch.float64)
            z = c * spectral * a + bias
            z_error = (c * spectral * a_error + grown * (c * frobenius * (a + a_error) + bias)) * _UP
            found.append(_Rounded(a_error, z, z_error))
            if level + 1 < len(self.network.layers):
                units = math.sqrt(layer.weight.shape[0])
                value = over.activations[level + 1] + first * z_error
                a_error = (first * z_error + _ELEMENTARY * (units + z + z_error + value)) * _UP
        return found

    def _over_the_ball(self, level: int, radius: float) -> tuple[float, float]:
        """||W_l||_op and || |W_l| ||_op over the ball."""
        moved = radius if self.network.layers[level].weight_trained else 0.0
        return self.weight_norms[level] + moved, self._frobenius[level] + moved

    def _backward_rounding(
        self, over: Over, radius: float, size: Tensor, error: Tensor, forward: list[_Rounded]
    ) -> float:
        """||∇L̂ − ∇L||, from ||q_i|| ≤ ``size`` and its error, (n,)."""
        layers, (first, second) = self.network.layers, self._steepest
        summed = gamma(2 * self.n + 256, torch.float64)
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
                spectral, frobenius = self._over_the_ball(level, radius)
                grown = gamma(layer.weight.shape[0] + 8, torch.float64)
                handed = c * (spectral * error + grown * frobenius * (s + error))
                e, below = c * spectral * s + handed, forward[level - 1]
                slope_error = second * below.z_error + _ELEMENTARY * (1 + below.z + below.z_error)
                error = (first * handed + slope_error * e + 8 * _U * first * e) * _UP
        return math.sqrt(wrong) * _UP

    @property
    def _steepest(self) -> tuple[float, float]:
        """sup |φ'| and sup |φ''| over the real line."""
        phi, far = self.network.activation, torch.tensor([_FAR], dtype=torch.float64)
        return float(phi.sup_first(-far, far)), float(phi.sup_second(-far, far))
