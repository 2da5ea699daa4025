"""A module read as a smooth MLP, after an inspection of what it computes (docs/theory.md, section 5).

Bounds are proved for z_l = c_l W_l a_{l-1} + b_l and one smooth activation, nothing else. A module is taken for such a
network when every part of it has an exact type that is known here, nothing is hooked, patched or shared, and its
outputs agree with those of the extracted layers within the bound of both roundings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lplr_cli.certificate.smooth import ELEMENTARY_ULPS, Smooth, smooth_activation
from lplr_cli.errors import InputError
from lplr_cli.linalg import gamma
from lplr_cli.models import MLP, SOFTPLUS_THRESHOLD, activation_of
from lplr_cli.ntk import Network, evaluation_mode

# Non-negative sums and products of a recursion: at most 2^26 roundings one after another, each of relative size u.
MARGIN = 1e-8
# Magnitudes within which squares, products of layers and their sums neither overflow nor lose digits to underflow.
SMALLEST, LARGEST = 1e-60, 1e60
# Sharpness of softplus up to which the accuracy assumed of φ'' holds (docs/theory.md, section 7).
_SHARPEST = 1e24
_PROBES = 4
_SILENT = (nn.Dropout, nn.Identity)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NoCertificateError(InputError):
    """The theory has no bound for this network; the message says why."""


@dataclass(frozen=True)
class Layer:
    """z = c W a + b with W (m, k), b (m,), and which of the two are trained."""

    weight: Tensor
    bias: Tensor
    scale: float
    weight_trained: bool
    bias_trained: bool


@dataclass(frozen=True)
class Pass:
    """The forward pass through one layer in float64, with how far it can be from exact arithmetic.

    Attributes:
        a_norm: ||â_{l-1}||, what the layer meets, (n,).
        a_error: ≥ ||â_{l-1} - a_{l-1}||, (n,).
        z: ẑ_l, (n, m).
        z_error: ≥ |ẑ_l - z_l|, for any order of summation, (n, m).
    """

    a_norm: Tensor
    a_error: Tensor
    z: Tensor
    z_error: Tensor


@dataclass(frozen=True)
class SmoothMLP:
    """An MLP with a smooth activation at one θ, in float64."""

    layers: tuple[Layer, ...]
    activation: Smooth

    @classmethod
    def from_module(cls, module: nn.Module, names: Iterable[str] | None = None) -> SmoothMLP:
        """Take the layers of a :class:`lplr_cli.models.MLP`, or of a ``Sequential`` of linear layers and activations.

        Args:
            module: the network at θ_0. A ``Sequential`` may begin with ``Flatten`` and hold ``Dropout`` and
                ``Identity``, which do nothing in evaluation mode.
            names: trained parameters, as in ``module.named_parameters()``; all that require grad by default.

        Raises:
            NoCertificateError: another architecture, a module that may compute something else than its parts show,
                or an activation that is not smooth.
        """
        inspect_module(module)
        linears, scales, (name, beta) = _mlp(module) if type(module) is MLP else _sequential(module)
        activation = smooth_activation(name, beta)
        if activation is None and len(linears) > 1:
            raise NoCertificateError(
                f"no certificate for {name}", "its derivative jumps: use softplus, tanh, gelu or silu"
            )
        chosen = {k for k, p in module.named_parameters() if p.requires_grad} if names is None else set(names)
        layers = []
        for (stem, linear), scale in zip(linears.items(), scales, strict=True):
            weight = linear.weight.detach().cpu().double()
            given: Tensor | None = linear.bias
            bias = weight.new_zeros(len(weight)) if given is None else given.detach().cpu().double()
            layers.append(Layer(weight, bias, scale, f"{stem}.weight" in chosen, f"{stem}.bias" in chosen))
        network = cls(tuple(layers), activation or _linear())
        network.check(module, network._probes())
        return network

    def with_trained(self, values: Sequence[Tensor]) -> SmoothMLP:
        """The same network at another θ: its trained weights and biases, layer by layer from below."""
        left = list(values)
        layers = []
        for layer in self.layers:
            weight = left.pop(0).double() if layer.weight_trained else layer.weight
            bias = left.pop(0).double() if layer.bias_trained else layer.bias
            layers.append(replace(layer, weight=weight, bias=bias))
        return replace(self, layers=tuple(layers))

    def passes(self, x: Tensor) -> list[Pass]:
        """Forward pass of x (n, d) with its rounding, a :class:`Pass` for each layer.

        Raises:
            NoCertificateError: sizes that do not agree, or magnitudes outside the range of docs/theory.md, section 7.
        """
        self._check_range(x)
        phi, u = self.activation, torch.finfo(torch.float64).eps
        # The inputs are exact: a column says so of all features.
        a, error = x, torch.zeros_like(x[:, :1])
        found: list[Pass] = []
        for layer in self.layers:
            if found:
                before = found[-1]
                a = phi.value(before.z)
                slope = phi.sup_first(before.z - before.z_error, before.z + before.z_error)
                own = ELEMENTARY_ULPS * u * (1 + before.z.abs() + a.abs())
                error = (slope * before.z_error + own) * (1 + MARGIN)
            w, c = layer.weight, layer.scale
            z = (a @ w.T) * c + layer.bias
            # |ẑ - z| ≤ c|W| E_a + γ_{k+4} (c|W|(|â| + E_a) + |b|).
            grown = gamma(w.shape[1] + 4, torch.float64)
            spread = a.abs().add_(error).mul_(grown).add_(error).mul_(c)
            z_error = (spread @ w.abs().T + grown * layer.bias.abs()) * (1 + MARGIN)
            check_magnitude(z, "preactivations", smallest=0.0)
            found.append(Pass(euclidean(a), euclidean(error), z, z_error))
        return found

    def _check_range(self, x: Tensor) -> None:
        features = [x.shape[1], *(len(layer.weight) for layer in self.layers[:-1])]
        expected = [layer.weight.shape[1] for layer in self.layers]
        if features != expected:
            raise NoCertificateError(
                f"no certificate for layers of {expected} inputs that meet {features}", "their sizes must agree"
            )
        check_magnitude(x, "inputs")
        for layer in self.layers[:-1]:
            check_magnitude(layer.weight.flatten(), "weights")
        # Each output has its own bounds, and so each row of the last layer must be in the range.
        check_magnitude(self.layers[-1].weight, "weights")
        for layer in self.layers:
            check_magnitude(layer.bias, "biases", smallest=0.0)
            check_magnitude(torch.tensor(layer.scale, dtype=torch.float64).reshape(1), "scales")

    def check(self, module: nn.Module, x: Tensor) -> None:
        """Compare with what ``module`` computes on x (n, d) in float64 evaluation mode.

        Raises:
            NoCertificateError: they differ by more than the rounding of both.
        """
        whole = Network.from_module(module, names=[name for name, _ in module.named_parameters()])
        try:
            with torch.no_grad(), evaluation_mode(module):
                outputs = whole.forward(x)
        except (RuntimeError, IndexError) as error:
            raise NoCertificateError(
                f"no certificate for this {type(module).__name__}, which refuses inputs of {x.shape[1]} numbers",
                "bounds are proved for smooth MLPs alone",
            ) from error
        last = self.passes(x)[-1]
        if outputs.shape != last.z.shape or not bool(((outputs - last.z).abs() <= 2 * last.z_error).all()):
            raise NoCertificateError(
                f"no certificate for this {type(module).__name__}: its outputs are not those of its layers",
                "bounds are proved for smooth MLPs alone",
            )

    def _probes(self) -> Tensor:
        """Inputs (k, d) to compare outputs on: zero, and random ones of several sizes."""
        generator = torch.Generator().manual_seed(20250729)
        features = self.layers[0].weight.shape[1]
        draws = torch.randn((_PROBES, features), generator=generator, dtype=torch.float64)
        return draws * torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=torch.float64)[:, None]


def check_magnitude(t: Tensor, what: str, *, smallest: float = SMALLEST) -> None:
    """Refuse rows whose largest entry is neither zero nor within the range in which roundings are bounded.

    Raises:
        NoCertificateError: one of them is, or an entry is not finite.
    """
    if t.numel() == 0:
        return
    largest = t.abs().amax(dim=-1)
    outside = largest[~((largest == 0) | ((largest >= smallest) & (largest <= LARGEST)))]
    if len(outside):
        raise NoCertificateError(
            f"no certificate for {what} of magnitude {float(outside[0]):.3g}",
            f"rounding is bounded from {SMALLEST:g} to {LARGEST:g}: scale the data or the weights",
        )


def in_double(x: Tensor) -> Tensor:
    """Float64, whole numbers as they are."""
    return x.double() if x.is_floating_point() else x


def euclidean(t: Tensor) -> Tensor:
    """Norm along the last axis."""
    result: Tensor = torch.linalg.vector_norm(t, dim=-1)
    return result


def inspect_module(module: nn.Module) -> None:
    """Refuse a module some part of which may compute anything else than its type says.

    Raises:
        NoCertificateError: hooks, attributes of an instance that stand in for its class's or its parts, parameters
            that are no plain tensors (a parametrisation changes the type of its module, and is refused there), or
            memory that parameters share.
    """
    for part in module.modules():
        kind = type(part).__name__
        if any(getattr(part, hooks) for hooks in _HOOKS):
            raise NoCertificateError("no certificate for modules with hooks", "remove the hooks")
        parts = {**part._parameters, **part._buffers, **part._modules}
        replaced = [name for name in vars(part) if hasattr(type(part), name) or name in parts]
        if replaced:
            raise NoCertificateError(
                f"no certificate for a {kind} with its own {replaced[0]}", "bounds are proved for unchanged modules"
            )
    parameters = [(n, p) for n, p in module.named_parameters(remove_duplicate=False)]
    if any(type(p) is not nn.Parameter or not p.is_floating_point() for _, p in parameters):
        raise NoCertificateError("no certificate for parameters that are no plain tensors", "use torch.nn.Parameter")
    if _share_memory([p for _, p in parameters]):
        raise NoCertificateError("no certificate for shared weights", "bounds are proved for layers of their own")


def _share_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether some number in memory belongs to two entries of the tensors."""
    spans = []
    for t in tensors:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        if t.numel() == 0:
            continue
        if t.numel() > extent:
            return True
        spans.append((str(t.device), t.data_ptr(), t.data_ptr() + extent * t.element_size()))
    spans.sort()
    return any(a[0] == b[0] and b[1] < a[2] for a, b in itertools.pairwise(spans))


