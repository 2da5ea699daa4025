from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lplr_cli import linalg, ntk
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, structured
from tests.cases import CASES, dense_jacobian, make

# Every parameter has a rule: factors are kept where they fit.
FACTORED = {name for name, case in CASES.items() if not case.fallback}


@pytest.mark.parametrize("outputs", ["full", "trace", 0])
@pytest.mark.parametrize("name", CASES)
def test_products_equal_the_dense_kernel(name: str, outputs: str | int) -> None:
    network, x = make(name)
    jacobian = dense_jacobian(network, x)
    rows = {"full": jacobian.flatten(0, 1), "trace": jacobian.flatten(1)}.get(str(outputs), jacobian[:, 0])
    kernel = (rows @ rows.T / len(x)).numpy()
    # A budget of one byte: a micro-batch of one sample, and no factors.
    for budget in (1 << 30, 1):
        operator = ntk.NTKOperator(network, x, outputs=outputs, budget=budget)
        v = np.random.default_rng(1).standard_normal(operator.shape[0])
        assert np.allclose(operator.matvec(v), kernel @ v, atol=1e-12 * np.abs(kernel).max(), rtol=1e-10)
        assert np.allclose(operator.H.matvec(v), operator.matvec(v))
        kept = budget > 1 and name in FACTORED
        assert operator.method == ("factors" if kept else "passes")


@pytest.mark.parametrize("outputs", ["full", "trace", 0])
@pytest.mark.parametrize("name", CASES)
def test_kept_factors_act_as_the_jacobian(name: str, outputs: str | int) -> None:
    """Jᵀv and J u of the parameters that have a rule, a sample at a time and all together."""
    network, x = make(name)
    known = [k for k in network.params if k not in CASES[name].fallback]
    network = Network.from_module(network.module, names=known)
    jacobian = dense_jacobian(network, x)
    rows = {"full": jacobian.flatten(0, 1), "trace": jacobian.transpose(0, 1)}.get(str(outputs), jacobian[:, 0])
    # (s, rows, P)
    rows = rows if rows.dim() == 3 else rows[None]
    v = torch.randn(
        len(x),
        rows.shape[1] // len(x),
        generator=torch.Generator().manual_seed(1),
        dtype=x.dtype if x.is_floating_point() else torch.float64,
    )
    plan = structured.plan_for(network, x)
    assert plan.is_sparing
    for budget in (1, 1 << 30):
        factors = structured.FactoredJacobian(network, x, outputs, budget, plan)
        found = factors.pull(v)
        flat = torch.cat([found[k].flatten(1) for k in network.params], dim=1)
        truth = torch.einsum("skp,k->sp", rows, v.reshape(-1))
        assert torch.allclose(flat, truth, rtol=1e-10, atol=1e-12)
        image = torch.einsum("skp,sp->k", rows, truth)
        assert torch.allclose(factors.push(found).reshape(-1), image, rtol=1e-10, atol=1e-12)


