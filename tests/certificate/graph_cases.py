"""Small networks of every operation with bounds, alone and composed, for the tests of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.certificate.graph import PUSHED, GraphBounds, GraphNetwork
from lplr_cli.models import make_activation
from lplr_cli.ntk import evaluation_mode


class Residual(nn.Module):
    """Two convolutions beside an identity or a strided 1×1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.two = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.activation = activation
        plain = stride == 1 and channels_in == channels
        self.short: nn.Module = nn.Identity() if plain else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, channels, h/stride, w/stride)."""
        y: Tensor = self.activation(self.two(self.activation(self.one(x))) + self.short(x))
        return y


class SmallResNet(nn.Module):
    """A stem, two residual blocks, a global mean and a head."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.activation = activation
        self.blocks = nn.Sequential(Residual(2, 2, 1, activation), Residual(2, 3, 2, activation))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, h, w) to (n, 2)."""
        y: Tensor = self.head(self.blocks(self.activation(self.stem(x))).mean(dim=(-2, -1)))
        return y


class Branches(nn.Module):
    """A tensor met three times, functions in the place of modules, and a change of shape by sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2, 4) to (n, 1)."""
        y = F.gelu(self.one(x))
        z = torch.tanh(y + F.silu(self.two(y))) + y
        out: Tensor = self.head(z.view(x.size(0), -1))
        return out


class Squared(nn.Module):
    """A product of two layers, one of them with itself beside it, and a multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 2) to (n, 1)."""
        a, b = self.one(x), self.two(x)
        y = torch.matmul(a, b.transpose(1, 2)) + 0.5 * (a @ a.transpose(-1, -2))
        out: Tensor = self.head((y / 3).flatten(1))
        return out


class Transformer(nn.Module):
    """One block on patches: two heads of attention and a hidden layer, normalised before and added to what came."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.query, self.key, self.value = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.out, self.up, self.down, self.head = nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 1)
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, 2) to (n, 1)."""
        x = self.embed(x)
        y = self.first(x)
        q, k, v = self._heads(self.query(y)), self._heads(self.key(y)), self._heads(self.value(y))
        y = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1) @ v
        x = x + self.out(y.permute(0, 2, 1, 3).reshape(x.size(0), -1, 4))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        out: Tensor = self.head(x.mean(dim=1))
        return out


class Gated(nn.Module):
    """Products entry by entry, of two layers and of one with itself, and a learnt tensor that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 1)
        self.shift = nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2, 3) to (n, 1)."""
        a = self.one(x) + self.shift
        out: Tensor = self.head((a * self.two(x) + 0.3 * a * a).flatten(1))
        return out


class Tokens(nn.Module):
    """A causal block of a language model: tokens and positions embedded, attention of torch, a gated hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(5, 4), nn.Embedding(3, 4)
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.joint, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.up, self.gate, self.down, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), 2, 2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3) whole numbers to (n, 2)."""
        h = self.token(x) + self.place(torch.arange(x.size(1), device=x.device))
        q, k, v = self.joint(self.first(h)).split(4, dim=2)
        y = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), is_causal=True)
        h = h + self.out(y.transpose(1, 2).reshape(x.size(0), -1, 4))
        y = self.second(h)
        h = h + self.down(F.silu(self.gate(y)) * self.up(y))
        out: Tensor = self.head(h.mean(dim=1))
        return out


class MultiHead(nn.Module):
    """torch.nn's own attention, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 1)
        self.register_buffer("hidden", torch.tensor([[False, True, False], [False, False, True], [True, False, False]]))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 2) to (n, 1)."""
        x = self.embed(x)
        out: Tensor = self.head((x + self.attention(x, x, x, attn_mask=self.hidden, need_weights=False)[0]).mean(dim=1))
        return out


@dataclass(frozen=True)
class Case:
    """How to build a module, the shape of a sample, the parameters that are frozen, and the tokens that there are."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    frozen: tuple[str, ...] = ()
    tokens: int = 0

    def make(self, seed: int = 0, n: int = 2) -> tuple[nn.Module, Tensor]:
        """The module in float64 and n samples."""
        torch.manual_seed(seed)
        module = self.build().double()
        for name, p in module.named_parameters():
            p.requires_grad_(name not in self.frozen)
        if self.tokens:
            return module, torch.randint(self.tokens, (n, *self.sample))
        return module, torch.randn(n, *self.sample, dtype=torch.float64)


