"""Activations whose derivatives are worked out once, while a gradient's graph is built, and not at every product.

A product with the Hessian goes back through the gradient's graph, where torch evaluates φ' and φ'' of every activation
anew from its input. Where the graph is kept they are numbers that do not change: s = φ'(z) and, as the gradient g that
has reached the activation is one as well, g φ''(z). The products are the same to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Functions of single entries with two derivatives that take torch more than a multiplication.
_SMOOTH = {
    functional.softplus,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.elu,
    functional.selu,
    functional.celu,
    functional.logsigmoid,
    functional.tanh,
    functional.sigmoid,
    torch.tanh,
    torch.sigmoid,
    Tensor.tanh,
    Tensor.sigmoid,
}


class KeptSlopes(TorchFunctionMode):
    """While it is on, smooth activations keep their derivatives in the graph. The graph serves one gradient with
    ``create_graph`` and any number of derivatives of that, no third ones.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace what is known."""
        kwargs = kwargs or {}
        if func in _SMOOTH and args and _plain(args[0]) and not kwargs.get("inplace"):
            place = _Place.apply(args[0])  # type: ignore[no-untyped-call]
            return _Activation.apply(place, args[0].detach(), lambda z: func(z, *args[1:], **kwargs))  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _plain(z: Any) -> bool:
    # Within a transform of torch.func a tensor is more than it seems.
    inside = torch._C._are_functorch_transforms_active()
    return type(z) is Tensor and z.requires_grad and z.is_floating_point() and not inside


class _Place(torch.autograd.Function):
    """A tensor of z's shape and place in the graph without its numbers, which nobody needs again."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.new_zeros(()).expand_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class _Activation(torch.autograd.Function):
    """z → φ(z), for z by its place and its values."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = z.requires_grad_()
            value = function(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
        ctx.save_for_backward(place, slope.detach())
        # Needed for one gradient only, after which it makes room for g φ''.
        ctx.bend = bend
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        place, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grads[0] * slope, None, None
        bend, ctx.bend = ctx.bend, None
        return _Slope.apply(grads[0], place, slope, bend), None, None  # type: ignore[no-untyped-call]


class _Slope(torch.autograd.Function):
    """(g, z) → g φ'(z), for z by its place."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, place: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
        ctx.save_for_backward(slope, g * bend)
        return g * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        slope, bent = ctx.saved_tensors
        return grads[0] * slope, grads[0] * bent, None, None
