"""Networks beyond MLPs: how near the bounds of their Hessians come, and a path that they certify."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.path import HEAD, measure, row
from lplr_cli.analysis.subject import Source
from lplr_cli.certificate.graph import PUSHED, GraphBounds, GraphNetwork, affordable
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, make_activation
from lplr_cli.ntk import evaluation_mode
from lplr_cli.training import TrainConfig

RADII = (0.0, 1e-3)
SAMPLES, PRODUCTS = 4, 40


class Block(nn.Module):
    """Two 3×3 convolutions, normalised or not, beside the input, or beside a strided 1×1 convolution of it."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: nn.Module, norm: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels_in, channels, 3, stride, 1), nn.Conv2d(channels, channels, 3, 1, 1)
        self.norms = nn.ModuleList(_norm(channels, norm) for _ in range(2))
        self.activation = activation
        plain = stride == 1 and channels_in == channels
        self.short: nn.Module = nn.Identity() if plain else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, channels, h/stride, w/stride)."""
        y: Tensor = self.norms[1](self.two(self.activation(self.norms[0](self.one(x)))))
        return self.activation(y + self.short(x))  # type: ignore[no-any-return]


def _norm(channels: int, norm: bool) -> nn.Module:
    return nn.GroupNorm(4, channels) if norm else nn.Identity()


class SmoothResNet(nn.Module):
    """A stem, blocks in stages of doubled channels and halved images, a global mean and a head."""

    def __init__(self, width: int, stages: int, per_stage: int, activation: str, norm: bool) -> None:
        super().__init__()
        self.stem, self.activation = nn.Conv2d(1, width, 3, padding=1), make_activation(activation)
        self.norm = _norm(width, norm)
        blocks, channels = [], width
        for stage in range(stages):
            for index in range(per_stage):
                stride = 2 if stage and not index else 1
                blocks.append(Block(channels, width << stage, stride, self.activation, norm))
                channels = width << stage
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, h, w) to (n, 1)."""
        y: Tensor = self.head(self.blocks(self.activation(self.norm(self.stem(x)))).mean(dim=(-2, -1)))
        return y


def resnet(
    width: int = 8, stages: int = 1, per_stage: int = 1, activation: str = "softplus", norm: bool = False
) -> nn.Module:
    """A smooth residual network, He."""
    module = SmoothResNet(width, stages, per_stage, activation, norm)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


class Transformer(nn.Module):
    """One block on 16 patches of a digit: attention of four heads and a hidden layer, each normalised before."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.embed = heads, nn.Linear(49, width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second, self.head = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, 1)

    def _apart(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 16, self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 28, 28) to (n, 1)."""
        x = self.embed(x.reshape(-1, 4, 7, 4, 7).permute(0, 1, 3, 2, 4).reshape(x.shape[0], 16, 49))
        y = self.first(x)
        q, k, v = self._apart(self.query(y)), self._apart(self.key(y)), self._apart(self.value(y))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(y.reshape(x.shape[0], 16, -1))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        out: Tensor = self.head(x.mean(dim=1))
        return out


