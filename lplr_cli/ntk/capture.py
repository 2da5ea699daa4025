"""Capture of how a forward pass uses its parameters: what goes in, and the gradient that comes back.

A :class:`torch.overrides.TorchFunctionMode` watches the calls of ``torch.nn.functional`` that have a rule. For each
parameter that such a call uses, the per-sample gradient factorises: a linear map z = W a + b has
∂f/∂W = Σ_t (∂f/∂z_t) a_tᵀ with t the positions at which the sample visits it (one for a fully connected layer, the
pixels of a convolution, the tokens of a sequence). Watching functions rather than modules sees weights that are
shared, used several times, or used without their module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lplr_cli.ntk.network import Network


@dataclass(frozen=True)
class Key:
    """A parameter, or the rows ``start`` to ``stop`` of one (disjoint rows are separate parameters)."""

    name: str
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class Convolution:
    """Geometry of a two-dimensional convolution."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def positions(self, a: Tensor) -> Tensor:
        """Patches of images (m, c, h, w) as (m, groups, T, c/groups·kh·kw)."""
        patches = F.unfold(a, self.kernel, self.dilation, self.padding, self.stride)
        m, _, count = patches.shape
        return patches.reshape(m, self.groups, -1, count).transpose(2, 3)


@dataclass(frozen=True)
class Use:
    """One use of one parameter in a forward pass.

    Attributes:
        key: the parameter.
        kind: ``linear`` (∂f/∂W = Σ_t b_t a_tᵀ), ``scale`` (Σ_t b_t ∘ a_t) or ``lookup`` (rows a_t receive b_t).
        a: what the parameter meets: inputs, normalised inputs or indices, first axis the samples.
        edge: where ∂f/∂z arrives.
        shape: of z.
        conv: geometry when z comes from a convolution; z is then (n, channels, …).
        channel_axis: axis of z along which a ``scale`` parameter lies.
        ones: the parameter is a bias, a is 1 at each position.
    """

    key: Key
    kind: str
    a: Tensor | None
    edge: GradientEdge
    shape: tuple[int, ...]
    conv: Convolution | None = None
    channel_axis: int = -1
    ones: bool = False


_Rule = Callable[["Capture", Any, Sequence[Any], dict[str, Any]], Any]
_RULES: dict[Any, _Rule] = {}


def _rule(*functions: Any) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for function in functions:
            _RULES[function] = rule
        return rule

    return register


class Capture(TorchFunctionMode):
    """Records every :class:`Use` of the network's parameters while it is entered."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in network.params.items()}
        self.uses: list[Use] = []

    def key(self, parameter: Any) -> Key | None:
        """The key of a tracked parameter, else None."""
        name = self.names.get(id(parameter)) if isinstance(parameter, Tensor) else None
        return None if name is None else Key(name)

    def record(self, key: Key | None, kind: str, a: Tensor | None, z: Tensor, **more: Any) -> None:
        """Note a use of ``key`` (nothing when it is not tracked) whose gradient arrives at z."""
        if key is not None:
            kept = None if a is None else a.detach()
            self.uses.append(Use(key, kind, kept, get_gradient_edge(z), tuple(z.shape), **more))

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls with a rule are recorded; everything else goes through untouched."""
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        return rule(self, func, args, kwargs or {})


