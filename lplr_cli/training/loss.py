"""A loss over the outputs of a module, and its gradient over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


@dataclass(frozen=True)
class Total:
    """L over all samples, and the share of them that is classified right; None where the loss is of no classes."""

    loss: float
    accuracy: float | None


def accumulate_gradient(loss: Loss, module: nn.Module, inputs: Tensor, targets: Tensor, micro_batch: int) -> Total:
    """Add ∇L over all samples to the parameters' gradients. Micro-batches bound the memory.

    An accelerator is waited for once, at the end.
    """
    shares: list[Tensor] = []
    right: list[Tensor] = []
    for i in range(0, len(inputs), micro_batch):
        part = slice(i, i + micro_batch)
        outputs = module(inputs[part]).reshape(len(inputs[part]), -1)
        share = loss.total(outputs, targets[part], len(inputs))
        share.backward()  # type: ignore[no-untyped-call]
        shares.append(share.detach())
        if loss.classifies:
            right.append(loss.right(outputs.detach(), targets[part]).sum())
    # Summed in float64.
    total = sum(torch.stack(shares).tolist(), 0.0)
    return Total(total, int(torch.stack(right).sum()) / len(inputs) if loss.classifies else None)
