"""K in tiles by tasks, in this process: the same kernel, the same bound, the same eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lplr_cli import ntk
from lplr_cli.errors import InputError
from lplr_cli.linalg.tasks import Here
from lplr_cli.ntk import structured
from lplr_cli.ntk.tiled import tiled_kernel
from tests.cases import CASES, dense_jacobian, make

RULED = [name for name, case in CASES.items() if not case.fallback]


@pytest.mark.parametrize("outputs", ["full", "trace", 0])
@pytest.mark.parametrize("name", RULED)
def test_tiles_are_the_kernel(name: str, outputs: str | int) -> None:
    network, x = make(name)
    jacobian = dense_jacobian(network, x)
    rows = {"full": jacobian.flatten(0, 1), "trace": jacobian.flatten(1)}.get(str(outputs), jacobian[:, 0])
    truth = rows @ rows.T / len(x)
    plan = structured.plan_for(network, x)
    formed = tiled_kernel(network, x, plan, Here(), outputs, 1 << 30, True, samples=2)
    found = formed.matrix.gathered()
    assert torch.allclose(found, truth, rtol=0, atol=1e-13 * float(truth.abs().max()))
    assert torch.equal(formed.matrix.diagonal(), found.diagonal())
    assert formed.formation_error is not None
    assert torch.linalg.matrix_norm(found - truth, 2) <= formed.formation_error + 1e-14 * truth.trace()
    whole = ntk.empirical_ntk(network, x, outputs=outputs, bound_rounding=True)
    assert whole.formation_error is not None
    # Blocks choose the forms of their terms by their own number of samples.
    assert 0.2 * whole.formation_error < formed.formation_error < 5 * whole.formation_error
    v = np.random.default_rng(0).standard_normal((len(truth), 2))
    assert np.allclose(formed.matrix.product(v), truth.numpy() @ v, atol=1e-12 * float(truth.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_many_samples_are_symmetric(dtype: torch.dtype) -> None:
    """From 128 rows on half of a product is left out, and made of the other half."""
    network, few = make("mlp-softplus", dtype)
    x = torch.randn((160, few.shape[1]), generator=torch.Generator().manual_seed(1)).to(dtype)
    formed = tiled_kernel(network, x, structured.plan_for(network, x), Here(), "full", 1 << 30, False, samples=140)
    found, whole = formed.matrix.gathered(), ntk.empirical_ntk(network, x).matrix
    assert found.dtype == dtype
    assert torch.equal(found, found.T)
    assert torch.allclose(found, whole, rtol=0, atol=64 * torch.finfo(dtype).eps * float(whole.max()))


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("name", ["mlp-ntk-gelu-3", "convnet", "lookups", "shared"])
def test_magnitudes_are_those_of_all_samples_together(
    name: str, outputs: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over samples, whatever block they came in: with one γ for all lengths nothing else is in the bound."""
    network, x = make(name)
    monkeypatch.setattr("lplr_cli.ntk.structured.rounding.gamma", lambda k, dtype: 0.5)
    whole = ntk.empirical_ntk(network, x, outputs=outputs, bound_rounding=True)
    plan = structured.plan_for(network, x)
    for samples in (2, len(x)):
        formed = tiled_kernel(network, x, plan, Here(), outputs, 1 << 30, True, samples=samples)
        assert formed.formation_error == pytest.approx(whole.formation_error, rel=1e-12)
    assert tiled_kernel(network, x, plan, Here(), outputs, 1 << 30, False).formation_error is None


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["mlp-softplus", "mlp-ntk-gelu-3"])
def test_the_spectrum_by_tasks_is_that_of_one_process(name: str, verify: bool) -> None:
    network, x = make(name)
    alone = ntk.kernel_spectrum(network, x, verify=verify).spectrum
    tiled = ntk.kernel_spectrum(network, x, verify=verify, tasks=Here())
    found = tiled.spectrum
    assert (tiled.engine, found.method) == ("structured", "cholesky+lanczos")
    assert found.lambda_min == pytest.approx(alone.lambda_min, rel=1e-9)
    assert found.lambda_max == pytest.approx(alone.lambda_max, rel=1e-12)
    assert found.trace == pytest.approx(alone.trace, rel=1e-13)
    assert (found.lower is None) == (alone.lower is None) == (not verify)
    if verify:
        assert found.lower is not None
        formed = tiled_kernel(network, x, structured.plan_for(network, x), Here(), "full", 1 << 30, True)
        assert found.lower.formation_error == formed.formation_error
        assert alone.lambda_min_lower is not None
        assert found.lambda_min_lower is not None
        assert 0.9 * alone.lambda_min < found.lambda_min_lower < alone.lambda_min


def test_what_tasks_cannot_serve_is_refused() -> None:
    network, x = make("mlp-softplus")
    with pytest.raises(InputError, match="the jacobian engine"):
        ntk.kernel_spectrum(network, x, engine="jacobian", tasks=Here())
    with pytest.raises(InputError, match="MiB for a single sample"):
        ntk.kernel_spectrum(network, x, memory=(64 << 20) + 100, tasks=Here())
    tied, tokens = make("transformer")
    with pytest.raises(InputError, match="not position"):
        ntk.kernel_spectrum(tied, tokens, tasks=Here())
