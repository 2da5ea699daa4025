"""What each operation of torch is in a graph: every number of its node, and what is refused, each by its own reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.certificate import NoCertificateError
from lplr_cli.certificate.graph.builder import Builder, Learnt, Place
from lplr_cli.certificate.graph.nodes import Node
from lplr_cli.certificate.graph.operations import item
from lplr_cli.certificate.graph.reader import Reader
from lplr_cli.certificate.graph.weighted import Convolution


class Calls(nn.Module):
    """A function as a forward pass."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = [function]
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function[0](self, x)


def read(function: Callable[..., Any], *sample: int, frozen: tuple[str, ...] = (), **parts: Any) -> list[Node]:
    """The nodes of a function of samples of a shape."""
    module = Calls(function, **parts).double()
    trained = {name for name, _ in module.named_parameters()} - set(frozen)
    x = torch.randn((7, *sample), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reader = Reader(module, trained, x)
    # The graph computes what the module does.
    values, places = {k: p.detach().double() for k, p in module.named_parameters()}, [x]
    for node in reader.nodes:
        places.append(node.value(values, *(places[i] for i in node.inputs)))
    assert torch.allclose(places[-1], module(x), rtol=1e-12, atol=1e-12)
    return reader.nodes


def flat(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda module, x: function(x).flatten(1)


IMAGE = (2, 6, 4)


@pytest.mark.parametrize(
    ("function", "count", "overlap"),
    [
        (lambda x: x.mean(dim=(-2, -1)), 24, 1),
        (lambda x: torch.mean(x, 1), 2, 1),
        (lambda x: x.mean([1, 3], keepdim=True), 8, 1),
        (lambda x: F.avg_pool2d(x, (3, 2)), 6, 1),
        (lambda x: F.avg_pool2d(x, 2), 4, 1),
        (lambda x: F.avg_pool2d(x, (2,)), 4, 1),
        (lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)), 6, 4),
        (lambda x: F.avg_pool2d(x, (3, 2), 3), 6, 1),
        (lambda x: F.avg_pool2d(x, (4, 4), (1, 2), padding=2), 16, 8),
        (lambda x: F.avg_pool2d(x, 2, count_include_pad=False), 4, 1),
        (lambda x: F.adaptive_avg_pool2d(x, 2), 6, 1),
        (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), 2, 1),
        (lambda x: x.reshape(x.shape[0], 4, 3, 4), 1, 1),
        (lambda x: x.view([x.size(0), -1]), 1, 1),
        (lambda x: torch.flatten(x, 2), 1, 1),
        (lambda x: x.flatten(1, 2), 1, 1),
        (lambda x: x.transpose(-1, 1), 1, 1),
        (lambda x: torch.transpose(x, 1, -2), 1, 1),
        (lambda x: x.permute(0, 3, -3, 2), 1, 1),
        (lambda x: torch.permute(x, (0, -1, 1, 2)), 1, 1),
        (lambda x: x.chunk(3, dim=-2)[1], 1, 1),
        (lambda x: torch.chunk(x, 4, 2)[2], 1, 1),
        (lambda x: x.split(3, dim=3)[1], 1, 1),
        (lambda x: x.split(1, dim=1)[1], 1, 1),
        (lambda x: torch.split(x, 2, -1)[1], 1, 1),
        (lambda x: F.dropout(x, 0.5, training=False).flatten(2), 1, 1),
    ],
)
def test_means_and_changes_of_shape(function: Callable[[Tensor], Tensor], count: int, overlap: int) -> None:
    nodes = read(flat(function), *IMAGE)
    first: Any = nodes[0]
    used = {i for node in nodes for i in node.inputs}
    first = first if 1 in used else next(node for k, node in enumerate(nodes, 1) if k in used)
    assert (first.count, first.overlap) == (count, overlap)
    assert all((node.count, node.overlap) == (1, 1) for node in nodes[1:])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.AvgPool2d(2), (4, 1)),
        (nn.AvgPool2d((3, 2), (2, 1), (1, 0)), (6, 4)),
        (nn.AvgPool2d(3, stride=1, padding=1), (9, 9)),
        (nn.AdaptiveAvgPool2d(2), (6, 1)),
        (nn.AdaptiveAvgPool2d((3, 1)), (8, 1)),
    ],
)
def test_parts_that_average(part: nn.Module, expected: tuple[int, int]) -> None:
    node: Any = read(lambda m, x: m.part(x).flatten(1), *IMAGE, part=part)[0]
    assert (node.count, node.overlap) == expected


