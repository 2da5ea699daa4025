"""The length that bounds the rounding of a structured kernel, against roundings counted one by one."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.linalg import gamma
from lplr_cli.ntk import Network, structured
from lplr_cli.ntk.structured.factors import Form
from lplr_cli.ntk.structured.rounding import reach_of
from tests.cases import CASES, make
from tests.ntk.roundings import counted


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


@pytest.mark.parametrize("features", [1, 40])
def test_products_that_are_kept_have_no_longer_chain(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of features that meet, the bias after them: as long as in one sum."""
    torch.manual_seed(0)
    network = Network.from_module(nn.Sequential(nn.Linear(features, 2), nn.Tanh(), nn.Linear(2, 1)).double())
    x = torch.randn(5, features, dtype=torch.float64)
    for inputs in (None, structured.InputProducts(x)):
        longest, stated = counted(network, x, monkeypatch, "full", 1 << 30, inputs)
        assert features < longest <= stated <= features + 8


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
    assert reach_of(part) == math.inf  # type: ignore[arg-type]
    empty = SimpleNamespace(a=torch.zeros(0, 3), b=torch.zeros(2, 0))
    assert reach_of(empty) == pytest.approx(1.0)  # type: ignore[arg-type]


def term(key: str, depth: int, columns: int, samples: int, pairs: int = 7) -> Any:
    """A term as far as its rounding is asked for; the sums of a sample are its number."""
    numbers = torch.arange(1.0, samples + 1, dtype=torch.float32)
    part = SimpleNamespace(a=None, b=torch.full((samples, 2), 2.0 * depth))
    return SimpleNamespace(
        key=key, depth=depth, columns=columns, parts=[part], pair_length=lambda form: pairs + (form is Form.PAIRWISE),
        absolute=lambda rows: numbers[rows],
    )  # fmt: skip


def test_chains_and_magnitudes_are_sums_over_terms() -> None:
    """One product for all terms by rows, one for each of the others; every sample once."""
    found: Any = structured.Rounding()
    assert (found.length, found.products, found.magnitude, found.reach) == (1, 0, 0.0, 1.0)
    found.add({Form.ROWS: [term("a", 2, 5, 3), term("b", 3, 9, 3)], Form.EXPLICIT: [], Form.PAIRWISE: []})
    assert (found.length, found.products) == (2 * 3 + 5 + 9 + 1 + 1, 20**2)
    assert found.magnitude == 2 * (1 + 4 + 9)
    # The largest entry of b is 2 · 3, in rows of two.
    assert (1 + 36 * 2) * (1 + 2**-21) <= found.reach <= (1 + 36 * 2) * (1 + 2**-19)
    found.add({Form.EXPLICIT: [term("c", 1, 30, 600)], Form.PAIRWISE: [term("d", 1, 2, 1, pairs=11)]})
    assert found.chains == {Form.ROWS: 20, "c": 2 + 30, "d": 12}
    assert found.length == 32 + 3 + 1
    assert found.products == 20**2 + 32**2 + 12**2
    # In float64, tile by tile.
    assert found.magnitude == 28 + sum(k * k for k in range(1, 601)) + 1
    # A shorter chain of the same term on other samples changes nothing but the magnitude.
    found.add({Form.EXPLICIT: [term("c", 1, 10, 1)]})
    assert found.chains["c"] == 32


def test_what_was_accounted_for_elsewhere_is_joined() -> None:
    one, two = structured.Rounding(2.0, 3.0), structured.Rounding(5.0, 7.0)
    a, b = Form.ROWS, Form.PRODUCT
    one.note(a, 4)
    two.note(a, 6)
    two.note(b, 2)
    one.join(two)
    assert (one.magnitude, one.reach, one.chains) == (7.0, 7.0, {a: 6, b: 2})
    two.join(structured.Rounding(1.0, 2.0))
    assert (two.magnitude, two.reach) == (6.0, 7.0)


def test_the_formation_error_is_its_formula() -> None:
    """γ of the length times the magnitude, and for each product that underflows what it is multiplied with."""
    found = structured.Rounding(magnitude=40.0, reach=9.0)
    found.add_jacobian(torch.tensor([1.0, 2.5]), 50)
    assert (found.magnitude, found.length, found.products) == (43.5, 52, 2500)
    for dtype in (torch.float32, torch.float64):
        exact = Fraction(gamma(52, dtype)) * Fraction(43.5) / 8
        error = Fraction(found.formation_error(6, dtype, 8))
        assert exact * Fraction(10009, 10000) <= error <= exact * Fraction(10011, 10000)
    far = structured.Rounding(reach=1e300)
    tiny = Fraction(torch.finfo(torch.float64).smallest_normal)
    assert far.formation_error(6, torch.float64, 8) == pytest.approx(6 * float(tiny * Fraction(1e300)), rel=1e-15)
    far.note(Form.ROWS, 3)
    far.note(Form.PRODUCT, 4)
    assert far.formation_error(6, torch.float64, 8) == pytest.approx(150 * float(tiny * Fraction(1e300)), rel=1e-15)


@pytest.mark.parametrize("count", [1 << 16, 1 << 20, 3 << 20])
def test_a_magnitude_of_long_chains_may_itself_be_too_small(count: int) -> None:
    """trace(K) ≤ trace(K̂)/(1 - γ) in float32, where γ of a million products is 7 %."""
    found = structured.Rounding()
    found.add_jacobian(torch.tensor([8.0]), count)
    grown = Fraction(gamma(count, torch.float32))
    assert Fraction(found.formation_error(1, torch.float32, 1)) >= 8 * grown / (1 - grown)
    if count < 1 << 20:
        assert found.formation_error(1, torch.float32, 1) <= 8.1 * float(grown)
    far = structured.Rounding()
    far.add_jacobian(torch.tensor([8.0]), 1 << 22)
    assert far.formation_error(1, torch.float32, 1) == math.inf


@pytest.mark.parametrize("length", [2, 52, 467])
def test_the_rounding_of_the_magnitude_is_that_of_two_chains_and_some(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = structured.Rounding(magnitude=40.0)
    found.note(None, length - 2)
    monkeypatch.setattr("lplr_cli.ntk.structured.rounding.gamma", lambda count, dtype: count / 1000)
    exact = length / 1000 * 40 / (1 - (2 * length + 64) / 1000) / 8 * 1.001
    assert found.formation_error(6, torch.float64, 8) == pytest.approx(exact, rel=1e-12)
    # 2 · 468 + 64 = 1,000: nothing is known of the magnitude.
    found.note(None, 466)
    assert found.formation_error(6, torch.float64, 8) == math.inf
