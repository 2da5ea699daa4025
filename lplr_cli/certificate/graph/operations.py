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
from lplr_cli.certificate.graph.builder import Builder, Learnt, Place, refuse
from lplr_cli.certificate.graph.nodes import Add
from lplr_cli.certificate.graph.shapes import (
    chunks_of,
    flatten,
    permute,
    reshape,
    size_of,
    split,
    transpose,
)
from lplr_cli.certificate.graph.times import Times
from lplr_cli.certificate.graph.weighted import Convolution
from lplr_cli.certificate.network import activation_name

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
    return flatten(build, x, part.start_dim, part.end_dim)


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


def _embedding(build: Builder, x: Place, target: str, part: nn.Module) -> Place:
    assert isinstance(part, nn.Embedding)
    if part.padding_idx is not None or part.max_norm is not None or part.scale_grad_by_freq or part.sparse:
        raise refuse("an embedding with padding, max_norm or gradients of its own", "use a plain torch.nn.Embedding")
    return build.embedding(x, target)


def _sum(build: Builder, a: Any, b: Any, alpha: float = 1) -> Place:
    a, b = _spread_out(build, a, b), _spread_out(build, b, a)
    if not (isinstance(a, Place) and isinstance(b, Place)) or a.shape != b.shape or alpha != 1:
        raise refuse("a sum of anything but two activations of one shape")
    return build.add(Add((a.index, b.index), "sum"))


def _spread_out(build: Builder, x: Any, other: Any) -> Any:
    """A parameter or a constant tensor as an activation of the shape of the other; anything else as it is."""
    if not isinstance(other, Place) or not isinstance(x, (Learnt, Tensor)):
        return x
    if isinstance(x, Learnt):
        return build.learnt(x, other.shape)
    if not x.is_floating_point():
        raise refuse("a sum or product with whole numbers")
    try:
        return build.constant(x.double().expand(1, *other.shape[1:])[0], "constant")
    except RuntimeError as error:
        raise refuse("a constant tensor of another shape") from error


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
    x, c = _spread_out(build, x, c), _spread_out(build, c, x)
    if isinstance(x, Place) and isinstance(c, Place):
        if x.shape != c.shape:
            raise refuse("a product of two activations of different shapes")
        return build.add(Times((x.index, c.index), "product"))
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


