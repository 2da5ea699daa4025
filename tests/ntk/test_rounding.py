"""The length that bounds the rounding of a structured kernel, against roundings counted one by one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.ntk import Network, jacobian, structured
from lplr_cli.ntk.structured import collect
from lplr_cli.ntk.structured.rounding import _reach
from tests.cases import CASES, make
from tests.ntk.roundings import RoundingCounter


def counted(
    network: Network, x: Tensor, monkeypatch: pytest.MonkeyPatch, outputs: str | int, budget: int
) -> tuple[int, int]:
    """(longest chain behind an entry of K, length that the engine states); activations and gradients count as exact."""
    counter = RoundingCounter()
    plan = structured.plan_for(network, x)
    with monkeypatch.context() as patch:
        exact = (
            (Network, "forward"),
            (collect, "backward"),
            (jacobian, "jacobian_block"),
            (structured.Rounding, "add"),
        )
        for owner, name in exact:
            patch.setattr(owner, name, counter.pausing(getattr(owner, name)))
        with counter:
            formed = structured.gram(network, x, None, outputs=outputs, budget=budget, plan=plan, bound_rounding=True)
            formed.matrix.div_(len(x))
        assert formed.rounding is not None
        return int(counter.depth(formed.matrix).max()), formed.rounding.length


@pytest.mark.parametrize("budget", [1 << 30, 40_000])
@pytest.mark.parametrize("outputs", ["full", "trace", 0])
@pytest.mark.parametrize("name", CASES)
def test_no_chain_is_longer_than_stated(
    name: str, outputs: str | int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = make(name)
    longest, stated = counted(network, x[:3], monkeypatch, outputs, budget)
    assert longest <= stated, (longest, stated)
    # A statement of anything large would be true as well. Where the memory cuts long sums the chains are shorter.
    assert budget < 1 << 30 or stated <= 2 * longest + 60, (longest, stated)


class Norms(nn.Module):
    """Forty layer normalisations in a row."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = torch.tanh(norm(x)) + 0.5 * x
        return x[:, :2]


def test_normalisations_share_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 scales and 40 biases of 64 channels meet in one sum of 5,120 products."""
    torch.manual_seed(0)
    network = Network.from_module(Norms(40, 64))
    longest, stated = counted(network, torch.randn(3, 64).double(), monkeypatch, "full", 1 << 30)
    assert 4_900 <= longest <= stated
    assert 5_120 <= stated <= 5_130


def test_groups_of_a_convolution_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 32, 1, groups=16, bias=False), nn.Flatten(), nn.Tanh(), nn.Linear(32, 1))
    network = Network.from_module(module, names=["0.weight"])
    longest, stated = counted(network, torch.randn(4, 16, 1, 1).double(), monkeypatch, "full", 1 << 30)
    assert 16 < longest <= stated <= longest + 4


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e80, 1e-200])
def test_reach_is_above_what_an_underflowed_product_meets(scale: float) -> None:
    """1 + ||a||² + ||b||² of the parameter where it is largest, by the largest entries; infinite beyond float64."""
    generator = torch.Generator().manual_seed(0)
    first, last = nn.Linear(5, 3, bias=False).double(), nn.Linear(3, 2, bias=False).double()
    x = scale * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    network = Network.from_module(nn.Sequential(first, last))
    formed = structured.gram(network, x, None, bound_rounding=True)
    assert formed.rounding is not None
    met, back = float(x.abs().max()), float(last.weight.detach().abs().max())
    between = float(first(x).detach().abs().max())
    wanted = max(1 + 5 * met * met + 6 * back * back, 1 + 3 * between * between + 4)
    assert wanted <= formed.rounding.reach <= wanted * (1 + 2**-19)
    inner = [float((x @ x.T).abs().max()), float((last.weight @ last.weight.T).detach().abs().max())]
    assert all(1 + v <= formed.rounding.reach for v in inner)


@pytest.mark.parametrize("value", [1e200, math.inf, math.nan])
def test_reach_beyond_float64_is_infinite(value: float) -> None:
    part = SimpleNamespace(a=None, b=torch.full((2, 1, 1, 3), value, dtype=torch.float64))
    assert _reach(part) == math.inf  # type: ignore[arg-type]
    empty = SimpleNamespace(a=torch.zeros(0, 3), b=torch.zeros(2, 0))
    assert _reach(empty) == pytest.approx(1.0)  # type: ignore[arg-type]
