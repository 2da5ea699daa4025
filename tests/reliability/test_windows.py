"""The windows of a crash: between last row and summary, between rows and disk, while closing, in a forked child."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from lplr_cli.analysis import read_log
from lplr_cli.cli.main import run as lplr
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError, OutputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import LOG_COLUMNS, Appender, RunDirectory
from lplr_cli.runs.atomic import clear_temporaries
from lplr_cli.training import Recorder, TrainConfig, resume, train
from tests.command import wait_for

CONFIG = TrainConfig(DataSpec("mnist", samples=8), ModelSpec(width=3, depth=1), lr=0.02, steps=20, probe_every=10)
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2), torch.linspace(0, 1, 6).reshape(6, 1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def step(module: nn.Module, recorder: Recorder, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    loss = (module(X) - Y).square().sum() / len(X)
    loss.backward()
    recorder.record(loss * factor, optimizer)
    optimizer.step()


def recorded(path: Path, steps: int = 10, **options: Any) -> RunDirectory:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    with Recorder(module, path, norms_every=1, **options) as recorder:
        for _ in range(steps):
            step(module, recorder, optimizer)
    return RunDirectory.open(path)


# Summaries


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "whole"
    train(CONFIG, path)
    return path


def copy(whole: Path, path: Path) -> Path:
    shutil.copytree(whole, path)
    return path


def test_a_run_killed_before_its_summary_gets_one_on_resume(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy(whole, tmp_path / "r")
    assert not (path / "summary.json").exists()
    assert lplr(["train", "--resume", str(path), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((path / "summary.json").read_text())
    assert kept == printed
    assert kept["mu_certified_reason"] != "not computed: see lplr certify"
    assert lplr(["train", "--resume", str(path)]) == 2
    assert "there is nothing to resume" in capsys.readouterr().err
    # A summary of fewer steps, as of a read while the run was interrupted, counts as none.
    (path / "summary.json").write_text(json.dumps({**kept, "steps": 3}))
    assert lplr(["train", "--resume", str(path), "--format", "json"]) == 0
    assert json.loads((path / "summary.json").read_text())["steps"] == 20


@pytest.mark.parametrize("command", ["pl-ratio", "list"])
def test_a_run_killed_before_its_summary_gets_one_when_read(
    whole: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy(whole, tmp_path / "r")
    source = path if command == "pl-ratio" else tmp_path
    assert lplr([command, str(source), "--format", "json"]) == 0
    capsys.readouterr()
    kept = json.loads((path / "summary.json").read_text())
    assert kept["steps"] == 20
    assert kept["pl_ratio"] == json.loads(json.dumps(read_log(path).summary.to_dict()))["pl_ratio"]  # type: ignore[union-attr]


def test_a_directory_that_may_not_be_written_is_read_all_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy(whole, tmp_path / "r")

    def refuse(self: RunDirectory, record: Any, *, replace: bool = True) -> None:
        raise OutputError("cannot write", "no")

    monkeypatch.setattr(RunDirectory, "write_summary", refuse)
    assert read_log(path).summary is not None
    assert not (path / "summary.json").exists()


def test_list_shows_figures_of_recorded_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "mine", 30)
    assert lplr(["list", str(tmp_path), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["error"] is None
    assert row["steps"] == 29
    assert row["pl_ratio_min"] > 0
    assert lplr(["list", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == [row]


def forked(action: Callable[[], None]) -> int:
    """What became of a child process that did ``action``: its exit code, or the negative number of its signal."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_kill_between_status_and_summary(tmp_path: Path) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        with mock.patch.object(RunDirectory, "write_summary", die):
            options = ["--samples", "8", "--width", "3", "--depth", "1", "--lr", "0.02", "--steps", "20"]
            lplr(["train", "mnist", *options, "--probe-every", "10", "--out", str(tmp_path / "r")])

    assert forked(killed) == -signal.SIGKILL
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "finished"
    assert directory.summary() is None
    assert lplr(["train", "--resume", str(tmp_path / "r")]) == 0
    assert directory.is_summarized()


# Rows


def forty_rows(path: Path, *, wait: bool) -> Callable[[], None]:
    def record() -> None:
        recorder = Recorder(net(), path, norms_every=1)
        for i in range(40):
            recorder.record(float(i))
        if wait:
            wait_for(lambda: (path / "log.csv").read_text().count("\n") == 41)
        os._exit(7)

    return record


def test_rows_reach_the_disk_by_themselves(tmp_path: Path) -> None:
    """Also where the loop appends no more, and nothing is closed or flushed at the end."""
    assert forked(forty_rows(tmp_path / "r", wait=True)) == 7
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.log()["step"].tolist() == list(range(40))
    assert directory.manifest().status == "running"


