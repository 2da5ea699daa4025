"""The recursions over a ball, each quantity from its formula in docs/theory.md, section 5, written once more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, SmoothMLP
from lplr_cli.models import MLP

EPS = 2.0**-52
NAMES = [
    None,
    ["layers.0.weight", "layers.1.bias", "layers.3.weight"],
    ["layers.1.weight", "layers.2.weight", "layers.2.bias"],
]


def bounds(method: str, parametrization: str, names: list[str] | None) -> BallBounds:
    # Widths that differ, and with them scales: no layer can stand in for another.
    module = MLP(3, 2, width=1, depth=0, widths=[4, 6, 5], activation="silu", parametrization=parametrization).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((5, 3), generator=generator, dtype=torch.float64)
    return BallBounds(SmoothMLP.from_module(module, names), x, method=method)


def close(found: Tensor, expected: Tensor) -> bool:
    """Not below, and above by the margin of 1e-8 a layer at most."""
    return bool((found >= expected * (1 - 1e-14)).all()) and torch.allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("radius", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("names", NAMES, ids=["all", "some", "others"])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("method", ["tight", "fast"])
def test_every_step_is_its_formula(method: str, parametrization: str, names: list[str] | None, radius: float) -> None:
    ball = bounds(method, parametrization, names)
    centre, norms, layers, phi = ball._centre, ball._norms, ball.network.layers, ball.network.activation
    ahead = ball._forward_over(radius)
    moved = [radius if layer.weight_trained else 0.0 for layer in layers]
    weight = [float(torch.linalg.matrix_norm(layer.weight, 2)) for layer in layers]
    for k, layer in enumerate(layers):
        assert weight[k] * (1 - 1e-14) <= centre.weight_norms[k] <= 1.05 * weight[k]
        assert torch.allclose(centre.row_norms[k], layer.weight.square().sum(dim=1).sqrt())
    # Forward: from the layer below as it was found, so that each step is judged alone.
    for k in range(3):
        layer, c, at, here = layers[k], layers[k].scale, centre.passes[k], ahead[k]
        nothing = torch.zeros(5, dtype=torch.float64)
        a, da, da_change = (ahead[k - 1].a_change, ahead[k - 1].da, ahead[k - 1].da_change) if k else (nothing,) * 3
        own = (c * (at.a_norm + a)) ** 2 * layer.weight_trained + 1.0 * layer.bias_trained
        change = (
            (c * a * layer.weight_trained) ** 2 + (c * (moved[k] * da + centre.weight_norms[k] * da_change)) ** 2
        ).sqrt()
        product = (own + (c * (centre.weight_norms[k] + moved[k]) * da) ** 2).sqrt()
        dz = torch.minimum(norms[k].dz + change, product)
        rows = torch.minimum(
            norms[k].dz_rows + change[:, None],
            (own[:, None] + (c * (centre.row_norms[k] + moved[k]) * da[:, None]) ** 2).sqrt(),
        )
        reach = rows * radius + at.z_error
        bend, slope = phi.sup_second(at.z - reach, at.z + reach), phi.sup_first(at.z - reach, at.z + reach)
        swing = bend * reach + 32 * EPS * (1 + at.z.abs())
        da_moves = swing.amax(dim=1) * norms[k].dz + slope.amax(dim=1) * change
        da_here = torch.minimum(norms[k].da + da_moves, slope.amax(dim=1) * dz)
        expected = (own, reach, swing, slope, bend, dz, change, da_here, da_moves)
        given = (
            here.own,
            here.reach,
            here.swing,
            here.slope,
            here.bend,
            here.dz,
            here.dz_change,
            here.da,
            here.da_change,
        )
        assert all(close(g, e) for g, e in zip(given, expected, strict=True))
        assert close(here.a_change, da_here * radius + centre.passes[k + 1].a_error)
    # Backward, likewise.
    behind = ball._backward_over(radius, ahead)
    e_change = torch.full((5, 2), layers[3].scale * moved[3], dtype=torch.float64)
    for k in (2, 1, 0):
        back, at, here, c = centre.backs[k], centre.passes[k], ahead[k], layers[k].scale
        e_change = e_change + back.e_error.square().sum(dim=2).sqrt()
        size = back.e.abs()
        top = (size + e_change[:, :, None]) * here.bend[:, None]
        hat = size * phi.second(at.z).abs()[:, None]
        # A difference, with the rounding of its terms added.
        more = (top * (1 + 8 * EPS) - hat).clamp_min(0).amax(dim=2)
        s_change = (here.swing[:, None] * size).square().sum(dim=2).sqrt() + here.slope.amax(dim=1)[:, None] * e_change
        sensitivity = (phi.first(at.z)[:, None] * back.e).square().sum(dim=2).sqrt() + s_change
        assert close(behind[k].sensitivity, sensitivity)
        assert close(behind[k].top, top.amax(dim=2))
        assert torch.allclose(behind[k].more, more, rtol=1e-12, atol=0)
        assert bool((behind[k].more >= (top - hat).amax(dim=2)).all())
        e_change = c * (moved[k] * sensitivity + centre.weight_norms[k] * s_change)
    # Assembly: H_l = q_l + λ_max [[H, k], [k, 0]].
    total = torch.zeros((5, 2), dtype=torch.float64)
    for k, layer in enumerate(layers):
        if k and layer.weight_trained:
            s = behind[k].sensitivity if k < 3 else torch.ones_like(total)
            cross = layer.scale * s * ahead[k - 1].da[:, None]
            block = torch.stack([torch.stack([total, cross], -1), torch.stack([cross, 0 * cross], -1)], -1)
            total = torch.linalg.eigvalsh(block)[..., -1]
        if k < 3:
            first = behind[k].top * ahead[k].dz.square()[:, None]
            near = (norms[k].weighted + behind[k].more * norms[k].dz.square()[:, None]).sqrt()
            second = (near + behind[k].top.sqrt() * ahead[k].dz_change[:, None]).square()
            total = total + torch.minimum(first, second)
    found = ball.over(radius)
    assert close(found.hessians, total)
    assert found.l_j == pytest.approx(math.sqrt(float(total.square().sum()) / 5), rel=1e-6)
    assert found.l_j >= math.sqrt(float(total.square().sum()) / 5)
    check_gradients(ball, radius, total)


def check_gradients(ball: BallBounds, radius: float, hessians: Tensor) -> None:
    centre, layers, found = ball._centre, ball.network.layers, ball.over(radius)
    ahead = ball._forward_over(radius)
    behind = ball._backward_over(radius, ahead)
    last = layers[3]
    a = centre.passes[3].a_norm + ahead[2].a_change
    own = (last.scale * a) ** 2 * last.weight_trained + 1.0 * last.bias_trained
    squares = own[:, None] + sum(ahead[k].own[:, None] * behind[k].sensitivity.square() for k in range(3))
    gradients = torch.minimum(squares.sqrt(), centre.gradients + radius * hessians)
    assert close(found.gradients, gradients)
    moved = radius if last.weight_trained else 0.0
    through = (own + (last.scale * (centre.weight_norms[3] + moved) * ahead[2].da) ** 2).sqrt()
    assert close(found.forward[-1], torch.minimum(through, gradients.square().sum(dim=1).sqrt()))
    assert close(found.reach[-1], gradients * radius + ball.f_error)
    assert found.radius == radius
    assert torch.equal(found.backward[-1], torch.ones((5, 2), dtype=torch.float64))
    for k in range(3):
        assert torch.equal(found.reach[k], ahead[k].reach)
        assert torch.equal(found.forward[k], ahead[k].dz)
        assert torch.equal(found.backward[k], behind[k].sensitivity)
