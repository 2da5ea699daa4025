"""The recursions over a ball, each quantity from its formula in docs/theory.md, section 5, written once more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, SmoothMLP
from lplr_cli.certificate.ball import Over
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
    check_thirds(ball, radius, moved)


def check_thirds(ball: BallBounds, radius: float, moved: list[float]) -> None:
    """||D³f_ic||: the change of e_l, s_l and D a_l through each layer, and what each layer adds (section 9)."""
    centre, layers, phi = ball._centre, ball.network.layers, ball.network.activation
    ahead = ball._forward_over(radius)
    behind = ball._backward_over(radius, ahead)
    zero = torch.zeros(5, dtype=torch.float64)
    second_z: list[Tensor] = []
    second_a: list[Tensor] = []
    for k in range(3):
        layer, a = layers[k], ahead[k]
        z = zero
        if k:
            z = layer.scale * (centre.weight_norms[k] + moved[k]) * second_a[k - 1]
            z = z + layer.scale * ahead[k - 1].da * layer.weight_trained
        second_z.append(z)
        second_a.append((a.bend * a.rows).amax(dim=1) * a.dz + a.slope.amax(dim=1) * z)
    last = layers[3]
    ones = torch.ones((5, 2), dtype=torch.float64)
    total = last.scale * second_a[2][:, None] * ones * last.weight_trained
    turn = last.scale * ones * last.weight_trained
    for k in (2, 1, 0):
        layer, a, b = layers[k], ahead[k], behind[k]
        s_turn = b.top * a.dz[:, None] + a.slope.amax(dim=1)[:, None] * turn
        added = turn * ((a.bend * a.rows).amax(dim=1) * a.dz)[:, None]
        added = added + phi.third * b.crowd * (a.dz**2)[:, None] + 2 * b.top * (a.dz * second_z[k])[:, None]
        if k and layer.weight_trained:
            below = ahead[k - 1].da[:, None]
            added = added + layer.scale * (s_turn * below + b.sensitivity * second_a[k - 1][:, None])
        total = total + added
        turn = layer.scale * (centre.weight_norms[k] + moved[k]) * s_turn
        turn = turn + layer.scale * b.sensitivity * layer.weight_trained
    found = ball.over(radius)
    assert close(found.thirds, total)
    for k in range(3):
        most = centre.backs[k].e.abs()
        assert bool((behind[k].crowd >= (most * ahead[k].rows[:, None]).amax(dim=2)).all())
        assert close(found.activations[k + 1], centre.passes[k + 1].a_norm + ahead[k].a_change)
    assert torch.equal(found.activations[0], centre.passes[0].a_norm)


@pytest.mark.parametrize("activation", ["softplus", "gelu"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_bounds_grow_with_the_ball_until_they_are_infinite(depth: int, activation: str) -> None:
    """No bound is lost on the way: at every radius it is a number or infinity, and never below that of a smaller."""
    module = MLP(3, 2, width=4, depth=depth, activation=activation).double()
    x = torch.randn((4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ball = BallBounds(SmoothMLP.from_module(module), x)
    before = ball.over(0.0)
    for exponent in (-8, 0, 8, 60, 100, 140, 155, 200, 250, 307):
        now = ball.over(10.0**exponent)
        for old, new in zip(flat(before), flat(now), strict=True):
            assert bool((old <= new).all())
        assert before.l_j <= now.l_j
        before = now
    assert depth == 0 or now.l_j > 1e300


def flat(over: Over) -> list[Tensor]:
    whole = [over.hessians, over.thirds, over.gradients, over.f_reach, over.jacobians]
    return [*whole, *over.reach, *over.forward, *over.backward, *over.activations]


def test_errors_of_the_jacobian_are_counted_for_both_that_are_compared() -> None:
    ball = bounds("tight", "standard", None)
    rows = 2 * ball._centre.jacobian_error
    assert torch.equal(ball.jacobian_error_rows, rows)
    whole = math.sqrt(float(rows.square().sum()) / 5)
    assert whole <= ball.jacobian_error <= whole * (1 + 1e-13)
    assert torch.equal(ball.f, ball._centre.passes[-1].z)
    assert torch.equal(ball.f_error, ball._centre.passes[-1].z_error)
    assert (ball.n, ball.outputs, ball.weight_norms) == (5, 2, ball._centre.weight_norms)


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
    assert close(found.jacobians, torch.minimum(through, gradients.square().sum(dim=1).sqrt()))
    assert close(found.f_reach, gradients * radius + ball.f_error)
    assert found.radius == radius
    assert torch.equal(found.backward[-1], torch.ones((5, 2), dtype=torch.float64))
    for k in range(3):
        assert torch.equal(found.reach[k], ahead[k].reach)
        assert torch.equal(found.forward[k], ahead[k].dz)
        assert torch.equal(found.backward[k], behind[k].sensitivity)
