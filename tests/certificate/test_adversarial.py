"""Points of the ball where the bounds are attained or nearly so: a bound that is a little too small fails here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lplr_cli.certificate import BallBounds, Over, SmoothMLP
from lplr_cli.certificate.ball import Ahead, Behind
from lplr_cli.certificate.centre import Norms
from lplr_cli.models import MLP

# max |φ''| of tanh, at ±artanh(1/√3).
STEEPEST = 4 / (3 * math.sqrt(3))
TURN = math.atanh(1 / math.sqrt(3))


def mlp(weights: list[list[list[float]]], biases: list[list[float]] | None = None) -> MLP:
    sizes = [len(weights[0][0]), *(len(w) for w in weights)]
    module = MLP(sizes[0], sizes[-1], width=1, depth=0, widths=sizes[1:-1], activation="tanh").double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            _, k, kind = name.split(".")
            values = weights[int(k)] if kind == "weight" else biases[int(k)] if biases else 0.0
            p.copy_(torch.tensor(values, dtype=torch.float64))
    return module


def over(module: MLP, x: Tensor, names: list[str] | None, radius: float, method: str = "tight") -> Over:
    return BallBounds(SmoothMLP.from_module(module, names), x, method=method).over(radius)


@pytest.mark.parametrize("values", [[3.0], [3.0, 4.0], [1.0, 1.0, -1.0]])
@pytest.mark.parametrize("inputs", [[2.0], [2.0, -1.0, 0.5]])
def test_one_neuron_with_several_outputs(values: list[float], inputs: list[float]) -> None:
    """f_c = v_c tanh(w x) with w alone trained: ∂²f_ic = v_c x_i² φ'', and all outputs count."""
    module = mlp([[[0.7]], [[v] for v in values]])
    x = torch.tensor(inputs, dtype=torch.float64)[:, None]
    found = over(module, x, ["layers.0.weight"], 50.0)
    size = math.sqrt(sum(v * v for v in values))
    truth = torch.tensor([[abs(v) * i * i * STEEPEST for v in values] for i in inputs], dtype=torch.float64)
    assert torch.allclose(found.hessians, truth, rtol=1e-6)
    assert bool((found.hessians >= truth).all())
    # The joint bound: one direction serves all samples, (1/n) Σ x_i⁴.
    joint = size * STEEPEST * math.sqrt(sum(i**4 for i in inputs) / len(inputs))
    assert joint <= found.l_j <= joint * 1.02
    # Attained by one sample: two points of the ball beside the steepest point of φ'.
    steepest = TURN / inputs[0]
    theta = [{"layers.0.weight": torch.tensor([[steepest + d]], dtype=torch.float64)} for d in (-1e-4, 1e-4)]
    rows = [
        torch.func.jacrev(lambda p: functional_call(module, p, (x[:1],)))(t)["layers.0.weight"].flatten() for t in theta
    ]
    change = float((rows[1] - rows[0]).detach().norm()) / 2e-4
    alone = over(module, x[:1], ["layers.0.weight"], 50.0)
    assert 0.999 * alone.l_j <= change * 1.02
    assert change <= alone.l_j


def test_neurons_of_unequal_outputs_are_not_added() -> None:
    """The largest weight of each output is taken over the neurons, and squares are summed over the outputs."""
    module = mlp([[[0.7], [0.2]], [[3.0, 1.0], [0.5, 4.0]]])
    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    found = over(module, x, ["layers.0.weight"], 50.0)
    moment = math.sqrt((2.0**4 + 1) / 2)
    assert found.l_j == pytest.approx(math.hypot(3, 4) * STEEPEST * moment, rel=0.011)
    truth = STEEPEST * torch.tensor([[12.0, 16.0], [3.0, 4.0]], dtype=torch.float64)
    assert torch.allclose(found.hessians, truth, rtol=1e-6)


def test_the_joint_bound_is_for_the_first_of_two_layers_alone() -> None:
    module = mlp([[[0.7], [0.2]], [[3.0, 1.0]]])
    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    for names in (None, ["layers.0.weight", "layers.1.weight"], ["layers.0.weight", "layers.1.bias"]):
        bounds = BallBounds(SmoothMLP.from_module(module, names), x)
        assert bounds.joint is None
        found = bounds.over(0.5)
        assert found.l_j == pytest.approx(float(found.hessians.square().mean().sqrt()), rel=1e-6)
    biased = BallBounds(SmoothMLP.from_module(module, ["layers.0.weight", "layers.0.bias"]), x)
    rows = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    moment = torch.linalg.matrix_norm(rows * rows.norm(dim=1, keepdim=True), 2) / math.sqrt(2)
    assert biased.joint is not None
    assert biased.joint == pytest.approx(float(moment), rel=0.011)
    assert biased.joint >= float(moment)
    assert BallBounds(SmoothMLP.from_module(module, ["layers.0.bias"]), x).joint == pytest.approx(1.0, rel=0.011)


def test_the_last_layer_alone_moves_the_gradients() -> None:
    """f = v tanh(w x), both trained: along (dw, dv) the mixed derivative is φ' x, with φ' = 1 attained at 0."""
    module = mlp([[[0.0]], [[0.0]]])
    x = torch.tensor([[3.0]], dtype=torch.float64)
    names = ["layers.0.weight", "layers.1.weight"]
    found = over(module, x, names, 0.0)
    # ∇²f = [[0, x], [x, 0]] at 0.
    assert 3.0 <= float(found.hessians[0, 0]) <= 3.0 * (1 + 1e-6)
    for radius in (0.1, 1.0, 10.0):
        # v reaches R: there |v| φ'' x² joins the mixed derivative.
        worst = 0.0
        for angle in torch.linspace(0, math.pi / 2, 200).tolist():
            w, v = radius * math.sin(angle), radius * math.cos(angle)
            t = math.tanh(w * 3)
            slope = 1 - t * t
            hessian = torch.tensor([[v * 9 * -2 * t * slope, 3 * slope], [3 * slope, 0.0]], dtype=torch.float64)
            worst = max(worst, float(torch.linalg.matrix_norm(hessian, 2)))
        bound = float(over(module, x, names, radius).hessians[0, 0])
        assert worst <= bound <= 3 + 9 * radius * STEEPEST + 1e-6
        exact = radius * 9 * STEEPEST
        assert bound >= exact / 2 + math.hypot(exact / 2, 3.0) if radius == 10.0 else bound >= worst


def chain(depth: int) -> MLP:
    """tanh(w tanh(w … x)): one neuron a layer, where every norm is an absolute value."""
    return mlp([[[0.9]]] * (depth + 1), [[0.1]] * (depth + 1))


@pytest.mark.parametrize("method", ["tight", "fast"])
@pytest.mark.parametrize("names", [None, ["layers.0.weight"], ["layers.1.bias", "layers.2.weight"], ["layers.3.bias"]])
def test_scalar_networks_at_the_centre(names: list[str] | None, method: str) -> None:
    """With one neuron a layer and radius 0 nothing is lost but the block recursion: all parts equal their values."""
    module, x = chain(3), torch.tensor([[1.3], [-0.4]], dtype=torch.float64)
    bounds = BallBounds(SmoothMLP.from_module(module, names), x, method=method)
    found = bounds.over(0.0)
    forward = [*found.forward, found.jacobians]
    a, slopes, inputs = x, [], []
    dz = torch.zeros_like(x)
    for k in range(4):
        inputs.append(a)
        z = 0.9 * a + 0.1
        a = torch.tanh(z) if k < 3 else z
        slopes.append(1 - a * a if k < 3 else torch.ones_like(a))
        trained = [names is None or f"layers.{k}.{kind}" in names for kind in ("weight", "bias")]
        own = trained[0] * inputs[k].square() + trained[1]
        below = (0.9 * slopes[k - 1] * dz).square() if k else torch.zeros_like(a)
        dz = torch.sqrt(own + below)
        tolerance = {"rtol": 0.03, "atol": 1e-9} if method == "fast" else {"rtol": 1e-6, "atol": 1e-9}
        assert torch.allclose(forward[k][:, None], dz, **tolerance)  # type: ignore[arg-type]
        assert bool((forward[k][:, None] >= dz * (1 - 1e-14)).all())
    s = torch.ones_like(a)
    for k in range(3, -1, -1):
        assert torch.allclose(found.backward[k], s, rtol=1e-6)
        assert bool((found.backward[k] >= s * (1 - 1e-14)).all())
        s = 0.9 * s * slopes[k - 1] if k else s
    assert bool((found.gradients >= found.jacobians[:, None] * 0.97).all())
    assert bool((found.f_reach <= 1e-13).all())


def behind(top: float, more: float) -> Behind:
    t = torch.tensor([[top]], dtype=torch.float64)
    return Behind(t, t, torch.tensor([[more]], dtype=torch.float64), crowd=t)


def ahead(dz: float, change: float) -> Ahead:
    t = torch.tensor([dz], dtype=torch.float64)
    c = torch.tensor([change], dtype=torch.float64)
    return Ahead(t, t, t, t, t, t, dz=t, dz_change=c, da=t, da_change=c, a_change=c)


@pytest.mark.parametrize(
    ("weighted", "hat", "top", "more", "dz", "change"),
    [(2.0, 1.5, 4.0, 0.0, 9.0, 0.0), (2.0, 1.5, 4.0, 1.0, 9.0, 0.5), (2.0, 1.5, 0.01, 3.0, 2.0, 5.0)],
)
def test_the_curvature_term_is_the_smaller_of_two_bounds(
    weighted: float, hat: float, top: float, more: float, dz: float, change: float
) -> None:
    one = torch.tensor([hat], dtype=torch.float64)
    norms = Norms(one, one, one[:, None], torch.tensor([[weighted]], dtype=torch.float64))
    found = BallBounds.curvature_over(norms, ahead(dz, change), behind(top, more))
    drifted = (math.sqrt(weighted + more * hat * hat) + math.sqrt(top) * change) ** 2
    assert float(found[0, 0]) == pytest.approx(min(top * dz * dz, drifted), rel=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_first_layer_over_the_ball_is_attained(seed: int) -> None:
    """z = w x + b moves by R √(x² + 1) and no more: the reach of the first layer is exact, and so are slopes there."""
    generator = torch.Generator().manual_seed(seed)
    w, b, v = torch.randn(3, generator=generator, dtype=torch.float64).tolist()
    module = mlp([[[w]], [[v]]], [[b], [0.0]])
    x = torch.tensor([[1.7]], dtype=torch.float64)
    for names, moved in ((None, math.hypot(1.7, 1)), (["layers.0.weight"], 1.7), (["layers.0.bias"], 1.0)):
        for radius in (0.01, 1.0):
            found = over(module, x, names, radius)
            assert radius * moved <= float(found.reach[0][0, 0]) <= radius * moved * (1 + 1e-6)
            assert float(found.forward[0][0]) == pytest.approx(moved, rel=1e-6)
            # |f - f̂| is at most R times the gradient, which the points of the ball do not exceed either.
            for angle in torch.linspace(0, 2 * math.pi, 60).tolist():
                dw, db = radius * math.cos(angle), radius * math.sin(angle)
                dw, db = (
                    (dw if names is None or "weight" in names[0] else 0.0),
                    (db if names is None or "bias" in names[0] else 0.0),
                )
                z = (w + dw) * 1.7 + b + db
                change = abs(v * math.tanh(z) - v * math.tanh(w * 1.7 + b))
                assert change <= float(found.f_reach[0, 0]) + 1e-15
                assert abs(v) * (1 - math.tanh(z) ** 2) <= float(found.backward[0][0, 0]) * (1 + 1e-14)


def test_bounds_that_overflow_are_infinite_and_not_numbers_of_chance() -> None:
    module, x = chain(3), torch.tensor([[1.3]], dtype=torch.float64)
    found = over(module, x, None, 1e200)
    assert math.isinf(found.l_j)
    for t in (found.hessians, found.gradients, *found.reach, *found.forward, *found.backward):
        assert not bool(t.isnan().any())
    assert bool((found.hessians == math.inf).all())
