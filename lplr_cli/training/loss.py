"""The squared loss L = (1/n) ||f − y||² (theory.md section 1), and its gradient over micro-batches."""

from __future__ import annotations

from torch import Tensor, nn


def squared_loss(module: nn.Module, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
    """Sum of squared errors over the given samples, divided by ``count``, the samples of the whole mean.

    Args:
        module: outputs are flattened to shape (batch, C).
        inputs: shape (batch, …).
        targets: shape (batch, C).
        count: n.
    """
    out = module(inputs).reshape(len(inputs), -1)
    loss: Tensor = (out - targets).square().sum() / count
    return loss


def accumulate_gradient(module: nn.Module, inputs: Tensor, targets: Tensor, micro_batch: int) -> float:
    """Add ∇L over all samples to the parameters' gradients; returns L. Micro-batches bound the memory."""
    total = 0.0
    for i in range(0, len(inputs), micro_batch):
        part = slice(i, i + micro_batch)
        loss = squared_loss(module, inputs[part], targets[part], len(inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total
