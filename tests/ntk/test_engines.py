from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lplr_cli import linalg, ntk
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, structured
from lplr_cli.ntk import kernel as kernel_module
from lplr_cli.ntk.structured import InputProducts, accumulate
from tests.cases import CASES, dense_jacobian, make

ENGINES = ("structured", "jacobian", "operator")
# None: ample; a number: so many bytes more than the least.
SPARE = (None, 20_000)


def rows_of(jacobian: Tensor, outputs: str | int) -> Tensor:
    if outputs == "full":
        return jacobian.flatten(0, 1)
    return jacobian.flatten(1) if outputs == "trace" else jacobian[:, int(outputs)]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300)


@pytest.mark.parametrize("spare", SPARE)
@pytest.mark.parametrize("outputs", ["full", "trace", 0])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_dense_reference(name: str, engine: str, outputs: str | int, spare: int | None) -> None:
    network, x = make(name)
    rows = rows_of(dense_jacobian(network, x), outputs)
    memory = 1 << 30
    if spare is not None:
        memory = ntk.memory_needed(network, x, engine=engine, outputs=outputs) + spare
    verify = engine != "operator"
    kernel = ntk.empirical_ntk(network, x, engine=engine, outputs=outputs, memory=memory, bound_rounding=verify)
    truth = rows @ rows.T / len(x)
    assert relative(kernel.matrix, truth) < 1e-13
    assert not kernel.matrix.requires_grad
    assert torch.equal(kernel.matrix, kernel.matrix.T) or engine == "jacobian"
    if verify:
        assert kernel.formation_error is not None
        assert torch.linalg.matrix_norm(kernel.matrix - truth, 2) <= kernel.formation_error + 1e-14 * truth.trace()
    if engine == "structured":
        assert kernel.fallback == CASES[name].fallback


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_to_its_precision(name: str) -> None:
    network, x = make(name)
    single, y = make(name, torch.float32)
    kernel = ntk.empirical_ntk(single, y)
    assert kernel.matrix.dtype == torch.float32
    assert kernel.fallback == CASES[name].fallback
    assert relative(kernel.matrix.double(), ntk.empirical_ntk(network, x).matrix) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_cross_kernel_and_permutation(name: str, engine: str) -> None:
    network, x = make(name)
    jacobian = dense_jacobian(network, x)
    cross = ntk.cross_ntk(network, x, x[:2], engine=engine)
    truth = jacobian.flatten(0, 1) @ jacobian[:2].flatten(0, 1).T
    assert relative(cross, truth) < 1e-13
    order = torch.tensor(list(reversed(range(len(x)))))
    trace = ntk.empirical_ntk(network, x, engine=engine, outputs="trace").matrix
    permuted = ntk.empirical_ntk(network, x[order], engine=engine, outputs="trace").matrix
    assert relative(permuted, trace[order][:, order]) < 1e-13


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_jacobian_change(name: str, engine: str) -> None:
    network, x = make(name)
    generator = torch.Generator().manual_seed(1)
    moved = {
        k: p.detach() + 1e-6 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for k, p in network.params.items()
    }
    other = Network.from_module(network.module, values=moved)
    change = dense_jacobian(other, x) - dense_jacobian(network, x)
    gram = ntk.jacobian_change_gram(other, network, x, engine=engine)
    truth = change.flatten(0, 1) @ change.flatten(0, 1).T / len(x)
    # A change of 1e-6 squared is 1e-12 of K: only a difference taken before squaring keeps digits.
    assert relative(gram, truth) < 1e-7 or (name == "linear" and not gram.any())


@pytest.mark.parametrize("name", ["mlp-ntk-gelu-3", "transformer", "convnet"])
def test_parameter_blocks_add_up(name: str) -> None:
    network, x = make(name)
    names = list(network.params)
    total = sum(ntk.empirical_ntk(Network.from_module(network.module, names=[n]), x).matrix for n in names)
    assert isinstance(total, Tensor)
    assert relative(total, ntk.empirical_ntk(network, x).matrix) < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 6),
    features=st.integers(1, 6),
    width=st.integers(1, 6),
    depth=st.integers(0, 3),
    outputs=st.integers(1, 4),
    parametrization=st.sampled_from(["standard", "ntk"]),
)
def test_any_shape(n: int, features: int, width: int, depth: int, outputs: int, parametrization: str) -> None:
    spec = ModelSpec(width=width, depth=depth, parametrization=parametrization)
    network = Network.from_module(build_model(spec, (features,), outputs, seed=n))
    x = torch.linspace(-1, 1, n * features, dtype=torch.float64).reshape(n, features)
    rows = dense_jacobian(network, x).flatten(0, 1)
    kernel = ntk.empirical_ntk(network, x).matrix
    assert torch.allclose(kernel, rows @ rows.T / n, rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.eigvalsh(kernel)[0]) >= -1e-12 * max(1.0, float(kernel.trace()))


