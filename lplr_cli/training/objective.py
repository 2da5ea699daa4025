"""L and ∇L over all samples at any θ, in float64: what is said of a path, whatever it was trained in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lplr_cli.losses import Loss
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient


class Objective:
    """The loss of a module over its training data as a function of one vector.

    Args:
        module: a copy of one's own, in evaluation mode; becomes float64.
        inputs: (n, …). targets: (n, C).
        loss: with its scale.
        micro_batch: samples at a time, which bounds the memory.

    Raises:
        InputError: nothing is trained, or targets that are none of this loss.
    """

    def __init__(self, module: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, micro_batch: int = 4096) -> None:
        self.module, self.loss = module.to(torch.float64), loss
        self.inputs = inputs.double() if inputs.is_floating_point() else inputs
        self.targets = targets.reshape(len(targets), -1).double()
        loss.check_targets(self.targets)
        self.flat = FlatParameters(self.module)
        self._micro_batch = micro_batch

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """L and ∇L (P,) at θ (P,); the gradient is valid until the next call."""
        self.flat.theta.copy_(theta)
        self.flat.grad.zero_()
        # Attention in its plain form, whose rounding has a bound.
        with sdpa_kernel(SDPBackend.MATH):
            total = accumulate_gradient(self.loss, self.module, self.inputs, self.targets, self._micro_batch)
        return total.loss, self.flat.grad
