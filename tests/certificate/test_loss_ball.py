"""β, α, Lipschitz constants and rounding of a loss over balls, against dense Hessians and 50 digits."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, CertifiedCurvature, SmoothMLP, Smoothness
from lplr_cli.certificate.ball import Over
from lplr_cli.certificate.loss_ball import LossBall
from lplr_cli.certificate.rounding import RoundedBounds
from lplr_cli.errors import InputError
from lplr_cli.linalg import gamma
from lplr_cli.losses import Loss
from lplr_cli.models import MLP, ModelSpec, build_model
from tests.certificate.path_case import LOSSES, Case, exactly


@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_constants_hold_at_points_of_the_ball(loss: Loss, activation: str) -> None:
    """β, α and both Lipschitz constants against dense Hessians, at random points and along the worst direction."""
    case = Case(loss, width=4, n=4, activation=activation)
    for radius in (1e-3, 0.1):
        bound = case.curvature.ball(case.start).at(radius)
        generator = torch.Generator().manual_seed(2)
        points = [case.start]
        for _ in range(6):
            away = torch.randn(len(case.start), generator=generator, dtype=torch.float64)
            points.append(case.start + radius * away / away.norm())
        hessians = [case.hessian(p) for p in points]
        parts = [gauss_newton(case, p) for p in points]
        for h, g in zip(hessians, parts, strict=True):
            values = torch.linalg.eigvalsh(h)
            assert float(values[-1]) <= bound.beta
            assert float(values[0]) >= -bound.alpha
            assert float(torch.linalg.matrix_norm(h - g, ord=2)) <= bound.alpha
        for (p, h, g), (q, i, j) in pairwise(zip(points, hessians, parts, strict=True)):
            apart = float((p - q).norm())
            assert float(torch.linalg.matrix_norm(g - j, ord=2)) <= bound.gauss_newton * apart
            assert float(torch.linalg.matrix_norm((h - g) - (i - j), ord=2)) <= bound.rest * apart


def upper(found: float, exact: mpmath.mpf) -> bool:
    """Above the exact number, by no more than the margins."""
    return bool(exact <= mpmath.mpf(found) <= exact * (1 + mpmath.mpf("1e-7")))


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_every_constant_is_its_formula(loss: Loss, radius: float) -> None:
    """In 40 digits, from the bounds of the network, the kernel and the derivatives of the loss as they were given."""
    case = Case(loss, width=4, n=4)
    ball = case.curvature.ball(case.start)
    formation, bounds = 3e-3, ball.at_centre
    ball.formation, bounds.jacobian_error = formation, 2e-3
    ball.gradient_rounding = lambda reach: torch.full_like(reach, 5e-3)  # type: ignore[method-assign]
    found, over, s = ball.at(radius), bounds.over(radius), loss.scale
    f, y, n = bounds.f, case.y, len(case.x)
    reach = over.f_reach
    weights = loss.curvature_over(f, reach)
    with mpmath.workdps(40):

        def norm(kernel: Tensor, heaviest: Any) -> Any:
            """||√w J̃|| from its Gram matrix, which is bounded by Frobenius' norm or by rows, and its errors."""
            rows = [[mpmath.mpf(v) for v in row] for row in kernel.tolist()]
            frobenius = mpmath.sqrt(sum(v**2 for row in rows for v in row))
            widest = max(sum(abs(v) for v in row) for row in rows)
            square = min(frobenius, widest) + heaviest * mpmath.mpf(formation)
            return mpmath.sqrt(square) + mpmath.sqrt(heaviest) * mpmath.mpf(2e-3)

        l_j, r, heaviest = mpmath.mpf(over.l_j), mpmath.mpf(radius), mpmath.mpf(float(weights.max()))
        q = (loss.gradients(f, y).abs() + loss.gradient_change(reach) + 5e-3).tolist()
        q = [[min(v, s) if loss.classifies else v for v in row] for row in q]
        each = sum(a * b for x, z in zip(q, over.hessians.tolist(), strict=True) for a, b in zip(x, z, strict=True)) / n
        size = mpmath.sqrt(sum(mpmath.mpf(v) ** 2 for row in q for v in row) / n)
        alpha = min(each, l_j * size)
        plain = norm(ball.kernel, mpmath.mpf(1))
        root = weights.reshape(-1).sqrt()
        weighted = mpmath.sqrt(heaviest) * plain
        if loss.classifies:
            weighted = norm(ball.kernel * root[:, None] * root[None, :], heaviest)
        weighted += mpmath.sqrt(heaviest) * l_j * r
        plain += l_j * r
        gauss_newton = 2 * mpmath.sqrt(heaviest) * weighted * l_j
        if loss.classifies:
            gauss_newton += loss.hessian_lipschitz * plain**2 * float(over.jacobians.max())
        rest = sum(a * b for x, z in zip(q, over.thirds.tolist(), strict=True) for a, b in zip(x, z, strict=True)) / n
        rest += l_j * heaviest * plain
        for name, exact in (
            ("alpha", alpha), ("beta", weighted**2 + alpha), ("gauss_newton", gauss_newton), ("rest", rest)
        ):  # fmt: skip
            assert upper(getattr(found, name), exact), name


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_balls_share_the_products_of_the_inputs(loss: Loss) -> None:
    """The same constants with them and without, at more centres than one; they are kept where there is room."""
    case = Case(loss, width=4, n=4)
    room = 8 * 8 * 4 * 4
    alone = CertifiedCurvature(case.module, case.x, case.y, loss, memory=room - 1)
    assert alone.products is None
    assert CertifiedCurvature(case.module, case.x, case.y, loss, memory=room).products is not None
    alone.memory = case.curvature.memory
    for theta in (case.start, 1.5 * case.start):
        one, two = (curvature.ball(theta).at(1e-3) for curvature in (alone, case.curvature))
        assert astuple(one) == pytest.approx(astuple(two), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_an_error_of_the_outputs_goes_into_the_loss_to_second_order(loss: Loss) -> None:
    case = Case(loss, width=4, n=4)
    ball = case.curvature.ball(case.start)
    over = ball.at_centre.over(0.1)
    q = torch.rand(over.f_reach.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ball.at_centre.forward_error = lambda over: torch.full((4,), 0.3, dtype=torch.float64)  # type: ignore[method-assign]
    expected = float((q.square().sum(dim=1).sqrt() * 0.3).mean()) + loss.smoothness * 0.09
    assert ball.rounding(over, q)[0] == pytest.approx(expected, rel=1e-9)


def test_rounding_of_gradients_grows_with_outputs_of_either_sign() -> None:
    case = Case(Loss(), width=4, n=4)
    ball = case.curvature.ball(case.start)
    reach = torch.zeros_like(ball.at_centre.f)
    for sign in (1, -1):
        ball.at_centre.f = sign * torch.full_like(reach, 1e6)
        assert float(ball.gradient_rounding(reach).min()) > 1e6 * 2.0**-53


def test_both_ways_to_the_rest_of_the_hessian_are_taken() -> None:
    """α by single Hessians where they are small, by L_J where that is; neither is above the other everywhere."""
    case = Case(Loss(), width=4, n=4)
    ball = case.curvature.ball(case.start)
    alpha, over = ball.at(0.1).alpha, ball.at_centre.over
    for changed in (lambda o: replace(o, l_j=o.l_j * 1e-3), lambda o: replace(o, hessians=o.hessians * 1e-3)):
        ball.at_centre.over = lambda radius, changed=changed: changed(over(radius))  # type: ignore[method-assign,misc]
        assert ball.at(0.1).alpha == pytest.approx(1e-3 * alpha, rel=0.9)
        assert ball.at(0.1).alpha < 0.1 * alpha


def gauss_newton(case: Case, theta: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(case.outputs_at)(theta)
    f, loss = case.outputs_at(theta), case.objective.loss
    n, c = f.shape
    eye = torch.eye(c, dtype=torch.float64)
    inner = torch.stack([loss.hessian_products(f, eye[k].expand(n, c)) for k in range(c)], dim=2)
    found: Tensor = torch.einsum("icp,icd,idq->pq", jacobian, inner, jacobian) / n
    return found


@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "silu"])
def test_lipschitz_constants_of_the_hessians_of_single_outputs(activation: str) -> None:
    """The derivative of ∇²f_ic along many directions stays below its bound, which is of use: within 3,000 times."""
    case = Case(Loss(), depth=3, width=4, n=3, activation=activation)
    over = BallBounds(SmoothMLP.from_module(case.module), case.x, method="tight").over(1e-3)
    largest = torch.zeros(3, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        u = torch.randn(len(case.start), generator=generator, dtype=torch.float64)
        u = 1e-3 * u / u.norm()
        for i, c in ((0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1)):
            there, here = (output_hessian(case, case.start + s * u, i, c) for s in (1.0, -1.0))
            found = float(torch.linalg.matrix_norm(there - here, ord=2)) / 2e-3
            largest[i, c] = max(float(largest[i, c]), found)
    assert bool((largest <= over.thirds).all())
    assert bool((over.thirds <= 3000 * largest).all())


def output_hessian(case: Case, theta: Tensor, i: int, c: int) -> Tensor:
    found: Tensor = torch.func.hessian(lambda t: case.outputs_at(t)[i, c])(theta)
    return found


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_nothing_is_known_beyond_float64(loss: Loss) -> None:
    ball = Case(loss, width=4, n=4).curvature.ball(Case(loss, width=4, n=4).start)
    for exponent in (110, 160, 300):
        assert ball.at(10.0**exponent) == Smoothness(math.inf, math.inf)


def rounding(case: Case, ball: LossBall, radius: float) -> tuple[float, float]:
    """Theorem 9.5 sample by sample: the errors of z, of a, of q and of every block of the gradient, without margins."""
    bounds, loss = ball.at_centre, case.objective.loss
    assert isinstance(bounds, RoundedBounds)
    over, u, n, outputs = bounds.over(radius), 2.0**-53, len(case.x), case.y.shape[1]
    q = loss.gradients(bounds.f, case.y).abs() + loss.gradient_change(over.f_reach)
    q = q.clamp_max(loss.scale) if loss.classifies else q
    losses = magnitude = 0.0
    sizes, errors = [], []
    ends = errors_of_passes(bounds, over, [0.0] * n, [0.0] * n)[0]
    for i in range(n):
        norms = [float(v[i].norm()) for v in (bounds.f, over.f_reach, case.y, q)]
        largest = float((1 + bounds.f[i].abs() + over.f_reach[i] + case.y[i].abs()).max())
        own = (64 + outputs) * 4 * u * loss.scale * largest
        sizes.append(norms[3])
        errors.append(loss.smoothness * ends[i] + own * math.sqrt(outputs))
        losses += norms[3] * ends[i] + loss.smoothness * ends[i] ** 2
        magnitude += loss.scale * outputs * (1 + norms[0] + norms[1] + norms[2]) ** 2
    gradient = errors_of_passes(bounds, over, sizes, errors)[1]
    return losses / n + gamma(n * outputs + 256, torch.float64) * magnitude / n, gradient


def errors_of_passes(
    bounds: RoundedBounds,
    over: Over,
    sizes: list[float],
    errors: list[float],
    steepest: tuple[float, float] = (1.0, 0.25),
    times: float = 1.0,
) -> tuple[list[float], float]:
    """Of the outputs of each sample, and of the gradient from ||q_i|| and its errors, without margins.

    ``steepest`` is sup φ' and sup φ'', here of softplus; roundings count ``times`` as much as they are.
    """
    (first, second), layers, u, n = steepest, bounds.network.layers, times * 2.0**-53, bounds.n
    moved = [over.radius if layer.weight_trained else 0.0 for layer in layers]
    spectral = [bounds.weight_norms[k] + moved[k] for k in range(len(layers))]
    frobenius = [float(layer.weight.norm()) + moved[k] for k, layer in enumerate(layers)]
    biases = [float(layer.bias.norm()) + over.radius for layer in layers]
    ends, blocks = [], [[0.0, 0.0] for _ in layers]
    for i in range(n):
        a = [float(v[i]) for v in over.activations]
        a_error, z, z_error = [0.0], [], []
        for k, layer in enumerate(layers):
            grown = times * gamma(layer.weight.shape[1] + 8, torch.float64)
            z.append(layer.scale * spectral[k] * a[k] + biases[k])
            product = layer.scale * frobenius[k] * (a[k] + a_error[k]) + biases[k]
            z_error.append(layer.scale * spectral[k] * a_error[k] + grown * product)
            if k + 1 < len(layers):
                values = math.sqrt(len(layer.weight)) + z[k] + z_error[k] + a[k + 1] + first * z_error[k]
                a_error.append(first * z_error[k] + 64 * u * values)
        ends.append(z_error[-1])
        size, error = sizes[i], errors[i]
        summed = times * gamma(2 * n + 256, torch.float64)
        for k in range(len(layers) - 1, -1, -1):
            s = size * float(over.backward[k][i].norm())
            met = a[k] + a_error[k]
            blocks[k][0] += layers[k].scale * (error * met + s * a_error[k] + summed * (s + error) * met) / n
            blocks[k][1] += (error + summed * (s + error)) / n
            if k:
                grown = times * gamma(layers[k].weight.shape[0] + 8, torch.float64)
                handed = layers[k].scale * (spectral[k] * error + grown * frobenius[k] * (s + error))
                slope = second * z_error[k - 1] + 64 * u * (1 + z[k - 1] + z_error[k - 1])
                e = layers[k].scale * spectral[k] * s + handed
                error = first * handed + slope * e + 8 * u * first * e
    kept = [
        b**2
        for pair, layer in zip(blocks, layers, strict=True)
        for b, trained in zip(pair, (layer.weight_trained, layer.bias_trained), strict=True)
        if trained
    ]
    return ends, math.sqrt(sum(kept))


@pytest.mark.parametrize("names", [None, ["layers.0.weight"], ["layers.1.weight", "layers.2.bias"]])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_errors_of_errors_are_counted(
    parametrization: str, names: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With roundings as large as what they round, steeper slopes than one, and layers of different sizes."""
    times, radius = 1e13, 0.1
    module = MLP(2, 3, width=1, depth=0, widths=[4, 6], activation="silu", parametrization=parametrization).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((3, 2), generator=generator, dtype=torch.float64)
    bounds = RoundedBounds(SmoothMLP.from_module(module, names), x)
    over, (sizes, errors) = bounds.over(radius), torch.rand((2, 3), generator=generator, dtype=torch.float64)
    where = "lplr_cli.certificate.rounding"
    monkeypatch.setattr(f"{where}.gamma", lambda count, dtype: times * gamma(count, dtype))
    monkeypatch.setattr(f"{where}._U", times * 2.0**-53)
    monkeypatch.setattr(f"{where}._ELEMENTARY", times * 64 * 2.0**-53)
    line = torch.linspace(-9, 9, 180001, dtype=torch.float64)
    steepest = (float(silu_first(line).max()), 0.5)
    ends, gradient = errors_of_passes(bounds, over, sizes.tolist(), errors.tolist(), steepest, times)
    for found, exact in zip(bounds.forward_error(over).tolist(), ends, strict=True):
        # A margin of 1e-10 stands above all of it.
        assert exact * (1 + 0.9e-10) <= found == pytest.approx(exact, rel=1e-8, abs=0)
    found = bounds.gradient_error(over, sizes, errors)
    assert gradient * (1 + 0.9e-10) <= found == pytest.approx(gradient, rel=1e-8, abs=0)


def test_errors_have_a_margin_where_one_layer_is_all() -> None:
    """Of weights that are zero no norm has a margin to lend: the errors are those of the bias and of q alone."""
    module = MLP(2, 1, width=1, depth=0).double()
    with torch.no_grad():
        weight, bias = module.parameters()
        weight.zero_()
        bias.fill_(0.7)
    x = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    bounds = RoundedBounds(SmoothMLP.from_module(module), x)
    over = bounds.over(0.0)
    ends, gradient = errors_of_passes(bounds, over, [0.6], [0.1])
    assert ends == [0.7 * gamma(10, torch.float64)]
    assert float(bounds.forward_error(over)) >= ends[0] * (1 + 0.9e-10)
    size, error = torch.tensor([[0.6], [0.1]], dtype=torch.float64)
    found = bounds.gradient_error(over, size, error)
    assert found >= gradient * (1 + 0.9e-10)


def silu_first(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


@pytest.mark.parametrize(("parametrization", "radius"), [("standard", 0.0), ("standard", 0.2), ("ntk", 0.2)])
@pytest.mark.parametrize("frozen", ["", "layers.0.weight", "layers.1.weight", "layers.1.bias"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_rounding_is_its_formula(loss: Loss, frozen: str, parametrization: str, radius: float) -> None:
    case = Case(loss, width=4, n=4, depth=2)
    spec = ModelSpec(width=4, depth=2, parametrization=parametrization)
    case.module = build_model(spec, (4,), case.y.shape[1], seed=1, dtype=torch.float64)
    for layer in dict(case.module.named_modules())["layers"].children():  # biases begin at zero
        torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    for name, p in case.module.named_parameters():
        p.requires_grad_(name != frozen)
    ball = CertifiedCurvature(case.module, case.x, case.y, loss).ball(
        torch.cat([p.detach().flatten() for p in case.module.parameters() if p.requires_grad])
    )
    found = ball.at(radius)
    loss_error, gradient_error = rounding(case, ball, radius)
    assert loss_error <= found.loss_error == pytest.approx(loss_error, rel=1e-7, abs=0)
    assert gradient_error <= found.gradient_error == pytest.approx(gradient_error, rel=1e-7, abs=0)


@pytest.mark.parametrize("loss", LOSSES[2:], ids=lambda v: v.name)
def test_targets_that_are_no_probabilities_have_no_bound(loss: Loss) -> None:
    """|q| ≤ s, which the bounds take, is false there: a target of 3 gives a sample's loss the slope −2.5 at f = 0."""
    case = Case(loss, width=4, n=4)
    assert float(loss.gradients(torch.zeros_like(case.y), 3 * case.y).abs().max()) > 2 * loss.scale
    for wrong in (3 * case.y, -case.y):
        with pytest.raises(InputError, match="outside"):
            CertifiedCurvature(case.module, case.x, wrong, loss)


def test_inputs_of_more_than_one_axis_are_flattened() -> None:
    case = Case(LOSSES[1], width=4, n=4)
    shaped = CertifiedCurvature(case.module, case.x[:, None], case.y, LOSSES[1])
    assert shaped.ball(case.start).at(0.1) == case.curvature.ball(case.start).at(0.1)


def test_rounding_of_loss_and_gradient_is_covered() -> None:
    """Against 50 digits, at the centre and at the rim of the ball; the claim within 1e6 times of the error."""
    case = Case(Loss(), width=4, n=4)
    radius = 1e-2
    bound = case.curvature.ball(case.start).at(radius)
    away = torch.randn(len(case.start), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for theta in (case.start, case.start + radius * away / away.norm()):
        loss, gradient = case.objective(theta)
        true, slopes = exactly(case, theta)
        with mpmath.workdps(50):
            wrong = float(
                mpmath.sqrt(sum((mpmath.mpf(float(g)) - s) ** 2 for g, s in zip(gradient, slopes, strict=True)))
            )
            off = float(abs(mpmath.mpf(loss) - true))
        assert 0 < wrong <= bound.gradient_error <= 1e6 * wrong
        assert off <= bound.loss_error <= 1e-10
