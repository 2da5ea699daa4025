"""One table of models for every test of the kernel, with a dense reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network


class Transformer(nn.Module):
    """Token embedding tied to the head, a free positional parameter, one encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.position = nn.Parameter(0.3 * torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embedding(tokens) + self.position).mean(dim=1))
        return out[:, :3]


class ConvNet(nn.Module):
    """Strided, grouped and 1×1 convolutions, one of them used twice, batch and layer normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding="same")
        self.point = nn.Conv2d(8, 8, 1)
        self.layer_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.norm(self.first(x)))
        y = torch.tanh(self.grouped(torch.tanh(self.grouped(y))))
        out: Tensor = self.head(self.layer_norm(self.point(y).mean(dim=(2, 3))))
        return out


class Shared(nn.Module):
    """One linear layer used three times, and its weight once more outside of any rule."""

    def __init__(self, sneaky: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)
        self.sneaky = sneaky

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        if self.sneaky:
            x = x * self.layer.weight.diagonal()
        out: Tensor = self.head(x)
        return out


class Lookups(nn.Module):
    """A table looked up twice, then group normalisation over the tokens."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 4)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        y = torch.tanh(self.table(tokens) + self.table(tokens.flip(1)))
        out: Tensor = self.head(self.norm(y.transpose(1, 2)).mean(dim=2))
        return out


@dataclass(frozen=True)
class Case:
    """A model and inputs for it; ``fallback`` names the parameters without a structured rule."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    fallback: tuple[str, ...] = ()


def _mlp(outputs: int, parametrization: str, activation: str, depth: int = 2) -> Callable[[], nn.Module]:
    spec = ModelSpec(width=9, depth=depth, parametrization=parametrization, activation=activation)
    return lambda: build_model(spec, (7,), outputs, seed=3)


CASES: dict[str, Case] = {
    "linear": Case(_mlp(1, "standard", "softplus", 0), lambda: torch.randn(5, 7)),
    "mlp-softplus": Case(_mlp(1, "standard", "softplus"), lambda: torch.randn(6, 7)),
    "mlp-ntk-gelu-3": Case(_mlp(3, "ntk", "gelu"), lambda: torch.randn(4, 7)),
    "mlp-relu-2": Case(_mlp(2, "standard", "relu", 3), lambda: torch.randn(5, 7)),
    "resnet": Case(
        lambda: build_model(ModelSpec(kind="resnet", width=8), (3, 8, 8), 2), lambda: torch.randn(3, 3, 8, 8)
    ),
    "convnet": Case(ConvNet, lambda: torch.randn(4, 3, 8, 8)),
    "transformer": Case(Transformer, lambda: torch.randint(0, 11, (4, 5)), ("position",)),
    "lookups": Case(lambda: Lookups(5), lambda: torch.randint(0, 5, (4, 6))),
    "large-table": Case(lambda: Lookups(500), lambda: torch.randint(0, 500, (4, 2))),
    "shared": Case(lambda: Shared(False), lambda: torch.randn(5, 6)),
    "sneaky": Case(lambda: Shared(True), lambda: torch.randn(5, 6), ("layer.weight",)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, Tensor]:
    """The network and inputs of a case, the same every time."""
    torch.manual_seed(5)
    module = CASES[name].build().eval()
    network = Network.from_module(module, dtype=dtype)
    return network, network.cast(CASES[name].inputs())


def dense_jacobian(network: Network, x: Tensor) -> Tensor:
    """J by plain autograd, one output of one sample at a time, shape (n, C, P)."""
    rows = []
    params = list(network.params.values())
    for sample in x:
        f = network.forward(sample.unsqueeze(0))[0]
        per_output = []
        for value in f:
            grads = torch.autograd.grad(value, params, retain_graph=True, materialize_grads=True)
            per_output.append(torch.cat([g.reshape(-1) for g in grads]))
        rows.append(torch.stack(per_output))
    return torch.stack(rows)
