"""Full disks, vanished directories: exit code 3, one line, and what was written before stays readable."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lplr_cli.data import DataSpec
from lplr_cli.errors import OutputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig, resume, train

TRAIN = [
    "train", "mnist", "--samples", "12", "--width", "4", "--depth", "1", "--steps", "1200", "--probe-every", "0",
    "--no-sharpness", "--checkpoint-every", "500", "--lr", "0.01",
]  # fmt: skip
# A limit of the size of files stands for a full disk where nothing can be mounted.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from lplr_cli.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", [20_000, 40_000])
def test_a_file_that_cannot_grow(limit: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(limit), *TRAIN, "--out", str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("lplr: error: cannot write ")
    assert done.stderr.count("\n") == 1
    if (tmp_path / "r" / "log.csv").exists():
        log = RunDirectory.open(tmp_path / "r").log()
        assert log["step"].tolist() == list(range(len(log)))
        assert len(log) > 100
        assert resume(tmp_path / "r").status == "finished"


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = [sys.executable, "-m", "lplr_cli", *TRAIN, "--out", str(disk / "r")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith("lplr: error: cannot write ")
        assert "check space" in done.stderr
        assert "Traceback" not in done.stderr
        log = RunDirectory.open(disk / "r").log()
        assert log["step"].tolist() == list(range(len(log)))
        assert len(log) > 50
        shutil.copytree(disk / "r", tmp_path / "moved")
        assert resume(tmp_path / "moved").status == "finished"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_output_on_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "\n".join(f"{i},{0.99**i}" for i in range(2000)))
    out = tmp_path / "out.csv"
    out.write_text("old")
    command = [sys.executable, "-c", LIMITED, "10000", "fit-rate", str(log), "--output", str(out), "--force"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert out.read_text() == "old"


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    config = TrainConfig(DataSpec("mnist", samples=8), ModelSpec(width=3, depth=1), lr=0.01, steps=50, probe_every=0)

    def vanish(progress: Any) -> None:
        if progress.step == 5:
            shutil.rmtree(tmp_path / "r")

    with pytest.raises(OutputError, match="cannot write"):
        train(config, tmp_path / "r", on_progress=vanish)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = TrainConfig(DataSpec("mnist", samples=8), ModelSpec(width=3, depth=1), lr=0.01, steps=1)
    with pytest.raises(OutputError, match="cannot write"):
        train(config, tmp_path / "file" / "r")
    command = [sys.executable, "-m", "lplr_cli", *TRAIN, "--out", "/proc/lplr/r"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