@pytest.mark.parametrize("panel", [(512, 1024), (3, 4)])
@pytest.mark.parametrize("outputs", ["full", "trace", 1])
def test_products_of_the_inputs_serve_every_network(
    outputs: str | int, panel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once, read wherever a layer meets the inputs, and given up where these are no longer the same."""
    monkeypatch.setattr(accumulate, "PANEL", panel)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    products = InputProducts(x)

    def off(seed: int, parametrization: str) -> float:
        spec = ModelSpec(width=5, depth=2, parametrization=parametrization)
        network = Network.from_module(build_model(spec, (4,), 2, seed=seed))
        rows = rows_of(dense_jacobian(network, x), outputs)
        found = ntk.empirical_ntk(network, x, engine="structured", outputs=outputs, products=products)
        return relative(found.matrix, rows @ rows.T / 7)

    assert max(off(0, "standard"), off(1, "standard"), off(2, "ntk")) <= 1e-13
    kept = products.of(x)
    assert kept is not None
    torch.testing.assert_close(kept.triu(), (x @ x.T).triu(), rtol=1e-13, atol=1e-13)
    assert kept is products.of(x.detach().view(7, 4))
    views = (x[:, :2], x[:3], x.view(14, 2), x.view(torch.int64), x.as_strided((7, 4), (1, 7)))
    assert all(products.of(other) is None for other in (x.clone(), *views))
    # With other inputs on the other side it says nothing.
    network, other = Network.from_module(build_model(ModelSpec(width=5, depth=2), (4,), 2)), x.flip(0)
    cross = (structured.gram(network, x, other, outputs=outputs, inputs=held).matrix for held in (None, products))
    assert torch.equal(*cross)
    # Read, and not made again: what is planted there shows, above the diagonal alone.
    kept.masked_fill_(torch.ones_like(kept).tril(-1).bool(), torch.nan)
    assert off(0, "standard") <= 1e-13
    kept.mul_(4)
    assert off(0, "standard") > 0.01
    x.mul_(-0.5)
    assert products.of(x) is None
    assert off(0, "standard") <= 1e-13


def test_linear_model_in_closed_form() -> None:
    network, x = make("linear")
    assert torch.allclose(ntk.empirical_ntk(network, x).matrix, (x @ x.T + 1) / len(x), rtol=1e-14)


def test_module_is_left_as_it_was() -> None:
    module = CASES["convnet"].build().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    ntk.empirical_ntk(Network.from_module(module), CASES["convnet"].inputs().double())
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x - x.mean(dim=0))
        return out


@pytest.mark.parametrize("engine", ["auto", "structured", "jacobian"])
@pytest.mark.parametrize("outputs", ["full", "trace", 2])
def test_a_verified_spectrum_subtracts_the_rounding_of_its_kernel(engine: str, outputs: str | int) -> None:
    network, x = make("mlp-ntk-gelu-3")
    options: dict[str, Any] = {"engine": engine, "outputs": outputs}
    kernel = ntk.empirical_ntk(network, x, bound_rounding=True, **options)
    found = ntk.kernel_spectrum(network, x, verify=True, **options)
    plain = ntk.kernel_spectrum(network, x, **options)
    assert ntk.empirical_ntk(network, x, **options).formation_error is None
    assert kernel.formation_error is not None
    assert kernel.formation_error >= 2.0**-53 * float(kernel.matrix.trace())
    assert plain.spectrum.lower is None
    assert found.spectrum.lower == linalg.lambda_min_lower(
        kernel.matrix, found.spectrum.lambda_min, formation_error=kernel.formation_error
    )
    assert np.array_equal(found.spectrum.eigenvalues, plain.spectrum.eigenvalues)
    assert np.allclose(found.spectrum.eigenvalues, torch.linalg.eigvalsh(kernel.matrix).numpy(), rtol=1e-9)
    for said in (found, plain, kernel):
        assert (said.n, said.outputs_per_sample, said.outputs, said.fallback) == (len(x), 3, outputs, ())
        assert said.engine == ("jacobian" if engine == "jacobian" else "structured")


@pytest.mark.parametrize("outputs", ["full", "trace", "1", 0])
def test_every_engine_forms_the_normalised_kernel(outputs: str | int) -> None:
    network, x = make("mlp-ntk-gelu-3")
    rows = rows_of(dense_jacobian(network, x), int(outputs) if outputs == "1" else outputs)
    for engine in ntk.ENGINES:
        found = ntk.empirical_ntk(network, x, engine=engine, outputs=outputs)
        assert relative(found.matrix, rows @ rows.T / len(x)) < 1e-13
        assert found.formation_error is None
    free = ntk.empirical_ntk(network, x, engine="operator", outputs=outputs)
    assert torch.equal(free.matrix, free.matrix.T)
    assert (free.engine, free.fallback, free.n, free.outputs_per_sample) == ("operator", (), len(x), 3)
    assert free.matrix.dtype == torch.float64
    assert ntk.output_count(network, x) == 3


def test_what_does_not_fit_is_matrix_free_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix-free where nobody asked for another engine nor for a proof."""
    network, x = make("mlp-ntk-gelu-3")
    whole = ntk.kernel_spectrum(network, x)
    monkeypatch.setattr(kernel_module.Task, "kernel_bytes", 1 << 40)
    found = ntk.kernel_spectrum(network, x)
    assert (found.engine, found.spectrum.lower, found.spectrum.complete) == ("operator", None, False)
    assert found.spectrum.lambda_max == pytest.approx(whole.spectrum.lambda_max, rel=1e-10)
    for refused in ({"engine": "structured"}, {"engine": "jacobian"}, {"verify": True}):
        options: dict[str, Any] = refused
        with pytest.raises(InputError, match="the kernel of 12 rows needs 1024"):
            ntk.kernel_spectrum(network, x, **options)


@pytest.mark.parametrize("outputs", ["3", 3, -1, "-1", "some", "1.5"])
def test_outputs_that_are_none_are_refused(outputs: str | int) -> None:
    network, x = make("mlp-ntk-gelu-3")
    with pytest.raises(InputError, match="choose full, trace or an index below 3"):
        ntk.empirical_ntk(network, x, outputs=outputs)


def test_bad_input_is_refused() -> None:
    network, x = make("mlp-softplus")
    with pytest.raises(InputError, match="engine"):
        ntk.empirical_ntk(network, x, engine="magic")
    with pytest.raises(InputError, match="outputs"):
        ntk.empirical_ntk(network, x, outputs=1)
    with pytest.raises(InputError, match="mixes"):
        ntk.empirical_ntk(Network.from_module(Mixing()), torch.randn(4, 3))
    with pytest.raises(InputError, match="no parameter"):
        Network.from_module(network.module, names=["nope"])


class Switching(nn.Module):
    """Uses its layers otherwise when a flag or a parameter says so."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.bent = False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x))
        if self.bent:
            x = x * self.one.weight.diagonal()
        if float(self.one.bias[0]) > 10:
            x = torch.tanh(self.two(x))
        out: Tensor = self.head(x)
        return out


def test_a_kept_plan_does_not_outlive_what_it_says() -> None:
    """Rules found once serve later calls, but not a forward pass that has changed."""
    torch.manual_seed(0)
    module, x = Switching().double(), torch.randn(4, 3).double()

    def check(fallback: tuple[str, ...]) -> None:
        network = Network.from_module(module)
        kernel = ntk.empirical_ntk(network, x)
        rows = dense_jacobian(network, x).flatten(0, 1)
        assert relative(kernel.matrix, rows @ rows.T / len(x)) < 1e-13
        assert kernel.fallback == fallback

    check(())
    module.bent = True
    check(("one.weight",))
    module.bent = False
    check(())
    with torch.no_grad():
        module.one.bias[0] = 20.0
    check(())
    module.two = nn.Linear(3, 3, bias=False).double()
    check(())
    with torch.no_grad():
        module.one.bias[0] = 0.0
    check(())


def test_as_many_positions_as_samples_are_no_samples() -> None:
    """A table of positions is met once, not once a sample, however many positions there are."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place, self.head = nn.Embedding(4, 2), nn.Embedding(3, 2), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.tanh(self.token(x) + self.place(torch.arange(3))).flatten(1))
            return y

    torch.manual_seed(0)
    network, x = Network.from_module(Placed().double()), torch.randint(4, (5, 3))
    kernel = ntk.empirical_ntk(network, x, engine="structured")
    rows = dense_jacobian(network, x).flatten(0, 1)
    assert relative(kernel.matrix, rows @ rows.T / 5) < 1e-13
    assert kernel.fallback == ("place.weight",)