def test_what_waits_is_whole_lines(tmp_path: Path) -> None:
    """``os._exit`` in the window loses the newest rows, never the order or a part of one."""
    assert forked(forty_rows(tmp_path / "r", wait=False)) == 7
    text = (tmp_path / "r" / "log.csv").read_text()
    assert text.endswith("\n")
    assert RunDirectory.open(tmp_path / "r").log()["step"].tolist() == list(range(text.count("\n") - 1))


def test_an_appender_that_cannot_write_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes half a row and is then full; later it has room again."""
    appender = Appender(tmp_path / "log.csv", LOG_COLUMNS, lag=10.0)
    true_write, room = os.write, [5]

    def write(handle: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        done = true_write(handle, bytes(data[: room[0]]))
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    appender.append({"step": 0, "loss": 0.5})
    appender.write_late()  # the thread is silent
    appender.written = -math.inf
    with pytest.raises(OutputError, match="No space"):
        appender.append({"step": 1})
    room[0] = 1000
    appender.append({"step": 2})
    appender.close()
    appender.close()
    assert (tmp_path / "log.csv").read_text().splitlines()[1:] == ["0,,0.5,,,,", "1,,,,,,", "2,,,,,,"]


# Closing


def test_an_error_of_closing_does_not_hide_that_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RunDirectory, log_format: str) -> None:
        raise OutputError("cannot write log.parquet", "check space")

    monkeypatch.setattr(RunDirectory, "finish_tables", fail)
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)

    def crash() -> None:
        with Recorder(module, tmp_path / "r") as recorder:
            step(module, recorder, optimizer)
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        crash()
    assert any("could not be closed: cannot write log.parquet" in note for note in caught.value.__notes__)
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "interrupted"
    assert len(directory.log()) == 1
    # The lock is free, and without an error of the loop that of closing is told.
    directory.lock()
    directory.unlock()
    with pytest.raises(OutputError, match=r"log\.parquet"):
        recorded(tmp_path / "s")


def test_a_checkpoint_that_fails_at_the_end_is_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    true_save = RunDirectory.save

    def save(self: RunDirectory, checkpoint: Any) -> Path:
        saved.append(checkpoint)
        if len(saved) > 1:
            raise OutputError("cannot write the checkpoint", "check space")
        return true_save(self, checkpoint)

    monkeypatch.setattr(RunDirectory, "save", save)
    with pytest.raises(OutputError, match="checkpoint"):
        recorded(tmp_path / "r", 7)
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "interrupted"
    assert len(directory.log()) == 7
    assert (tmp_path / "r" / "log.parquet").exists()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_diverged(tmp_path: Path, loss: float) -> None:
    module = net()
    with Recorder(module, tmp_path / "r", norms_every=1) as recorder:
        for value in (1.0, 2.0, loss):
            recorder.record(value)
    assert RunDirectory.open(tmp_path / "r").manifest().status == "diverged"


def test_parameters_that_are_not_finite_end_diverged(tmp_path: Path) -> None:
    """Trainers may hide the loss; the drift tells. A loss that comes back to earth is no divergence."""
    module = net()
    with Recorder(module, tmp_path / "r", norms_every=1) as recorder:
        recorder.record(1.0)
        with torch.no_grad():
            next(module.parameters()).fill_(math.nan)
        recorder.record(1.0)
    assert RunDirectory.open(tmp_path / "r").manifest().status == "diverged"
    with Recorder(net(), tmp_path / "s", norms_every=1) as recorder:
        for value in (1.0, math.nan, 1.0):
            recorder.record(value)
    assert RunDirectory.open(tmp_path / "s").manifest().status == "finished"

    def crash() -> None:
        with Recorder(net(), tmp_path / "t", norms_every=1) as recorder:
            recorder.record(math.nan)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert RunDirectory.open(tmp_path / "t").manifest().status == "diverged"


# The place


def test_a_loop_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    with Recorder(module, "r", checkpoint_every=2) as recorder:
        step(module, recorder, optimizer)
        os.chdir("elsewhere")
        for _ in range(5):
            step(module, recorder, optimizer)
    assert recorder.path == tmp_path / "r"
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "finished"
    assert directory.checkpoint_steps() == [0, 2, 4, 6]
    assert not any((tmp_path / "elsewhere").iterdir())


# Parameters


def replaced(module: nn.Sequential) -> None:
    module[0].weight = nn.Parameter(torch.zeros(3, 2))


def added(module: nn.Sequential) -> None:
    module.append(nn.Linear(1, 1))


def removed(module: nn.Sequential) -> None:
    module[2] = nn.Identity()


def unfrozen(module: nn.Sequential) -> None:
    module[2].bias.requires_grad_(True)


def moved(module: nn.Sequential) -> None:
    module.double()


def loaded(module: nn.Sequential) -> None:
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [replaced, added, removed, unfrozen, moved, loaded])
@pytest.mark.parametrize("late", [False, True])
def test_parameters_that_change_are_noticed(tmp_path: Path, change: Any, late: bool) -> None:
    module = net()
    module[2].bias.requires_grad_(False)

    def loop() -> None:
        with Recorder(module, tmp_path / "r", norms_every=2) as recorder:
            for i in range(6):
                recorder.record(1.0)
                if i == (5 if late else 2):
                    change(module)

    with pytest.raises(InputError, match=r"trainable parameter '[02]|trainable parameter '3"):
        loop()
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "interrupted"
    assert len(directory.log()) == (6 if late else 4)


def test_parameters_may_be_frozen(tmp_path: Path) -> None:
    module = net()
    data = (X, Y)
    with Recorder(module, tmp_path / "r", norms_every=1, data=data, exact_every=2) as recorder:
        for i in range(6):
            recorder.record(1.0)
            if i == 2:
                module[0].requires_grad_(False)
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.manifest().status == "finished"
    exact = directory.log()["grad_norm_sq"].dropna().tolist()
    assert len(exact) == 3
    assert exact[0] == exact[1] > exact[2] > 0


# Children


def in_child(recorder: Recorder, pipe: Any, action: str) -> None:
    try:
        {"record": lambda: recorder.record(9.0), "finish": recorder.finish, "close": recorder.close}[action]()
    except InputError as error:
        pipe.send(str(error))
    else:
        pipe.send("")


@pytest.mark.parametrize("action", ["record", "finish", "close"])
def test_a_forked_child_is_refused(tmp_path: Path, action: str) -> None:
    module = net()
    context = multiprocessing.get_context("fork")
    with Recorder(module, tmp_path / "r") as recorder:
        recorder.record(1.0)
        ours, theirs = context.Pipe()
        child = context.Process(target=in_child, args=(recorder, theirs, action))
        child.start()
        assert ours.poll(30)
        assert f"belongs to process {os.getpid()}, not to its child" in ours.recv()
        child.join()
        recorder.record(2.0)
    directory = RunDirectory.open(tmp_path / "r")
    assert directory.log()["loss"].tolist() == [1.0, 2.0]
    assert directory.manifest().status == "finished"


CHILD = """
import os, sys
import torch
from lplr_cli import Recorder
with Recorder(torch.nn.Linear(2, 1), sys.argv[1] + "/closed") as recorder:
    for i in range(20):
        recorder.record(float(i))
    if not (child := os.fork()):
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    recorder.record(20.0)
open_one = Recorder(torch.nn.Linear(2, 1), sys.argv[1] + "/open")
open_one.record(1.0)
"""


def test_copies_and_recorders_that_nobody_closes(tmp_path: Path) -> None:
    """Rows that wait are written once, at the end of their process, and not by a child that leaves the block."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    directory = RunDirectory.open(tmp_path / "closed")
    assert directory.log()["loss"].tolist() == [float(i) for i in range(21)]
    assert directory.manifest().status == "finished"
    assert RunDirectory.open(tmp_path / "open").log()["loss"].tolist() == [1.0]


