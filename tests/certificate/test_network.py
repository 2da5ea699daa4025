"""Reading modules: what is no smooth MLP is refused, whatever it looks like."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from lplr_cli.certificate import BallBounds, NoCertificateError, SmoothMLP, certify
from lplr_cli.certificate.network import check_magnitude, in_double
from lplr_cli.models import MLP, ModelSpec, build_model
from lplr_cli.ntk import Network


def mlp() -> MLP:
    module = build_model(ModelSpec(width=5, depth=2, activation="tanh"), (5,), 5, seed=2)
    assert isinstance(module, MLP)
    return module


def sequential() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()


def first(module: nn.Module) -> nn.Linear:
    return next(m for m in module.modules() if isinstance(m, nn.Linear))


def layers(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def activation(module: nn.Module) -> nn.Module:
    return module.activation if isinstance(module, MLP) else module.get_submodule("1")


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * nn.functional.linear(x, self.weight, self.bias)


class Late(nn.Linear):
    """As a linear layer, except on inputs that no random probe comes near."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(x.abs().amax(dim=-1, keepdim=True) > 1e3, 2.0, 1.0)


def tied(module: nn.Module) -> None:
    layers(module)[1].weight = layers(module)[2].weight


def tied_by_a_view(module: nn.Module) -> None:
    layers(module)[1].weight = nn.Parameter(layers(module)[2].weight.detach().T)


def tied_within(module: nn.Module) -> None:
    first(module).weight = nn.Parameter(torch.randn(5, 1, dtype=torch.float64).expand(5, 5))


def patched_forward(module: nn.Module) -> None:
    plain = type(module).forward
    vars(module)["forward"] = types.MethodType(lambda self, x: 3 * plain(self, x), module)


def patched_inside(module: nn.Module) -> None:
    layer = first(module)
    vars(layer)["forward"] = lambda x: 1e6 * nn.functional.linear(x, layer.weight)


def patched_call(module: nn.Module) -> None:
    plain: Callable[..., Tensor] = module._call_impl
    vars(module)["_call_impl"] = lambda *a, **k: 2 * plain(*a, **k)


def hidden_weight(module: nn.Module) -> None:
    """The forward pass finds another tensor than the parameter of that name."""
    vars(first(module))["weight"] = 1e-6 * first(module).weight.detach()


def computed_weight(module: nn.Module) -> None:
    """One weight that is made of another at every call would be tied; here it is at least no parameter."""
    layer = first(module)
    del layer.weight
    layer.weight = layers(module)[1].weight * 2


def replaced_layer(kind: Callable[[int, int], nn.Linear]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        if isinstance(module, MLP):
            module.layers[0] = kind(5, 5).double()
        else:
            module.add_module("0", kind(5, 5).double())

    return change


def replaced_activation(module: nn.Module) -> None:
    if isinstance(module, MLP):
        module.activation = nn.ReLU()
    else:
        module.add_module("1", nn.ReLU())


def renamed_activation(module: nn.Module) -> None:
    """``name`` decides what is computed, and an unknown one computes SiLU."""
    if isinstance(module, MLP):
        vars(module.activation)["name"] = "sine"
    else:
        replaced_activation(module)


def scaled_weight(module: nn.Module) -> None:
    parametrizations.orthogonal(first(module))


def hooked(module: nn.Module) -> None:
    first(module).register_forward_hook(lambda module, arguments, output: 3 * output)


def hooked_before(module: nn.Module) -> None:
    activation(module).register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))


def hooked_behind(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda module, above, below: None)


def normalised_weight(module: nn.Module) -> None:
    weight_norm(first(module))


class Odd(nn.Parameter):
    pass


def odd_parameter(module: nn.Module) -> None:
    first(module)._parameters["weight"] = Odd(first(module).weight.detach())


def subclassed(module: nn.Module) -> None:
    plain = type(module)
    module.__class__ = type("Other", (plain,), {"forward": lambda self, x: 2 * plain.forward(self, x)})


