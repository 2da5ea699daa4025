"""Modules read as graphs: what computes something else, or has no bound, is refused by name."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lplr_cli.certificate import CertifiedCurvature, NoCertificateError
from lplr_cli.certificate.graph import GraphNetwork
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from tests.certificate.graph_cases import CASES, Residual, SmallResNet

SAMPLE = torch.Size((1, 4, 4))


def read(module: nn.Module) -> GraphNetwork:
    return GraphNetwork.from_module(module.double(), SAMPLE)


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    module, x = CASES[name].make(n=3)
    network = GraphNetwork.from_module(module, x.shape[1:])
    assert torch.allclose(network.forward(x)[-1], module(x), rtol=1e-13, atol=1e-13)
    assert network.trained == {k for k, p in module.named_parameters() if p.requires_grad}
    values = {k: torch.randn_like(p) for k, p in module.named_parameters() if p.requires_grad}
    there = torch.func.functional_call(module, {**dict(module.named_parameters()), **values}, (x,))
    assert torch.allclose(network.with_trained(values).forward(x)[-1], there, rtol=1e-12, atol=1e-12)


def hooked(module: nn.Module) -> None:
    module.get_submodule("blocks.0.one").register_forward_hook(lambda module, arguments, output: 2 * output)


def patched(module: nn.Module) -> None:
    layer = module.get_submodule("blocks.1")
    plain = type(layer).forward
    vars(layer)["forward"] = types.MethodType(lambda self, x: 2 * plain(self, x), layer)


def tied(module: nn.Module) -> None:
    one, two = module.get_submodule("blocks.0.two"), module.get_submodule("blocks.0.one")
    vars(one)["_parameters"]["weight"] = two.weight


def parametrised(module: nn.Module) -> None:
    parametrizations.orthogonal(module.get_submodule("head"))


def subclassed(module: nn.Module) -> None:
    layer = module.get_submodule("head")
    plain = type(layer)
    layer.__class__ = type("Other", (plain,), {"forward": lambda self, x: 2 * plain.forward(self, x)})


@pytest.mark.parametrize("change", [hooked, patched, tied, parametrised, subclassed], ids=lambda c: c.__name__)
def test_a_changed_module_has_no_certificate(change: Callable[[nn.Module], None]) -> None:
    module = SmallResNet(nn.Tanh())
    assert len(read(module).nodes) == 15
    change(module)
    with pytest.raises(NoCertificateError, match="no certificate for"):
        read(module)


class Wrapped(nn.Module):
    """A convolution, something else, and a head."""

    def __init__(self, middle: Callable[[Tensor], Tensor], features: int = 32) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(features, 1)
        self.middle = [middle]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle[0](self.conv(x)).flatten(1))
        return out


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)), "relu"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)), "BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1)), "MaxPool2d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()), "padding"),
        (nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten()), "dilation"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(inplace=True), nn.Flatten()), "in place"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten()), "Softplus that is linear"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)), "pooling"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten()), "adaptive"),
        (Wrapped(torch.relu), "relu"),
        (Wrapped(lambda y: y * y.mean(dim=-1, keepdim=True)), "product of two activations of different shapes"),
        (Wrapped(lambda y: y.chunk(2)[0]), "part of the samples"),
        (Wrapped(lambda y: torch.split(y, [1, 1], dim=1)[0]), "split into parts of different sizes"),
        (Wrapped(lambda y: y.long()), "change to whole numbers"),
        (Wrapped(lambda y: y + torch.arange(y.size(3))), "whole numbers"),
        (nn.Sequential(nn.Embedding(3, 2, padding_idx=0), nn.Flatten()), "embedding with padding"),
        (Wrapped(lambda y: y / y), "quotient"),
        (Wrapped(lambda y: y.softmax(dim=1)), "softmax over anything but the last"),
        (Wrapped(lambda y: y @ y[0]), "part of a tensor"),
        (Wrapped(lambda y: F.scaled_dot_product_attention(y, y, y, dropout_p=0.1)), "attention with dropout"),
        (Wrapped(lambda y: F.scaled_dot_product_attention(y, y, y, attn_mask=y)), "attention mask that is no constant"),
        (nn.Sequential(nn.MultiheadAttention(4, 1), nn.Flatten()), "attention of several tensors"),
        (Wrapped(lambda y: y + 1), "sum"),
        (Wrapped(lambda y: y[:, :1].expand(-1, 2, -1, -1)), "part of a tensor"),
        (Wrapped(lambda y: y if y.sum() > 0 else -y), "cannot be traced"),
        (Wrapped(lambda y: y.transpose(0, 1)), "permutation"),
        (Wrapped(lambda y: y.reshape(-1, 16).reshape(-1, 32)), "mixes samples"),
        (Wrapped(lambda y: F.dropout(y, 0.5)), "dropout"),
        (Wrapped(lambda y: F.softplus(y)), "Softplus that is linear"),
        (Wrapped(lambda y: y.mean()), "mean over samples"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "returns"),
        (build_model(ModelSpec(kind="resnet", width=8), (1, 4, 4), 2), "relu"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2, eps=0), nn.Flatten()), "without eps"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_bound_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(NoCertificateError, match="no certificate for") as refused:
        read(module)
    assert named in refused.value.what


def test_a_layer_that_is_used_twice() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    with pytest.raises(NoCertificateError, match="shared weights"):
        read(nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(32, 1)))


def test_a_class_that_computes_something_else_is_seen_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = CASES["residual"].make()
    plain = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: plain(self, x) * (1 + 1e-8))
    with pytest.raises(NoCertificateError, match="outputs are not those of its operations"):
        GraphNetwork.from_module(module, x.shape[1:])


def test_outputs_are_compared_on_the_data_at_every_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the data are, and only a little."""
    module, x = CASES["residual"].make()
    x = 1e3 + x
    plain = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: plain(self, x) * torch.where(x.abs() > 50, 1 + 1e-6, 1.0))
    curvature = CertifiedCurvature(module, x, torch.zeros(2, 1), Loss())
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    with pytest.raises(NoCertificateError, match="outputs are not those of its operations"):
        curvature.ball(theta)
    assert isinstance(module.get_submodule("0"), Residual)