# Left-overs


def test_temporary_files_of_the_dead_are_cleaned_on_resume(tmp_path: Path) -> None:
    stop = {"at": 5}

    def interrupt(progress: Any) -> None:
        if progress.step == stop["at"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "r", on_progress=interrupt)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "r"
    gone = [
        path / f".run.json.{dead.pid}-abcd1234.tmp",
        path / "checkpoints" / f".step-000005.pt.{dead.pid}-a_cd1234.tmp",
        path / "checkpoints" / ".step-000005.pt.abcd1234.tmp",  # as earlier versions named them
    ]
    kept = [path / f".run.json.{os.getpid()}-abcd1234.tmp", path / ".mine.tmp", path / "notes.tmp"]
    for file in [*gone, *kept]:
        file.write_bytes(b"half")
    assert resume(path).status == "finished"
    assert not any(file.exists() for file in gone)
    assert all(file.exists() for file in kept)
    clear_temporaries(tmp_path / "none")


def test_the_timer_is_no_burden(tmp_path: Path) -> None:
    """No thread is left behind, and a closed appender is written by none."""
    before = threading.active_count()
    for i in range(20):
        with Appender(tmp_path / f"{i}.csv", LOG_COLUMNS, lag=0.01) as appender:
            appender.append({"step": 1})
    wait_for(lambda: threading.active_count() <= before)
    assert all(len((tmp_path / f"{i}.csv").read_text().splitlines()) == 2 for i in range(20))
