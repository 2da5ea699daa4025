"""The rules of layers and tables, each bound from its formula in docs/theory.md, section 10, once more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate.graph import norms, tables
from lplr_cli.certificate.graph.convolution import convolution_norm_upper
from lplr_cli.certificate.graph.state import Ahead, Here, Tangent
from lplr_cli.certificate.graph.weighted import Convolution, Weighted
from tests.certificate.rules import (
    BLOCKS,
    OUTPUTS,
    RADII,
    SAMPLES,
    Adjoint,
    At,
    Draws,
    Rule,
    check,
    close,
    enlarge,
    gamma,
    outer,
)


@pytest.fixture(autouse=True)
def _large_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    enlarge(monkeypatch)


# -- layers ------------------------------------------------------------------------------------------------------------

GEOMETRY = Convolution((3, 2), (2, 1), (1, 0), 2)
TRAINED = [(True, True), (True, False), (False, True), (False, False)]


def layer_rule(node: Weighted, here: Here, radius: float) -> Rule:
    """A layer, whatever its weights are."""
    c, w, b = here.constants, node.weight_trained, node.bias_trained
    root = 1.0 if node.convolution is None else math.sqrt(2 * 2)  # ⌈3/2⌉ ⌈2/1⌉
    moved, positions = radius * w, math.sqrt(node.positions)
    gain, frobenius = c["norm"] + root * moved, c["frobenius"] + moved
    bias = 0.0 if node.bias is None else c["bias"] + radius * b
    own, column = here.measured["own"].numpy(), here.measured["column"].numpy()
    groups = here.measured["group"].numpy()
    mine = np.array([float(k == node.block) for k in range(BLOCKS)])

    def group(i: int, k: int, at: Adjoint) -> float:
        return float(min(at.size, groups[i, k] + at.delta))

    def ahead(i: int, t: list[At]) -> Any:
        (x,) = t
        d = gain * x.d + mine * (own[i] + root * x.reach * w)
        rows = np.minimum((c["row"] + moved) * x.d, (c["row_sum"] + math.sqrt(c["terms"]) * moved) * x.r)
        rows = rows + mine * (column[i] + x.reach * w)
        drift = gain * x.drift + root * moved * x.d + mine * root * x.reach * w
        size = gain * x.size + positions * bias
        error = gain * x.e + gamma(int(c["terms"]) + 8) * (root * frobenius * (x.size + x.e) + positions * bias)
        return size, error, d, rows, gain * x.s + root * x.all_d * w, drift

    def behind(i: int, k: int, at: Adjoint, t: list[At]) -> Any:
        return [(gain * at.size, gain * at.ell + mine * root * group(i, k, at) * w)]

    def summed(key: str) -> Callable[[float, float], float]:
        grown = gamma(int(c[key]) + 8)
        return lambda size, error: gain * error + grown * root * frobenius * (size + error)

    def form(i: int, k: int, at: Adjoint, t: list[At]) -> Any:
        (x,) = t
        cross = root * group(i, k, at) * x.d
        return outer(mine, cross), root * (at.norm * x.all_d + group(i, k, at) * x.s)

    def spread(i: int, k: int, at: Adjoint, t: list[At], x: list[Tangent]) -> Any:
        size, frob, rest = (v[i].numpy() for v in (x[0].size, x[0].frobenius, x[0].rest))
        rounding = gamma(node.positions + 16) * (at.size + at.e)
        return outer(mine, root * (group(i, k, at) * rest + at.delta * size + rounding * frob))

    forward, backward = summed("terms"), summed("backward_terms")
    curved = w and node.block is not None
    return Rule(
        ahead, behind, lambda i, k, size, error, t: [backward(size, error)],
        lambda i, size, error, t: forward(size, error), form if curved else None, spread if curved else None,
    )  # fmt: skip


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("geometry", [None, GEOMETRY])
@pytest.mark.parametrize("bias", ["b", None])
def test_layers(bias: str | None, geometry: Convolution | None, trained: tuple[bool, bool], radius: float) -> None:
    draws, w, b = Draws(12), trained[0], trained[1] and bias is not None
    node = Weighted((0,), "layer", "w", bias, 1 if w or b else None, w, b, 6, 2, geometry)
    sizes = draws(5).tolist()
    constants = dict(zip(("norm", "frobenius", "row", "row_sum", "bias"), sizes, strict=True))
    measured = draws.here(radius, ("own", "column"), ("gradient", "group")).measured
    here = Here(radius, measured, {**constants, "terms": 7.0, "backward_terms": 9.0})
    below = draws.ahead()
    check(node, here, layer_rule(node, here, radius), [below], draws)
    check_gradients(node, here, below, draws, 1.0 if geometry is None else 2.0)


def check_gradients(node: Weighted, here: Here, below: Ahead, draws: Draws, root: float) -> None:
    """Those of the layer's own parameters, and their rounding."""
    above, terms, positions = draws.behind(), 5, node.positions
    size, error = draws(SAMPLES, OUTPUTS), 0.1 * draws(SAMPLES, OUTPUTS)
    own = here.measured["own"] + root * (here.radius * below.blocks.norm(dim=1) + below.error) * node.weight_trained
    gradient = node.gradient(here, above, below)
    assert (gradient is None) == (node.block is None)
    assert gradient is None or close(gradient, above.size * own[:, None])
    grown, x_error, x_size = gamma(terms * positions + 256), root * below.error[:, None], root * below.size[:, None]
    expected = []
    if node.weight_trained:
        product = error * (own[:, None] + x_error) + size * x_error
        expected.append(product + grown * (size + error) * (x_size + x_error))
    if node.bias_trained:
        expected.append(math.sqrt(positions) * (error + grown * (size + error)))
    found = node.gradient_error(here, size, error, terms, below)
    assert all(close(f, e) for f, e in zip(found, expected, strict=True))