CHANGES: list[Callable[[nn.Module], None]] = [
    tied,
    tied_by_a_view,
    tied_within,
    patched_forward,
    patched_inside,
    patched_call,
    hidden_weight,
    computed_weight,
    replaced_layer(Doubled),
    replaced_layer(Late),
    replaced_activation,
    renamed_activation,
    scaled_weight,
    normalised_weight,
    hooked,
    hooked_before,
    hooked_behind,
    odd_parameter,
    subclassed,
]


@pytest.mark.parametrize("make", [mlp, sequential])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__qualname__)
def test_a_changed_module_has_no_certificate(
    change: Callable[[nn.Module], None], make: Callable[[], nn.Module]
) -> None:
    module = make()
    assert len(SmoothMLP.from_module(module).layers) == 3
    change(module)
    with pytest.raises(NoCertificateError, match="no certificate for"):
        SmoothMLP.from_module(module)


def test_a_change_that_no_inspection_sees_is_seen_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class itself computes something else."""
    plain = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: plain(self, x) * (1 + 1e-9))
    with pytest.raises(NoCertificateError, match="outputs are not those of its layers"):
        SmoothMLP.from_module(sequential())


def test_outputs_are_compared_on_the_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: plain(self, x) + (x.abs() > 1e3))
    module = sequential()
    x = torch.full((2, 5), 1e5, dtype=torch.float64)
    assert SmoothMLP.from_module(module).layers
    with pytest.raises(NoCertificateError, match="outputs are not those of its layers"):
        certify(module, x, torch.zeros(2, 5))


def test_scales_are_those_that_the_forward_pass_uses() -> None:
    module = mlp()
    module.scales = [0.5, 2.0, 3.0]
    network = SmoothMLP.from_module(module)
    assert [layer.scale for layer in network.layers] == [0.5, 2.0, 3.0]
    module.scales = [0.5, 2.0]
    with pytest.raises(NoCertificateError, match="no certificate for"):
        SmoothMLP.from_module(module)


def test_the_activation_is_that_of_the_forward_pass() -> None:
    """Whatever an MLP was built with."""
    module, other = mlp(), build_model(ModelSpec(width=5, depth=2, activation="silu"), (5,), 5, seed=2)
    assert isinstance(other, MLP)
    module.activation = other.activation
    assert SmoothMLP.from_module(module).activation.name == "silu"
    torch_made = mlp()
    torch_made.activation = nn.Softplus(3.0, threshold=50.0)
    assert SmoothMLP.from_module(torch_made).activation.name == "softplus(3)"


def test_a_module_of_any_state_can_be_read() -> None:
    """Training mode, single precision, frozen or in a flat buffer: none of it changes what is computed."""
    module = mlp().train()
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    at = 0
    for p in module.parameters():
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    first(module).requires_grad_(False)
    network = SmoothMLP.from_module(module)
    assert module.training
    assert [layer.weight_trained for layer in network.layers] == [False, True, True]
    single = SmoothMLP.from_module(module.float())
    assert single.layers[0].weight.dtype == torch.float64
    x = torch.randn(3, 5)
    assert BallBounds(single, x).f.shape == (3, 5)


@pytest.mark.parametrize(
    ("activation", "module"),
    [("tanh", nn.Tanh), ("gelu", nn.GELU), ("silu", nn.SiLU), ("softplus", lambda: nn.Softplus(2.0, threshold=40.0))],
)
def test_a_sequential_is_the_mlp_of_its_layers(activation: str, module: Callable[[], nn.Module]) -> None:
    own = build_model(ModelSpec(width=6, depth=2, activation=activation, beta=2.0), (5,), 1, seed=2)
    x = torch.randn((4, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, two, three = layers(own)
    module_of_torch = nn.Sequential(nn.Flatten(), one, module(), nn.Dropout(0.5), two, module(), three)
    found, expected = (BallBounds(SmoothMLP.from_module(m), x).l_j(0.1) for m in (module_of_torch, own))
    assert found == expected > 0
    without = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 1))
    found_layers = SmoothMLP.from_module(without).layers
    assert [layer.bias_trained for layer in found_layers] == [False, True]
    assert not found_layers[0].bias.any()


class Backwards(nn.ModuleList):
    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(super().__iter__()))


def another_list(module: MLP) -> None:
    module.layers = Backwards(module.layers)


def another_part(module: MLP) -> None:
    module.add_module("more", nn.Linear(5, 5))


def no_layers(module: MLP) -> None:
    module.layers, module.scales = nn.ModuleList(), []


@pytest.mark.parametrize("change", [another_list, another_part, no_layers])
def test_an_mlp_of_other_parts_is_refused_before_it_is_run(change: Callable[[MLP], None]) -> None:
    module = mlp()
    change(module)
    with pytest.raises(NoCertificateError, match="an MLP of other parts"):
        SmoothMLP.from_module(module)


@pytest.mark.parametrize(
    ("children", "match"),
    [
        ([nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 1)], "this Sequential; "),
        ([nn.Linear(5, 4), nn.Tanh()], "this Sequential; "),
        ([], "this Sequential; "),
        ([nn.Linear(5, 4), nn.GELU("tanh"), nn.Linear(4, 1)], "GELU with approximate=tanh"),
        ([nn.Linear(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1)], "Flatten at this place"),
        ([nn.Linear(5, 4), nn.Flatten(), nn.Linear(4, 1)], "Flatten"),
    ],
)
def test_what_a_sequential_is_made_of_is_read_before_it_is_run(children: list[nn.Module], match: str) -> None:
    """Outputs are compared afterwards, which is no proof."""
    with pytest.raises(NoCertificateError, match=f"no certificate for {match}"):
        SmoothMLP.from_module(nn.Sequential(*children))


@pytest.mark.parametrize(
    "children",
    [
        [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)],
        [nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 1)],  # threshold 20: jumps by 2e-9
        [nn.Linear(5, 4), nn.GELU("tanh"), nn.Linear(4, 1)],
        [nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 1)],
        [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 1)],
        [nn.Linear(5, 4), nn.Linear(4, 1)],
        [nn.Linear(5, 4), nn.Tanh()],
        [nn.Tanh(), nn.Linear(5, 1)],
        [nn.Linear(5, 4), nn.Tanh(), nn.Linear(3, 1)],
        [nn.Flatten(0), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)],
        [nn.Flatten(2), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)],
        [],
    ],
)
def test_another_sequential_has_no_certificate(children: list[nn.Module]) -> None:
    with pytest.raises(NoCertificateError, match="no certificate for"):
        SmoothMLP.from_module(nn.Sequential(*children))


def test_a_sequential_of_used_parts() -> None:
    """A layer used twice is tied to itself; an activation may stand at every place."""
    square, other, tanh = nn.Linear(5, 5), nn.Linear(5, 5), nn.Tanh()
    for module in (nn.Sequential(square, tanh, other, square), nn.Sequential(square, tanh, square)):
        with pytest.raises(NoCertificateError, match="no certificate for"):
            SmoothMLP.from_module(module)
    # As many layers and activations as one after another would have.
    with pytest.raises(NoCertificateError, match="no certificate for shared weights"):
        SmoothMLP.from_module(nn.Sequential(square, tanh, square, other))
    assert len(SmoothMLP.from_module(nn.Sequential(square, tanh, other, tanh, nn.Linear(5, 1))).layers) == 3


def test_an_activation_with_a_jump_is_named() -> None:
    with pytest.raises(NoCertificateError, match="no certificate for relu"):
        SmoothMLP.from_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)))
    alone = SmoothMLP.from_module(nn.Sequential(nn.Linear(3, 2)))
    assert (len(alone.layers), alone.activation.name) == (1, "identity")


def test_the_same_network_at_another_point() -> None:
    names = ["layers.0.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"]
    network = SmoothMLP.from_module(mlp(), names)
    values = [torch.full(shape, float(k)) for k, shape in enumerate([(5, 5), (5,), (5, 5), (5,)])]
    there = network.with_trained(values)
    for layer, before, (weight, bias) in zip(there.layers, network.layers, [(0, None), (None, 1), (2, 3)], strict=True):
        assert torch.equal(layer.weight, before.weight if weight is None else values[weight].double())
        assert torch.equal(layer.bias, before.bias if bias is None else values[bias].double())
    assert len(values) == 4


@pytest.mark.parametrize(
    ("scales", "match"),
    [
        ({"layers.1.weight": 1e-70}, "weights"),
        ({"layers.1.weight": 1e70}, "weights"),
        ({"layers.0.weight": 1e70}, "weights"),
        ({"layers.2.weight": 1e-70}, "weights"),
        ({"layers.1.bias": 1e70}, "biases"),
        ({"layers.0.weight": 1e55, "x": 1e10}, "preactivations"),
        ({"x": 1e-70}, "inputs"),
    ],
)
def test_magnitudes_are_looked_at_everywhere(scales: dict[str, float], match: str) -> None:
    """A row of the last layer alone, as each output has its own bounds."""
    network = SmoothMLP.from_module(mlp())
    layers = list(network.layers)
    for name, scale in scales.items():
        if name == "x":
            continue
        place, kind = int(name.split(".")[1]), name.split(".")[2]
        value = getattr(layers[place], kind).clone() + (1.0 if kind == "bias" else 0.0)
        value[0 if place == 2 else slice(None)] *= scale
        layers[place] = replace(layers[place], **{kind: value})
    x = torch.ones(2, 5, dtype=torch.float64) * scales.get("x", 1.0)
    with pytest.raises(NoCertificateError, match=f"no certificate for {match} of magnitude"):
        replace(network, layers=tuple(layers)).passes(x)


def test_what_is_read_is_double() -> None:
    assert in_double(torch.ones(2)).dtype == torch.float64
    assert in_double(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert in_double(torch.ones(2, dtype=torch.int64)).dtype == torch.int64


@pytest.mark.parametrize("beta", [1.01e-24, 0.5, 1e24])
def test_softplus_of_any_other_sharpness_is_read(beta: float) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Softplus(beta, threshold=50.0), nn.Linear(2, 1))
    assert SmoothMLP.from_module(module).activation.name == f"softplus({beta:g})"


def test_what_holds_no_number_has_every_magnitude() -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        check_magnitude(torch.zeros(shape), "nothing")


def test_scales_are_looked_at() -> None:
    network = SmoothMLP.from_module(mlp())
    layers = tuple(replace(layer, scale=1e70) for layer in network.layers)
    with pytest.raises(NoCertificateError, match="no certificate for scales of magnitude"):
        replace(network, layers=layers).passes(torch.ones(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("away", [1e-12, -1e-12])
def test_one_output_that_differs_is_enough(away: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(3, 2)).double()
    network, x = SmoothMLP.from_module(module), torch.ones(4, 3, dtype=torch.float64)
    wrong = torch.zeros(4, 2, dtype=torch.float64)
    wrong[2, 1] = away
    plain = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, x: plain(self, x) + wrong)
    with pytest.raises(NoCertificateError, match="its outputs are not those of its layers"):
        network.check(module, x)


def test_outputs_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sample and one output they would be the same numbers."""
    module = nn.Sequential(nn.Linear(3, 1)).double()
    network, x = SmoothMLP.from_module(module), torch.ones(1, 3, dtype=torch.float64)
    network.check(module, x)
    plain = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, x: plain(self, x)[:, 0])
    with pytest.raises(NoCertificateError, match="its outputs are not those of its layers"):
        network.check(module, x)


@pytest.mark.parametrize("make", [mlp, sequential])
def test_a_patch_that_no_probe_comes_near_is_seen(make: Callable[[], nn.Module]) -> None:
    module = make()
    plain = type(module).forward
    vars(module)["forward"] = types.MethodType(lambda self, x: plain(self, x) * (1 + (x.abs().max() > 1e3)), module)
    with pytest.raises(NoCertificateError, match="with its own forward"):
        SmoothMLP.from_module(module)


def test_parameters_that_share_one_number_are_seen() -> None:
    """A bias of one number that is another's, and a bias that begins at the last number of a weight."""
    module = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    one, two, three = layers(module)
    assert len(SmoothMLP.from_module(module).layers) == 3
    kept = two.bias
    two.bias = three.bias
    with pytest.raises(NoCertificateError, match="shared weights"):
        SmoothMLP.from_module(module)
    two.bias = kept
    memory = torch.randn(9, dtype=torch.float64)
    one.weight, one.bias = nn.Parameter(memory[:8].view(2, 4)), nn.Parameter(memory[7:])
    with pytest.raises(NoCertificateError, match="shared weights"):
        SmoothMLP.from_module(module)