def small_digits(n: int = 64, size: int = 14) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Digits 3 and 8, averaged to size × size pixels and standardised, with targets −1 and +1."""
    whole = load_dataset(DataSpec("mnist", samples=n, targets="pm1"))
    images = F.adaptive_avg_pool2d(torch.from_numpy(whole.inputs).double().reshape(-1, 1, 28, 28), size)
    return ((images - images.mean()) / images.std()).numpy(), np.asarray(whole.targets, dtype=np.float64)


@dataclass(frozen=True)
class Case:
    """A network and the side of the images that it meets."""

    label: str
    build: Callable[[], nn.Module]
    size: int


SHAPES = {
    "width 8, one block": ((8, 1, 1), 14),
    "width 16, one block": ((16, 1, 1), 28),
    "width 8, two stages of one": ((8, 2, 1), 14),
}
CASES = [
    Case(f"{label}, {a}{', GroupNorm' if norm else ''}", partial(resnet, *shape, a, norm), size)
    for norm in (False, True)
    for label, (shape, size) in SHAPES.items()
    for a in ("softplus", "gelu")
]
CASES.append(Case("transformer block, width 32, 16 tokens, gelu", Transformer, 28))
# Of the paper's depth, with one sample, whose derivatives are pushed along few directions alone.
DEEP = [
    Case(
        f"width 16, three stages of two, gelu{', GroupNorm' if norm else ''}",
        partial(resnet, 16, 3, 2, "gelu", norm),
        28,
    )
    for norm in (False, True)
]


def hessian_norm(module: nn.Module, x: Tensor) -> float:
    """Of one output of one sample, by power iteration."""
    parameters = list(module.parameters())
    with evaluation_mode(module):
        total = module(x).sum()
    gradient = torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)
    generator, norm = torch.Generator().manual_seed(1), 0.0
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    for _ in range(PRODUCTS):
        length = math.sqrt(sum(float(t.square().sum()) for t in v))
        along = sum((g * t).sum() / length for g, t in zip(gradient, v, strict=True) if g.requires_grad)
        assert isinstance(along, Tensor)
        v = [t.detach() for t in torch.autograd.grad(along, parameters, retain_graph=True, materialize_grads=True)]
        norm = math.sqrt(sum(float(t.square().sum()) for t in v))
    return norm


def ratios(case: Case, samples: int = SAMPLES) -> str:
    """A row: the largest ratio of bound and norm found, for each number of directions pushed, and its seconds."""
    torch.manual_seed(0)
    module = case.build().double()
    x = torch.from_numpy(small_digits(SAMPLES, case.size)[0][:samples])
    found = torch.tensor([hessian_norm(module, row[None]) for row in x], dtype=torch.float64)
    columns = []
    network = GraphNetwork.from_module(module, x.shape[1:])
    for directions in (0, *PUSHED)[: 4 if affordable(network, x) == PUSHED[-1] else 3 if samples > 1 else 2]:
        begun = time.process_time()
        bounds = GraphBounds(network, x, directions=directions)
        worst = [float((bounds.over(r).hessians[:, 0] / found).max()) for r in RADII]
        took = time.process_time() - begun
        columns.append(f"{' / '.join(f'{w:.3g}' for w in worst)} ({took:.1f} s)")
    columns += ["–"] * (4 - len(columns))
    return f"| {case.label} | {float(found.mean()):.3g} | {' | '.join(columns)} |"


class Tokens(nn.Module):
    """Six tokens with learnt positions through one normalised attention of two heads."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(20, width), nn.Parameter(torch.randn(6, width) / 10)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6) to (n, 1)."""
        x = self.embed(x.long()) + self.positions
        y = self.norm(x)
        out: Tensor = self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(dim=1))
        return out


def sentences(n: int = 64) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Six tokens of 20, and whether the first is among the rest."""
    tokens = np.random.default_rng(0).integers(0, 20, (n, 6))
    return tokens.astype(np.float64), np.where((tokens[:, 1:] == tokens[:, :1]).any(axis=1), 1.0, -1.0)[:, None]


SGD = TrainConfig(
    DataSpec("benchmarks.graphs:small_digits"),
    ModelSpec("benchmarks.graphs:resnet"),
    optimizer="sgd",
    batch_size=16,
    lr=1e-3,
    steps=100,
    probe_every=0,
    probe_sharpness=False,
)
GD = SGD.with_(optimizer="gd", steps=60)
FEW = SGD.with_(optimizer="gd", steps=20, samples=16)
GELU = ModelSpec("benchmarks.graphs:resnet", arguments={"activation": "gelu", "norm": True})
# With how the balls are bounded: by norms of layers, which are cheap, where these do.
PATHS = {
    "sgd, ResNet of one block, softplus": (SGD, "fast"),
    "gd, ResNet of one block, gelu, GroupNorm": (replace(FEW, model=GELU), "auto"),
    "gd, tokens: embedding, positions, attention": (
        replace(GD, data=DataSpec("benchmarks.graphs:sentences"), model=ModelSpec("benchmarks.graphs:Tokens"), lr=0.02),
        "auto",
    ),
}


def paths() -> str:
    """A row a run, in the columns of :mod:`benchmarks.path`."""
    rows = []
    for name, (config, method) in PATHS.items():
        with tempfile.TemporaryDirectory() as root:
            found = measure(config, 0, Path(root) / "run", Source.from_word(config.word), method)
        rows.append(row(name, found))
    return "\n".join([HEAD, *rows])


def report() -> str:
    """Both tables."""
    lines = [
        "| network | Hessian found | none pushed | 64 pushed | 256 pushed | 2,048 pushed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [ratios(case) for case in CASES] + [ratios(case, 1) for case in DEEP]
    return "\n".join([*lines, "", paths()])


if __name__ == "__main__":
    print(paths() if "--paths" in sys.argv else report())