@pytest.mark.parametrize(
    ("part", "sample", "positions", "outputs", "geometry"),
    [
        (nn.Linear(4, 3), (4,), 1, 3, None),
        (nn.Linear(4, 3), (5, 4), 5, 3, None),
        (nn.Linear(4, 3, bias=False), (2, 6, 4), 12, 3, None),
        (nn.Conv2d(2, 6, (3, 2), (2, 1), (1, 0), groups=2), IMAGE, 9, 3, Convolution((3, 2), (2, 1), (1, 0), 2)),
        (nn.Conv2d(2, 3, (3, 1), padding="same"), IMAGE, 24, 3, Convolution((3, 1), (1, 1), (1, 0), 1)),
        (nn.Conv2d(2, 3, (1, 3), padding="same"), IMAGE, 24, 3, Convolution((1, 3), (1, 1), (0, 1), 1)),
        (nn.Conv2d(2, 3, (2, 3), padding="valid", bias=False), IMAGE, 10, 3, Convolution((2, 3), (1, 1), (0, 0), 1)),
        (nn.Conv2d(2, 3, 2, (1, 3), (0, 2)), IMAGE, 15, 3, Convolution((2, 2), (1, 3), (0, 2), 1)),
    ],
)
def test_layers(
    part: nn.Module, sample: tuple[int, ...], positions: int, outputs: int, geometry: Convolution | None
) -> None:
    bias = part._parameters["bias"] is not None
    for frozen in ((), ("part.weight",), ("part.bias",), ("part.weight", "part.bias")):
        node: Any = read(lambda m, x: m.part(x).flatten(1), *sample, frozen=frozen, part=part)[0]
        assert (node.positions, node.outputs_per_group, node.convolution) == (positions, outputs, geometry)
        trained = ("part.weight" not in frozen, bias and "part.bias" not in frozen)
        assert (node.weight, node.bias) == ("part.weight", "part.bias" if bias else None)
        assert (node.weight_trained, node.bias_trained) == trained
        assert node.block == (0 if any(trained) else None)


@pytest.mark.parametrize(
    ("part", "sample", "sets", "entries", "positions", "channels", "last"),
    [
        (nn.GroupNorm(2, 4, eps=0.3), (4, 3, 5), 2, 30, 15, 4, False),
        (nn.GroupNorm(3, 6, eps=0.3), (6,), 3, 2, 1, 6, False),
        (nn.LayerNorm(4, eps=0.3), (2, 3, 4), 6, 4, 6, 4, True),
        (nn.LayerNorm([3, 4], eps=0.3), (2, 3, 4), 2, 12, 2, 12, True),
        (nn.LayerNorm([3, 4], eps=0.3, bias=False), (3, 4), 1, 12, 1, 12, True),
    ],
)
def test_normalisation(
    part: nn.Module, sample: tuple[int, ...], sets: int, entries: int, positions: int, channels: int, last: bool
) -> None:
    norm: Any
    scale: Any
    norm, scale, *_ = read(lambda m, x: m.part(x).flatten(1), *sample, part=part)
    assert (norm.sets, norm.entries, norm.epsilon) == (sets, entries, 0.3)
    assert (scale.positions, scale.channels, scale.last, scale.outputs_per_group) == (positions, channels, last, 1)
    bias = part._parameters["bias"] is not None
    assert (scale.weight_trained, scale.bias_trained, scale.block) == (True, bias, 0)
    plain: Any = read(lambda m, x: m.part(x).flatten(1), 2, 4, part=nn.LayerNorm(4, elementwise_affine=False))
    assert [type(node).__name__ for node in plain] == ["Normalise", "Average"]


