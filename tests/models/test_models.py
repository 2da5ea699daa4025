from __future__ import annotations

import pytest
import torch

from lplr_cli.errors import InputError
from lplr_cli.models import ACTIVATIONS, ModelSpec, Softplus, build_model, make_activation, parameter_count


@pytest.mark.parametrize(("width", "count"), [(128, 150_145), (512, 1_190_401), (1024, 3_953_665)])
def test_mlp_parameter_counts(width: int, count: int) -> None:
    assert parameter_count(build_model(ModelSpec(width=width), (784,), 1)) == count


def test_resnet_parameter_count_and_shapes() -> None:
    model = build_model(ModelSpec(kind="resnet", width=64), (3, 32, 32), 5, dtype=torch.float32)
    assert parameter_count(model) == 2_776_389
    small = build_model(ModelSpec(kind="resnet", width=8), (3, 16, 16), 5)
    assert small(torch.randn(2, 3, 16, 16, dtype=torch.float64)).shape == (2, 5)


@pytest.mark.parametrize("init", ["he", "lecun"])
def test_parametrisations_agree_at_initialisation(init: str) -> None:
    x = torch.randn(3, 7, dtype=torch.float64)
    standard, ntk = (
        build_model(ModelSpec(width=16, init=init, parametrization=p), (7,), 2, seed=4) for p in ("standard", "ntk")
    )
    assert torch.allclose(standard(x), ntk(x), rtol=1e-12)
    assert not torch.equal(next(standard.parameters()), next(ntk.parameters()))


@pytest.mark.parametrize(("init", "std"), [("he", (2 / 400) ** 0.5), ("lecun", (1 / 400) ** 0.5), ("normal", 1.0)])
def test_initial_scale(init: str, std: float) -> None:
    weight = build_model(ModelSpec(width=300, depth=1, init=init), (400,), 1).layers[0].weight  # type: ignore[index, union-attr]
    assert float(weight.detach().std()) == pytest.approx(std, rel=0.01)


def test_single_precision_is_the_rounded_double() -> None:
    double, single = (build_model(ModelSpec(width=5), (7,), 1, dtype=d) for d in (torch.float64, torch.float32))
    for a, b in zip(double.parameters(), single.parameters(), strict=True):
        assert torch.equal(a.float(), b)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_against_their_formulas(name: str) -> None:
    z = torch.linspace(-50, 50, 401, dtype=torch.float64)
    formulas = {
        "softplus": torch.logaddexp(2.0 * z, torch.zeros_like(z)) / 2.0,
        "tanh": z.tanh(),
        "relu": z.clamp(min=0),
        "silu": z * torch.sigmoid(z),
        "gelu": z * 0.5 * torch.erfc(-z / 2**0.5),
    }
    assert torch.allclose(make_activation(name, 2.0)(z), formulas[name], rtol=1e-13, atol=1e-15)


def test_softplus_is_smooth_where_torch_switches() -> None:
    z = torch.tensor([20.0 + 1e-9, 39.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Softplus(1.0)(z).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    assert torch.allclose(curvature, torch.exp(-z.detach()), rtol=1e-6)


def test_bad_specifications() -> None:
    for spec, message in [
        (ModelSpec(kind="nope"), "model 'nope'"),
        (ModelSpec(activation="nope"), "activation 'nope'"),
        (ModelSpec(init="nope"), "init 'nope'"),
        (ModelSpec(parametrization="nope"), "parametrization 'nope'"),
        (ModelSpec(beta=-1.0), "beta"),
        (ModelSpec(width=0), "width 0"),
        (ModelSpec(kind="resnet"), "takes images"),
    ]:
        with pytest.raises(InputError, match=message):
            build_model(spec, (7,), 1)
    with pytest.raises(InputError, match="multiple of 8"):
        build_model(ModelSpec(kind="resnet", width=12), (3, 8, 8), 1)
    with pytest.raises(InputError, match="another version"):
        ModelSpec.from_dict({"kind": "mlp", "colour": 1})


@pytest.mark.parametrize("spec", [ModelSpec(), ModelSpec(kind="resnet", width=8), ModelSpec(kind="a:b")])
def test_specification_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(spec.to_dict()).to_dict() == spec.to_dict()