def patches(x: Tensor) -> Tensor:
    """The columns that the weights of GEOMETRY meet, by index: (n, groups, c/g·3·2, positions)."""
    n, channels, h, w = x.shape
    padded = torch.zeros((n, channels, h + 2, w), dtype=x.dtype)
    padded[:, :, 1:-1] = x
    columns = [
        torch.stack([padded[:, ch, r + i, s + j] for ch in range(channels) for i in range(3) for j in range(2)], dim=1)
        for r in range(0, h, 2)
        for s in range(w - 1)
    ]
    return torch.stack(columns, dim=2).reshape(n, 2, channels // 2 * 6, -1)


@dataclass
class Layer:
    """A layer with its weights, what it meets, and the matrices A of every sample and group."""

    node: Weighted
    values: dict[str, Tensor]
    x: Tensor
    columns: Tensor

    @property
    def lead(self) -> Tensor:
        """[A; 1] as far as trained, (n, g, k, T)."""
        a = self.columns if self.node.weight_trained else self.columns[:, :, :0]
        ones = torch.ones((*self.columns.shape[:2], 1, self.columns.shape[3]), dtype=torch.float64)
        return torch.cat([a, ones], dim=2) if self.node.bias_trained else a


def layers(draws: Draws, w: bool = True, b: bool = True) -> list[Layer]:
    block = 0 if w or b else None
    x = draws.normal(3, 5, 4)
    fully = Weighted((0,), "layer", "w", "b", block, w, b, 5, 2)
    values = {"w": draws.normal(2, 4), "b": draws.normal(2)}
    images = draws.normal(3, 4, 5, 3)
    grouped = Weighted((0,), "conv", "w", "b", block, w, b, 6, 3, GEOMETRY)
    kernels = {"w": draws.normal(6, 2, 3, 2), "b": draws.normal(6)}
    scaled = norms.Scaled((0,), "scale", "w", "b", block, w, b, 5, 1, None, 4, True)
    scales = {"w": draws.normal(4), "b": draws.normal(4)}
    wide, pairs = {"w": draws.normal(3, 2), "b": draws.normal(3, 2)}, draws.normal(3, 2, 3, 2)
    first = norms.Scaled((0,), "scale", "w", "b", block, w, b, 15, 1, None, 4, False)
    return [
        Layer(fully, values, x, x.mT[:, None]),
        Layer(grouped, kernels, images, patches(images)),
        Layer(scaled, scales, x, x.mT[:, :, None]),
        Layer(first, scales, images, images.flatten(2)[:, :, None]),
        Layer(replace(first, positions=5), scales, x.mT.contiguous(), x.mT[:, :, None]),
        Layer(replace(scaled, channels=6, positions=2), wide, pairs, pairs.flatten(2).mT[:, :, None]),
    ]


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_measured_of_layers(trained: tuple[bool, bool]) -> None:
    draws = Draws(13)
    for layer in layers(draws, *trained):
        node, values, x = layer.node, layer.values, layer.x
        assert torch.equal(node.columns(x), layer.columns)
        z = node.value(values, x)
        lead = layer.lead
        measured = node.measure(x)
        largest = torch.linalg.matrix_norm(lead, ord=2).amax(dim=1) if lead.shape[2] else torch.zeros(3).double()
        assert bool((measured["own"] >= largest).all())
        assert bool((measured["own"] <= 1.05 * largest + 1e-100).all())
        assert close(measured["column"], lead.norm(dim=2).amax(dim=(1, 2)))
        lam = draws.normal(3, 2, *z.shape[1:])
        weighed = node.weigh(lam, x)
        s = node.outputs(lam)
        size = torch.linalg.matrix_norm(s, ord=2).amax(dim=-1)
        assert bool((weighed["group"] >= size).all())
        assert bool((weighed["group"] <= 1.05 * size).all())

        def inner(w: Tensor, b: Tensor, i: int, c: int, layer: Layer = layer, lam: Tensor = lam) -> Tensor:
            return (layer.node.value({"w": w, "b": b}, layer.x[i : i + 1])[0] * lam[i, c]).sum()

        for i in range(3):
            for c in range(2):
                by_w, by_b = torch.func.grad(inner, argnums=(0, 1))(values["w"], values["b"], i, c)
                exact = math.sqrt(float(by_w.square().sum() * trained[0] + by_b.square().sum() * trained[1]))
                assert float(weighed["gradient"][i, c]) == pytest.approx(exact, rel=1e-12, abs=1e-300)


def test_a_layer_is_the_product_of_its_weights_and_columns() -> None:
    for layer in layers(Draws(14)):
        n, g, k, t = layer.columns.shape
        z = torch.einsum("gok,ngkt->ngot", layer.values["w"].reshape(g, -1, k), layer.columns)
        shifted = z + layer.values["b"].reshape(g, -1, 1)
        for node, exact in ((layer.node, shifted), (replace(layer.node, bias=None), z)):
            found = node.outputs(node.value(layer.values, layer.x)[:, None])
            assert torch.allclose(found, exact.reshape(n, 1, g, -1, t), rtol=1e-12, atol=1e-12)


def test_constants_of_layers() -> None:
    draws = Draws(14)
    for layer in layers(draws):
        node, w, b = layer.node, layer.values["w"], layer.values["b"]
        found = node.constants(layer.values, layer.x.shape[1:])
        dense = torch.func.jacrev(lambda t, layer=layer: layer.node.value(layer.values, t[None])[0])(layer.x[0])
        size = layer.x[0].numel()
        norm = float(torch.linalg.matrix_norm(dense.reshape(-1, size), ord=2))
        assert norm <= found["norm"] <= 1.08 * norm
        if node.convolution is not None:
            c = node.convolution
            assert close(found["norm"], convolution_norm_upper(w, (5, 3), c.stride, c.padding, c.groups))
        rows = w.reshape(-1, layer.columns.shape[2])
        assert close(found["frobenius"], w.norm())
        assert close(found["row"], rows.norm(dim=1).max())
        assert close(found["row_sum"], rows.abs().sum(dim=1).max())
        assert close(found["bias"], b.norm())
        # Products that an entry is a sum of, forwards and backwards: no fewer than there are.
        back = (dense.reshape(-1, size) != 0).sum(dim=0).max()
        assert int(found["terms"]) == rows.shape[1]
        most = 1 if isinstance(node, norms.Scaled) else w[:, 0].numel()
        assert back <= int(found["backward_terms"]) <= most
        plain = replace(node, bias=None)
        assert plain.constants({"w": w}, layer.x.shape[1:])["bias"] <= 1e-130
        t = draws.normal(3, 2, *layer.x.shape[1:])
        pushed = torch.stack([node.value({"w": w, "b": 0 * b}, t[:, d]) for d in range(2)], dim=1)
        assert torch.allclose(node.push(layer.values, (t,), ()), pushed, rtol=1e-13, atol=1e-13)
        assert torch.allclose(plain.push({"w": w}, (t,), ()), pushed, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("trained", TRAINED[:3])
def test_directions_of_layers(trained: tuple[bool, bool]) -> None:
    """What V leaves of A₁, how far V is from orthonormal, and tangents e_o ⊗ A₁ᵀV, against einsum."""
    draws = Draws(15)
    for layer in layers(draws, *trained):
        node, lead = layer.node, layer.lead
        n, g, k, t = lead.shape
        for count in (1, 3, 100):
            v = node.leading(layer.x, count)
            rank = min(k, t, max(1, count // (node.outputs_per_group * g)))
            assert v.shape == (n, g, k, rank)
            values, left = torch.linalg.svd(lead), torch.linalg.matrix_norm(lead - v @ v.mT @ lead, ord=2)
            after = values.S[..., rank] if rank < values.S.shape[-1] else torch.zeros(n, g).double()
            assert torch.allclose(left, after, atol=1e-7)
        # Of any V, orthonormal or not.
        v = draws.normal(n, g, k, 1)
        found, rest = node.rest(layer.x, v), lead - v @ (v.mT @ lead)
        slack = 4 * gamma(2 * k + 16) * lead.flatten(1).norm(dim=1)
        own = torch.linalg.matrix_norm(rest, ord=2).amax(dim=1)
        assert bool((found["own"] >= own + slack).all())
        assert bool((found["own"] <= 1.05 * own + slack * (1 + 1e-6)).all())
        assert close(found["column"], rest.norm(dim=2).amax(dim=(1, 2)) + slack)
        skew = ((v**2).sum(dim=2)[..., 0] - 1).abs().amax(dim=1)
        assert close(found["skew"], skew + 4 * gamma(k + 8))
        v = draws.normal(n, g, k, min(k, 2))
        two = node.rest(layer.x, v)["skew"]
        gram = torch.linalg.matrix_norm(v.mT @ v - torch.eye(v.shape[3])).amax(dim=1)
        assert close(two, gram + 4 * v.shape[3] * gamma(k + 8))
        z = node.value(layer.values, layer.x)
        tangents, error = node.directions(layer.x, v, z.shape[1:])
        rank, outputs = v.shape[3], node.outputs_per_group
        moved = torch.einsum("ngkt,ngkr->ngrt", lead, v)
        whole = torch.zeros((n, g, outputs, rank, g, outputs, t), dtype=torch.float64)
        for group in range(g):
            for o in range(outputs):
                whole[:, group, o, :, group, o] = moved[:, group]
        assert torch.allclose(node.outputs(tangents), whole.reshape(n, -1, g, outputs, t), rtol=1e-12, atol=1e-12)
        assert tangents.shape == (n, g * outputs * rank, *z.shape[1:])
        spread = math.sqrt(g * outputs) * 4 * rank * gamma(2 * k + 16)
        assert close(error, spread * lead.flatten(1).norm(dim=1))


def test_weights_meet_tangents_in_sums_over_positions() -> None:
    draws = Draws(16)
    for layer in layers(draws):
        z = layer.node.value(layer.values, layer.x)
        lam, x = draws.normal(3, 2, *z.shape[1:]), draws.normal(3, 18, *layer.x.shape[1:])
        found = layer.node.met(lam, x)
        for i, c, d in ((0, 1, 0), (2, 0, 17), (1, 1, 16)):

            def moved(w: Tensor, i: int = i, c: int = c, d: int = d, layer: Layer = layer, lam: Tensor = lam,
                      x: Tensor = x) -> Tensor:  # fmt: skip
                value = layer.node.value({"w": w, "b": 0 * layer.values["b"]}, x[i, d][None])
                return (value[0] * lam[i, c]).sum()

            exact = torch.func.grad(moved)(layer.values["w"]).reshape(-1)
            assert torch.allclose(found[i, c, d], exact, rtol=1e-12, atol=1e-12)


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("radius", RADII)
def test_tables(radius: float, trained: bool) -> None:
    draws, positions = Draws(17), 6
    node = tables.Embedding((0,), "table", "w", None, 1 if trained else None, trained, False, positions, 3, None, 4)
    here = Here(radius, draws.here(radius, ("own", "column"), ("group",)).measured, {"longest": 0.7})
    mine, own = np.array([0.0, float(trained), 0.0]), here.measured["own"].numpy()
    none = np.zeros(BLOCKS)
    size = math.sqrt(positions) * (0.7 + radius * trained)
    rule = Rule(
        lambda i, t: (size, 0.0, mine * own[i], mine, 0.0, none),
        lambda i, c, at, t: [(0.0, none)],
        lambda i, c, size, error, t: [0.0],
        None,
    )
    below = draws.ahead()
    check(node, here, rule, [below], draws)
    sizes, error = draws(SAMPLES, OUTPUTS), 0.1 * draws(SAMPLES, OUTPUTS)
    found = node.gradient_error(here, sizes, error, 5, below)
    assert len(found) == trained
    if trained:
        grown = gamma(5 * positions + 256) * math.sqrt(positions)
        assert close(found[0], error * here.measured["own"][:, None] + grown * (sizes + error))
        above = draws.behind()
        assert close(node.gradient(here, above, below), above.size * here.measured["own"][:, None])
    x, w = torch.tensor([[[1, 3, 3], [3, 0, 1]]]), draws.normal(4, 3)
    a = torch.zeros((4, 6), dtype=torch.float64)
    for place, row in enumerate([1, 3, 3, 3, 0, 1]):
        a[row, place] = 1
    assert torch.equal(node.columns(x)[0, 0], a)
    assert torch.equal(node.value({"w": w}, x)[0].reshape(6, 3), w[[1, 3, 3, 3, 0, 1]])
    assert close(node.constants({"w": w})["longest"], w.norm(dim=1).max())
    for count, rows in ((1, [3]), (6, [3, 1])):
        assert torch.equal(node.leading(x, count)[0, 0], torch.eye(4, dtype=torch.float64)[:, rows])
    # No more of them than there are rows, or positions.
    assert node.leading(x, 1000).shape == (1, 1, 4, 4)
    assert node.leading(x[..., :1, :2], 1000).shape == (1, 1, 4, 2)


def test_constants_have_no_derivative() -> None:
    draws = Draws(18)
    tensor, below, above = draws.normal(2, 3), draws.ahead(), draws.behind()
    node = tables.Constant((0,), "constant", tensor)
    here, none = draws.here(0.5), np.zeros(BLOCKS)
    rule = Rule(
        lambda i, t: (float(tensor.norm()), 0.0, none, none, 0.0, none),
        lambda i, c, at, t: [(0.0, none)],
        lambda i, c, size, error, t: [0.0],
        None,
    )
    check(node, here, rule, [below], draws)
    assert torch.equal(node.value({}, draws(4, 1)), torch.stack([tensor] * 4))
    assert node.gradient(here, above, below) is None
