"""A module read into a graph: its forward pass is traced, and each operation must be one with proved bounds.

Parts are known by their exact type, and nothing may be hooked, patched, parametrised or shared (see
:mod:`lplr_cli.certificate.network`). What a traced forward pass does beyond its operations, the comparison of outputs
would show.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lplr_cli.certificate.graph.nodes import Activation, Add, Average, Node
from lplr_cli.certificate.graph.norms import Normalise, Scaled
from lplr_cli.certificate.graph.weighted import Convolution, Weighted
from lplr_cli.certificate.network import NoCertificateError, activation_name, inspect_module
from lplr_cli.certificate.smooth import smooth_activation
from lplr_cli.models import activation_of

_SILENT = (nn.Dropout, nn.Dropout2d, nn.Identity)
_REMEDY = (
    "bounds are proved for linear layers, convolutions, group and layer normalisation, sums, means, changes of shape "
    "and softplus, tanh, GELU or SiLU"
)


def refuse(what: str, remedy: str = _REMEDY) -> NoCertificateError:
    """The error to raise."""
    return NoCertificateError(f"no certificate for {what}", remedy)


class _Tracer(fx.Tracer):
    """Goes into modules of others, and stops at those of torch and at activations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith("torch.nn") and type(m) not in (nn.Sequential, nn.ModuleList)
        return own or activation_of(m) is not None


class _Samples(int):
    """The number of samples, where a forward pass asks for it."""


