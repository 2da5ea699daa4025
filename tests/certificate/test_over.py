"""The recursions over a ball, each quantity from its formula in docs/theory.md, section 5, written once more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, SmoothMLP
from lplr_cli.certificate import ball as balls
from lplr_cli.certificate.ball import Over
from lplr_cli.certificate.network import MARGIN
from lplr_cli.errors import InputError
from lplr_cli.models import MLP

EPS = 2.0**-52
NAMES = [
    None,
    ["layers.0.weight", "layers.1.bias", "layers.3.weight"],
    ["layers.1.weight", "layers.2.weight", "layers.2.bias"],
    ["layers.0.weight", "layers.2.bias"],
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


def close(found: Tensor, expected: Tensor, margin: float = 0.0) -> bool:
    """Not below, with a margin where there must be one, and above by 1e-8 a layer at most."""
    least = expected * (1 + margin - 1e-14)
    return bool((found >= least).all()) and torch.allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("radius", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("names", NAMES, ids=["all", "some", "others", "first"])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("method", ["tight", "fast"])
def test_every_step_is_its_formula(method: str, parametrization: str, names: list[str] | None, radius: float) -> None:
    ball = bounds(method, parametrization, names)
    centre, norms, layers, phi = ball.centre, ball.norms, ball.network.layers, ball.network.activation
    ahead = ball.forward_over(radius)
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
        assert close(here.reach, reach, MARGIN)
        assert close(here.a_change, da_here * radius + centre.passes[k + 1].a_error)
    # Backward, likewise.
    behind = ball.backward_over(radius, ahead)
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
    assert close(found.hessians, total, MARGIN)
    whole = found.hessians.square().sum().sqrt() / math.sqrt(5)
    assert close(torch.tensor(found.l_j, dtype=torch.float64), whole, MARGIN)
    check_gradients(ball, radius, total)
    check_thirds(ball, radius, moved)


def check_thirds(ball: BallBounds, radius: float, moved: list[float]) -> None:
    """||D³f_ic||: the change of e_l, s_l and D a_l through each layer, and what each layer adds (section 9)."""
    centre, layers, phi = ball.centre, ball.network.layers, ball.network.activation
    ahead = ball.forward_over(radius)
    behind = ball.backward_over(radius, ahead)
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
    assert close(found.thirds, total, MARGIN)
    for k in range(3):
        most = centre.backs[k].e.abs()
        assert bool((behind[k].crowd >= (most * ahead[k].rows[:, None]).amax(dim=2)).all())
        assert close(found.activations[k + 1], centre.passes[k + 1].a_norm + ahead[k].a_change)
    assert torch.equal(found.activations[0], centre.passes[0].a_norm)


@pytest.mark.parametrize("names", [["layers.0.weight", "layers.0.bias"], ["layers.0.weight"], ["layers.0.bias"]])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_the_first_of_two_layers_alone(parametrization: str, names: list[str]) -> None:
    """L_J from the largest weight of each output and λ_max of the fourth moment of the data, or from all Hessians."""
    module = MLP(3, 2, width=4, depth=1, activation="silu", parametrization=parametrization).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((6, 3), generator=generator, dtype=torch.float64)
    below = 0
    for size in (0.1, 1.0, torch.logspace(-2, 1, 6, dtype=torch.float64)[:, None]):
        ball = BallBounds(SmoothMLP.from_module(module, names), size * x)
        ones = torch.ones((6, 1), dtype=torch.float64)
        scaled = module.scales[0] * size * x
        moved = torch.cat(([scaled] if "layers.0.weight" in names else []) + [ones] * ("layers.0.bias" in names), dim=1)
        moment = torch.einsum("i,ij,ik->jk", moved.square().sum(dim=1), moved, moved) / 6
        root = torch.linalg.eigvalsh(moment)[-1].sqrt()
        assert ball.joint is not None
        assert ball.joint >= root * (1 + 0.99 * MARGIN)
        for radius in (0.0, 0.3):
            top = ball.backward_over(radius, ball.forward_over(radius))[0].top
            joined = root * top.amax(dim=0).square().sum().sqrt()
            each = ball.over(radius).hessians.square().sum().sqrt() / math.sqrt(6)
            found = torch.tensor(ball.over(radius).l_j, dtype=torch.float64)
            # The norm of a small matrix is proved to be within a hundredth.
            assert found >= torch.minimum(joined * (1 + MARGIN), each) * (1 + 0.99 * MARGIN)
            assert found <= torch.minimum(joined * 1.03, each) * (1 + 2 * MARGIN)
            below += bool(joined * 1.1 < each)
    assert below or "layers.0.weight" not in names


def test_nothing_trained_in_two_layers_moves_nothing() -> None:
    ball = BallBounds(SmoothMLP.from_module(MLP(3, 2, width=4, depth=1).double(), []), torch.ones(2, 3).double())
    assert ball.l_j(1.0) == 0


def test_the_method_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("tight", "fast"):
        assert bounds(method, "standard", None).method == method
    for tight, most, expected in ((2e10, 4e12, "tight"), (1e3, 1e3, "fast"), (5 * 5 * (6**3 + 5**3), 0, "tight")):
        monkeypatch.setattr(balls, "TIGHT_FLOPS", tight)
        monkeypatch.setattr(balls, "TIGHT_MOST", most)
        found = bounds("auto", "standard", None)
        assert found.method == expected
        assert found.over(0.1).l_j == bounds(expected, "standard", None).over(0.1).l_j
    with pytest.raises(InputError, match="method 'both' is unknown"):
        bounds("both", "standard", None)


@pytest.mark.parametrize("worth", [True, False])
def test_sharp_bounds_are_taken_where_a_few_samples_say_so(worth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balls, "TIGHT_FLOPS", 0)
    tried: list[tuple[Tensor, Tensor]] = []

    def pays(cheap: Tensor, sharp: Tensor) -> bool:
        tried.append((cheap, sharp))
        return worth

    monkeypatch.setattr(balls, "pays", pays)
    found = bounds("auto", "standard", None)
    assert found.method == ("tight" if worth else "fast")
    (cheap, sharp), four = tried[0], slice(0, 4)
    assert torch.equal(cheap, bounds("fast", "standard", None).over(0.0).hessians[four])
    assert torch.allclose(sharp, bounds("tight", "standard", None).over(0.0).hessians[four], rtol=1e-12, atol=0)
    assert found.over(0.1).l_j == bounds(found.method, "standard", None).over(0.1).l_j


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
    rows = 2 * ball.centre.jacobian_error
    assert torch.equal(ball.jacobian_error_rows, rows)
    whole = math.sqrt(float(rows.square().sum()) / 5)
    assert whole <= ball.jacobian_error <= whole * (1 + 1e-13)
    assert torch.equal(ball.f, ball.centre.passes[-1].z)
    assert torch.equal(ball.f_error, ball.centre.passes[-1].z_error)
    assert (ball.n, ball.outputs, ball.weight_norms) == (5, 2, ball.centre.weight_norms)


def check_gradients(ball: BallBounds, radius: float, hessians: Tensor) -> None:
    centre, layers, found = ball.centre, ball.network.layers, ball.over(radius)
    ahead = ball.forward_over(radius)
    behind = ball.backward_over(radius, ahead)
    last = layers[3]
    a = centre.passes[3].a_norm + ahead[2].a_change
    own = (last.scale * a) ** 2 * last.weight_trained + 1.0 * last.bias_trained
    squares = own[:, None] + sum(ahead[k].own[:, None] * behind[k].sensitivity.square() for k in range(3))
    gradients = torch.minimum(squares.sqrt(), centre.gradients + radius * hessians)
    assert close(found.gradients, gradients, MARGIN)
    moved = radius if last.weight_trained else 0.0
    through = (own + (last.scale * (centre.weight_norms[3] + moved) * ahead[2].da) ** 2).sqrt()
    assert close(found.jacobians, torch.minimum(through, found.gradients.square().sum(dim=1).sqrt()), MARGIN)
    assert close(found.f_reach, found.gradients * radius + ball.f_error, MARGIN)
    assert found.radius == radius
    assert torch.equal(found.backward[-1], torch.ones((5, 2), dtype=torch.float64))
    for k in range(3):
        assert torch.equal(found.reach[k], ahead[k].reach)
        assert torch.equal(found.forward[k], ahead[k].dz)
        assert torch.equal(found.backward[k], behind[k].sensitivity)
