"""Multilayer perceptrons in standard and NTK parametrisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.models.activations import make_activation

PARAMETRIZATIONS = ("standard", "ntk")
INITS = ("he", "lecun", "normal")


class MLP(nn.Module):
    """a_0 = x, z_l = c_l W_l a_{l-1} + b_l, a_l = φ(z_l), f = z_L (theory.md section 5).

    c_l = 1 in the standard parametrisation and 1/√fan_in in the NTK parametrisation (Jacot, Gabriel and Hongler
    2018). The scale is applied to the layer's input, so that every layer is a plain ``nn.Linear``.

    Args:
        features: input size d.
        outputs: output size C.
        width: units of each hidden layer.
        depth: number of hidden layers; 0 is a linear model.
        activation: name, see :data:`lplr_cli.models.activations.ACTIVATIONS`.
        beta: sharpness of softplus.
        parametrization: ``standard`` or ``ntk``.
        widths: units of each hidden layer, where they differ; replaces ``width`` and ``depth``.
        bias: without it the biases are zero and not trained.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        activation: str = "softplus",
        beta: float = 1.0,
        parametrization: str = "standard",
        widths: Sequence[int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if parametrization not in PARAMETRIZATIONS:
            raise InputError(
                f"parametrization {parametrization!r} is unknown",
                f"choose from {', '.join(PARAMETRIZATIONS)}",
            )
        hidden = list(widths) if widths is not None else [width] * depth
        if min(features, outputs, width, *hidden) < 1 or depth < 0:
            raise InputError(f"width {width} and depth {depth}", "give a width of at least 1, a depth of at least 0")
        sizes = [features, *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        if not bias:
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                layer.bias.requires_grad_(False).zero_()
        self.activation = make_activation(activation, beta)
        self.beta = beta
        self.parametrization = parametrization
        self.scales = [1.0 / math.sqrt(a) if parametrization == "ntk" else 1.0 for a in sizes[:-1]]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, C) for inputs (n, …), flattened to (n, d)."""
        a = x.flatten(start_dim=1).to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
        last = len(self.layers) - 1
        for index, (layer, scale) in enumerate(zip(self.layers, self.scales, strict=True)):
            z = layer(a if scale == 1.0 else a * scale)
            a = z if index == last else self.activation(z)
        return a


def weight_std(init: str, fan_in: int, parametrization: str) -> float:
    """Standard deviation of the weights: He √(2/fan_in), LeCun √(1/fan_in), normal 1.

    In the NTK parametrisation the factor 1/√fan_in stands in the forward pass, so He is √2 and LeCun is 1 there and
    both give the same function at initialisation as in the standard parametrisation.
    """
    if init not in INITS:
        raise InputError(f"init {init!r} is unknown", f"choose from {', '.join(INITS)}")
    gain = {"he": 2.0, "lecun": 1.0, "normal": 1.0}[init]
    return math.sqrt(gain if parametrization == "ntk" or init == "normal" else gain / fan_in)


@torch.no_grad()
def initialise(model: nn.Module, init: str, parametrization: str, generator: torch.Generator) -> None:
    """Draw all weights of linear and convolution layers from N(0, std²), in float64; biases are zero.

    Normalisation layers keep scale one and shift zero. The draws do not depend on the dtype of the model.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = weight_std(init, fan_in, parametrization)
            draw = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
            module.weight.copy_(draw * std)
            if module.bias is not None:
                module.bias.zero_()