def _attention(
    build: Builder,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Place:
    """Its plain form, which is computed wherever something is certified."""
    places = [isinstance(t, Place) for t in (query, key, value)]
    if dropout_p != 0 or enable_gqa or not all(places):
        raise refuse("attention with dropout, shared heads or anything but activations", "pass dropout_p=0.0")
    rows, columns, width = query.shape[-2], key.shape[-2], query.shape[-1]
    kept = _kept(attn_mask, is_causal, rows, columns)
    scores = _product(build, query, transpose(build, key, -2, -1))
    scores = _multiple(build, scores, 1 / math.sqrt(width) if scale is None else float(scale))
    entries = scores.shape[-1]
    shares = build.add(Softmax((scores.index,), "softmax", entries, math.prod(scores.shape[1:]) // entries, kept))
    return _product(build, shares, value)


def _kept(mask: Any, causal: bool, rows: int, columns: int) -> Tensor | None:
    """Which scores count."""
    if mask is None and not causal:
        return None
    if causal and mask is not None:
        raise refuse("attention that is causal and masked")
    kept = torch.ones(rows, columns, dtype=torch.bool).tril() if causal else mask
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape[-2:] != (rows, columns):
        raise refuse("an attention mask that is no constant of truth values", "give a boolean mask or is_causal=True")
    if kept.dim() > 2 and kept.numel() != rows * columns:
        raise refuse("an attention mask that differs between heads")
    kept = kept.reshape(rows, columns)
    if not bool(kept.any(dim=1).all()):
        raise refuse("an attention mask with an empty row")
    return kept


def _check_multihead(part: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Refuse what is more than the attention of one tensor to itself."""
    weights, padding = options.pop("need_weights", True), options.pop("key_padding_mask", None)
    places = {t.index for t in given if isinstance(t, Place)}
    if len(given) != 3 or len(places) != 1 or weights or padding is not None or options:
        raise refuse("attention of several tensors, with their weights or padding", "pass need_weights=False")
    plain = part.batch_first and part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn
    if not plain or len(given[0].shape) != 3:
        raise refuse("attention with batch_first=False, other sizes of keys, or added ones", "pass batch_first=True")


def multihead(build: Builder, target: str, part: Any, *given: Any, **options: Any) -> tuple[Any, None]:
    """Self-attention of torch.nn, in its parts."""
    causal, mask = options.pop("is_causal", False), options.pop("attn_mask", None)
    _check_multihead(part, given, options)
    x, (_, positions, width) = given[0], given[0].shape
    bias = None if part.in_proj_bias is None else f"{target}.in_proj_bias"
    joint = build.layer(x, f"{target}.in_proj", f"{target}.in_proj_weight", bias, None, positions)
    q, k, v = (
        permute(build, reshape(build, t, x.shape[0], positions, part.num_heads, width // part.num_heads), 0, 2, 1, 3)
        for t in chunks_of(build, joint, 3, -1)
    )
    # What is True in a mask of this module does not count.
    kept = None if causal else mask
    if isinstance(kept, Tensor) and kept.dtype == torch.bool:
        kept = ~kept
    y = permute(build, _attention(build, q, k, v, attn_mask=kept, is_causal=bool(causal)), 0, 2, 1, 3)
    y = reshape(build, y, x.shape[0], positions, width)
    return build.weighted(y, f"{target}.out_proj", part.out_proj, None, positions), None


def _whole(build: Builder, x: Any) -> Any:
    """Numbers of tokens, which come as they are."""
    if not isinstance(x, Place) or x.index != 0:
        raise refuse("a change to whole numbers of anything but the input")
    return x


def _attribute(build: Builder, x: Any, name: str) -> Any:
    if isinstance(x, Place) and name == "device":
        return torch.device("cpu")
    if not isinstance(x, Place) or name != "shape":
        raise refuse(f"the attribute {name} in a forward pass")
    return size_of(build, x)


def item(build: Builder, x: Any, index: Any) -> Any:
    if isinstance(x, Learnt) and _covers(index, x.shape):
        return x
    if isinstance(x, (Place, Learnt)):
        raise refuse("a part of a tensor")
    return x[index]


def _covers(index: Any, shape: torch.Size) -> bool:
    """Whether slices leave nothing out."""
    slices = index if isinstance(index, tuple) else (index,)
    return len(slices) <= len(shape) and all(
        isinstance(s, slice) and range(size)[s] == range(size) for s, size in zip(slices, shape, strict=False)
    )


def _arange(build: Builder, *ends: int, device: Any = None, dtype: Any = None) -> Tensor:
    return torch.arange(*ends, dtype=dtype)


PARTS: dict[type[nn.Module], Callable[[Builder, Place, str, nn.Module], Place]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Softmax: _softmax_part,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten_part,
    nn.AvgPool2d: _average_part,
    nn.AdaptiveAvgPool2d: _adaptive_part,
    nn.Embedding: _embedding,
}
CALLS: dict[Any, Callable[..., Any]] = {
    operator.add: _sum,
    torch.add: _sum,
    "add": _sum,
    torch.flatten: flatten,
    "flatten": flatten,
    "reshape": reshape,
    "view": reshape,
    torch.reshape: reshape,
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
    F.scaled_dot_product_attention: _attention,
    "chunk": chunks_of,
    torch.chunk: chunks_of,
    "split": split,
    torch.split: split,
    "long": _whole,
    torch.arange: _arange,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    "softmax": _softmax,
    "transpose": transpose,
    torch.transpose: transpose,
    "permute": permute,
    torch.permute: permute,
    "size": size_of,
    getattr: _attribute,
    operator.getitem: item,
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
