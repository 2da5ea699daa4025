"""Everything on a CUDA device against the CPU in float64. Without one the same runs on the CPU alone, so that the suite
itself is known to work, and the rest is skipped with a reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lplr_cli as lplr
from lplr_cli import ntk
from lplr_cli.curvature import LossCurvature, sharpness
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network
from lplr_cli.training import Recorder
from tests.cases import CASES, make

ABSENT = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, ABSENT])]


def on(device: str, name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, torch.Tensor]:
    network, x = make(name, dtype)
    there = Network.from_module(network.module, dtype=dtype, device=device)
    return there, there.cast(x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_engines(device: str, name: str) -> None:
    truth = ntk.empirical_ntk(*make(name)).matrix
    network, x = on(device, name)
    for engine in ("structured", "jacobian"):
        kernel = ntk.empirical_ntk(network, x, engine=engine)
        assert kernel.matrix.device.type == device
        assert torch.allclose(kernel.matrix.cpu(), truth, rtol=1e-10, atol=1e-12 * float(truth.abs().max()))
    v = np.random.default_rng(0).standard_normal(len(truth))
    image = ntk.NTKOperator(network, x).matvec(v)
    np.testing.assert_allclose(image, truth.numpy() @ v, rtol=1e-9, atol=1e-11 * float(truth.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_spectrum_and_its_bound(device: str) -> None:
    alone = ntk.kernel_spectrum(*make("mlp-ntk-gelu-3"), verify=True).spectrum
    found = ntk.kernel_spectrum(*on(device, "mlp-ntk-gelu-3"), verify=True).spectrum
    assert found.lambda_min == pytest.approx(alone.lambda_min, rel=1e-9)
    assert found.lambda_max == pytest.approx(alone.lambda_max, rel=1e-12)
    assert found.lambda_min_lower is not None
    # The factorisation behind the bound is the CPU's (docs/theory.md, section 7).
    assert found.lambda_min_lower <= alone.lambda_min * (1 + 1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_curvature(device: str) -> None:
    loss = Loss("cross-entropy")
    values = []
    for place in ("cpu", device):
        network, x = on(place, "mlp-ntk-gelu-3")
        y = torch.eye(3, dtype=torch.float64)[torch.arange(len(x)) % 3]
        curvature = LossCurvature(network, x, y, loss.values)
        v = np.random.default_rng(1).standard_normal(curvature.size)
        values.append((curvature.hessian(v), curvature.gauss_newton(v), sharpness(network, x, y, loss=loss).value))
    for one, two in zip(*values, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_training_and_what_is_certified_of_it(device: str, tmp_path: Path) -> None:
    options = {"width": 8, "depth": 1, "samples": 12, "steps": 6, "lr": 0.01, "probe_size": 4, "probe_every": 3}
    runs = [lplr.train("mnist", tmp_path / place / "r", device=place, **options) for place in {"cpu": 0, device: 0}]
    logs = [pd.read_parquet(run.path / "log.parquet") for run in runs]
    for column in ("loss", "grad_norm_sq", "drift"):
        np.testing.assert_allclose(logs[-1][column], logs[0][column], rtol=1e-9, atol=1e-12)
    again = lplr.train("mnist", tmp_path / "again" / "r", device=device, **options)
    assert pd.read_parquet(again.path / "log.parquet")["loss"].tolist() == logs[-1]["loss"].tolist()
    # Certified numbers hold where the model of rounding does, or are refused: never those of another arithmetic.
    try:
        found = lplr.certify_path(runs[-1].path).figures
    except InputError:
        assert device == "cuda"
    else:
        reference = lplr.certify_path(runs[0].path).figures
        assert found.certified_share == pytest.approx(reference.certified_share, rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_loop(device: str, tmp_path: Path) -> None:
    module = build_model(ModelSpec(width=8, depth=1), (5,), 1).to(device)
    x = torch.rand((16, 5), dtype=torch.float64, device=device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    with Recorder(module, tmp_path / "r", norms_every=1, data=(x, x[:, :1]), probe_every=2, probe_size=4) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            loss = (module(x) - x[:, :1]).square().mean()
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
    log = pd.read_parquet(tmp_path / "r" / "log.parquet")
    assert len(log) == 4
    assert log["loss"].is_monotonic_decreasing
    assert (log["drift"].iloc[1:] > 0).all()


@pytest.mark.cuda
@ABSENT
def test_the_memory_of_the_device_is_a_promise() -> None:
    network = Network.from_module(build_model(ModelSpec(width=128), (784,), 1), device="cuda")
    x = torch.rand((4000, 784), dtype=torch.float64, device="cuda")
    ntk.kernel_spectrum(network, x[:10])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    memory = 400 << 20
    ntk.kernel_spectrum(network, x, memory=memory)
    assert torch.cuda.max_memory_allocated() - before < memory


@pytest.mark.cuda
@ABSENT
def test_results_repeat_bit_by_bit() -> None:
    network, x = on("cuda", "mlp-ntk-gelu-3")
    one, two = (ntk.empirical_ntk(network, x).matrix for _ in range(2))
    assert torch.equal(one, two)
