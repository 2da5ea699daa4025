"""Elementwise activations by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.errors import InputError

ACTIVATIONS = ("softplus", "tanh", "gelu", "silu", "relu")


# Where softplus is computed as the identity: the difference lies below the rounding of float64.
SOFTPLUS_THRESHOLD = 40.0


class Softplus(nn.Module):
    """φ(z) = log(1 + exp(βz)) / β.

    torch's own default turns to the identity at βz = 20, where the value still differs by 2e-9; here the switch
    lies below the rounding of float64, so that the function computed is the function that theorems speak of.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Apply φ elementwise."""
        return F.softplus(z, beta=self.beta, threshold=SOFTPLUS_THRESHOLD)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"beta={self.beta:g}"


class _Elementwise(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, z: Tensor) -> Tensor:
        if self.name == "tanh":
            return torch.tanh(z)
        if self.name == "relu":
            return torch.relu(z)
        return F.gelu(z) if self.name == "gelu" else F.silu(z)

    def extra_repr(self) -> str:
        return self.name


def make_activation(name: str, beta: float = 1.0) -> nn.Module:
    """The activation ``name``; ``beta`` is the sharpness of softplus and ignored by the others.

    Raises:
        InputError: unknown name, or β not positive and finite.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"activation {name!r} is unknown", f"choose from {', '.join(ACTIVATIONS)}")
    if not 0 < beta < float("inf"):
        raise InputError(f"beta {beta} is not positive", "give a positive sharpness")
    return Softplus(beta) if name == "softplus" else _Elementwise(name)


def activation_of(module: nn.Module) -> tuple[str, float] | None:
    """Name and β of a module that :func:`make_activation` made, from what its forward pass looks at; else None."""
    if type(module) is Softplus:
        return "softplus", module.beta
    if type(module) is _Elementwise and module.name in ACTIVATIONS and module.name != "softplus":
        return module.name, 1.0
    return None
