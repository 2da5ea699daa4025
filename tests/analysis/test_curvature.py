from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lplr_cli as lplr
from lplr_cli.analysis import HessianProbe, HessianSeries, hessian_along, open_subject, probe_hessian
from lplr_cli.curvature import Effort
from lplr_cli.errors import InputError
from lplr_cli.losses import SQUARED, Loss
from tests import foreign_nets
from tests.command import command
from tests.curvature import dense

WHOLE = Effort(eigenvalues=3, trace_vectors=200, density_vectors=2, density_steps=30, tolerance=1e-8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hessian")
    x, y = foreign_nets.table()
    np.savez(folder / "table.npz", inputs=x.double().numpy(), targets=y.double().numpy())
    lplr.train(
        str(folder / "table.npz"), folder / "r", width=6, depth=1, steps=30, probe_every=0, checkpoint_every=10,
        momentum=0.5, schedule="cosine", lr=0.05,
    )  # fmt: skip
    return folder / "r"


def test_a_run_against_the_dense_hessian(run: Path) -> None:
    record = probe_hessian(run, effort=WHOLE).record
    subject = open_subject(run)
    network = subject.network(torch.float64, torch.device("cpu"))
    x, y = subject.dataset.tensors()
    matrix = dense.hessian(network, x, y, SQUARED.values)
    inner = dense.gauss_newton(network, x, y, SQUARED.values)
    values = np.linalg.eigvalsh(matrix)
    assert [e["value"] for e in record["largest"]] == pytest.approx(values[:-4:-1], rel=1e-6)
    assert [e["value"] for e in record["smallest"]] == pytest.approx(values[:3], rel=1e-6)
    assert record["trace"]["exact"]
    assert record["trace"]["value"] == pytest.approx(np.trace(matrix), rel=1e-9)
    assert record["frobenius"]["value"] == pytest.approx(np.linalg.norm(matrix), rel=1e-9)
    assert record["gauss_newton"]["lambda_max"]["value"] == pytest.approx(np.linalg.eigvalsh(inner)[-1], rel=1e-7)
    assert record["gauss_newton"]["kernel"]["relative_difference"] < 1e-7
    rest = np.linalg.eigvalsh(matrix - inner)
    assert record["rest"]["lambda_min"]["value"] == pytest.approx(rest[0], rel=1e-6)
    assert record["rest"]["lambda_max"]["value"] == pytest.approx(rest[-1], rel=1e-6)
    weight = -values[values < 0].sum() / np.abs(values).sum()
    assert record["negative"]["weight"]["low"] <= weight <= record["negative"]["weight"]["high"]
    share = np.mean(values < record["negative"]["threshold"])
    assert record["negative"]["share"]["low"] <= share <= record["negative"]["share"]["high"]
    assert record["loss"]["value"] == pytest.approx(json.loads((run / "summary.json").read_text())["loss"]["final"])


def test_along_a_run_with_momentum_and_a_schedule(run: Path) -> None:
    series = hessian_along(run, every=20)
    table = series.table
    assert table["step"].tolist() == [0, 20, 30]
    single = probe_hessian(run, step=20).record
    assert table["sharpness"][1] == pytest.approx(single["lambda_max"]["value"], rel=1e-6)
    assert table["lambda_min"][1] == pytest.approx(single["lambda_min"]["value"], rel=1e-6)
    eta = 0.05 * 0.5 * (1 + np.cos(np.pi * 20 / 30))
    assert table["threshold"][1] == pytest.approx((2 + 2 * 0.5) / eta, rel=1e-9)
    assert single["stability"]["threshold"] == pytest.approx(table["threshold"][1])
    assert table["ratio"][1] == pytest.approx(table["sharpness"][1] / table["threshold"][1])
    assert series.record["rule"] == "(2 + 2β)/η, β = 0.5"
    assert series.record["ratio"]["max"] == table["ratio"].max()
    assert json.loads(json.dumps(series.record))["rows"][1]["step"] == 20


def cubic(f: Tensor, y: Tensor) -> Tensor:
    """A loss of somebody else's."""
    return ((f - y).abs() ** 3).sum(dim=1)


@pytest.mark.parametrize("loss", [Loss("cross-entropy"), Loss("bce", 0.5), cubic])
def test_weights_of_anyone_with_any_loss(loss: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = foreign_nets.mlp()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    x, y = foreign_nets.table()
    targets = torch.softmax(y.double(), dim=1)
    np.savez(tmp_path / "d.npz", inputs=x.double().numpy(), targets=targets.numpy())
    from lplr_cli.data import DataSpec

    source = lplr.Source(activation="tanh", data=DataSpec(str(tmp_path / "d.npz")))
    with pytest.raises(InputError, match="does not tell its loss"):
        probe_hessian(tmp_path / "w.pt", source=source)
    record = probe_hessian(tmp_path / "w.pt", source=source, loss=loss, effort=WHOLE).record  # type: ignore[arg-type]
    network = open_subject(tmp_path / "w.pt", source).network(torch.float64, torch.device("cpu"))
    values = loss.values if isinstance(loss, Loss) else cubic
    truth = np.linalg.eigvalsh(dense.hessian(network, x.double(), targets, values))
    assert record["lambda_max"]["value"] == pytest.approx(truth[-1], rel=1e-6)
    assert record["lambda_min"]["value"] == pytest.approx(truth[0], rel=1e-6)
    assert record["gauss_newton"]["kernel"] is None
    assert record["stability"]["ratio"] is None
    assert record["loss"]["known"] is isinstance(loss, Loss)


def test_a_subset_says_so(run: Path) -> None:
    record = probe_hessian(run, size=4, effort=Effort(trace_vectors=0, density_vectors=0)).record
    assert record["subset"]
    whole = probe_hessian(run, effort=Effort(trace_vectors=0, density_vectors=0)).record
    assert record["gauss_newton"]["lower_bound_full"] <= whole["gauss_newton"]["lambda_max"]["value"]
    assert record["trace"] is record["negative"] is record["density"] is None
    for wrong in (0, 11):
        with pytest.raises(InputError, match="out of range"):
            probe_hessian(run, size=wrong)


def test_the_command(run: Path, tmp_path: Path) -> None:
    done = command("probe-hessian", str(run), "--figure", str(tmp_path / "d.svg"), "--plot", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "λ_max(H), sharpness" in done.stdout
    assert "density of the Hessian's eigenvalues" in done.stdout
    assert (tmp_path / "d.svg").stat().st_size > 1000
    done = command("probe-hessian", str(run), "--every", "10", "--require", "ratio.max < 0.001", cwd=tmp_path)
    assert done.returncode == 1
    assert "ratio.max" in done.stderr
    done = command("probe-hessian", str(run), "--every", "10", "--format", "csv", cwd=tmp_path)
    assert done.stdout.splitlines()[0].startswith("step,loss,")
    assert len(done.stdout.splitlines()) == 5
    for wrong, said in (
        (["--loss", "bce"], "tells its own loss"),
        (["--tolerance", "2"], "--tolerance 2.0 is out of range"),
        (["--trace-vectors", "1"], "no standard error"),
        (["--every", "0"], "--every 0 is too small"),
        (["--memory", "1MiB"], "give more memory"),
    ):
        done = command("probe-hessian", str(run), *wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), wrong
        assert said in done.stderr


def test_code_of_a_loss_that_the_user_names(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(foreign_nets.mlp().state_dict(), tmp_path / "w.pt")
    (tmp_path / "mine.py").write_text("def huber(f, y):\n    e = (f - y).abs()\n    return e.square().sum(1)\n")
    arguments = ["--data", str(run.parent / "table.npz"), "--activation", "tanh", "--format", "json"]
    theirs = command("probe-hessian", "w.pt", *arguments, "--loss", "mine:huber", cwd=tmp_path)
    ours = command("probe-hessian", "w.pt", *arguments, "--loss", "squared", cwd=tmp_path)
    assert theirs.returncode == ours.returncode == 0, theirs.stderr + ours.stderr
    one, two = json.loads(theirs.stdout), json.loads(ours.stdout)
    assert one["lambda_max"] == pytest.approx(two["lambda_max"])
    assert one["loss"]["name"] == "huber"


def test_the_function_answers_as_the_command(run: Path) -> None:
    probe = lplr.probe_hessian(run)
    assert isinstance(probe, HessianProbe)
    assert list(probe.to_frame().columns) == ["eigenvalue", "density", "low", "high"]
    assert isinstance(lplr.probe_hessian(run, every=30), HessianSeries)
