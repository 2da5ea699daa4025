from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lplr_cli as lplr
from lplr_cli.analysis import open_subject, predict_run, summarize
from lplr_cli.analysis.predicted_end import kept_prediction
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.ntk import Linearised, empirical_ntk, laziness_error
from lplr_cli.reporting.summary import summary_grid
from lplr_cli.runs import RunDirectory
from tests import foreign_nets
from tests.command import command


def trained(folder: Path, **options: Any) -> Path:
    x, y = foreign_nets.table()
    np.savez(folder / "table.npz", inputs=x.double().numpy(), targets=y.double().numpy())
    settings = {"width": 6, "depth": 1, "steps": 30, "probe_every": 0, "checkpoint_every": 10, "lr": 0.05, **options}
    return lplr.train(str(folder / "table.npz"), folder / "r", **settings).path


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "schedule": "cosine"}])
def test_a_linear_model_is_lazy_to_the_last_digit(options: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, depth=0, **options)
    found = predict_run(run)
    assert found.lazy is True
    assert [p.step for p in found.pieces] == [0, 10, 20]
    # Also from the middle, where the momentum has begun.
    assert max(p.error_to_end or 0.0 for p in found.pieces) < 1e-9
    assert found.kernel_change == pytest.approx(0.0, abs=1e-12)
    table = found.to_frame()
    np.testing.assert_allclose(table["predicted"], table["loss"], rtol=1e-9)
    others = np.random.default_rng(0).standard_normal((4, 5))
    subject = open_subject(run)
    with torch.no_grad():
        after = subject.module(torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(lplr.predict_outputs(run, others), after, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_mini_batches_follow_the_full_ones_in_the_mean(momentum: float, tmp_path: Path) -> None:
    """A linear model by small steps over shuffled batches: near the recursion, which half the steps would not be."""
    options = {"optimizer": "sgd", "batch_size": 5, "steps": None, "epochs": 60, "lr": 2e-3, "momentum": momentum}
    run = trained(tmp_path, depth=0, **options)
    with pytest.raises(InputError, match="the optimiser is sgd"):
        predict_run(run)
    found = predict_run(run, mean=True, pieces=2)
    losses = found.descent.loss[~np.isnan(found.descent.loss)]
    assert len(losses) == 61
    assert losses[-1] < 0.8 * losses[0]
    assert all(0 < (p.error_to_end or 0.0) < 0.01 for p in found.pieces)
    half = Linearised(found.start, 1.0, momentum).losses(found.descent.steps / 2)
    assert (laziness_error(found.descent.loss, half) or 0.0) > 0.1
    assert found.pieces[0].alignment == found.start.alignment


def test_a_network_against_the_recursion_by_hand(tmp_path: Path) -> None:
    run = trained(tmp_path)
    found = lplr.predict(run, pieces=1)
    subject = open_subject(run, step=0)
    network = subject.network(torch.float64, torch.device("cpu"))
    x, y = subject.dataset.tensors()
    kernel = empirical_ntk(network, x).matrix.numpy()
    r = (network.forward(x) - y).detach().reshape(-1).numpy()
    losses = [r @ r / 10]
    for _ in range(30):
        r = r - 2 * 0.05 * kernel @ r
        losses.append(r @ r / 10)
    np.testing.assert_allclose(found.to_frame()["predicted"], losses, rtol=1e-10)
    measured = found.descent.loss
    error = np.abs(np.log(losses) - np.log(measured)).max()
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.lazy is bool(error < np.log(1.1))
    end = open_subject(run)
    last = empirical_ntk(end.network(torch.float64, torch.device("cpu")), x).matrix.numpy()
    assert found.kernel_change == pytest.approx(np.linalg.norm(last - kernel, 2) / np.linalg.norm(kernel, 2), rel=1e-8)
    directions = found.directions()
    assert directions["rate"][0] == pytest.approx((1 - 2 * 0.05 * directions["eigenvalue"][0]) ** 2)
    # What training has kept of it for its closing table.
    directory = RunDirectory.open(run)
    kept = kept_prediction(directory)
    assert kept is not None
    assert kept.step == 30
    assert kept.predicted == pytest.approx(losses[-1], rel=1e-10)
    assert kept.measured == measured[-1]
    assert kept.error == pytest.approx(error, rel=1e-9)
    assert kept.lazy == found.lazy
    assert (kept.directions_start, kept.directions_end) == (found.start.directions(), found.end.directions())
    assert ("last loss that K_0 predicts", f"{losses[-1]:.4g}") in [
        (row[0], row[1]) for row in summary_grid(summarize(directory)).rows
    ]
    record = json.loads((run / "prediction.json").read_text())
    for wrong in ({"step": "30"}, {"measured": None}, {"log": "another"}):
        (run / "prediction.json").write_text(json.dumps({**record, **wrong}))
        assert kept_prediction(directory) is None
    assert len(found.pieces) == 1
    assert found.pieces[0].until == 30


def test_what_no_kernel_predicts_is_refused_with_its_reason(tmp_path: Path) -> None:
    run = trained(tmp_path, optimizer="sgd", batch_size=5)
    with pytest.raises(InputError, match="the optimiser is sgd"):
        predict_run(run)
    model = torch.nn.Linear(5, 2)
    x, y = foreign_nets.table()
    for loss, said in ((Loss("cross-entropy"), "loss"), (Loss("squared", 0.5), "optimiser")):
        recorder = lplr.Recorder(model, tmp_path / said, loss=loss, checkpoint_every=1)
        optimizer = torch.optim.Adam(model.parameters())
        with recorder:
            value = loss.total(model(x), y, len(x))
            value.backward()  # type: ignore[no-untyped-call]
            recorder.record(value, optimizer)
            optimizer.step()
        with pytest.raises(InputError, match=f"no prediction for .*{said}"):
            predict_run(tmp_path / said)
    own = trained_in(tmp_path / "own")
    with pytest.raises(InputError, match="MiB"):
        predict_run(own, memory=1 << 20)
    rows = (own / "log.csv").read_text().splitlines(keepends=True)
    far = [rows[0], *(f"{10**15 + k}{row[row.index(',') :]}" for k, row in enumerate(rows[1:]))]
    shuffled = [*rows[:-2], rows[-1], rows[-2]]
    for wrong, said in ((far, "ends at step 1,000,"), (shuffled, "out of order")):
        (own / "log.csv").write_text("".join(wrong))
        with pytest.raises(InputError, match=said):
            predict_run(own)
    (own / "log.csv").write_text("".join(rows))
    (own / "checkpoints" / "step-000000.pt").unlink()
    with pytest.raises(InputError, match="no checkpoint of its start"):
        predict_run(own)


def trained_in(folder: Path) -> Path:
    folder.mkdir()
    return trained(folder)


def test_the_command(tmp_path: Path) -> None:
    run = trained(tmp_path)
    arguments = ["probe-ntk", "r", "--predict", "--figure", "p.svg", "--format", "json"]
    done = command(*arguments, "--require", "prediction.laziness_error < 1e-9", cwd=tmp_path)
    assert done.returncode == 1
    assert "prediction.laziness_error" in done.stderr
    prediction = json.loads(done.stdout)["prediction"]
    assert prediction == json.loads(json.dumps(lplr.predict(run).to_dict()))
    shown = command("probe-ntk", "r", "--predict", cwd=tmp_path)
    assert "Residual at the start by eigendirection" in shown.stdout
    table = command("probe-ntk", "r", "--predict", "--format", "csv", cwd=tmp_path)
    assert table.stdout.splitlines()[0] == "step,loss,predicted,predicted_piecewise"
    assert len(table.stdout.splitlines()) == 32
    for wrong in (["--size", "3"], ["--outputs", "0"], ["--pieces", "0"]):
        assert command("probe-ntk", "r", "--predict", *wrong, cwd=tmp_path).returncode == 2
    checkpoint = "r/checkpoints/step-000000.pt"
    assert command("probe-ntk", checkpoint, "--predict", cwd=tmp_path).returncode == 2
    assert command("probe-ntk", "r", "--figure", "q.svg", cwd=tmp_path).returncode == 2