@pytest.mark.parametrize(
    ("function", "sample", "label", "expected"),
    [
        (lambda m, x: (x @ x.transpose(1, 2)).flatten(1), (4, 3), "matmul", {"inner": 3, "outer": 4}),
        (lambda m, x: torch.matmul(x.transpose(1, 2), x).flatten(1), (4, 3), "matmul", {"inner": 4, "outer": 3}),
        (lambda m, x: x.matmul(m.y).flatten(1), (3, 6), "refused", {}),
        (lambda m, x: (x.reshape(7, 2, 6) @ x.reshape(7, 6, 2)).flatten(1), (12,), "matmul", {"inner": 6, "outer": 2}),
        (lambda m, x: (x.reshape(7, 6, 2) @ x.reshape(7, 2, 6)).flatten(1), (12,), "matmul", {"inner": 2, "outer": 6}),
        (lambda m, x: (x.reshape(7, 2, 3) @ x.reshape(7, 3, 2)).flatten(1), (6,), "matmul", {"inner": 3, "outer": 2}),
        (
            lambda m, x: (x.reshape(7, 6, 2) @ x.reshape(7, 2, 6).chunk(2, -1)[0]).flatten(1),
            (12,),
            "matmul",
            {"inner": 2, "outer": 6},
        ),
        (
            lambda m, x: (x.reshape(7, 6, 2).chunk(2, 1)[0] @ x.reshape(7, 2, 6)).flatten(1),
            (12,),
            "matmul",
            {"inner": 2, "outer": 6},
        ),
        (lambda m, x: torch.softmax(x, -1).flatten(1), (4, 3), "softmax", {"entries": 3, "rows_of_sample": 4}),
        (lambda m, x: x.softmax(dim=2).flatten(1), (4, 3), "softmax", {"entries": 3, "rows_of_sample": 4}),
        (lambda m, x: F.softmax(x, dim=1), (5,), "softmax", {"entries": 5, "rows_of_sample": 1}),
        (lambda m, x: (x / 4).flatten(1), (4, 3), "multiple", {"factor": 0.25}),
        (lambda m, x: torch.div(x, -4.0).flatten(1), (4, 3), "multiple", {"factor": -0.25}),
        (lambda m, x: (3 * x).flatten(1), (4, 3), "multiple", {"factor": 3.0}),
        (lambda m, x: (x * -0.5).flatten(1), (4, 3), "multiple", {"factor": -0.5}),
        (lambda m, x: F.gelu(x), (4,), "gelu", {"entries": 4}),
        (lambda m, x: torch.tanh(x).flatten(1), (4, 3), "tanh", {"entries": 12}),
        (lambda m, x: F.silu(x).flatten(1), (4, 3), "silu", {"entries": 12}),
        (lambda m, x: F.softplus(x, 2.0, 50.0).flatten(1), (4, 3), "softplus", {"entries": 12}),
    ],
)
def test_functions(
    function: Callable[[nn.Module, Tensor], Tensor], sample: tuple[int, ...], label: str, expected: dict[str, Any]
) -> None:
    if label == "refused":
        with pytest.raises(NoCertificateError, match="product"):
            read(function, *sample, y=torch.ones(6, 2))
        return
    node = next(node for node in read(function, *sample) if node.label == label)
    assert {k: getattr(node, k) for k in expected} == expected


def attention(**options: Any) -> Callable[[Any, Tensor], Tensor]:
    """Of one tensor to itself; a mask is the buffer of that name."""
    given = {k: v for k, v in options.items() if k != "attn_mask"}

    def forward(m: Any, x: Tensor) -> Tensor:
        mask = getattr(m, options["attn_mask"]) if "attn_mask" in options else None
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask, **given).flatten(1)

    return forward


MASK = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]]) > 0


@pytest.mark.parametrize(
    ("options", "factor", "kept"),
    [
        ({}, 1 / math.sqrt(5), None),
        ({"scale": 0.3}, 0.3, None),
        ({"is_causal": True}, 1 / math.sqrt(5), torch.ones(3, 3).tril().bool()),
        ({"attn_mask": "flat"}, 1 / math.sqrt(5), MASK),
        ({"attn_mask": "deep"}, 1 / math.sqrt(5), MASK),
    ],
)
def test_attention(options: dict[str, Any], factor: float, kept: Any) -> None:
    nodes: list[Any] = read(attention(**options), 3, 5, flat=MASK, deep=MASK[None])
    by_label = {node.label: node for node in nodes}
    assert by_label["multiple"].factor == factor
    shares = by_label["softmax"]
    assert (shares.entries, shares.rows_of_sample) == (3, 3)
    assert (shares.kept is None) == (kept is None)
    assert kept is None or torch.equal(shares.kept, kept)
    scores, result = (node for node in nodes if node.label == "matmul")
    assert (scores.inner, scores.outer, result.inner, result.outer) == (5, 3, 3, 5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [None, "causal", "given"])
