"""Forward and backward pass at θ_0 with roundings as large as what they round: every error, and every error of one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import SmoothMLP, centre, network
from lplr_cli.certificate.centre import Centre, Norms
from lplr_cli.certificate.network import MARGIN
from lplr_cli.certificate.shared import LayerAt, group_count, shared_curvature, similar
from lplr_cli.models import MLP

NAMES = [None, ["layers.0.weight", "layers.2.bias"], ["layers.1.weight", "layers.3.bias"], ["layers.3.weight"]]
# Of an elementary function, and of one rounding; γ(k) is 1e-3 k.
ELEMENTARY, EPS = 0.02, 0.01


def gamma(count: int) -> float:
    return 1e-3 * count


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (network, centre):
        monkeypatch.setattr(module, "gamma", lambda count, dtype: gamma(count))
    monkeypatch.setattr(network, "ELEMENTARY_ULPS", ELEMENTARY * 2.0**52)
    monkeypatch.setattr(centre, "ELEMENTARY_ULPS", ELEMENTARY / EPS)
    monkeypatch.setattr(centre, "EPS", EPS)


def at(parametrization: str = "ntk", names: list[str] | None = None, samples: int = 4) -> Centre:
    """Widths that differ, and with them scales: no layer can stand in for another."""
    module = MLP(3, 2, width=1, depth=0, widths=[4, 6, 5], activation="silu", parametrization=parametrization).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((samples, 3), generator=generator, dtype=torch.float64)
    return Centre(SmoothMLP.from_module(module, names), x)


def close(found: Tensor, exact: Tensor) -> bool:
    """Above, by the margin of 1e-8 and those of what it is made of."""
    return bool((found >= exact * (1 + 0.99 * MARGIN)).all()) and torch.allclose(found, exact, rtol=1e-7, atol=0)


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_forward(parametrization: str) -> None:
    found = at(parametrization)
    phi = found.network.activation
    a, error = None, None
    for k, (layer, here) in enumerate(zip(found.network.layers, found.passes, strict=True)):
        if k:
            below = found.passes[k - 1]
            a = torch.stack([phi.value(row) for row in below.z])
            slope = phi.sup_first(below.z - below.z_error, below.z + below.z_error)
            error = slope * below.z_error + ELEMENTARY * (1 + below.z.abs() + a.abs())
            assert close(here.a_error, error.square().sum(dim=1).sqrt())
            assert torch.allclose(here.a_norm, a.square().sum(dim=1).sqrt())
            error = error * (1 + MARGIN)
        else:
            assert not here.a_error.any()
        if a is None or error is None:
            continue
        spread = torch.zeros_like(here.z)
        for j, row in enumerate(layer.weight):
            for i in range(len(a)):
                handed = layer.scale * float((row.abs() * error[i]).sum())
                size = layer.scale * float((row.abs() * (a[i].abs() + error[i])).sum()) + abs(float(layer.bias[j]))
                spread[i, j] = handed + gamma(len(row) + 4) * size
        assert close(here.z_error, spread)
        assert torch.allclose(here.z, layer.scale * a @ layer.weight.T + layer.bias)


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_backward(parametrization: str, names: list[str] | None) -> None:
    found = at(parametrization, names)
    layers, phi = found.network.layers, found.network.activation
    wrong = torch.zeros((4, 2), dtype=torch.float64)
    squares = torch.zeros((4, 2), dtype=torch.float64)

    def block(level: int, size: Tensor, size_error: Tensor) -> None:
        here, layer = found.passes[level], layers[level]
        own = (layer.scale * here.a_norm) ** 2 * layer.weight_trained + 1.0 * layer.bias_trained
        squares.add_(own[:, None] * size**2)
        assert torch.allclose(found.own(level, here.a_norm), own, rtol=1e-15, atol=0)
        rounded = (here.a_error + (EPS * here.a_norm if layer.scale != 1 else 0.0))[:, None]
        product = layer.scale * (size_error * (here.a_norm[:, None] + rounded) + size * rounded)
        wrong.add_(product**2 * layer.weight_trained + size_error**2 * layer.bias_trained)

    ones = torch.ones((4, 2), dtype=torch.float64)
    block(3, ones, 0 * ones)
    assert torch.equal(found.backs[2].e_error, EPS * found.backs[2].e.abs())
    assert torch.equal(found.backs[2].e[1], layers[3].scale * layers[3].weight)
    for level in (2, 1, 0):
        here, e, e_error = found.passes[level], found.backs[level].e, found.backs[level].e_error
        bend = phi.sup_second(here.z - here.z_error, here.z + here.z_error)
        slope, away = phi.first(here.z)[:, None], (bend * here.z_error + ELEMENTARY * (1 + here.z.abs()))[:, None]
        s = slope * e
        s_error = away * (e.abs() + e_error) + slope.abs() * e_error + 2 * EPS * s.abs()
        assert close(found.through(level, e, e_error)[1], s_error)
        s_error = s_error * (1 + MARGIN)
        block(level, s.square().sum(dim=2).sqrt(), s_error.square().sum(dim=2).sqrt())
        if level:
            layer, below = layers[level], found.backs[level - 1]
            handed = (s_error + gamma(len(layer.weight) + 4) * (s.abs() + s_error)) @ layer.weight.abs()
            assert close(below.e_error, layer.scale * handed)
            assert torch.allclose(below.e, layer.scale * s @ layer.weight)
    total = wrong.sum(dim=1).sqrt()
    assert close(found.jacobian_error[total > 0], total[total > 0])
    assert close(found.gradients, squares.sqrt() + wrong.sqrt())


@pytest.mark.parametrize("names", NAMES[:3])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_norms_at_the_start(parametrization: str, names: list[str] | None) -> None:
    """Both ways against dense matrices: D̂z_l of what is given, and ŵ = |ê φ''(ẑ)|; above, and of use."""
    found = at(parametrization, names)
    layers, phi = found.network.layers, found.network.activation
    tight, fast = found.norms("tight"), found.norms("fast")
    assert len(tight) == len(fast) == 3
    for i in range(4):
        gram: Tensor | None = None
        for k in range(3):
            own = found.own(k, found.passes[k].a_norm)[i]
            here = own * torch.eye(len(layers[k].weight), dtype=torch.float64)
            if gram is not None:
                m = layers[k].scale * layers[k].weight * phi.first(found.passes[k - 1].z[i])
                here = here + m @ gram @ m.T
            gram = here
            z = found.passes[k].z[i]
            slope, weights = phi.first(z), (found.backs[k].e[i] * phi.second(z)).abs()
            exact = Norms(
                torch.linalg.eigvalsh(gram)[-1].sqrt(),
                torch.linalg.eigvalsh(gram * slope * slope[:, None])[-1].sqrt(),
                gram.diagonal().sqrt(),
                torch.stack([torch.linalg.eigvalsh(gram * w.sqrt() * w.sqrt()[:, None])[-1] for w in weights]),
            )
            for key in ("dz", "da", "dz_rows", "weighted"):
                true = getattr(exact, key)
                for norms, most in ((tight[k], 1.04), (fast[k], 30.0)):
                    bound = getattr(norms, key)[i]
                    assert bool((bound >= true * (1 - 1e-13)).all()), key
                    assert bool((bound <= most * true + 1e-12).all()), key


@pytest.mark.parametrize("samples", [4, 40])
def test_what_similar_samples_share(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[LayerAt], Tensor]] = []

    def watched(hidden: list[LayerAt], groups: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        given.append((hidden, groups))
        return shared_curvature(hidden, groups)

    monkeypatch.setattr(centre, "shared_curvature", watched)
    found = at(samples=samples)
    norms = found.norms("fast")
    (hidden, groups), phi = given[0], found.network.activation
    for k, (h, layer) in enumerate(zip(hidden, found.network.layers, strict=False)):
        z = found.passes[k].z
        assert torch.equal(h.weight, layer.scale * layer.weight)
        assert torch.equal(h.slope, phi.first(z))
        assert torch.equal(h.own, found.own(k, found.passes[k].a_norm))
        assert torch.equal(h.bend, (found.backs[k].e * phi.second(z)[:, None]).abs())
        below = (h.weight.square().sum(dim=1)[None] * (norms[k - 1].da[:, None] ** 2)) if k else torch.zeros(1, 1)
        lines = (h.own[:, None] + below).sqrt().expand_as(z)
        assert close(norms[k].dz_rows, lines)
    count = group_count(samples, [4, 6, 5], 5 * 6 * samples * (12 + 24 + 30 + 10))
    assert torch.equal(groups, similar([h.slope for h in hidden[:-1]], count))
    parts = shared_curvature(hidden, groups)
    for norm, (dz, da, heavy) in zip(norms, parts, strict=True):
        for bound, value in ((norm.dz, dz), (norm.da, da), (norm.weighted, heavy)):
            assert close(bound, value)


def test_samples_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as memory holds; together they are all samples, in their order."""
    found, seen = at(), []

    def part(rows: slice) -> list[Norms]:
        seen.append(rows)
        lines = torch.arange(rows.start, rows.stop, dtype=torch.float64)
        return [Norms(lines, lines + k, lines[:, None], lines[:, None]) for k in range(3)]

    monkeypatch.setattr(found, "exact_chunk", part)
    found.n = 400_000
    norms = found.exact()
    # 300 MB for six matrices of 6 × 6 float64 numbers a sample.
    assert [(r.start, r.stop) for r in seen] == [(0, 173_611), (173_611, 347_222), (347_222, 400_000)]
    for k, at_level in enumerate(norms):
        assert torch.equal(at_level.dz, torch.arange(400_000, dtype=torch.float64))
        assert torch.equal(at_level.da, at_level.dz + k)