class Reader:
    """The graph of a module.

    Args:
        module: in any mode.
        trained: names of the parameters that θ is made of.
        probe: inputs (n, …), whose shapes decide.

    Attributes:
        nodes: of the graph; node k has its output at place k + 1.
        used: names of parameters.
        blocks: K.

    Raises:
        NoCertificateError: an operation without a bound.
    """

    def __init__(self, module: nn.Module, trained: set[str], probe: Tensor) -> None:
        inspect_module(module)
        self._module, self._trained = module, trained
        self._double = {k: p.detach().cpu().double() for k, p in module.named_parameters()}
        self.nodes: list[Node] = []
        self.used: list[str] = []
        self.blocks = 0
        self._places: list[Tensor] = [probe]
        self._known: dict[fx.Node, Any] = {}
        for node in self._trace().nodes:
            self._read(node)

    def _trace(self) -> fx.Graph:
        modes = [(m, m.training) for m in self._module.modules()]
        self._module.eval()
        try:
            graph = _Tracer().trace(self._module)
        except Exception as error:  # the forward pass is code of the user's
            name = type(self._module).__name__
            raise refuse(
                f"this {name}, whose forward pass cannot be traced", "it must not branch on its input"
            ) from error
        finally:
            for m, mode in modes:
                m.training = mode
        return graph

    # -- places ------------------------------------------------------------------------------------------------------

    def add(self, node: Node) -> _Place:
        """Put a node at the end.

        Raises:
            NoCertificateError: shapes that do not fit.
        """
        try:
            value = node.value(self._double, *(self._places[i] for i in node.inputs))
        except (RuntimeError, IndexError) as error:
            shape = tuple(self._places[0].shape[1:])
            raise refuse(f"this module, which does not take samples of shape {shape}") from error
        self.nodes.append(node)
        self._places.append(value)
        return _Place(len(self._places) - 1, value.shape)

    def average(self, x: _Place, label: str, apply: Callable[[Tensor], Tensor], count: int, overlap: int = 1) -> _Place:
        """Means, or a change of shape where ``count`` is 1.

        Raises:
            NoCertificateError: one that mixes samples.
        """
        place = self.add(Average((x.index,), label, apply, count, overlap))
        if not len(place.shape) or place.shape[0] != x.shape[0]:
            raise refuse(f"{label}, which mixes samples")
        return place

    def activation(self, x: _Place, name: str, beta: float = 1.0) -> _Place:
        """φ by name.

        Raises:
            NoCertificateError: one that is not smooth, or not known.
        """
        smooth = smooth_activation(name, beta)
        if smooth is None:
            raise refuse(name, "use softplus, tanh, gelu or silu, whose derivatives are bounded")
        return self.add(Activation((x.index,), name, smooth, math.prod(x.shape[1:])))

    def block(self, weight: str, bias: str | None) -> int | None:
        """The index of a new block of parameters; None where nothing of it is trained.

        Raises:
            NoCertificateError: parameters that were met before.
        """
        names = [weight, *([] if bias is None else [bias])]
        if set(names) & set(self.used):
            raise refuse("shared weights", "bounds are proved for layers of their own")
        self.used += names
        if not set(names) & self._trained:
            return None
        self.blocks += 1
        return self.blocks - 1

    def weighted(self, x: _Place, target: str, part: nn.Module, geometry: Convolution | None, positions: int) -> _Place:
        """A layer with weights."""
        weight, bias = f"{target}.weight", None if part._parameters["bias"] is None else f"{target}.bias"
        block = self.block(weight, bias)
        trained = weight in self._trained, bias in self._trained
        outputs = len(self._double[weight]) // (1 if geometry is None else geometry.groups)
        return self.add(Weighted((x.index,), target, weight, bias, block, *trained, positions, outputs, geometry))

    def normalised(self, x: _Place, target: str, part: nn.Module, sets: int, channels: int, last: bool) -> _Place:
        """Normalisation over ``sets`` of entries of a sample, and its scale and shift where it has them.

        Raises:
            NoCertificateError: no ε.
        """
        epsilon = float(getattr(part, "eps", 0.0))
        if not epsilon > 0:
            raise refuse("a normalisation without eps", "give it a positive eps")
        whole = math.prod(x.shape[1:])
        y = self.add(Normalise((x.index,), target, sets, whole // sets, epsilon))
        if part._parameters["weight"] is None:
            return y
        weight, bias = f"{target}.weight", None if part._parameters["bias"] is None else f"{target}.bias"
        block = self.block(weight, bias)
        trained = weight in self._trained, bias in self._trained
        return self.add(
            Scaled((y.index,), target, weight, bias, block, *trained, whole // channels, 1, None, channels, last)
        )

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if _Place.of(self._known.values()):
                raise refuse("a forward pass with several inputs", "give a module of one input")
            self._known[node] = _Place(0, self._places[0].shape)
        elif node.op == "output":
            out = self._argument(node.args[0])
            if not isinstance(out, _Place) or out.index != len(self.nodes) or len(out.shape) != 2:
                raise refuse("what this module returns", "return one tensor of shape (n, C), the last one computed")
        elif node.op == "call_module":
            self._known[node] = self._part(node)
        elif node.op in ("call_function", "call_method"):
            self._known[node] = self._call(node)
        else:
            raise refuse(f"a forward pass that uses {node.target} outside of a layer")

    def _argument(self, value: Any) -> Any:
        """What a node was given, places and sizes in the place of nodes."""
        return fx.node.map_arg(value, lambda n: self._known[n])

    def _part(self, node: fx.Node) -> Any:
        target = str(node.target)
        part = self._module.get_submodule(target)
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], _Place):
            raise refuse(f"{type(part).__name__} with several arguments")
        if type(part) in _SILENT:
            return args[0]
        handler = _PARTS.get(type(part))
        if handler is not None:
            return handler(self, args[0], target, part)
        if getattr(part, "inplace", False):
            raise refuse(f"{type(part).__name__} in place", "pass inplace=False")
        return self.activation(args[0], *activation_name(part))

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._argument(node.args), dict(self._argument(node.kwargs))
        handler = _CALLS.get(node.target)
        if handler is None:
            name = getattr(node.target, "__name__", node.target)
            raise refuse(f"the operation {name}")
        try:
            return handler(self, *args, **kwargs)
        except TypeError as error:
            name = getattr(node.target, "__name__", node.target)
            raise refuse(f"the operation {name} with these arguments") from error


class _Place:
    """A tensor of the graph."""

    def __init__(self, index: int, shape: torch.Size) -> None:
        self.index, self.shape = index, shape

    @staticmethod
    def of(values: Any) -> list[_Place]:
        """Those among some values."""
        return [v for v in values if isinstance(v, _Place)]


# -- layers ------------------------------------------------------------------------------------------------------------


def _linear(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    if len(x.shape) < 2:
        raise refuse("a linear layer on numbers alone")
    return reader.weighted(x, target, part, None, math.prod(x.shape[1:-1]))


def _conv2d(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.Conv2d)
    if len(x.shape) != 4:
        raise refuse("a convolution of anything but images (n, c, h, w)")
    if part.padding_mode != "zeros" or tuple(part.dilation) != (1, 1):
        raise refuse("a convolution with dilation or padding by anything but zeros")
    kernel = (int(part.kernel_size[0]), int(part.kernel_size[1]))
    padding = _padding(part.padding, kernel)
    geometry = Convolution(kernel, (int(part.stride[0]), int(part.stride[1])), padding, int(part.groups))
    sizes = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // geometry.stride[i] + 1 for i in range(2)]
    return reader.weighted(x, target, part, geometry, math.prod(sizes))


def _padding(value: Any, kernel: tuple[int, int]) -> tuple[int, int]:
    if value == "valid":
        return 0, 0
    if value == "same":
        if not (kernel[0] % 2 and kernel[1] % 2):
            raise refuse("a convolution with padding that differs on both sides")
        return kernel[0] // 2, kernel[1] // 2
    return int(value[0]), int(value[1])


def _flatten_part(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.Flatten)
    return _flatten(reader, x, part.start_dim, part.end_dim)


def _average_part(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.AvgPool2d)
    return _average_pool(
        reader, x, part.kernel_size, part.stride, part.padding, part.ceil_mode, part.count_include_pad,
        part.divisor_override,
    )  # fmt: skip


def _adaptive_part(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.AdaptiveAvgPool2d)
    return _adaptive_pool(reader, x, part.output_size)


def _group_norm(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.GroupNorm)
    return reader.normalised(x, target, part, part.num_groups, part.num_channels, False)


def _layer_norm(reader: Reader, x: _Place, target: str, part: nn.Module) -> _Place:
    assert isinstance(part, nn.LayerNorm)
    channels = math.prod(part.normalized_shape)
    if len(x.shape) < 1 + len(part.normalized_shape):
        raise refuse("a layer normalisation over samples")
    return reader.normalised(x, target, part, math.prod(x.shape[1:]) // channels, channels, True)


# -- functions ---------------------------------------------------------------------------------------------------------


def _sum(reader: Reader, a: Any, b: Any, alpha: float = 1) -> _Place:
    if not (isinstance(a, _Place) and isinstance(b, _Place)) or a.shape != b.shape or alpha != 1:
        raise refuse("a sum of anything but two activations of one shape")
    return reader.add(Add((a.index, b.index), "sum"))


def _flatten(reader: Reader, x: _Place, start_dim: int = 0, end_dim: int = -1) -> _Place:
    return _reshaped(reader, x, lambda t: t.flatten(start_dim, end_dim))


def _reshape(reader: Reader, x: _Place, *shape: Any) -> _Place:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _reshaped(reader, x, lambda t: t.reshape(*(int(s) for s in sizes)))


def _reshaped(reader: Reader, x: _Place, apply: Callable[[Tensor], Tensor]) -> _Place:
    """By what it makes of the probe: as numbers keep their order, every sample keeps its own."""
    try:
        found = apply(torch.zeros(x.shape)).shape
    except (RuntimeError, IndexError) as error:
        raise refuse("a change of shape that does not fit") from error
    if not len(found) or found[0] != x.shape[0]:
        raise refuse("a change of shape that mixes samples")
    return reader.average(x, "reshape", lambda t: t.reshape(len(t), *found[1:]), 1)


def _mean(reader: Reader, x: _Place, dim: Any = None, keepdim: bool = False) -> _Place:
    dims = [] if dim is None else [d % len(x.shape) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    if not dims or 0 in dims:
        raise refuse("a mean over samples")
    count = math.prod(x.shape[d] for d in dims)
    return reader.average(x, "mean", lambda t: t.mean(dim=dims, keepdim=keepdim), count)


def _average_pool(
    reader: Reader,
    x: _Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Place:
    kernel, strides, padded = _pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding)
    if ceil_mode or divisor_override is not None or (padded != (0, 0) and not count_include_pad) or len(x.shape) != 4:
        raise refuse("average pooling with ceil_mode, another divisor or uncounted padding")
    overlap = math.prod(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    return reader.average(
        x, "avg_pool2d", lambda t: F.avg_pool2d(t, kernel, strides, padded), math.prod(kernel), overlap
    )


def _adaptive_pool(reader: Reader, x: _Place, output_size: Any) -> _Place:
    sizes = _pair(output_size)
    if len(x.shape) != 4 or None in sizes or any(x.shape[2 + i] % sizes[i] for i in range(2)):
        raise refuse("adaptive pooling to sizes that do not divide those of the image")
    kernel = (x.shape[2] // sizes[0], x.shape[3] // sizes[1])
    return reader.average(x, "avg_pool2d", lambda t: F.avg_pool2d(t, kernel), math.prod(kernel))


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def _named(name: str) -> Callable[..., _Place]:
    def handler(reader: Reader, x: _Place) -> _Place:
        return reader.activation(x, name)

    return handler


def _gelu(reader: Reader, x: _Place, approximate: str = "none") -> _Place:
    return reader.activation(x, "gelu" if approximate == "none" else f"GELU with approximate={approximate}")


def _silu(reader: Reader, x: _Place, inplace: bool = False) -> _Place:
    if inplace:
        raise refuse("SiLU in place", "pass inplace=False")
    return reader.activation(x, "silu")


def _softplus(reader: Reader, x: _Place, beta: float = 1.0, threshold: float = 20.0) -> _Place:
    return reader.activation(x, *activation_name(nn.Softplus(beta, threshold)))


def _dropout(reader: Reader, x: _Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Place:
    if training:
        raise refuse("dropout that does not stop in evaluation mode", "pass training=self.training")
    return x


def _size(reader: Reader, x: _Place, dim: int | None = None) -> Any:
    sizes = (_Samples(x.shape[0]), *x.shape[1:])
    return sizes if dim is None else sizes[dim]


def _attribute(reader: Reader, x: Any, name: str) -> Any:
    if not isinstance(x, _Place) or name != "shape":
        raise refuse(f"the attribute {name} in a forward pass")
    return _size(reader, x)


def _item(reader: Reader, x: Any, index: Any) -> Any:
    if isinstance(x, _Place):
        raise refuse("a part of a tensor")
    return x[index]


_PARTS: dict[type[nn.Module], Callable[[Reader, _Place, str, nn.Module], _Place]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten_part,
    nn.AvgPool2d: _average_part,
    nn.AdaptiveAvgPool2d: _adaptive_part,
}
_CALLS: dict[Any, Callable[..., Any]] = {
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
    "size": _size,
    getattr: _attribute,
    operator.getitem: _item,
}
