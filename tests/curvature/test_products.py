from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lplr_cli.curvature import LossCurvature, PerSample, sharpness
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.losses import Loss
from lplr_cli.ntk import Network, empirical_ntk
from tests.cases import CASES, make
from tests.curvature import dense


def quartic(f: Tensor, y: Tensor) -> Tensor:
    """A loss that no module of lplr knows, not convex."""
    return ((f - y) ** 4 - (f - y) ** 2).sum(dim=1)


LOSSES: dict[str, PerSample] = {
    "squared": Loss("squared", 0.5).values,
    "cross-entropy": Loss("cross-entropy").values,
    "bce": Loss("bce", 2.0).values,
    "quartic": quartic,
}
SMALL = [name for name in CASES if name not in ("resnet", "mlp-ntk-gelu-3")]


def problem(name: str) -> tuple[Network, Tensor, Tensor]:
    network, x = make(name)
    outputs = network.forward(x[:1]).shape[1]
    raw = torch.randn(len(x), outputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network, x, torch.softmax(raw, dim=1) if outputs > 1 else torch.sigmoid(raw)


@pytest.mark.parametrize(
    ("name", "loss"), [*(("mlp-ntk-gelu-3", loss) for loss in LOSSES), *((name, "quartic") for name in SMALL)]
)
def test_products_equal_the_dense_hessian(name: str, loss: str) -> None:
    network, x, y = problem(name)
    truth = dense.hessian(network, x, y, LOSSES[loss])
    curvature = LossCurvature(network, x, y, LOSSES[loss])
    assert curvature.method == "kept graph"
    v = np.random.default_rng(0).standard_normal(curvature.size)
    scale = np.abs(truth).max() * np.sqrt(len(v)) + 1e-300
    np.testing.assert_allclose(curvature.hessian(v), truth @ v, atol=1e-12 * scale, rtol=0)
    inner = dense.gauss_newton(network, x, y, LOSSES[loss])
    np.testing.assert_allclose(curvature.gauss_newton(v), inner @ v, atol=1e-12 * (scale + np.abs(inner).max()), rtol=0)
    assert curvature.products == 2
    # From the second product on the network is not run again where its factors are kept.
    runs: list[object] = []
    with network.module.register_forward_hook(lambda *call: runs.append(call)):
        again = curvature.gauss_newton(v)
    assert (not runs) == (not CASES[name].fallback)
    np.testing.assert_allclose(again, inner @ v, atol=1e-12 * (scale + np.abs(inner).max()), rtol=0)


@pytest.mark.parametrize("name", ["mlp-ntk-gelu-3", "convnet", "transformer", "shared"])
def test_the_three_ways_agree(name: str) -> None:
    network, x, y = problem(name)
    kept = LossCurvature(network, x, y, quartic)
    forward = LossCurvature(network, x, y, quartic, batch=1)
    backward = LossCurvature(network, x, y, quartic, batch=1)
    backward.forward_mode = False
    v = np.random.default_rng(0).standard_normal(kept.size)
    for product in ("hessian", "gauss_newton"):
        images = [getattr(c, product)(v) for c in (kept, forward, backward)]
        for image in images[1:]:
            np.testing.assert_allclose(image, images[0], atol=1e-13 * np.abs(images[0]).max() * 100, rtol=0)
    assert (kept.method, forward.method, backward.method) == (
        "kept graph",
        "forward over reverse",
        "double backward",
    )
    assert kept.value() == pytest.approx(forward.value(), rel=1e-14)
    np.testing.assert_allclose(kept.gradient(), forward.gradient(), rtol=1e-10, atol=1e-12)


class Cube(torch.autograd.Function):
    """x³ by hand: twice differentiable backwards, without a forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class Once(Cube):
    """The same, once: torch leaves its second derivative out without a word."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class Refusing(Cube):
    """The same, refusing a second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return Unfinished.apply(3 * x**2 * grads[0])  # type: ignore[no-untyped-call]


class Unfinished(torch.autograd.Function):
    """The identity, whose derivative is not written yet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Net(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.head, self.function = nn.Linear(3, 5), nn.Linear(5, 2), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function.apply(self.first(x)))  # type: ignore[no-untyped-call]
        return out


def test_a_module_without_forward_mode_falls_back() -> None:
    torch.manual_seed(0)
    network = Network.from_module(Net(Cube))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    loss = Loss().values
    curvature = LossCurvature(network, x, y, loss, batch=1)
    v = np.random.default_rng(0).standard_normal(curvature.size)
    np.testing.assert_allclose(curvature.hessian(v), dense.hessian(network, x, y, loss) @ v, atol=1e-11)
    np.testing.assert_allclose(curvature.gauss_newton(v), dense.gauss_newton(network, x, y, loss) @ v, atol=1e-11)
    assert curvature.method == "double backward"


@pytest.mark.parametrize(("function", "said"), [(Once, "not symmetric"), (Refusing, "no second derivatives")])
@pytest.mark.parametrize("memory", [1 << 30, 129 << 20])
def test_a_module_that_is_differentiable_once_is_named(
    function: type[torch.autograd.Function], said: str, memory: int
) -> None:
    network = Network.from_module(Net(function))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    with pytest.raises(InputError, match=said):
        sharpness(network, x, y, memory=memory)


def test_what_cannot_be_is_refused() -> None:
    network, x, y = problem("mlp-softplus")
    with pytest.raises(InputError, match="one value a sample"):
        LossCurvature(network, x, y, lambda f, t: (f - t).square().mean())
    with pytest.raises(InputError, match="6 inputs and 5 targets"):
        LossCurvature(network, x, y[:5], Loss().values)
    with pytest.raises(InputError, match="MiB for one sample"):
        LossCurvature(network, x, y, Loss().values, memory=1 << 20)
    with pytest.raises(InputError, match="not finite"):
        LossCurvature(network, x * torch.inf, y, Loss().values)


def test_a_linear_loss_and_an_unused_parameter_have_no_curvature() -> None:
    module = nn.Linear(3, 1)
    module.register_parameter("idle", nn.Parameter(torch.ones(2)))
    network = Network.from_module(module)
    x = torch.randn(4, 3, dtype=torch.float64)
    for batch in (None, 1):
        linear = LossCurvature(network, x, x[:, :1], lambda f, y: (f * y).sum(dim=1), batch=batch)
        assert not linear.hessian(np.ones(6)).any()
        assert not linear.gauss_newton(np.ones(6)).any()
    squared = LossCurvature(network, x, x[:, :1], Loss().values)
    image = squared.hessian(np.ones(6))
    assert image[:4].any()
    assert not image[4:].any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", ["mlp-softplus", "mlp-relu-2", "shared"])
def test_gauss_newton_of_the_squared_loss_has_the_eigenvalues_of_the_kernel(name: str, scale: float) -> None:
    network, x, y = problem(name)
    curvature = LossCurvature(network, x, y, Loss("squared", scale).values)
    matrix = np.stack([curvature.gauss_newton(e) for e in np.eye(curvature.size)])
    kernel = torch.linalg.eigvalsh(empirical_ntk(network, x).matrix).numpy()
    found = np.linalg.eigvalsh((matrix + matrix.T) / 2)[-len(kernel) :]
    np.testing.assert_allclose(found, 2 * scale * kernel, atol=1e-12 * kernel[-1])


def test_float32_passes_are_summed_in_float64() -> None:
    network, x, y = problem("mlp-softplus")
    single = Network.from_module(network.module, dtype=torch.float32)
    v = np.random.default_rng(0).standard_normal(network.parameter_count)
    exact = LossCurvature(network, x, y, Loss().values).hessian(v)
    found = LossCurvature(single, x, y, Loss().values).hessian(v)
    assert found.dtype == np.float64
    assert 1e-10 < np.abs(found - exact).max() / np.abs(exact).max() < 1e-5


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", "quartic"])
def test_sharpness_equals_the_dense_hessian(loss: str) -> None:
    network, x, y = problem("mlp-ntk-gelu-3")
    truth = np.linalg.eigvalsh(dense.hessian(network, x, y, LOSSES[loss]))[-1]
    for memory in (1 << 30, 140 << 20):
        found = sharpness(network, x, y, loss=LOSSES[loss], memory=memory)
        assert found.converged
        assert found.value == pytest.approx(truth, rel=1e-5)
        assert abs(found.value - truth) <= found.residual + 1e-12 * truth


def test_a_product_that_is_not_finite_is_no_eigenvalue() -> None:
    network, x, y = problem("mlp-softplus")
    with pytest.raises(NumericalError, match="not finite"):
        sharpness(network, x, y, loss=lambda f, t: (f - t).abs().sum(dim=1).log() * torch.inf)


def test_a_plan_does_not_depend_on_where_memory_lies() -> None:
    """Addresses that are used again must not make the graph look smaller than it is."""
    network, x, y = problem("mlp-ntk-gelu-3")
    batches, around = set(), []
    for size in range(40):
        around.append(torch.empty(7 * size))
        batches.add(
            LossCurvature(network, x.repeat(2000, 1), y.repeat(2000, 1), LOSSES["squared"], memory=65 << 20).batch
        )
    assert len(batches) == 1
    assert batches.pop() < 2000 * len(x)


@pytest.mark.parametrize(
    ("case", "n", "mebibytes", "method"),
    [
        ("mlp", 3000, 220, "kept graph"),
        pytest.param("mlp", 3000, 160, "forward over reverse", marks=pytest.mark.slow),
        pytest.param("resnet", 24, 95, "kept graph", marks=pytest.mark.slow),
        pytest.param("resnet", 24, 80, "forward over reverse", marks=pytest.mark.slow),
    ],
)
def test_memory_is_a_promise(case: str, n: int, mebibytes: int, method: str) -> None:
    """Peak resident memory above the interpreter's, the model's and the data's own stays below what was given."""
    command = [sys.executable, "-m", "tests.curvature.memory_probe", case, str(n), str(mebibytes << 20)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    found = json.loads(done.stdout)
    assert found["method"] == method
    assert found["grown"] < mebibytes << 20