def test_multi_head_attention(mask: str | None, bias: bool) -> None:
    """Two heads of three, of four positions; what is True in its mask does not count."""
    part = nn.MultiheadAttention(6, 2, batch_first=True, bias=bias)
    hidden = torch.ones(4, 4).triu(1).bool() if mask == "causal" else torch.eye(4).bool()

    def forward(m: Any, x: Tensor) -> Tensor:
        given = {} if mask is None else {"attn_mask": m.hidden, "is_causal": mask == "causal"}
        out: Tensor = m.part(x, x, x, need_weights=False, **given)[0]
        return out.flatten(1)

    nodes: list[Any] = read(forward, 4, 6, part=part, hidden=hidden)
    shares = next(node for node in nodes if node.label == "softmax")
    assert (shares.kept is None) == (mask is None)
    assert mask is None or torch.equal(shares.kept, ~hidden)
    assert (shares.entries, shares.rows_of_sample) == (4, 8)
    joint, out = (node for node in nodes if hasattr(node, "weight"))
    assert (joint.weight, joint.bias) == ("part.in_proj_weight", "part.in_proj_bias" if bias else None)
    assert (joint.positions, joint.outputs_per_group, out.positions, out.outputs_per_group) == (4, 18, 4, 6)
    assert (joint.block, out.block) == (0, 1)
    assert next(node for node in nodes if node.label == "multiple").factor == 1 / math.sqrt(3)


def test_tables_and_learnt_tensors() -> None:
    table = nn.Embedding(5, 3)
    module = nn.Sequential(table, nn.Flatten()).double()
    x = torch.randint(5, (7, 2, 4))
    node: Any = Reader(module, {"0.weight"}, x).nodes[0]
    assert (node.rows, node.positions, node.outputs_per_group) == (5, 8, 3)
    assert (node.block, node.weight_trained, node.bias_trained) == (0, True, False)
    whole = Calls(lambda m, x: m.table(x.long()).flatten(1), table=nn.Embedding(5, 3)).double()
    assert Reader(whole, {"table.weight"}, x).nodes[0].inputs == (0,)
    for indices in (torch.tensor([2, 0, 1]), torch.tensor([[2, 0, 1]])):
        table = nn.Embedding(4, 5)
        places: Any = read(lambda m, x: (x + m.table(m.places)).flatten(1), 3, 5, table=table, places=indices)[0]
        assert places.tensor.tolist() == [2.0, 0.0, 1.0]
    shift = nn.Parameter(torch.randn(1, 2, 3))
    ones: Any
    scale: Any
    ones, scale, *_ = read(lambda m, x: (x + m.shift).flatten(1), 4, 2, 3, shift=shift)
    assert torch.equal(ones.tensor, torch.ones(4, 2, 3).double())
    assert (scale.positions, scale.channels, scale.last, scale.weight, scale.bias) == (4, 6, True, "shift", None)
    assert (scale.weight_trained, scale.bias_trained, scale.block) == (True, False, 0)
    before: Any = read(lambda m, x: (m.shift + x).flatten(1), 2, 3, shift=nn.Parameter(torch.randn(2, 3)))[0]
    assert torch.equal(before.tensor, torch.ones(2, 3).double())
    kept: Any = read(lambda m, x: (m.kept[:, :] * x).flatten(1), 2, 3, kept=nn.Parameter(torch.randn(2, 3)))[0]
    assert torch.equal(kept.tensor, torch.ones(2, 3).double())
    after: Any = read(lambda m, x: (x * m.kept).flatten(1), 2, 3, kept=nn.Parameter(torch.randn(2, 3)))[0]
    assert torch.equal(after.tensor, torch.ones(2, 3).double())
    fixed: Any = read(lambda m, x: (x + m.fixed).flatten(1), 2, 3, fixed=torch.arange(3.0))[0]
    assert torch.equal(fixed.tensor, torch.arange(3.0).double().expand(2, 3))


