"""The noise floor of runs of lplr's own and of recorded ones: predicted, kept, shown beside what the run does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lplr_cli.analysis import Source, conclude, kept_floor, noise_floor, read_log
from lplr_cli.audit.run import audit
from lplr_cli.data import DataSpec
from lplr_cli.diagnostics import analyse_rate
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, TrainConfig, train
from tests.command import command

N, SIZE = 40, 8
CODE = Source(data=DataSpec("tests.analysis.test_noise:regression"))


def regression() -> tuple[torch.Tensor, torch.Tensor]:
    """Forty samples of three inputs, with targets that no linear model meets."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 3, generator=generator).double()
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]]).double() + torch.randn(N, 1, generator=generator).double()


def excess(losses: np.ndarray) -> float:
    """Mean of the second half above the least-squares minimum of a model with bias."""
    x, y = (t.numpy() for t in regression())
    design = np.column_stack([x, np.ones(N)])
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(losses[len(losses) // 2 :].mean() - np.mean(rest**2))


def test_a_run_of_sgd_predicts_its_floor(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec("tests.analysis.test_noise:regression"), ModelSpec(depth=0), optimizer="sgd", batch_size=SIZE,
        lr=0.05, steps=None, epochs=200, probe_every=0,
    )  # fmt: skip
    run = train(config, tmp_path / "r").run
    summary = conclude(run, CODE)
    assert summary.noise is not None
    assert summary.noise.batch_size == SIZE
    assert summary.noise.end.snr is not None
    assert summary.noise.start.snr is not None
    assert summary.noise.start.snr > summary.noise.end.snr
    found = summary.noise_floor
    assert found is not None
    assert found.floor is not None
    assert (found.at, found.sampling) == ("epochs", "reshuffled")
    losses = run.log()["loss"].dropna().to_numpy()
    assert 0.4 < found.floor / excess(losses) < 2.5
    assert kept_floor(run) == found
    source = read_log(run.path)
    assert source.facts().noise_floor == found.floor
    notes = analyse_rate(source.series(), facts=source.facts()).notes
    assert any("noise of the mini-batches keeps the losses at the ends of epochs" in note for note in notes)
    row = audit(str(run.path), certificate=False)["noise"]
    assert row.holds is False
    assert "keeps the loss about" in row.reason


def test_a_recorded_run_is_asked_for_it(tmp_path: Path) -> None:
    """Logs of each batch's own loss lie higher than those of all data; the prediction knows which it is."""
    x, y = regression()
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    told = {"batch_size": SIZE, "sampling": "reshuffled", "schedule": "constant", "momentum": 0.0}
    with Recorder(
        module, tmp_path / "r", data=(x, y), loss_scale=1.0, optimizer=told, norms_every=50,
        dataset="tests.analysis.test_noise:regression",
    ) as recorder:  # fmt: skip
        for _ in range(400):
            for chosen in torch.split(torch.randperm(N), SIZE):
                optimizer.zero_grad()
                loss = (module(x[chosen]) - y[chosen]).square().mean()
                loss.backward()
                recorder.record(loss, optimizer)
                optimizer.step()
    done = command(
        "probe-hessian", "r", "--data", "tests.analysis.test_noise:regression", "--noise", "--trace-vectors", "0",
        "--density-vectors", "0", "--format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["noise_floor"]
    assert record["at"] == "own-batch"
    run = RunDirectory.open(tmp_path / "r")
    kept = kept_floor(run)
    assert kept is not None
    assert kept.floor is not None
    assert kept.floor == pytest.approx(record["floor"])
    assert 0.4 < kept.floor / excess(run.log()["loss"].dropna().to_numpy()) < 2.5


def test_runs_without_a_floor(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec("tests.analysis.test_noise:regression"), ModelSpec(depth=0), optimizer="sgd", batch_size=SIZE,
        lr=0.05, steps=None, epochs=2, probe_every=0,
    )  # fmt: skip
    cosine = conclude(train(config.with_(schedule="cosine"), tmp_path / "c").run, CODE)
    assert cosine.noise_floor is None
    with pytest.raises(InputError, match="schedule"):
        noise_floor(RunDirectory.open(tmp_path / "c"))
    descent = train(config.with_(optimizer="gd", steps=3, epochs=None), tmp_path / "d").run
    with pytest.raises(InputError, match="mini-batches"):
        noise_floor(descent)
