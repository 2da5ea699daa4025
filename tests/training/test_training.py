from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lplr_cli import ntk
from lplr_cli.analysis import conclude, open_subject, probe_checkpoint, summarize
from lplr_cli.certificate import estimate_constants
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.losses import SQUARED
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig, resume, train
from lplr_cli.training.trainer import Trainer

SMALL = TrainConfig(
    DataSpec("mnist", samples=24), ModelSpec(width=6, depth=2), lr=0.02, steps=12, probe_every=4, checkpoint_every=5
)


def logs(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    log, probes = pd.read_csv(path / "log.csv"), pd.read_csv(path / "probes.csv")
    return log.drop(columns="seconds"), probes.drop(columns="seconds")


def by_hand(config: TrainConfig) -> list[dict[str, float]]:
    """The same run in a few lines of plain torch."""
    data = load_dataset(config.data)
    x, y = torch.tensor(data.inputs), torch.tensor(data.targets)
    model = build_model(config.model, data.inputs.shape[1:], data.outputs, seed=config.seed)
    start = [p.detach().clone() for p in model.parameters()]
    assert config.lr is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    total = config.total_steps(data.n)
    rows = []
    for step in range(total + 1):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum() / len(x)
        loss.backward()
        rows.append(
            {
                "loss": loss.item(),
                "grad_norm_sq": sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None),
                "drift": math.sqrt(
                    sum(float((p.detach() - q).square().sum()) for p, q in zip(model.parameters(), start, strict=True))
                ),
            }
        )
        if config.schedule == "cosine":
            optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / total))
        optimizer.step()
    return rows


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.9}, {"schedule": "cosine"}, {"micro_batch": 7}])
def test_log_equals_a_loop_written_by_hand(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = SMALL.with_(**changes)
    outcome = train(config, tmp_path / "r")
    assert outcome.status == "finished"
    log, _ = logs(tmp_path / "r")
    for column in ("loss", "grad_norm_sq", "drift"):
        assert np.allclose(log[column], [row[column] for row in by_hand(config)], rtol=1e-10, atol=1e-14)


def test_probe_rows_against_the_kernel(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "r")
    log, probes = logs(tmp_path / "r")
    assert probes["step"].tolist() == [0, 4, 8, 12]
    end, start = (open_subject(tmp_path / "r", step=step) for step in (12, 0))
    x = torch.tensor(end.dataset.inputs)
    network, first = (ntk.Network.from_module(subject.module) for subject in (end, start))
    kernel, kernel0 = ntk.empirical_ntk(network, x).matrix, ntk.empirical_ntk(first, x).matrix
    row = probes.iloc[-1]
    values = torch.linalg.eigvalsh(kernel)
    assert row["lambda_min"] == pytest.approx(float(values[0]), rel=1e-8)
    assert row["lambda_min_lower"] <= row["lambda_min"]
    assert row["ntk_change"] == pytest.approx(float(torch.linalg.matrix_norm(kernel - kernel0, 2)), rel=1e-10)
    # The identity of theory.md section 1 joins the log and the probe.
    last = log.iloc[-1]
    assert 0.5 * last["grad_norm_sq"] / last["loss"] == pytest.approx(2 * row["residual_rayleigh"], rel=1e-9)
    assert last["grad_norm_sq"] == pytest.approx(row["kernel_grad_norm_sq"], rel=1e-9)
    assert probes["ntk_change"][0] == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "batch_size": 10, "momentum": 0.9, "schedule": "cosine", "dtype": "float32"},
    ],
)
def test_same_seed_same_log_and_resume_is_bit_identical(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = SMALL.with_(**changes)
    for name in ("a", "b"):
        train(config, tmp_path / name)
    for one, two in zip(logs(tmp_path / "a"), logs(tmp_path / "b"), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)

    def stop(progress: Any) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = train(config, tmp_path / "c", on_progress=stop)
    assert outcome.status == "interrupted"
    assert (tmp_path / "c" / "log.parquet").exists()
    assert outcome.run.config()["status"] == "interrupted"
    assert resume(tmp_path / "c").status == "finished"
    for one, two in zip(logs(tmp_path / "a"), logs(tmp_path / "c"), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    # A finished run without its summary is summarised by a resume, once.
    assert resume(tmp_path / "c").status == "finished"
    conclude(RunDirectory.open(tmp_path / "c"), patience=None)
    with pytest.raises(InputError, match="nothing to resume"):
        resume(tmp_path / "c")


def test_resume_after_a_kill_drops_rows_beyond_the_checkpoint(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "a")
    run = train(SMALL, tmp_path / "b").run
    (tmp_path / "b" / "checkpoints" / "step-000012.pt").unlink()
    (tmp_path / "b" / "checkpoints" / "step-000010.pt").write_bytes(b"torn")
    with run.log_path.open("a") as stream:
        stream.write("13,13,0.5")
    run.set_status("running")
    assert resume(tmp_path / "b").status == "finished"
    for one, two in zip(logs(tmp_path / "a"), logs(tmp_path / "b"), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_sgd_logs_exact_values_each_epoch(tmp_path: Path) -> None:
    config = SMALL.with_(optimizer="sgd", batch_size=10, steps=None, epochs=3, lr=0.005)
    train(config, tmp_path / "r")
    log, _ = logs(tmp_path / "r")
    assert log["step"].tolist() == list(range(10))
    assert log.loc[log["loss"].notna(), "step"].tolist() == [0, 3, 6, 9]
    data = load_dataset(config.data)
    network = ntk.Network.from_module(open_subject(tmp_path / "r", step=9).module)
    loss = SQUARED.total(network.forward(torch.tensor(data.inputs)), torch.tensor(data.targets), data.n)
    assert log["loss"].iloc[-1] == pytest.approx(loss.item(), rel=1e-12)


def test_divergence_keeps_everything_and_names_the_step_size(tmp_path: Path) -> None:
    outcome = train(SMALL.with_(lr=50.0), tmp_path / "r")
    assert outcome.status == "diverged"
    assert "exceeds 2/sharpness" in outcome.message
    assert outcome.run.config()["status"] == "diverged"
    assert len(outcome.run.log()) >= 2
    assert summarize(outcome.run).manifest.status == "diverged"


def test_auto_step_size_is_one_over_sharpness(tmp_path: Path) -> None:
    run = train(SMALL.with_(lr=None), tmp_path / "r").run
    probes = run.probes()
    assert run.config()["config"]["lr"] == pytest.approx(1 / probes["sharpness"][0], rel=1e-3)
    assert (np.diff(run.log()["loss"]) < 0).all()


def test_linear_model_has_known_constants(tmp_path: Path) -> None:
    """Depth 0: K constant, so L_K = L_J = 0, μ = 2 λ0, and the PL ratio is between 2 λ_min and 2 λ_max."""
    config = SMALL.with_(depth=0, lr=0.01, steps=60, probe_every=20)
    run = train(config, tmp_path / "r").run
    data = load_dataset(config.data)
    values = np.linalg.eigvalsh((data.inputs @ data.inputs.T + 1) / data.n)
    summary = summarize(run).to_dict()
    assert summary["lambda_min"]["initial"] == pytest.approx(values[0], rel=1e-8)
    assert summary["lipschitz"]["L_K_estimated"] == pytest.approx(0, abs=1e-10)
    assert summary["compatibility"]["holds"] is True
    assert summary["mu_estimated"] == pytest.approx(2 * values[0], rel=1e-6)
    assert 2 * values[0] <= summary["pl_ratio_star"]["min"] <= 2 * values[-1]
    assert summary["mu_certified"] is None
    # r_{t+1} = (I - 2 η K) r_t exactly.
    kernel = (data.inputs @ data.inputs.T + 1) / data.n
    network = ntk.Network.from_module(build_model(config.model, (784,), 1))
    r = (network.forward(torch.tensor(data.inputs)).detach().numpy() - data.targets)[:, 0]
    for loss in run.log()["loss"]:
        assert loss == pytest.approx(float(r @ r) / data.n, rel=1e-9)
        r = r - 2 * 0.01 * kernel @ r


def test_subset_probe_bounds_the_full_one_from_above(tmp_path: Path) -> None:
    run = train(SMALL.with_(probe_size=8, steps=2), tmp_path / "r").run
    summary = summarize(run).to_dict()
    assert summary["probe"]["subset"] is True
    full = probe_checkpoint(tmp_path / "r" / "checkpoints" / "step-000000.pt", verify=True).record
    assert full["subset"] is False
    assert full["lambda_min"]["value"] <= summary["lambda_min"]["upper_bound_full"] * (1 + 1e-9)
    assert full["lambda_min"]["lower"] <= full["lambda_min"]["value"]
    assert "subset" in summary["verdict"]


def test_estimates_by_hand() -> None:
    log = pd.DataFrame({"step": [0, 1, 2], "drift": [0.0, 0.1, 0.2]})
    probes = pd.DataFrame(
        {"step": [0, 2], "lambda_min": [1.0, 0.9], "ntk_change": [0.0, 0.4], "jacobian_change": [0.0, 0.1]}
    )
    e = estimate_constants(log, probes, loss_scale=0.5)
    assert e.l_k == pytest.approx(2.0)
    assert e.l_j == pytest.approx(0.5)
    assert e.radius == 0.2
    assert e.mu_kernel == pytest.approx(1.0 - 0.4)
    assert e.mu_jacobian == pytest.approx((1 - 0.1) ** 2)
    assert e.compatible is True
    assert estimate_constants(log, pd.DataFrame(), 1.0).lambda_0 is None


def test_bad_configurations(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1.0}, "--lr"),
        ({"momentum": 1.0}, "--momentum"),
        ({"epochs": 3}, "exclude each other"),
        ({"steps": 0}, "--steps"),
        ({"optimizer": "adam"}, "--optimizer"),
        ({"probe_size": "some"}, "--probe-size"),
    ]
    for changes, message in wrong:
        with pytest.raises(InputError, match=message):
            SMALL.with_(**changes)
    unfit: list[tuple[dict[str, Any], str]] = [
        ({"probe_size": 25}, "exceeds the 24 samples"),
        ({"device": "cuda:99"}, "device"),
        ({"model": ModelSpec(kind="resnet", width=8)}, "takes images"),
    ]
    for changes, message in unfit:
        with pytest.raises(InputError, match=message):
            train(SMALL.with_(**changes), tmp_path / "r")
        assert not (tmp_path / "r").exists()
    assert TrainConfig.from_dict(SMALL.to_dict()) == SMALL


def test_changed_data_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, inputs=np.eye(4), targets=np.arange(4.0))
    config = TrainConfig(DataSpec(str(path)), ModelSpec(width=3, depth=1), lr=0.1, steps=3)
    train(config, tmp_path / "r")
    np.savez(path, inputs=2 * np.eye(4), targets=np.arange(4.0))
    with pytest.raises(InputError, match="changed since"):
        probe_checkpoint(tmp_path / "r")