def _conv(activation: str) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), make_activation(activation), nn.Flatten(), nn.Linear(18, 2)
    )


CASES = {
    "conv-softplus": Case(_conv("softplus"), (1, 3, 3)),
    "conv-gelu": Case(_conv("gelu"), (1, 3, 3)),
    "conv-frozen-weight": Case(_conv("tanh"), (1, 3, 3), ("0.weight",)),
    "conv-frozen-layer": Case(_conv("silu"), (1, 3, 3), ("0.weight", "0.bias", "3.bias")),
    "conv-frozen-head": Case(_conv("tanh"), (1, 3, 3), ("3.weight", "3.bias")),
    "strided-grouped": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 2, bias=False), nn.SiLU(),
            nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(8, 1),
        ),
        (2, 4, 4),
    ),
    "pooled": Case(
        lambda: nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(1, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        ),
        (1, 6, 6),
    ),
    "group-norm": Case(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)),
        (1, 3, 3),
    ),
    "norm-alone": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)),
        (3,),
        ("2.weight", "2.bias"),
    ),
    "scale-alone": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)),
        (3,),
        ("0.weight", "0.bias", "3.weight", "3.bias"),
    ),
    "layer-norm": Case(
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm([3, 4]), nn.GELU(), nn.Linear(4, 2, bias=False), nn.LayerNorm(2, bias=False),
            nn.Flatten(), nn.Linear(6, 1),
        ),
        (3, 3),
    ),
    "softmax-alone": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=-1), nn.Flatten(), nn.Linear(8, 1)),
        (2, 3),
        ("3.weight", "3.bias"),
    ),
    "product-alone": Case(Squared, (3, 2), ("head.weight", "head.bias")),
    "transformer": Case(Transformer, (3, 2)),
    "times-alone": Case(Gated, (2, 3), ("head.weight", "head.bias")),
    "table-alone": Case(
        lambda: nn.Sequential(nn.Embedding(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 1)), (3,),
        ("3.weight", "3.bias"), 4,
    ),
    "transformer-tokens": Case(Tokens, (3,), (), 5),
    "multi-head": Case(MultiHead, (3, 2)),
    "positions": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(6, 1)), (3, 3)
    ),
    "branches": Case(Branches, (2, 4)),
    "residual": Case(
        lambda: nn.Sequential(Residual(1, 2, 2, nn.Tanh()), nn.Flatten(), nn.Linear(8, 1)), (1, 4, 4)
    ),
    "resnet-softplus": Case(lambda: SmallResNet(make_activation("softplus", 2.0)), (1, 4, 4)),
    "resnet-gelu": Case(lambda: SmallResNet(nn.GELU()), (1, 4, 4)),
}  # fmt: skip


def residual_net() -> nn.Module:
    """For runs that name their code."""
    return CASES["residual"].make()[0]


