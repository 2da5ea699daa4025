"""The length that bounds the rounding of a structured kernel, against roundings counted one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.ntk import Network, jacobian, structured
from lplr_cli.ntk.structured import collect
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