class Odd(nn.Module):
    """An operation of its own that has no forward-mode derivative."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, g: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            out: torch.Tensor = 2 * x * g
            return out

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square: torch.Tensor = self.Square.apply(self.layer(x))  # type: ignore[no-untyped-call]
        return square.sum(dim=1, keepdim=True)


def test_without_forward_mode() -> None:
    torch.manual_seed(0)
    network = Network.from_module(Odd())
    x = torch.randn(5, 3, dtype=torch.float64)
    dense = ntk.empirical_ntk(network, x, engine="structured").matrix.numpy()
    v = np.arange(5.0)
    assert np.allclose(ntk.NTKOperator(network, x).matvec(v), dense @ v)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), k=st.integers(1, 4), seed=st.integers(0, 100), rank=st.integers(1, 40))
def test_lanczos_residuals_hold_an_eigenvalue(size: int, k: int, seed: int, rank: int) -> None:
    a = np.random.default_rng(seed).standard_normal((size, min(rank, size)))
    matrix = a @ a.T
    truth = np.linalg.eigvalsh(matrix)
    start = np.random.default_rng(seed + 1).standard_normal(size)
    slack = 1e-10 * truth[-1]
    for steps in (3, size):
        ritz = linalg.lanczos(lambda v: matrix @ v, start, k=k, steps=steps)
        for value, residual in zip(
            np.concatenate([ritz.low, ritz.high]),
            np.concatenate([ritz.low_residuals, ritz.high_residuals]),
            strict=True,
        ):
            assert np.abs(truth - value).min() <= residual + slack
        assert ritz.low[0] >= truth[0] - slack
        assert ritz.high[-1] <= truth[-1] + slack
    assert ritz.high[-1] == pytest.approx(truth[-1], rel=1e-8)


def test_spectrum_matrix_free_equals_dense() -> None:
    network, x = make("mlp-ntk-gelu-3")
    dense = ntk.kernel_spectrum(network, x, verify=True)
    free = ntk.kernel_spectrum(network, x, engine="operator")
    assert free.spectrum.method == "lanczos"
    assert free.spectrum.lambda_min == pytest.approx(dense.spectrum.lambda_min, rel=1e-8)
    assert free.spectrum.lambda_max == pytest.approx(dense.spectrum.lambda_max, rel=1e-10)
    assert free.spectrum.trace == pytest.approx(dense.spectrum.trace, rel=1e-12)
    assert dense.spectrum.lambda_min_lower is not None
    assert 0.9 * dense.spectrum.lambda_min < dense.spectrum.lambda_min_lower < dense.spectrum.lambda_min
    v = np.ones(dense.spectrum.size)
    products = [ntk.ntk_operator(network, x, engine=engine).matvec(v) for engine in ntk.ENGINES]
    assert all(np.allclose(p, products[0], rtol=1e-12) for p in products)


def test_with_room_for_few_vectors_the_low_end_goes_on_without_a_basis() -> None:
    torch.manual_seed(2)
    network = Network.from_module(build_model(ModelSpec(width=4, depth=1), (30,), 1))
    x = torch.randn(25, 30, dtype=torch.float64)
    truth = np.linalg.eigvalsh(ntk.empirical_ntk(network, x).matrix.numpy())
    least = ntk.kernel_spectrum(network, x, engine="operator", steps=6).spectrum
    seen: list[tuple[int, int]] = []
    # The least that is taken: four vectors.
    memory = (64 << 20) + 4 * network.parameter_count * 8 + 32 * 25 * 6
    found = ntk.kernel_spectrum(
        network, x, engine="operator", memory=memory, steps=300, progress=lambda d, m: seen.append((d, m))
    ).spectrum
    assert found.residual is not None
    assert np.abs(truth - found.lambda_min).min() <= found.residual + 1e-12
    assert found.lambda_min == pytest.approx(truth[0], rel=1e-6)
    assert least.lambda_min > 1.01 * truth[0]
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {most for _, most in seen[-3:]} == {300}


def test_too_little_memory_names_what_is_needed() -> None:
    network, x = make("mlp-softplus")
    needed = ntk.memory_needed(network, x)
    assert ntk.kernel_spectrum(network, x, memory=needed).engine == "structured"
    with pytest.raises(InputError, match="MiB"):
        ntk.empirical_ntk(network, x, memory=needed - 1)
    with pytest.raises(InputError, match="verified bound"):
        ntk.kernel_spectrum(network, x, engine="operator", verify=True)
    with pytest.raises(InputError, match="bounds no rounding"):
        ntk.empirical_ntk(network, x, engine="operator", bound_rounding=True)
    with pytest.raises(InputError, match="matrix-free"):
        ntk.kernel_spectrum(network, x, engine="operator", memory=1000)


def grown(case: str, engine: str, n: int, memory: int, verify: str = "plain") -> dict[str, int | str]:
    command = [sys.executable, "-m", "tests.ntk.memory_probe", case, engine, str(n), str(memory), verify]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    found: dict[str, int | str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "engine", "n", "mebibytes", "verify", "chosen"),
    [
        ("mlp", "auto", 4000, 250, "verify", "structured"),
        ("mlp", "auto", 6000, 300, "plain", "operator"),
        ("mlp", "jacobian", 100, 150, "plain", "jacobian"),
        ("resnet", "auto", 20, 800, "verify", "structured"),
    ],
)
def test_memory_is_a_promise(case: str, engine: str, n: int, mebibytes: int, verify: str, chosen: str) -> None:
    """Peak resident memory above the interpreter's, the model's and the data's own stays below what was given."""
    result = grown(case, engine, n, mebibytes << 20, verify)
    assert result["engine"] == chosen
    assert int(result["grown"]) < mebibytes << 20