@pytest.mark.parametrize(
    ("width", "lr", "low", "high"),
    [
        pytest.param(128, 5e-4, 0.12, 0.27, marks=pytest.mark.slow),
        pytest.param(512, 5e-4, 0.12, 0.27, marks=pytest.mark.slow),
        pytest.param(1024, 2.5e-4, 0.08, 0.17, marks=pytest.mark.slow),
    ],
)
def test_paper_runs_that_stay(tmp_path: Path, width: int, lr: float, low: float, high: float) -> None:
    config = TrainConfig(
        DataSpec("mnist"), ModelSpec(width=width), lr=lr, probe_size=100, probe_every=250, checkpoint_every=0
    )
    summary = summarize(train(config, tmp_path / "r").run).to_dict()
    assert low <= summary["drift"]["final"] <= high
    assert abs(summary["lambda_min"]["final"] / summary["lambda_min"]["initial"] - 1) < 0.15


@pytest.mark.slow
def test_paper_run_that_leaves(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec("mnist"), ModelSpec(width=1024), lr=5e-4, steps=12, probe_size=100, probe_every=12, checkpoint_every=0
    )
    run = train(config, tmp_path / "r").run
    summary = summarize(run).to_dict()
    # The jump's height depends on the seed (0.55 to 1.1 over four seeds); that it comes, and when, does not.
    assert 0.45 <= run.log()["drift"][10] <= 1.2
    assert summary["lambda_min"]["final"] < 0.5 * summary["lambda_min"]["initial"]
    assert summary["sharpness"]["lr_over_stable"] > 1