_Parts = tuple[dict[str, nn.Linear], Sequence[float], tuple[str, float]]


def _mlp(module: MLP) -> _Parts:
    """Linear layers by name, scales, and the activation with its β, of the package's own MLP.

    Raises:
        NoCertificateError: something else in the place of one of its parts.
    """
    if set(dict(module.named_children())) != {"layers", "activation"} or type(module.layers) is not nn.ModuleList:
        raise NoCertificateError("no certificate for an MLP of other parts", "bounds are proved for unchanged modules")
    linears = {f"layers.{i}": _as_linear(layer) for i, layer in enumerate(module.layers)}
    scales = [float(c) for c in module.scales]
    if not linears or len(scales) != len(linears):
        raise NoCertificateError("no certificate for an MLP of other parts", "bounds are proved for unchanged modules")
    return linears, scales, activation_name(module.activation)


def _sequential(module: nn.Module) -> _Parts:
    """As :func:`_mlp`, of a ``Sequential``.

    Raises:
        NoCertificateError: anything else in it, or activations that differ.
    """
    if type(module) is not nn.Sequential:
        raise NoCertificateError(
            f"no certificate for {type(module).__name__}", "bounds are proved for smooth MLPs alone"
        )
    names = {id(child): name for name, child in module.named_children()}
    linears: dict[str, nn.Linear] = {}
    between: list[tuple[str, float]] = []
    for child in module:
        if type(child) in _SILENT or (type(child) is nn.Flatten and not linears):
            continue
        if type(child) is nn.Linear and len(between) == len(linears):
            linears[names[id(child)]] = _as_linear(child)
        elif len(between) + 1 == len(linears):
            between.append(activation_name(child))
        else:
            raise NoCertificateError(
                f"no certificate for {type(child).__name__} at this place of a Sequential",
                "bounds are proved for linear layers with one activation between each two",
            )
    if not linears or len(between) != len(linears) - 1 or len(set(between)) > 1:
        raise NoCertificateError(
            "no certificate for this Sequential", "bounds are proved for linear layers with the same activation between"
        )
    return linears, [1.0] * len(linears), between[0] if between else ("identity", 1.0)


