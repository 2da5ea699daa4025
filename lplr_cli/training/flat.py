"""Parameters and gradients of a module as two flat vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError


class FlatParameters:
    """Views of all trainable parameters, and of their gradients, in one vector each.

    Norms, drift and the update are then single passes over contiguous memory, and autograd accumulates into the
    gradient vector directly.

    Args:
        module: its trainable parameters are moved into ``theta``; the module keeps working as before.
    """

    def __init__(self, module: nn.Module) -> None:
        named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise InputError("the model has no trainable parameter", "nothing to train")
        self.names = [k for k, _ in named]
        self.parameters = [p for _, p in named]
        first = self.parameters[0]
        size = sum(p.numel() for p in self.parameters)
        self.theta = torch.empty(size, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.theta)
        self._difference = torch.empty_like(self.theta)
        offset = 0
        for p in self.parameters:
            part = slice(offset, offset + p.numel())
            self.theta[part].copy_(p.detach().reshape(-1))
            p.data = self.theta[part].view(p.shape)
            p.grad = self.grad[part].view(p.shape)
            offset += p.numel()

    def state(self) -> dict[str, Tensor]:
        """θ by name (views)."""
        return {k: p.detach() for k, p in zip(self.names, self.parameters, strict=True)}

    def load(self, values: dict[str, Tensor]) -> None:
        """Set θ from a dictionary.

        Raises:
            InputError: names or shapes that do not match, listing them.
        """
        with torch.no_grad():
            self.theta.copy_(self.flattened(values))

    def flattened(self, values: dict[str, Tensor]) -> Tensor:
        """θ of a dictionary, in the order, dtype and place of this one.

        Raises:
            InputError: names or shapes that do not match, listing them.
        """
        missing = sorted(set(self.names) - set(values))
        if missing:
            raise InputError(f"the checkpoint lacks {', '.join(missing)}", "it belongs to another model")
        for name, p in zip(self.names, self.parameters, strict=True):
            if values[name].shape != p.shape:
                raise InputError(
                    f"{name} has shape {tuple(values[name].shape)}, the model {tuple(p.shape)}",
                    "the checkpoint belongs to another model",
                )
        return torch.cat([values[k].detach().reshape(-1).to(self.theta) for k in self.names])

    def grad_norm_sq(self) -> float:
        """||∇L||², accumulated in float64."""
        return norm(self.grad) ** 2

    def drift(self, reference: Tensor) -> float:
        """||θ - reference||."""
        torch.sub(self.theta, reference, out=self._difference)
        return norm(self._difference)


def norm(vector: Tensor) -> float:
    """Euclidean norm; float32 vectors are summed in float64."""
    value = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    return value if math.isfinite(value) else float("nan") if math.isnan(value) else math.inf
