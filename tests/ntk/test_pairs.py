"""Pairs of positions: what enters two convolutions at them, and kernels of several outputs that are made from them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.ntk import Network, structured
from lplr_cli.ntk.structured.collect import collect
from lplr_cli.ntk.structured.factors import Form, pairs_length, terms_of
from lplr_cli.ntk.structured.rules.conv import Convolution
from lplr_cli.ntk.structured.rules.linear import Linear
from tests.ntk.roundings import counted

GEOMETRIES = {
    "same": Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1),
    "valid": Convolution((2, 3), (1, 1), (0, 0), (1, 1), 1),
    "one sided": Convolution((3, 1), (1, 1), (1, 0), (1, 1), 2),
    "dilated": Convolution((3, 3), (1, 1), (2, 2), (2, 2), 1),
    "grouped": Convolution((3, 3), (1, 1), (1, 1), (1, 1), 4),
    "wide border": Convolution((3, 3), (1, 1), (4, 3), (1, 1), 1),
    "overlapping strides": Convolution((5, 5), (2, 1), (2, 2), (1, 1), 1),
    "strided": Convolution((3, 3), (2, 2), (1, 1), (1, 1), 1),
    "taps that see no pixel": Convolution((3, 3), (1, 1), (8, 8), (7, 7), 1),
    "taps beyond the border": Convolution((5, 5), (3, 3), (2, 2), (3, 3), 1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("image", [(5, 6), (7, 4)])
def test_patches_meet_as_their_pixels_do(name: str, image: tuple[int, int]) -> None:
    """Against the patches written out, and at no greater price than theirs."""
    kind, generator = GEOMETRIES[name], torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 16, *image, generator=generator, dtype=torch.float64) for n in (3, 2))
    if name == "taps beyond the border" and image[1] < 9:
        a, b = (torch.nn.functional.pad(x, (0, 6, 0, 6)) for x in (a, b))
    patches = Linear.inner(kind, a, b)
    torch.testing.assert_close(kind.inner(a, b), patches, rtol=1e-13, atol=1e-13)
    g, _, t = patches.shape[:3]
    written_out = kind.left(a[:1]).shape[3] * g * t * t
    assert kind.inner_cost(a) <= written_out
    if name in ("same", "dilated", "overlapping strides"):
        assert kind.inner_cost(a) < written_out


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_are_those_of_unfold(name: str) -> None:
    """In memory of their own and in memory that is given."""
    kind = GEOMETRIES[name]
    a = torch.randn((3, 8, 9, 11), generator=torch.Generator().manual_seed(0))
    found = F.unfold(a, kind.kernel, kind.dilation, kind.padding, kind.stride)
    wanted = found.view(3, kind.groups, -1, found.shape[2]).transpose(2, 3)
    for room in (None, a.new_empty):
        assert torch.equal(kind.left(a, room), wanted)


class Small(nn.Module):
    """Convolutions on small images, and positions of a sequence; three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.third = nn.Conv2d(12, 9, 3, stride=2, padding=1, bias=False)
        self.tokens = nn.Linear(9, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.second(torch.tanh(self.first(x))))
        z = torch.tanh(self.third(z)).flatten(2).transpose(1, 2)
        out: Tensor = self.last(torch.tanh(self.tokens(z)).sum(dim=1))
        return out


def written_out(network: Network, x: Tensor) -> Tensor:
    """The Jacobian, (n, 3, P)."""
    params = {name: p.detach() for name, p in network.params.items()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        f: Tensor = torch.func.functional_call(network.module, values, (x,))
        return f

    found = torch.func.jacrev(outputs)(params)
    return torch.cat([found[name].flatten(2) for name in params], dim=2)


class Pixels(nn.Module):
    """A grouped convolution of single pixels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(100, 60, 1, groups=groups, bias=False)
        self.last = nn.Linear(60, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.layer(x)).sum(dim=(2, 3)))
        return out


@pytest.mark.parametrize(("groups", "outputs"), [(1, "full"), (5, "full"), (1, "trace"), (1, 0), (2, 0)])
def test_the_chain_of_one_layer(groups: int, outputs: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is that of the longest chain, but for the addition of a term and the division."""
    torch.manual_seed(0)
    network = Network.from_module(Pixels(groups), names=["layer.weight"])
    x = torch.randn(30, 100, 1, 4).double()
    plan = structured.plan_for(network, x)
    (term,) = terms_of(collect(network, x, {"layer.weight"}, outputs, 30, plan, False))
    assert term.form(30) is Form.PAIRWISE
    longest, stated = counted(network, x, monkeypatch, outputs, 1 << 30)
    assert longest <= stated <= longest + 3


def test_the_square_of_a_length_is_at_least_the_products() -> None:
    """Behind an entry of K: those of a·a', of Σ_t (a_t·a'_t') b_t, and of these with b'."""
    for q, g, t, d, o in itertools.product((1, 2, 5), (1, 3), (1, 2, 9, 40), (0, 1, 9, 60), (1, 3, 64)):
        products = g * (t * t * d + t * t * o + t * o)
        assert pairs_length(q, g, t, d, o) ** 2 >= products


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_no_chain_over_pairs_is_longer_than_stated(outputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Network.from_module(Small())
    longest, stated = counted(network, torch.randn(3, 2, 3, 3).double(), monkeypatch, outputs, 1 << 30)
    assert longest <= stated <= 2 * longest + 60


@pytest.mark.parametrize("budget", [1 << 30, 60_000])
@pytest.mark.parametrize("outputs", ["full", "trace", 1])
@pytest.mark.parametrize("two_sided", [False, True])
def test_kernels_from_pairs_of_positions(outputs: str | int, budget: int, two_sided: bool) -> None:
    """Against J Jᵀ of the Jacobian written out; panels of one sample where the memory holds no more."""
    torch.manual_seed(0)
    network = Network.from_module(Small())
    x, other = torch.randn(7, 2, 3, 3).double(), torch.randn(4, 2, 3, 3).double()
    plan = structured.plan_for(network, x)
    terms = terms_of(collect(network, x, set(network.params), outputs, 7, plan, False))
    forms = {term.key.name: term.form(7) for term in terms}
    assert Form.PAIRWISE in (forms["second.weight"], forms["third.weight"], forms["tokens.weight"]), forms
    found = structured.gram(network, x, other if two_sided else None, outputs=outputs, budget=budget, plan=plan)
    j, j2 = written_out(network, x), written_out(network, other if two_sided else x)
    if outputs == "trace":
        wanted = torch.einsum("icp,jcp->ij", j, j2)
    else:
        chosen = slice(None) if outputs == "full" else slice(outputs, outputs + 1)  # type: ignore[operator]
        wanted = j[:, chosen].flatten(0, 1) @ j2[:, chosen].flatten(0, 1).T
    torch.testing.assert_close(found.matrix, wanted, rtol=1e-12, atol=1e-12)