@pytest.mark.parametrize(
    "options", [{"padding_idx": 0}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}]
)
def test_tables_with_gradients_of_their_own_are_refused(options: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Embedding(5, 3, **options), nn.Flatten()).double()
    with pytest.raises(NoCertificateError, match="an embedding with padding"):
        Reader(module, {"0.weight"}, torch.randint(5, (7, 4)))


SQUARE = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("function", "sample", "reason"),
    [
        (lambda m, x: F.linear(x, m.weight), (4,), "operation linear"),
        (lambda m, x: m.square(x), (), "numbers alone"),
        (lambda m, x: m.even(x).flatten(1), IMAGE, "differs on both sides"),
        (lambda m, x: m.odd(x).flatten(1), IMAGE, "differs on both sides"),
        (lambda m, x: m.conv(x.flatten(2)).flatten(1), IMAGE, "does not take samples|anything but images"),
        (lambda m, x: F.avg_pool2d(x, 3, ceil_mode=True).flatten(1), IMAGE, "ceil_mode"),
        (lambda m, x: F.avg_pool2d(x, 3, divisor_override=2).flatten(1), IMAGE, "divisor"),
        (lambda m, x: F.avg_pool2d(x, 3, 1, 1, False, False).flatten(1), IMAGE, "uncounted padding"),
        (lambda m, x: F.avg_pool2d(x, 3, 1, (0, 1), False, False).flatten(1), IMAGE, "uncounted padding"),
        (lambda m, x: F.avg_pool2d(x, 2).flatten(1), (6, 4), "average pooling"),
        (lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)).flatten(1), IMAGE, "adaptive"),
        (lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)).flatten(1), IMAGE, "adaptive"),
        (lambda m, x: F.adaptive_avg_pool2d(x, (2, None)).flatten(1), IMAGE, "adaptive"),
        (lambda m, x: F.adaptive_avg_pool2d(x, 2).flatten(1), (6, 4), "adaptive"),
        (lambda m, x: x.mean(0).flatten(1), IMAGE, "mean over samples"),
        (lambda m, x: x.mean((0, 1)), IMAGE, "mean over samples"),
        (lambda m, x: x.mean(-4).flatten(1), IMAGE, "mean over samples"),
        (lambda m, x: torch.add(x, x, alpha=2), (4,), "sum of anything"),
        (lambda m, x: x + x.mean(1, keepdim=True), (4,), "sum of anything"),
        (lambda m, x: x + 0.5, (4,), "sum of anything"),
        (lambda m, x: 0.5 + x, (4,), "sum of anything"),
        (lambda m, x: (x + (m.kept + 0.5)).flatten(1), (3, 5), "sum of anything"),
        (lambda m, x: (x @ m.right).flatten(1), (2, 3), "product of anything but two"),
        (lambda m, x: (m.left @ x).flatten(1), (2, 3), "product of anything but two"),
        (lambda m, x: F.softmax(x, -1).reshape(7, 1), (), "softmax"),
        (lambda m, x: F.silu(x, inplace=True), (4,), "in place"),
        (lambda m, x: F.gelu(x, approximate="tanh"), (4,), "approximate=tanh"),
        (lambda m, x: F.dropout(x), (4,), "dropout"),
        (lambda m, x: x @ x, (4,), "product of anything but two"),
        (lambda m, x: (x.reshape(7, 2, 2, 3) @ x.reshape(7, 1, 3, 4)).flatten(1), (12,), "agree"),
        (lambda m, x: (x @ m.fixed.double()).flatten(1), (2, 3), "product of anything but two"),
        (lambda m, x: x * 0, (4,), "activation and a number"),
        (lambda m, x: x * math.inf, (4,), "activation and a number"),
        (lambda m, x: x * -math.inf, (4,), "activation and a number"),
        (lambda m, x: x * True, (4,), "activation and a number"),
        (lambda m, x: x / 1e-305, (4,), "quotient"),
        (lambda m, x: x / math.inf, (4,), "quotient"),
        (lambda m, x: 2 / x, (4,), "quotient"),
        (lambda m, x: x.softmax(-1, torch.float64), (4,), "softmax"),
        (lambda m, x: F.softmax(x, -1, dtype=torch.float32), (4,), "another dtype"),
        (lambda m, x: F.softmax(x), (4,), "last dimension"),
        (lambda m, x: F.softmax(x, 0), (4,), "last dimension"),
        (lambda m, x: F.softmax(x, 1).flatten(1), (4, 3), "last dimension"),
        (attention(dropout_p=0.1), (3, 5), "attention with dropout"),
        (attention(enable_gqa=True), (3, 5), "attention with dropout"),
        (lambda m, x: F.scaled_dot_product_attention(x, x, m.whole).flatten(1), (3, 5), "attention with dropout"),
        (attention(is_causal=True, attn_mask="flat"), (3, 5), "causal and masked"),
        (attention(attn_mask="numbers"), (3, 5), "truth values"),
        (attention(attn_mask="short"), (3, 5), "truth values"),
        (attention(attn_mask="heads"), (3, 5), "between heads"),
        (attention(attn_mask="empty"), (3, 5), "empty row"),
        (lambda m, x: x.flatten(0, 1), (3, 5), "mixes samples"),
        (lambda m, x: x.reshape(5, 7 * 3), (3, 5), "mixes samples"),
        (lambda m, x: x.reshape(7, 4), (3, 5), "does not fit"),
        (lambda m, x: x.split([1, 2], dim=1)[0].flatten(1), (3, 5), "different sizes"),
        (lambda m, x: x.split(0, dim=1)[0].flatten(1), (3, 5), "different sizes"),
        (lambda m, x: x.split(2)[0].flatten(1), (3, 5), "part of the samples"),
        (lambda m, x: x.chunk(3, -3)[0].flatten(1), (3, 5), "part of the samples"),
        (lambda m, x: x.transpose(0, 1).flatten(1), (3, 5), "moves the samples"),
        (lambda m, x: x.permute(1, 0, 2).flatten(1), (3, 5), "moves the samples"),
        (lambda m, x: (x + torch.arange(5)).flatten(1), (3, 5), "outside of a layer"),
        (lambda m, x: (x + m.wrong).flatten(1), (3, 5), "another shape"),
        (lambda m, x: (x + m.kept[:2]).flatten(1), (3, 5), "part of a tensor"),
        (lambda m, x: (x + m.kept[None]).flatten(1), (3, 5), "part of a tensor"),
        (lambda m, x: (x + m.column).flatten(1), (3, 5), "spread out"),
        (lambda m, x: (x + m.kept + m.kept).flatten(1), (3, 5), "shared weights"),
        (lambda m, x: x[:, 0], (3, 5), "part of a tensor"),
        (lambda m, x: x.long().double().flatten(1), (3, 5), "operation double|whole numbers"),
        (lambda m, x: (x * 2).long().flatten(1), (3, 5), "whole numbers"),
        (lambda m, x: (x + m.kept.long()).flatten(1), (3, 5), "whole numbers"),
        (lambda m, x: x.reshape(m.kept.shape[0], -1), (3, 5), "the attribute shape"),
        (lambda m, x: m.multi(x, x, x, attn_mask=m.numbers, need_weights=False)[0].flatten(1), (3, 4), "truth values"),
        (lambda m, x: x.T, (3,), "attribute T"),
        (lambda m, x: m.norm(x.mean(1)), (3, 5), "takes samples|over samples|does not take"),
        (lambda m, x: m.loose(x), (4,), "without eps"),
        (lambda m, x: (m.square(x), x), (4,), "returns"),
        (lambda m, x: [m.square(x), x][1], (4,), "returns"),
        (lambda m, x: m.square(x).reshape(7, 2, 2), (4,), "returns"),
        (lambda m, x: m.multi(x, x, x)[0].flatten(1), (3, 4), "need_weights=False|their weights"),
        (lambda m, x: m.multi(x, x, 2 * x, need_weights=False)[0].flatten(1), (3, 4), "several tensors"),
        (lambda m, x: m.multi(x, x, x, m.whole, need_weights=False)[0].flatten(1), (3, 4), "several tensors"),
        (lambda m, x: m.multi(x, x, x, key_padding_mask=m.whole, need_weights=False)[0].flatten(1), (3, 4), "padding"),
        (lambda m, x: m.multi(x, x, x, need_weights=False, average_attn_weights=False)[0], (3, 4), "several"),
        (lambda m, x: m.first(x, x, x, need_weights=False)[0].flatten(1), (3, 4), "batch_first"),
        (lambda m, x: m.other(x, x, x, need_weights=False)[0].flatten(1), (3, 4), "other sizes"),
        (lambda m, x: m.added(x, x, x, need_weights=False)[0].flatten(1), (3, 4), "added ones"),
        (lambda m, x: m.zeros(x, x, x, need_weights=False)[0].flatten(1), (3, 4), "added ones"),
        (lambda m, x: m.multi(x, x, x, need_weights=False)[0], (4,), "batch_first"),
    ],
)  # fmt: skip
def test_refusals(function: Callable[..., Any], sample: tuple[int, ...], reason: str) -> None:
    parts: dict[str, Any] = {
        "weight": nn.Parameter(torch.ones(4, 4)), "conv": nn.Conv2d(2, 2, 2), "fixed": torch.ones(3, 2),
        "even": nn.Conv2d(2, 2, (2, 3), padding="same"), "odd": nn.Conv2d(2, 2, (3, 2), padding="same"),
        "right": torch.ones(7, 3, 2), "left": torch.ones(7, 2, 2),
        "whole": torch.ones(3, 5), "wrong": torch.ones(4), "kept": nn.Parameter(torch.ones(3, 5)),
        "column": nn.Parameter(torch.ones(3, 1)), "norm": nn.LayerNorm([3, 5]), "loose": nn.LayerNorm(4, eps=0.0),
        "square": SQUARE, "multi": nn.MultiheadAttention(4, 2, batch_first=True), "first": nn.MultiheadAttention(4, 2),
        "other": nn.MultiheadAttention(4, 2, batch_first=True, kdim=4, vdim=5),
        "added": nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True),
        "flat": MASK, "numbers": torch.zeros(3, 3), "short": MASK[:1], "heads": MASK.expand(2, 3, 3),
        "empty": MASK & torch.tensor([True, False, True])[:, None],
        "zeros": nn.MultiheadAttention(4, 2, batch_first=True, add_zero_attn=True),
    }  # fmt: skip
    module = Calls(function, **parts).double()
    with pytest.raises(NoCertificateError) as refused:
        Reader(module, set(dict(module.named_parameters())), torch.ones(7, *sample, dtype=torch.float64))
    text = f"{refused.value.what} {refused.value.remedy}"
    assert any(part in text for part in reason.split("|")), text