def test_the_first_layer_alone_needs_no_product() -> None:
    """D̂z_1 D̂z_1ᵀ is a number times the identity, for both methods."""
    module = MLP(3, 2, width=4, depth=1, activation="silu").double()
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Centre(SmoothMLP.from_module(module), x)
    (tight,), (fast,) = found.norms("tight"), found.norms("fast")
    root = (x.square().sum(dim=1) + 1).sqrt()
    for norms in (tight, fast):
        assert close(norms.dz, root)
        assert close(norms.dz_rows, root[:, None].expand(5, 4))
    (whole,) = found.exact()
    assert close(whole.dz, root)
    assert math.isclose(float(whole.da[0]), float(tight.da[0]), rel_tol=1e-6)


@pytest.mark.usefixtures("_large")
def test_the_error_of_a_gram_matrix_counts_that_of_the_one_below() -> None:
    """(||M||² E + γ (||M||² (||G||_F + E) + κ)) 1.01, for roundings of any size."""
    found, rows, below = at(), slice(1, 3), None
    for level in range(3):
        gram = found.gram(level, rows, below)
        if below is not None:
            layer, own = found.network.layers[level], found.own(level, found.passes[level].a_norm)[rows]
            m = layer.scale * layer.weight * found.slopes[level - 1][rows][:, None]
            size, width = m.square().sum(dim=(1, 2)), m.shape[2]
            if below.matrix is None:
                frobenius = math.sqrt(width) * below.scalar
            else:
                frobenius = below.matrix.square().sum(dim=(1, 2)).sqrt()
            expected = size * below.error + gamma(3 * width + 12) * (size * (frobenius + below.error) + own)
            assert torch.allclose(gram.error, 1.01 * expected, rtol=1e-12, atol=0)
        below = gram


