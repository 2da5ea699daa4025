"""Paths of whole runs: replay, checkpoints of every step, what a run keeps, and what the commands make of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lplr_cli import audit
from lplr_cli.analysis import (
    PathFigures,
    Source,
    certify_path,
    conclude,
    keep,
    kept_path,
    run_facts,
    summarize,
    why_no_path,
)
from lplr_cli.certificate import CertifiedCurvature
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, TrainConfig, resume, train
from lplr_cli.training.objective import Objective
from tests.command import command

SMALL = TrainConfig(
    DataSpec("mnist", samples=12),
    ModelSpec(width=4, depth=2),
    lr=0.004,
    steps=6,
    probe_every=3,
    checkpoint_every=2,
    probe_sharpness=False,
)
CONTRACT = {
    "certified_share",
    "first_step",
    "last_step",
    "steps_certified",
    "mu_path",
    "mu_path_star",
    "radius",
    "l_star_lower",
    "l_star_upper",
    "beta_max",
    "eta_beta_max",
    "rate_proved",
    "pieces",
    "balls",
    "kind",
    "not_certified",
    "eta_mu_t",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return train(SMALL, tmp_path_factory.mktemp("path") / "run").run


def test_a_run_is_replayed_bit_by_bit_and_certified(run: RunDirectory) -> None:
    found = certify_path(run)
    p = found.figures
    assert p.kind == "certified"
    assert p.certified_share == 1.0
    assert p.agreement.startswith("replayed: all 7 logged losses agree")
    assert p.confirmed
    assert p.mu_path_star is not None
    assert p.measured_star is not None
    log = run.log()
    measured = float((log["grad_norm_sq"] / (2 * log["loss"])).min())
    assert p.measured_star <= measured * (1 + 1e-12)
    assert 0.85 * p.measured_star <= p.mu_path_star <= p.measured_star
    assert p.rate_from_step == 0
    assert p.kernel_tube is not None
    assert [k["step"] for k in p.kernel_tube] == run.checkpoint_steps()
    assert list(found.to_frame()["step"]) == list(range(6))


def test_stretches_and_their_ends(run: RunDirectory) -> None:
    part = certify_path(run, first=3, last=5, kernel=False).figures
    assert (part.first_step, part.last_step, part.steps) == (3, 5, 2)
    for first, last in ((5, 5), (4, 2), (0, 7), (-1, 3)):
        with pytest.raises(InputError, match="stretch"):
            certify_path(run, first=first, last=last)


def test_an_interrupted_run_has_the_certificate_of_an_uninterrupted_one(run: RunDirectory, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, tmp_path / "r", on_progress=stop)
    resumed = resume(tmp_path / "r").run
    assert certify_path(resumed).figures == certify_path(run).figures


def test_what_a_run_keeps_is_that_of_its_own_log(run: RunDirectory, tmp_path: Path) -> None:
    own = train(SMALL, tmp_path / "r").run
    assert kept_path(own) is None
    found = certify_path(own, kernel=False)
    keep(own, found.figures, found.to_frame())
    assert kept_path(own) == found.figures
    summary = summarize(own)
    assert summary.path == found.figures
    assert summary.to_dict()["path"]["mu_path"] == found.figures.mu_path
    facts = run_facts(own, summary)
    assert (facts.mu_path, facts.rate_path) == (found.figures.mu_path, found.figures.rate_proved)
    # A path that is not known to be that of the run proves nothing of it.
    doubtful = replace(summary, path=replace(found.figures, confirmed=False))
    assert run_facts(own, doubtful).mu_path is None
    # Of another log: nothing.
    longer = train(replace(SMALL, steps=8), tmp_path / "longer").run
    (longer.path / "path.json").write_text((own.path / "path.json").read_text())
    assert kept_path(longer) is None
    # Of another loss, or of a log that is another in its middle: nothing.
    for name, old, new in (("run.json", '"scale": 1.0', '"scale": 0.5'), ("log.csv", "", "")):
        text = (own.path / name).read_text()
        changed = text.replace(old, new) if old else text.replace(text.splitlines()[3].split(",")[2], "1.5")
        assert changed != text
        (own.path / name).write_text(changed)
        assert kept_path(own) is None
        (own.path / name).write_text(text)
    # A proof of what the log refutes: refused, by name.
    record = json.loads((own.path / "path.json").read_text())
    assert record["certified_share"] == 1
    measured, rate = found.figures.measured_star or 0.0, found.figures.rate_proved or 1.0
    for key, value in (("mu_path_star", 1.01 * measured), ("rate_proved", rate**2)):
        (own.path / "path.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(InputError, match="it claims"):
            kept_path(own)
    (own.path / "path.json").write_text(json.dumps({**record, "mu_path_star": 0.99 * measured}))
    assert kept_path(own) is not None
    # Damaged: refused, by name.
    damaged: list[tuple[str, Any]] = [
        ("mu_path", "much"), ("steps", 2.5), ("kind", "proof"), ("not_certified", {}), ("pieces", True),
        ("beta_max", 10**400), ("length", None), ("kernel_tube", [[]]), ("loss", "x" * 5000), ("steps", 2**70),
    ]  # fmt: skip
    for key, wrong in damaged:
        (own.path / "path.json").write_text(json.dumps({**record, key: wrong}))
        with pytest.raises(InputError, match=key):
            kept_path(own)
    assert PathFigures.from_dict(found.to_dict(), "here") == found.figures


def test_audit_says_both_verdicts(tmp_path: Path) -> None:
    own = train(SMALL, tmp_path / "r").run
    before = audit(str(own.path))
    assert before["P2"].holds is None
    assert str(before.along.verdict) == "undetermined"
    conclude(own)
    after = audit(str(own.path))
    assert after["P2"].to_dict()["verified"]
    assert after["P3"].to_dict()["verified"]
    assert after["P1"].value is not None
    assert after["P1"].value < 2
    assert str(after.along.verdict) == "yes"
    assert after.verdict == before.verdict
    assert command("audit", str(own.path), "--fail-on", "along", cwd=tmp_path).returncode == 0
    # A path that was not the run's own is no proof of the run.
    record = json.loads((own.path / "path.json").read_text())
    (own.path / "path.json").write_text(json.dumps({**record, "confirmed": False}))
    assert not audit(str(own.path))["P2"].to_dict()["verified"]


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", "bce"])
@pytest.mark.parametrize(
    "change", [{"momentum": 0.5}, {"optimizer": "sgd", "batch_size": 5, "steps": None, "epochs": 2}]
)
def test_other_optimisers_and_losses_have_regions_and_no_rate(
    tmp_path: Path, loss: str, change: dict[str, Any]
) -> None:
    config = SMALL.with_(loss=loss, lr=0.002, **change)
    p = certify_path(train(config, tmp_path / "r").run, kernel=False).figures
    assert p.kind == "certified"
    assert p.certified_share == 1.0
    assert p.rate_proved is None
    assert "gradient descent" in str(p.rate_reason)
    assert p.eta_mu_t is None
    assert p.loss.startswith(loss)


def test_classification_logs_its_accuracy(tmp_path: Path) -> None:
    run = train(SMALL.with_(loss="cross-entropy", lr=0.05, steps=30), tmp_path / "r").run
    accuracy = run.log()["accuracy"]
    assert accuracy.between(0, 1).all()
    assert accuracy.iloc[-1] > 0.6
    assert run.manifest().data.outputs == 2
    with pytest.raises(InputError, match="--targets"):
        train(SMALL.with_(loss="bce", targets="pm1"), tmp_path / "other")


def test_no_proof_is_an_estimate_and_says_why(tmp_path: Path) -> None:
    run = train(SMALL.with_(activation="relu"), tmp_path / "r").run
    p = certify_path(run).figures
    assert p.kind == "estimate"
    assert (p.certified_share, p.steps_certified, p.mu_path, p.rate_proved) == (0.0, 0, None, None)
    assert p.mu_path_estimated is not None
    assert "relu" in str(p.why_estimate)
    keep(run, p, certify_path(run).to_frame())
    assert not audit(str(run.path))["P2"].to_dict()["verified"]


def recorded(path: Path, every: int, scale: float | None = 1.0, keep: bool = False) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    np.savez(path.parent / "data.npz", inputs=x.numpy(), targets=y.numpy())
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Recorder(
        model, path, data=(x, y), exact_every=1, checkpoint_every=every, keep_path=keep,
        dataset=str(path.parent / "data.npz"), loss_scale=scale,
    ) as recorder:  # fmt: skip
        for _ in range(4):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()


def test_recorded_runs_need_every_step(tmp_path: Path) -> None:
    recorded(tmp_path / "every", 1)
    tanh = Source(activation="tanh")
    p = certify_path(RunDirectory.open(tmp_path / "every"), kernel=False, source=tanh).figures
    assert p.kind == "certified"
    assert p.certified_share == 1.0
    assert p.confirmed
    recorded(tmp_path / "some", 2)
    with pytest.raises(InputError, match="between checkpoints is not known"):
        certify_path(RunDirectory.open(tmp_path / "some"), source=tanh)
    # What an audit says before anybody tries.
    recorded(tmp_path / "kept", 2, keep=True)
    assert "keep_path=True" in why_no_path(RunDirectory.open(tmp_path / "some"))
    for name in ("every", "kept"):
        assert not why_no_path(RunDirectory.open(tmp_path / name))
    # The number of a file sizes nothing.
    some = RunDirectory.open(tmp_path / "some")
    shutil.copy(some.checkpoint_path(0), some.checkpoint_path(10**12))
    assert "keep_path=True" in why_no_path(some)


def test_a_recorded_path_in_one_file_is_that_of_the_checkpoints(tmp_path: Path) -> None:
    tanh = Source(activation="tanh")
    recorded(tmp_path / "checkpoints", 1)
    recorded(tmp_path / "file", 0, keep=True)
    one, other = (
        certify_path(RunDirectory.open(tmp_path / name), kernel=False, source=tanh).figures
        for name in ("file", "checkpoints")
    )
    assert one.agreement.startswith("iterates from the file of every step")
    assert replace(one, agreement=other.agreement) == other
    kept = tmp_path / "file" / "iterates.f64"
    whole = kept.read_bytes()
    assert len(whole) == 56 + 5 * 8 * (1 + 21)
    # A row that is torn is none; then its step is not known.
    kept.write_bytes(whole[:-1])
    torn = certify_path(RunDirectory.open(tmp_path / "file"), kernel=False, source=tanh).figures
    assert torn.last_step == 3
    for damage, said in (
        (whole[:16] + b"\x07" + whole[17:], "other parameters"),
        (b"no header", "other parameters"),
        (whole[:56] + whole[56 + 176 :] + whole[56 : 56 + 176], "out of order"),
        (whole[:80] + whole[72:80] + whole[88:], "checkpoint of step 0 differ"),
    ):
        kept.write_bytes(damage)
        with pytest.raises(InputError, match=said):
            certify_path(RunDirectory.open(tmp_path / "file"), kernel=False, source=tanh)


def test_the_command_and_its_contract(run: RunDirectory, tmp_path: Path) -> None:
    done = command("certify", str(run.path), "--path", "--format", "json", "--directions", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = json.loads(done.stdout)["path"]
    assert set(path) >= CONTRACT
    assert path["steps_certified"] == 6
    table = command("certify", str(run.path), "--path", "--directions", "0", cwd=tmp_path)
    assert "μ along the path" in table.stdout
    for wrong in (("--pieces", "0"), ("--pieces", "x"), ("--radius-path", "-1"), ("--from-step", "9")):
        assert command("certify", str(run.path), "--path", *wrong, cwd=tmp_path).returncode == 2
    checkpoint = str(run.checkpoint_path(0))
    assert command("certify", checkpoint, "--path", cwd=tmp_path).returncode == 2
    held = command(
        "certify", str(run.path), "--path", "--directions", "0", "--require", "path.mu_path_star >= 1e9", cwd=tmp_path
    )
    assert held.returncode == 1


def test_targets_that_are_no_probabilities_have_no_bound() -> None:
    """|q| is bounded by the scale for probabilities alone: others are refused, whoever recorded them."""

    net, x, y = nn.Sequential(nn.Linear(2, 1)).double(), torch.randn(3, 2).double(), torch.full((3, 1), 4.0).double()
    for make in (Objective, CertifiedCurvature):
        with pytest.raises(InputError, match="targets"):
            make(net, x, y, Loss("bce"))