# -- parameters, parts and traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "positions", "channels"),
    [((3, 5), 1, 15), ((5,), 3, 5), ((1, 1, 5), 3, 5), ((1, 3, 5), 1, 15)],
)
def test_parameters_are_spread_out_over_the_first_dimensions(
    shape: tuple[int, ...], positions: int, channels: int
) -> None:
    kept = nn.Parameter(torch.randn(shape))
    for frozen in ((), ("kept",)):
        node: Any = read(lambda m, x: (x + m.kept).flatten(1), 3, 5, frozen=frozen, kept=kept)[1]
        assert (node.positions, node.channels, node.outputs_per_group) == (positions, channels, 1)
        assert (node.block, node.weight_trained) == ((None, False) if frozen else (0, True))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 5), (7, 3, 5), (3, 1), (3,), (2, 5), (1, 1)])
def test_parameters_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    module = Calls(lambda m, x: (x + m.kept).flatten(1), kept=nn.Parameter(torch.ones(shape))).double()
    with pytest.raises(NoCertificateError, match="spread out otherwise"):
        Reader(module, {"kept"}, torch.ones(7, 3, 5, dtype=torch.float64))


def test_blocks_are_counted_and_met_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)).double()
    build = Builder(module, {"0.bias", "2.weight", "2.bias"}, torch.ones(7, 3, dtype=torch.float64))
    assert [build.block("0.weight", "0.bias"), build.block("1.weight", None), build.block("2.weight", "2.bias")] == [
        0, None, 1,
    ]  # fmt: skip
    assert build.blocks == 2
    assert build.used == ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias"]
    for weight, bias in (("1.weight", None), ("3.weight", "0.bias"), ("0.weight", "3.bias")):
        with pytest.raises(NoCertificateError, match="shared weights"):
            build.block(weight, bias)
    with pytest.raises(NoCertificateError, match=r"does not take samples of shape \(3,\)"):
        build.average(Place(0, torch.Size((7, 3))), "mean", lambda t: t.reshape(7, 4), 1)
    with pytest.raises(NoCertificateError, match=r"does not take samples of shape \(3,\)"):
        build.average(Place(0, torch.Size((7, 3))), "mean", lambda t: t.mean(dim=5), 1)
    for mixed in (lambda t: t.mean(), lambda t: t.mean(dim=0)):
        with pytest.raises(NoCertificateError, match="mean, which mixes samples"):
            build.average(Place(0, torch.Size((7, 3))), "mean", mixed, 1)


