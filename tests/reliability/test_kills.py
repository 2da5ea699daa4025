"""kill -9 at random moments: every command reads what is left, and resuming gives the uninterrupted logs."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig, repeat, resume, train
from tests.command import DEADLINE, grown, started, wait_for

BASE = TrainConfig(
    DataSpec("mnist", samples=24), ModelSpec(width=6, depth=1), lr=0.02, steps=400, probe_every=100, checkpoint_every=25
)
CONFIGS = {
    "gd": BASE,
    "sgd": BASE.with_(optimizer="sgd", batch_size=8, momentum=0.9, schedule="cosine", dtype="float32"),
}
# Trains in a process of its own, which says when it begins, so that the clock of the killer starts there.
CODE = """
import json, sys
from pathlib import Path
import torch
from lplr_cli.training import TrainConfig, train
torch.set_num_threads(int(sys.argv[3]))
print("go", flush=True)
train(TrainConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def logs(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    directory = RunDirectory.open(path)
    return directory.log().drop(columns="seconds"), directory.probes().drop(columns="seconds")


def identical(one: Path, two: Path) -> None:
    for a, b in zip(logs(one), logs(two), strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    last = [RunDirectory.open(p).load(400) for p in (one, two)]
    assert all((last[0].parameters[k] == last[1].parameters[k]).all() for k in last[0].parameters)


def start(config: TrainConfig, path: Path, threads: int) -> subprocess.Popen[bytes]:
    import json

    process = subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(config.to_dict()), str(path), str(threads)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """An uninterrupted run of each kind, and how long it takes."""
    import torch

    found = {}
    folder = tmp_path_factory.mktemp("whole")
    for name, config in CONFIGS.items():
        begun = time.perf_counter()
        assert start(config, folder / name, torch.get_num_threads()).wait() == 0
        found[name] = (folder / name, time.perf_counter() - begun)
    return found


def kill_and_resume(name: str, moment: float, path: Path, whole: Path) -> str:
    """Kill a run at ``moment`` seconds, let every command read it, resume it, and compare; says what was left."""
    import torch

    process = start(CONFIGS[name], path, torch.get_num_threads())
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (path / "run.json").exists():
        train(CONFIGS[name], path)
        identical(path, whole)
        return "unborn"
    for command in ("pl-ratio", "fit-rate", "probe-ntk", "audit"):
        options = ["--no-certificate", "--fail-on", "never"] if command == "audit" else []
        assert run([command, str(path), "--format", "json", *options]) in (0, 2)
    status = RunDirectory.open(path).config()["status"]
    if status == "running":
        assert resume(path).status == "finished"
    identical(path, whole)
    return str(status)


@pytest.mark.parametrize("name", [pytest.param(k, marks=[pytest.mark.slow] * (k != "gd")) for k in CONFIGS])
def test_kills_at_random_moments(name: str, whole: dict[str, tuple[Path, float]], tmp_path: Path, capfd: Any) -> None:
    path, duration = whole[name]
    clock = random.Random(f"lplr {name}")
    for i in range(2 if name == "gd" else 1):
        kill_and_resume(name, clock.uniform(0, 1.05 * duration), tmp_path / f"r{i}", path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONFIGS))
def test_fifty_kills(name: str, whole: dict[str, tuple[Path, float]], tmp_path: Path, capfd: Any) -> None:
    path, duration = whole[name]
    clock = random.Random(f"fifty {name}")
    seen = {kill_and_resume(name, clock.uniform(0, 1.1 * duration), tmp_path / f"r{i}", path) for i in range(25)}
    assert "running" in seen
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_say_how_to_go_on(
    number: signal.Signals, tmp_path: Path, whole: dict[str, tuple[Path, float]]
) -> None:
    command = [
        sys.executable, "-m", "lplr_cli", "train", "mnist", "--samples", "24", "--width", "6", "--depth", "1",
        "--lr", "0.02", "--steps", "400", "--probe-every", "100", "--checkpoint-every", "25", "--out", "r",
    ]  # fmt: skip
    with started(command, tmp_path) as process:
        wait_for(lambda: grown(tmp_path / "r" / "log.csv", 500), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)
    if process.returncode == 0:
        pytest.skip("the run was faster than the signal")
    assert process.returncode == 130
    assert out == b""
    assert f"stopped by {number.name}" in err.decode()
    assert "lplr train --resume r" in err.decode()
    assert (tmp_path / "r" / "log.parquet").exists()
    assert resume(tmp_path / "r").status == "finished"
    identical(tmp_path / "r", whole["gd"][0])


def test_torn_files_of_a_crash(tmp_path: Path, whole: dict[str, tuple[Path, float]]) -> None:
    """What a power cut could leave that a kill does not: torn header, torn last checkpoint, no probes."""
    for i, damage in enumerate(("header", "checkpoint", "probes", "temporary")):
        path = tmp_path / f"r{i}"
        train(CONFIGS["gd"].with_(steps=100), path)
        directory = RunDirectory.open(path)
        directory.write_config({**directory.config(), "status": "running", "config": CONFIGS["gd"].to_dict()})
        if damage == "header":
            (path / "log.csv").write_bytes(b"step,ep")
            for step in directory.checkpoint_steps():
                directory.checkpoint_path(step).unlink()
        elif damage == "checkpoint":
            content = directory.checkpoint_path(100).read_bytes()
            directory.checkpoint_path(100).write_bytes(content[: len(content) // 2])
        elif damage == "probes":
            (path / "probes.csv").unlink()
            (path / "probes.parquet").unlink()
            for step in directory.checkpoint_steps()[1:]:
                directory.checkpoint_path(step).unlink()
        else:
            (path / "checkpoints" / ".step-000075.pt.abc.tmp").write_bytes(b"half")
        assert resume(path).status == "finished"
        identical(path, whole["gd"][0])


def test_a_run_is_repeated_bit_by_bit(tmp_path: Path, whole: dict[str, tuple[Path, float]]) -> None:
    path = whole["sgd"][0]
    repeat(path, tmp_path / "again")
    identical(tmp_path / "again", path)
    assert run(["train", "--from", str(whole["gd"][0]), "--out", str(tmp_path / "gd"), "--format", "json"]) == 0
    identical(tmp_path / "gd", whole["gd"][0])
    assert run(["train", "mnist", "--from", str(path)]) == 2