def _as_linear(module: nn.Module) -> nn.Linear:
    """``module`` as a linear layer with parameters of its own.

    Raises:
        NoCertificateError: it is none.
    """
    if type(module) is not nn.Linear or not {"weight", "bias"} <= set(module._parameters):
        raise NoCertificateError(
            f"no certificate for {type(module).__name__} in the place of a linear layer",
            "bounds are proved for torch.nn.Linear",
        )
    return module


def activation_name(child: nn.Module) -> tuple[str, float]:
    """Name and β of an activation of torch or of this package; the class name where it is another module.

    Raises:
        NoCertificateError: a softplus that jumps, or is so sharp that its rounding is not bounded.
    """
    own = activation_of(child)
    if own is None:
        own = _of_torch(child)
    if own[0] == "softplus" and not 1 / _SHARPEST <= own[1] <= _SHARPEST:
        raise NoCertificateError(
            f"no certificate for softplus with beta {own[1]:g}",
            f"its rounding is bounded from {1 / _SHARPEST:g} to {_SHARPEST:g}",
        )
    return own


def _of_torch(child: nn.Module) -> tuple[str, float]:
    if type(child) is nn.Softplus:
        if child.threshold < SOFTPLUS_THRESHOLD:
            raise NoCertificateError(
                f"no certificate for Softplus that is linear from {child.threshold:g} on, where it jumps",
                f"pass threshold={SOFTPLUS_THRESHOLD:g}, which lies below the rounding",
            )
        return "softplus", float(child.beta)
    if type(child) is nn.GELU and child.approximate != "none":
        return f"GELU with approximate={child.approximate}", 1.0
    known = {nn.Tanh: "tanh", nn.GELU: "gelu", nn.SiLU: "silu", nn.ReLU: "relu"}
    return known.get(type(child), type(child).__name__), 1.0


def _linear() -> Smooth:
    return Smooth("identity", lambda z: z, torch.ones_like, torch.zeros_like, (), (), 0.0)
