"""A loss over the outputs of a module, and its gradient over micro-batches."""

from __future__ import annotations

from torch import Tensor, nn

from lplr_cli.losses import Loss


def share_of_loss(loss: Loss, module: nn.Module, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
    """What the given samples add to L.

    Args:
        loss: of outputs and targets.
        module: outputs are flattened to shape (batch, C).
        inputs: shape (batch, …).
        targets: shape (batch, C).
        count: n, the samples of the whole mean.
    """
    return loss.total(module(inputs).reshape(len(inputs), -1), targets, count)


def accumulate_gradient(loss: Loss, module: nn.Module, inputs: Tensor, targets: Tensor, micro_batch: int) -> float:
    """Add ∇L over all samples to the parameters' gradients; returns L. Micro-batches bound the memory."""
    total = 0.0
    for i in range(0, len(inputs), micro_batch):
        part = slice(i, i + micro_batch)
        share = share_of_loss(loss, module, inputs[part], targets[part], len(inputs))
        share.backward()  # type: ignore[no-untyped-call]
        total += float(share.detach())
    return total
