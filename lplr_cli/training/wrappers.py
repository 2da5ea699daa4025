"""What a loop puts around its module and gradients: compilation, data parallelism, scaled losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def unscale(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by the loss scale, once a step; the loop may have done so for clipping."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
