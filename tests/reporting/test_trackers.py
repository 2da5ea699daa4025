"""Figures of an audit in trackers, each read back by its own library; offline, in folders of the test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lplr_cli.audit.run import audit
from lplr_cli.errors import InputError, OutputError
from lplr_cli.reporting import trackers
from lplr_cli.runs.logs import read_foreign_log
from tests.command import command

STEPS = np.arange(200)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    frame = pd.DataFrame({"step": STEPS, "loss": 0.97**STEPS, "grad_norm_sq": 0.4 * 0.97**STEPS})
    frame.to_csv(tmp_path / "log.csv", index=False)
    return audit(str(tmp_path / "log.csv")).to_dict()


def test_what_is_sent(record: dict[str, Any]) -> None:
    entry = trackers.Entry.of(record)
    assert entry.figures["lplr/pl_ratio_star.min"] == pytest.approx(0.2)
    assert entry.figures["lplr/rate.rate"] == pytest.approx(0.97, abs=1e-6)
    assert entry.figures["lplr/C2.holds"] == 1.0
    assert entry.texts["lplr/verdict"] == "undetermined"
    assert all(np.isfinite(v) for v in entry.figures.values())
    # What is not known has no figure.
    assert "lplr/H1.value" not in entry.figures
    hostile = trackers.Entry.of({**record, "source": "a\x1b[31m\nb"})
    assert "\x1b" not in hostile.run
    assert "\n" not in hostile.run


def test_tensorboard(record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = command("audit", "log.csv", "--to", "tensorboard:tb", cwd=tmp_path)
    assert found.returncode == 0
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (scalar,) = events.Scalars("lplr/pl_ratio_star.min")
    assert scalar.value == pytest.approx(0.2)


def test_mlflow(record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'm.db'}")
    monkeypatch.chdir(tmp_path)
    trackers.send("mlflow:mine", record)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["lplr/pl_ratio_star.min"] == pytest.approx(0.2)
    assert run.data.tags["lplr/verdict"] == "undetermined"


def test_wandb_offline(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trackers.send("wandb:mine", record)
    assert capsys.readouterr().out == ""
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"undetermined" in kept.read_bytes()
    log = read_foreign_log(kept, {"loss": "lplr/pl_ratio_star.min"}).log
    assert log["loss"].tolist() == pytest.approx([0.2])


def test_trackio(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    pytest.importorskip("trackio")
    trackers.send("trackio:mine", record)
    assert capsys.readouterr().out == ""
    (kept,) = (tmp_path / "kept").glob("mine*.db")
    log = read_foreign_log(kept, {"loss": "lplr/pl_ratio_star.min"}).log
    assert log["loss"].tolist() == pytest.approx([0.2])


def test_trackers_that_are_not_there(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown"):
        trackers.send("comet", record)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="needs wandb") as missing:
        trackers.send("wandb", record)
    assert missing.value.remedy == "pip install wandb"

    def full(entry: trackers.Entry, name: str | None) -> None:
        raise OSError("no space")

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": full})
    with pytest.raises(OutputError, match="no space"):
        trackers.send("wandb", record)