def test_norms_made_of_a_gram_matrix_have_its_error() -> None:
    """λ_max(√w G √w) + E max w, for slopes of either sign."""
    found, rows, level = at(), slice(1, 3), 1
    generator = torch.Generator().manual_seed(2)
    root = torch.randn((2, 6, 6), generator=generator, dtype=torch.float64)
    g = root @ root.mT
    for size in (0.0, 100.0):
        error = size * torch.tensor([1.0, 2.0], dtype=torch.float64)
        for sign in (1.0, -1.0):
            slope = sign * 3 * torch.rand((4, 6), generator=generator, dtype=torch.float64)
            found.slopes[level] = slope
            norms = found.gram_norms(level, rows, centre.Gram(g, torch.ones(2).double(), error))
            bend = found.bend(level, rows)
            for i in range(2):
                weights = [torch.ones(6).double(), slope[1 + i].square(), *bend[i]]
                given = [norms.dz[i] ** 2, norms.da[i] ** 2, *norms.weighted[i]]
                for w, value in zip(weights, given, strict=True):
                    top = torch.linalg.eigvalsh(g[i] * w.sqrt() * w.sqrt()[:, None])[-1]
                    least = top + error[i] * w.max()
                    assert least * (1 - 1e-12) <= value <= least + 0.03 * top
                assert torch.allclose(norms.dz_rows[i] ** 2, g[i].diagonal() + error[i], rtol=1e-13, atol=0)
