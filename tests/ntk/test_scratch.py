"""Kernels in a file give the numbers of kernels in memory, and leave the memory alone."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError, OutputError
from lplr_cli.linalg import lambda_min_lower, scratch
from lplr_cli.linalg.cholesky import cholesky
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, empirical_ntk, kernel_spectrum, spectrum, structured
from lplr_cli.ntk import kernel as kernel_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[1 << 14, 1 << 20], ids=["rows", "blocks"])
def resident(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So little memory that a kernel of a few hundred rows is walked over in many parts."""
    monkeypatch.setattr(scratch, "RESIDENT", request.param)
    chosen: int = request.param
    return chosen


def in_file(matrix: Tensor, folder: Path) -> Tensor:
    mapped = scratch.matrix_in_file(len(matrix), matrix.dtype, folder)
    mapped.copy_(matrix)
    return mapped


def kernel(n: int, condition: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with known eigenvalues, ascending."""
    g = torch.Generator().manual_seed(n)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    values = torch.logspace(-torch.log10(torch.tensor(condition)).item(), 0, n, dtype=torch.float64)
    matrix = (q * values) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype), values


@pytest.mark.parametrize("n", [3, 130, 517])
def test_the_spectrum_is_that_of_the_matrix_in_memory(n: int, resident: int, tmp_path: Path) -> None:
    matrix, values = kernel(n, 1e5)
    mapped = in_file(matrix, tmp_path)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    found = spectrum(mapped, extremal=1 if n < 10 else 3, full_limit=0, formation_error=0.0)
    assert found.lambda_min == pytest.approx(float(values[0]), rel=1e-8)
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-8)
    assert found.lambda_min_lower is not None
    assert 0.9 * values[0] < found.lambda_min_lower <= values[0] * (1 + 1e-9)
    assert torch.equal(mapped, matrix)  # restored bit by bit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocked_factorisations_solve(dtype: torch.dtype, resident: int, tmp_path: Path) -> None:
    matrix, _ = kernel(261, 50.0, dtype)
    mapped = in_file(matrix, tmp_path)
    b = torch.randn(261, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with cholesky(mapped, 0.001) as solve:
        assert solve is not None
        solution = solve(b)
    shifted = matrix - 0.001 * torch.eye(261, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    assert torch.allclose(shifted @ solution, b, atol=tolerance)
    with cholesky(mapped, 0.5) as solve:  # not positive definite
        assert solve is None
    assert torch.equal(mapped, matrix)
    assert lambda_min_lower(mapped, -1.0).value < 0


def test_indefinite_matrices_have_no_positive_bound(resident: int, tmp_path: Path) -> None:
    matrix, values = kernel(200, 10.0)
    matrix -= 0.3 * torch.eye(200, dtype=torch.float64)
    found = spectrum(in_file(matrix, tmp_path), full_limit=0, formation_error=0.0)
    truth = float(values[0]) - 0.3
    assert found.lambda_min == pytest.approx(truth, rel=1e-6)
    assert found.lambda_min_lower is not None
    assert found.lambda_min_lower <= truth


@pytest.mark.parametrize("case", ["mlp", "two outputs", "cnn"])
def test_kernels_are_formed_in_the_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of every kind: products, explicit rows, and positions."""
    monkeypatch.setattr(scratch, "RESIDENT", 1 << 16)
    torch.manual_seed(0)
    if case == "cnn":
        module: nn.Module = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
        )
        x = torch.randn(60, 1, 6, 6)
    else:
        module = build_model(ModelSpec(width=12, depth=2), (5,), 2 if case == "two outputs" else 1)
        x = torch.randn(150, 5)
    network = Network.from_module(module)
    direct = spectrum(empirical_ntk(network, x).matrix, full_limit=0, extremal=2)
    formed = structured.gram(network, network.cast(x), None, folder=tmp_path).matrix
    assert scratch.is_mapped(formed)
    assert torch.allclose(formed / len(x), empirical_ntk(network, x).matrix, atol=1e-12)
    # Through the public door: too little memory for K counts it as in a file.
    monkeypatch.setattr(kernel_module.Task, "kernel_bytes", 1 << 40)
    found = kernel_spectrum(network, x, folder=tmp_path, verify=True, extremal=2)
    assert found.spectrum.lambda_max == pytest.approx(direct.lambda_max, rel=1e-8)
    assert found.spectrum.lambda_min == pytest.approx(direct.lambda_min, rel=1e-5, abs=1e-12)
    with pytest.raises(InputError, match="needs 1024"):
        kernel_spectrum(network, x, verify=True)


def test_what_cannot_lie_in_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module.Task, "kernel_bytes", 1 << 40)
    network = Network.from_module(nn.Linear(3, 1).double())
    with pytest.raises(InputError, match="the jacobian engine"):
        kernel_spectrum(network, torch.randn(4, 3), engine="jacobian", folder=tmp_path)
    with pytest.raises(OutputError, match="no room for a matrix"):
        scratch.matrix_in_file(1 << 22, torch.float64, tmp_path)
    with pytest.raises(OutputError, match="no room"):
        scratch.matrix_in_file(2, torch.float64, tmp_path / "nowhere")


def test_the_file_ends_with_its_matrix(tmp_path: Path) -> None:
    gc.collect()
    before = len(scratch.MAPPED)
    matrix = scratch.matrix_in_file(8, torch.float64, tmp_path)
    view = matrix[2:, :3]
    assert scratch.is_mapped(view)
    del matrix
    gc.collect()
    assert scratch.is_mapped(view)
    del view
    gc.collect()
    assert len(scratch.MAPPED) == before


@pytest.mark.slow
def test_memory_is_kept_by_a_kernel_three_times_its_size(tmp_path: Path) -> None:
    """8,000 rows are 488 MiB; in memory and in a file the answers agree, and the peak stays below the promise."""
    script = str(ROOT / "tests" / "ntk" / "memory_probe.py")
    promise = 420 << 20
    answers = []
    for memory, where in ((2 << 30, []), (promise, [str(tmp_path)])):
        done = subprocess.run(
            [sys.executable, script, "mlp", "structured", "8000", str(memory), "verify", *where],
            capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        )  # fmt: skip
        answers.append(json.loads(done.stdout))
    direct, filed = answers
    assert filed["grown"] < promise < direct["grown"]
    assert filed["lambda_min"] == pytest.approx(direct["lambda_min"], rel=1e-4)
    assert 0 < filed["lower"] <= filed["lambda_min"]