class Two(nn.Module):
    """A forward pass of two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Linear(3, 2), "Linear alone"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention alone"),
        (Two(), "several inputs"),
        (nn.Sequential(nn.Bilinear(3, 3, 2)), "Bilinear"),
        (nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(inplace=True)), "in place"),
        (Calls(lambda m, x: m.part(input=x), part=nn.Linear(3, 2)), "Linear with several arguments"),
        (Calls(lambda m, x: m.part(x, x), part=nn.Linear(3, 2)), "Linear with several arguments|cannot be traced"),
        (Calls(lambda m, x: m.part(m.kept), part=nn.Linear(3, 2), kept=torch.ones(1, 3)), "with several arguments"),
        (Calls(lambda m, x: x.sin()), "the operation sin"),
        (Calls(lambda m, x: torch.cos(x)), "the operation cos"),
        (Calls(lambda m, x: x.mean(dim=1, dtype=torch.float64)), "the operation mean with these arguments"),
        (Calls(lambda m, x: x / (x.size(1) - 3)), "with these arguments|quotient"),
        (Calls(lambda m, x: x.reshape(x.shape[0] + 0, -1)), "changes|mixes|operation add"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_parts_and_calls_that_are_refused(module: nn.Module, match: str) -> None:
    module = module.double()
    with pytest.raises(NoCertificateError, match=match):
        Reader(module, set(dict(module.named_parameters())), torch.ones(7, 3, dtype=torch.float64))


def test_modes_of_a_module_are_what_they_were() -> None:
    """It is read as it is in evaluation mode, where dropout does nothing."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Sequential(nn.Identity(), nn.Linear(3, 2))).double()
    module.train()
    module[2].eval()
    modes = [part.training for part in module.modules()]
    assert [node.label for node in Reader(module, set(), torch.ones(7, 3, dtype=torch.float64)).nodes] == ["0", "2.1"]
    assert [part.training for part in module.modules()] == modes
    functional = Calls(lambda m, x: m.part(F.dropout(x, 0.5, m.training)), part=nn.Linear(3, 2)).double().train()
    assert len(Reader(functional, set(), torch.ones(7, 3, dtype=torch.float64)).nodes) == 1
    broken = Calls(lambda m, x: m.missing(x)).double().train()
    with pytest.raises(NoCertificateError, match="cannot be traced"):
        Reader(broken, set(), torch.ones(7, 3, dtype=torch.float64))
    assert broken.training


def test_sizes_are_numbers_on_the_way() -> None:
    """As they are computed with, those of the samples apart."""
    node: Any = read(lambda m, x: (x * math.sqrt(x.size(-1))).flatten(1), 3, 4)[0]
    assert node.factor == 2.0
    node = read(lambda m, x: (x / x.shape[1] ** 0.5 * (x.size(2) // 3 - 2)).flatten(1), 4, 9)[1]
    assert node.factor == 1.0
    assert item(Builder(nn.Identity(), set(), torch.ones(7, 3)), (1, 2, 3), 1) == 2
    learnt = Learnt("kept", torch.Size((2, 3)))
    build = Builder(nn.Identity(), set(), torch.ones(7, 3))
    for index in ((slice(None), slice(0, 3)), slice(None), (slice(0, 2),), (slice(None, None, 1), slice(None, 5))):
        assert item(build, learnt, index) is learnt
    parts: list[Any] = [0, slice(1, None), (slice(None), slice(0, 2)), (slice(None),) * 3, (slice(None), 0), (None,)]
    for part in parts:
        with pytest.raises(NoCertificateError, match="a part of a tensor"):
            item(build, learnt, part)