def images() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Four images for it, with targets −1 and +1."""
    x = CASES["residual"].make(n=4)[1]
    return x.numpy(), np.array([1.0, -1.0, 1.0, -1.0])


class Point:
    """A network at θ_0 whose places, outputs and adjoints are functions of one vector."""

    def __init__(self, module: nn.Module, x: Tensor, directions: int = PUSHED[0]) -> None:
        self.module, self.x = module, x
        self.network = GraphNetwork.from_module(module, x.shape[1:])
        self.shapes = {k: p.shape for k, p in module.named_parameters() if p.requires_grad}
        self.theta = torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])
        self.bounds = GraphBounds(self.network, x, directions=directions)

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """θ by name."""
        parts = torch.split(theta, [s.numel() for s in self.shapes.values()])
        return {k: v.view(s) for (k, s), v in zip(self.shapes.items(), parts, strict=True)}

    def block_columns(self) -> list[list[int]]:
        """Entries of θ of each block."""
        places: dict[str, range] = {}
        start = 0
        for name, shape in self.shapes.items():
            places[name] = range(start, start + shape.numel())
            start += shape.numel()
        found: list[list[int]] = [[] for _ in range(self.network.blocks)]
        for node in self.network.nodes:
            block = getattr(node, "block", None)
            if block is not None:
                names = [v for k, v in vars(node).items() if k in ("weight", "bias") and v in places]
                found[block] += [i for name in names for i in places[name]]
        return found

    def outputs(self, theta: Tensor) -> Tensor:
        """f, (n, C), by the module itself."""
        everything: Mapping[str, Tensor] = {**dict(self.module.named_parameters()), **self.values(theta)}
        with evaluation_mode(self.module):
            out: Tensor = torch.func.functional_call(self.module, dict(everything), (self.x,))
        return out

    def places(self, theta: Tensor) -> list[Tensor]:
        """Every tensor of the graph, flattened to (n, …)."""
        return [t.flatten(1).double() for t in self.network.with_trained(self.values(theta)).forward(self.x)]

    def adjoints(self, theta: Tensor) -> list[Tensor]:
        """λ of every place but the input, (n, C, …): derivatives by what is added there."""
        network = self.network.with_trained(self.values(theta))

        def added(*extra: Tensor) -> Tensor:
            places = [self.x]
            for node, more in zip(network.nodes, extra, strict=True):
                places.append(node.value(network.values, *(places[i] for i in node.inputs)) + more)
            return places[-1].sum(dim=0)

        nothing = [torch.zeros_like(t) for t in network.forward(self.x)[1:]]
        found = torch.func.jacrev(added, argnums=tuple(range(len(nothing))))(*nothing)
        return [t.transpose(0, 1).flatten(2) for t in found]

    def hessian(self, theta: Tensor, i: int, c: int) -> Tensor:
        """∇²f_ic, (P, P)."""
        # Backwards twice: forwards over backwards errs for a layer normalisation without bias (torch 2.13).

        def output(t: Tensor) -> Tensor:
            return self.outputs(t)[i, c]

        found: Tensor = torch.func.jacrev(torch.func.grad(output))(theta)
        return found

    def worst_points(self, radius: float, random: int, searched: int) -> list[Tensor]:
        """θ_0, points on the sphere at random, and some from which ||∇²f_00|| was climbed along its gradient."""
        generator = torch.Generator().manual_seed(4)
        found = [self.theta]
        for k in range(random + searched):
            away = torch.randn(len(self.theta), generator=generator, dtype=torch.float64)
            point = self.theta + radius * away / away.norm()
            for _ in range(3 if k >= random else 0):
                point = self._climbed(point, radius)
            found.append(point)
        return found

    def _climbed(self, point: Tensor, radius: float) -> Tensor:
        """One step up the norm of the Hessian, on the sphere."""
        leaf = point.detach().requires_grad_()
        vectors = torch.linalg.eigh(self.hessian(leaf.detach(), 0, 0))
        place = int(vectors.eigenvalues.abs().argmax())
        v = vectors.eigenvectors[:, place] * vectors.eigenvalues[place].sign()
        with torch.enable_grad():
            (first,) = torch.autograd.grad(self.outputs(leaf)[0, 0], leaf, create_graph=True)
            for _ in range(2):
                if not first.requires_grad:
                    return point  # linear, or a Hessian that is the same everywhere
                (first,) = torch.autograd.grad(first @ v, leaf, create_graph=True, materialize_grads=True)
        up = first.detach()
        if float(up.norm()) == 0:
            return point
        away = (point - self.theta) / radius + up / up.norm()
        found: Tensor = self.theta + radius * away / away.norm()
        return found