def _arguments(names: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
    given = dict(zip(names.split(), args, strict=False)) | kwargs
    return (given.get(name) for name in names.split())


@_rule(F.linear)
def _linear(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, weight, bias = _arguments("input weight bias", args, kwargs)
    if a.dim() >= 2:
        capture.record(capture.key(weight), "linear", a, z)
        capture.record(capture.key(bias), "linear", None, z, ones=True)
    return z


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if not isinstance(value, Sequence) else (int(value[0]), int(value[-1]))


@_rule(F.conv2d)
def _conv2d(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, weight, bias, stride, padding, dilation, groups = _arguments(
        "input weight bias stride padding dilation groups", args, kwargs
    )
    if a.dim() != 4:
        return z
    dilation = _pair(dilation or 1)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    if padding == "same":
        total = [dilation[i] * (kernel[i] - 1) for i in range(2)]
        if any(t % 2 for t in total):
            return z  # asymmetric padding has no rule
        padding = (total[0] // 2, total[1] // 2)
    elif padding == "valid":
        padding = 0
    conv = Convolution(kernel, _pair(stride or 1), _pair(padding or 0), dilation, int(groups or 1))
    capture.record(capture.key(weight), "linear", a, z, conv=conv)
    capture.record(capture.key(bias), "linear", None, z, conv=conv, ones=True)
    return z


@_rule(F.layer_norm)
def _layer_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, shape, weight, bias, eps = _arguments("input normalized_shape weight bias eps", args, kwargs)
    if len(shape) == 1 and a.dim() >= 2:
        if capture.key(weight):
            normal = F.layer_norm(a.detach(), shape, eps=1e-5 if eps is None else eps)
            capture.record(capture.key(weight), "scale", normal, z)
        capture.record(capture.key(bias), "scale", None, z, ones=True)
    return z


@_rule(F.group_norm)
def _group_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, groups, weight, bias, eps = _arguments("input num_groups weight bias eps", args, kwargs)
    if capture.key(weight):
        normal = F.group_norm(a.detach(), groups, eps=1e-5 if eps is None else eps)
        capture.record(capture.key(weight), "scale", normal, z, channel_axis=1)
    capture.record(capture.key(bias), "scale", None, z, channel_axis=1, ones=True)
    return z


@_rule(F.batch_norm)
def _batch_norm(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, mean, var, weight, bias, training, _, eps = _arguments(
        "input running_mean running_var weight bias training momentum eps", args, kwargs
    )
    if not training and mean is not None:
        if capture.key(weight):
            normal = F.batch_norm(a.detach(), mean, var, eps=1e-5 if eps is None else eps)
            capture.record(capture.key(weight), "scale", normal, z, channel_axis=1)
        capture.record(capture.key(bias), "scale", None, z, channel_axis=1, ones=True)
    return z


@_rule(F.embedding)
def _embedding(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    tokens, weight, padding, max_norm, _, by_frequency = _arguments(
        "input weight padding_idx max_norm norm_type scale_grad_by_freq", args, kwargs
    )
    if tokens.dim() >= 1 and padding is None and max_norm is None and not by_frequency:
        capture.record(capture.key(weight), "lookup", tokens, z)
    return z


@_rule(F.multi_head_attention_forward)
def _attention(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Multi-head attention recomputed from its projections, so that each of them is a linear use.

    Follows Vaswani et al. 2017 as ``nn.MultiheadAttention`` calls it; whatever lies outside (bias_k, added zeros,
    static keys, returned weights) runs as it is, without a rule.
    """
    names = (
        "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn "
        "dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask "
        "use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v "
        "average_attn_weights is_causal"
    )
    given = dict(zip(names.split(), _arguments(names, args, kwargs), strict=True))
    query, key, value = given["query"], given["key"], given["value"]
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    unusual = (
        any(given[k] is not None for k in ("bias_k", "bias_v", "static_k", "static_v", "key_padding_mask"))
        or given["add_zero_attn"]
        or given["use_separate_proj_weight"]
        or (given["training"] and given["dropout_p"])
        or query.dim() != 3
        or weight is None
    )
    if unusual:
        return func(*args, **kwargs)
    # The layout here is (T, n, e); samples come first for the record.
    heads, size = int(given["num_heads"]), query.shape[-1]
    parts = []
    for index, source in enumerate((query, key, value)):
        rows = slice(index * size, (index + 1) * size)
        a = source.transpose(0, 1)
        z = F.linear(a, weight[rows], None if bias is None else bias[rows])
        for parameter, ones in ((weight, False), (bias, True)):
            found = capture.key(parameter)
            if found is not None:
                part = Key(found.name, rows.start, rows.stop)
                capture.record(part, "linear", None if ones else a, z, ones=ones)
        parts.append(z.reshape(*z.shape[:2], heads, -1).transpose(1, 2))
    mask = given["attn_mask"]
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
        if mask.dim() == 3:
            mask = mask.reshape(-1, heads, *mask.shape[1:])
    scores = parts[0] @ parts[1].transpose(-2, -1) / (size // heads) ** 0.5
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    joined = (weights @ parts[2]).transpose(1, 2).flatten(2)
    out_weight, out_bias = given["out_proj_weight"], given["out_proj_bias"]
    out = F.linear(joined, out_weight, out_bias)
    capture.record(capture.key(out_weight), "linear", joined, out)
    capture.record(capture.key(out_bias), "linear", None, out, ones=True)
    shown = weights.mean(dim=1) if given["average_attn_weights"] in (None, True) else weights
    return out.transpose(0, 1), (shown if given["need_weights"] in (None, True) else None)