def test_sgd_logs_the_noise_of_single_samples(tmp_path: Path) -> None:
    """tr Σ from the gradients of random parts, against every sample's own gradient."""
    config = SMALL.with_(optimizer="sgd", batch_size=10, steps=None, epochs=2, lr=0.005)
    outcome = train(config, tmp_path / "r")
    log = outcome.run.log()
    assert log.loc[log["noise_trace"].notna(), "step"].tolist() == log.loc[log["loss"].notna(), "step"].tolist()
    trainer = Trainer(config, load_dataset(config.data))
    rows = []
    for x, y in zip(trainer.inputs, trainer.targets, strict=True):
        trainer.flat.grad.zero_()
        SQUARED.total(trainer.module(x[None]), y[None], 1).backward()  # type: ignore[no-untyped-call]
        rows.append(trainer.flat.grad.clone())
    gradients = torch.stack(rows)
    exact = float((gradients - gradients.mean(dim=0)).square().sum() / len(gradients))
    square = float(gradients.mean(dim=0).square().sum())
    found = [trainer.noise_trace(step, square) for step in range(100)]
    assert np.mean(found) == pytest.approx(exact, rel=4 * np.std(found) / np.sqrt(100) / exact)
    assert float(np.mean(found)) == pytest.approx(exact, rel=0.1)
    assert log["noise_trace"].iloc[0] == pytest.approx(found[0], rel=1e-12)
    # Full batches have none, and one batch that is all data neither.
    assert "noise_trace" not in train(SMALL.with_(steps=2), tmp_path / "gd").run.log()
