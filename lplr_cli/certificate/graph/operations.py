"""What each operation of torch is as nodes of a graph; whatever is not here is refused by name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.certificate.graph.attention import Multiple, Product, Softmax
from lplr_cli.certificate.graph.builder import Builder, Place, refuse
from lplr_cli.certificate.graph.nodes import Add
from lplr_cli.certificate.graph.weighted import Convolution
from lplr_cli.certificate.network import activation_name


class _Samples(int):
    """The number of samples, where a forward pass asks for it."""


# -- layers ------------------------------------------------------------------------------------------------------------


def _linear(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    if len(x.shape) < 2:
        raise refuse("a linear layer on numbers alone")
    return build.weighted(x, target, part, None, math.prod(x.shape[1:-1]))


def _conv2d(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.Conv2d)
    if len(x.shape) != 4:
        raise refuse("a convolution of anything but images (n, c, h, w)")
    if part.padding_mode != "zeros" or tuple(part.dilation) != (1, 1):
        raise refuse("a convolution with dilation or padding by anything but zeros")
    kernel = (int(part.kernel_size[0]), int(part.kernel_size[1]))
    padding = _padding(part.padding, kernel)
    geometry = Convolution(kernel, (int(part.stride[0]), int(part.stride[1])), padding, int(part.groups))
    sizes = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // geometry.stride[i] + 1 for i in range(2)]
    return build.weighted(x, target, part, geometry, math.prod(sizes))


def _padding(value: Any, kernel: tuple[int, int]) -> tuple[int, int]:
    if value == "valid":
        return 0, 0
    if value == "same":
        if not (kernel[0] % 2 and kernel[1] % 2):
            raise refuse("a convolution with padding that differs on both sides")
        return kernel[0] // 2, kernel[1] // 2
    return int(value[0]), int(value[1])


def _flatten_part(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.Flatten)
    return _flatten(build, x, part.start_dim, part.end_dim)


def _average_part(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.AvgPool2d)
    return _average_pool(
        build, x, part.kernel_size, part.stride, part.padding, part.ceil_mode, part.count_include_pad,
        part.divisor_override,
    )  # fmt: skip


def _adaptive_part(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.AdaptiveAvgPool2d)
    return _adaptive_pool(build, x, part.output_size)


def _group_norm(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.GroupNorm)
    return build.normalised(x, target, part, part.num_groups, part.num_channels, False)


def _layer_norm(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.LayerNorm)
    channels = math.prod(part.normalized_shape)
    if len(x.shape) < 1 + len(part.normalized_shape):
        raise refuse("a layer normalisation over samples")
    return build.normalised(x, target, part, math.prod(x.shape[1:]) // channels, channels, True)


# -- functions ---------------------------------------------------------------------------------------------------------


def _sum(build: Builder, a: Any, b: Any, alpha: float = 1) -> Place:
    if not (isinstance(a, Place) and isinstance(b, Place)) or a.shape != b.shape or alpha != 1:
        raise refuse("a sum of anything but two activations of one shape")
    return build.add(Add((a.index, b.index), "sum"))


def _flatten(build: Builder, x: Place, start_dim: int = 0, end_dim: int = -1) -> Place:
    return _reshaped(build, x, lambda t: t.flatten(start_dim, end_dim))


def _reshape(build: Builder, x: Place, *shape: Any) -> Place:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _reshaped(build, x, lambda t: t.reshape(*(int(s) for s in sizes)))


def _reshaped(build: Builder, x: Place, apply: Callable[[Tensor], Tensor]) -> Place:
    """By what it makes of the probe: as numbers keep their order, every sample keeps its own."""
    try:
        found = apply(torch.zeros(x.shape)).shape
    except (RuntimeError, IndexError) as error:
        raise refuse("a change of shape that does not fit") from error
    if not len(found) or found[0] != x.shape[0]:
        raise refuse("a change of shape that mixes samples")
    return build.average(x, "reshape", lambda t: t.reshape(len(t), *found[1:]), 1)


def _mean(build: Builder, x: Place, dim: Any = None, keepdim: bool = False) -> Place:
    dims = [] if dim is None else [d % len(x.shape) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    if not dims or 0 in dims:
        raise refuse("a mean over samples")
    count = math.prod(x.shape[d] for d in dims)
    return build.average(x, "mean", lambda t: t.mean(dim=dims, keepdim=keepdim), count)


def _average_pool(
    build: Builder,
    x: Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Place:
    kernel, strides, padded = _pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding)
    if ceil_mode or divisor_override is not None or (padded != (0, 0) and not count_include_pad) or len(x.shape) != 4:
        raise refuse("average pooling with ceil_mode, another divisor or uncounted padding")
    overlap = math.prod(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    return build.average(
        x, "avg_pool2d", lambda t: F.avg_pool2d(t, kernel, strides, padded), math.prod(kernel), overlap
    )


def _adaptive_pool(build: Builder, x: Place, output_size: Any) -> Place:
    sizes = _pair(output_size)
    if len(x.shape) != 4 or None in sizes or any(x.shape[2 + i] % sizes[i] for i in range(2)):
        raise refuse("adaptive pooling to sizes that do not divide those of the image")
    kernel = (x.shape[2] // sizes[0], x.shape[3] // sizes[1])
    return build.average(x, "avg_pool2d", lambda t: F.avg_pool2d(t, kernel), math.prod(kernel))


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def _named(name: str) -> Callable[..., Place]:
    def handler(build: Builder, x: Place) -> Place:
        return build.activation(x, name)

    return handler


def _gelu(build: Builder, x: Place, approximate: str = "none") -> Place:
    return build.activation(x, "gelu" if approximate == "none" else f"GELU with approximate={approximate}")


def _silu(build: Builder, x: Place, inplace: bool = False) -> Place:
    if inplace:
        raise refuse("SiLU in place", "pass inplace=False")
    return build.activation(x, "silu")


def _softplus(build: Builder, x: Place, beta: float = 1.0, threshold: float = 20.0) -> Place:
    return build.activation(x, *activation_name(nn.Softplus(beta, threshold)))


def _dropout(build: Builder, x: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    if training:
        raise refuse("dropout that does not stop in evaluation mode", "pass training=self.training")
    return x


def _product(build: Builder, a: Any, b: Any) -> Place:
    if not (isinstance(a, Place) and isinstance(b, Place)) or len(a.shape) < 3 or a.shape[:-2] != b.shape[:-2]:
        raise refuse("a product of anything but two activations that agree in all but the last two dimensions")
    return build.add(Product((a.index, b.index), "matmul", a.shape[-1], max(a.shape[-2], b.shape[-1])))


def _multiple(build: Builder, x: Any, c: Any) -> Place:
    x, c = (x, c) if isinstance(x, Place) else (c, x)
    if not isinstance(x, Place) or type(c) not in (int, float) or not 0 < abs(c) < math.inf:
        raise refuse("a product of anything but an activation and a number")
    return build.add(Multiple((x.index,), "multiple", float(c)))


def _quotient(build: Builder, x: Any, c: Any) -> Place:
    if not isinstance(x, Place) or type(c) not in (int, float) or not 1e-300 < abs(c) < math.inf:
        raise refuse("a quotient of anything but an activation by a number")
    return _multiple(build, x, 1 / c)


def _softmax(build: Builder, x: Place, dim: int | None = None, **other: Any) -> Place:
    if any(v is not None and k != "_stacklevel" for k, v in other.items()) or len(x.shape) < 2:
        raise refuse("softmax in another dtype")
    if dim is None or dim % len(x.shape) != len(x.shape) - 1:
        raise refuse("softmax over anything but the last dimension")
    entries = x.shape[-1]
    return build.add(Softmax((x.index,), "softmax", entries, math.prod(x.shape[1:]) // entries))


def _softmax_part(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.Softmax)
    return _softmax(build, x, part.dim)


def _transpose(build: Builder, x: Place, one: int, two: int) -> Place:
    dims = list(range(len(x.shape)))
    one, two = one % len(dims), two % len(dims)
    dims[one], dims[two] = dims[two], dims[one]
    return _permute(build, x, dims)


def _permute(build: Builder, x: Place, *dims: Any) -> Place:
    order = [int(d) % len(x.shape) for d in (dims[0] if isinstance(dims[0], (tuple, list)) else dims)]
    if order[0] != 0:
        raise refuse("a permutation that moves the samples")
    return build.average(x, "permute", lambda t: t.permute(*order), 1)


def _size(build: Builder, x: Place, dim: int | None = None) -> Any:
    sizes = (_Samples(x.shape[0]), *x.shape[1:])
    return sizes if dim is None else sizes[dim]


def _attribute(build: Builder, x: Any, name: str) -> Any:
    if not isinstance(x, Place) or name != "shape":
        raise refuse(f"the attribute {name} in a forward pass")
    return _size(build, x)


def _item(build: Builder, x: Any, index: Any) -> Any:
    if isinstance(x, Place):
        raise refuse("a part of a tensor")
    return x[index]


PARTS: dict[type[nn.Module], Callable[[Builder, Place, str, nn.Module], Place]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Softmax: _softmax_part,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten_part,
    nn.AvgPool2d: _average_part,
    nn.AdaptiveAvgPool2d: _adaptive_part,
}
CALLS: dict[Any, Callable[..., Any]] = {
    operator.add: _sum,
    torch.add: _sum,
    "add": _sum,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    torch.reshape: _reshape,
    torch.mean: _mean,
    "mean": _mean,
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    torch.tanh: _named("tanh"),
    F.tanh: _named("tanh"),
    "tanh": _named("tanh"),
    F.gelu: _gelu,
    F.silu: _silu,
    F.softplus: _softplus,
    F.dropout: _dropout,
    operator.matmul: _product,
    torch.matmul: _product,
    "matmul": _product,
    operator.mul: _multiple,
    torch.mul: _multiple,
    "mul": _multiple,
    operator.truediv: _quotient,
    torch.div: _quotient,
    "div": _quotient,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    "softmax": _softmax,
    "transpose": _transpose,
    torch.transpose: _transpose,
    "permute": _permute,
    torch.permute: _permute,
    "size": _size,
    getattr: _attribute,
    operator.getitem: _item,
}


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def handler(build: Builder, *given: Any) -> Any:
        return function(*given)

    return handler


# What may be done with sizes on the way; the number of samples is none.
NUMBERS: dict[Any, Callable[..., Any]] = {
    f: _of_numbers(f)
    for f in (
        operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.pow, operator.neg,
        math.sqrt,
    )
}  # fmt: skip
