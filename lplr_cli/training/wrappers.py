"""What a loop puts around its module and gradients: compilation, data parallelism, scaled losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.training.tracked import Value, number


class Ranks:
    """The processes that train together, as they are when this is made.

    Args:
        device: where tensors that they exchange must lie.

    Attributes:
        count: how many they are.
        writes: whether this is the one that writes: the only one, or rank 0.
    """

    def __init__(self, device: torch.device) -> None:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.count = torch.distributed.get_world_size() if several else 1
        self._device = device
        self.writes = not several or torch.distributed.get_rank() == 0

    def mean(self, loss: Tensor | float | None) -> Value | None:
        """Of a loss that each process has its own of; every one must ask for it. None of an unknown one."""
        if loss is None or self.count == 1:
            return None if loss is None else number(loss)
        value = torch.as_tensor(loss, dtype=torch.float64, device=self._device).detach().reshape(()).clone()
        torch.distributed.all_reduce(value)
        return float(value) / self.count


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def mixes_samples(module: nn.Module) -> bool:
    """Whether a batch normalisation trains with the statistics of each batch: another function than in evaluation."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules())


def unscale(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by the loss scale, once a step; the loop may have done so for clipping."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
