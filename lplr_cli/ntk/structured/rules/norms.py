"""Normalisations: scales and biases of LayerNorm (Ba et al. 2016), GroupNorm and BatchNorm in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn import functional as F

from lplr_cli.ntk.structured.capture import Capture, arguments, rule
from lplr_cli.ntk.structured.rules.channelwise import Channelwise


@dataclass(frozen=True)
class Scale(Channelwise):
    """A scale meets the normalised inputs, a bias ones; their gradients are far smaller than the factors."""

    sums_at_once: ClassVar[bool] = True


@rule(F.layer_norm)
def _layer_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, shape, weight, bias, eps = arguments("input normalized_shape weight bias eps", args, kwargs)
    if len(shape) == 1 and a.dim() >= 2:
        if capture.tracks(weight):
            normal = F.layer_norm(a.detach(), shape, eps=1e-5 if eps is None else eps)
            capture.record(weight, Scale(-1), normal, z)
        capture.record(bias, Scale(-1), None, z)
    return z


@rule(F.group_norm)
def _group_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, groups, weight, bias, eps = arguments("input num_groups weight bias eps", args, kwargs)
    if capture.tracks(weight):
        normal = F.group_norm(a.detach(), groups, eps=1e-5 if eps is None else eps)
        capture.record(weight, Scale(1), normal, z)
    capture.record(bias, Scale(1), None, z)
    return z


@rule(F.batch_norm)
def _batch_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, mean, var, weight, bias, training, _, eps = arguments(
        "input running_mean running_var weight bias training momentum eps", args, kwargs
    )
    if not training and mean is not None:
        if capture.tracks(weight):
            normal = F.batch_norm(a.detach(), mean, var, eps=1e-5 if eps is None else eps)
            capture.record(weight, Scale(1), normal, z)
        capture.record(bias, Scale(1), None, z)
    return z
