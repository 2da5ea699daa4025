"""A process that dies at each of its writes in turn, before it or in the middle of it, leaves a run that is read and
resumed as if nothing had been."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, TrainConfig, resume, train

CONFIG = TrainConfig(
    DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, momentum=0.5, steps=4, probe_every=2,
    checkpoint_every=2, log_format="both",
)  # fmt: skip
# What changes a file or a folder; the data of checkpoints and tables go to files that are synced by these.
CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "chmod", "close")


def dying(at: int, work: Callable[[], Any]) -> int:
    """Work in a fork that is killed at its ``at``-th call, a write after half of its bytes; how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = at

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def told(path: Path) -> tuple[int, str]:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = run(["pl-ratio", str(path), "--format", "json"])
    return code, err.getvalue()


def rows(path: Path) -> pd.DataFrame:
    return RunDirectory.open(path).log().drop(columns="seconds")


def end(path: Path) -> dict[str, torch.Tensor]:
    return RunDirectory.open(path).load(CONFIG.steps or 0).parameters


def deaths(folder: Path, work: Callable[[Path], Any], after: Callable[[Path], None], stride: int) -> int:
    """Kill the work at every ``stride``-th call until it ends by itself; how often it was killed."""
    for count, at in enumerate(range(1, 10_000, stride)):
        path = folder / f"r{at}"
        code = dying(at, lambda: work(path))  # noqa: B023
        if code != -signal.SIGKILL:
            assert code == 0
            return count
        after(path)
        shutil.rmtree(path, ignore_errors=True)
    raise AssertionError("it never ends")


STRIDES = [pytest.param(17, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@forks
@pytest.mark.parametrize("stride", STRIDES)
def test_train_dies_at_each_write(stride: int, tmp_path: Path) -> None:
    train(CONFIG, tmp_path / "whole")
    expected, parameters = rows(tmp_path / "whole"), end(tmp_path / "whole")

    def after(path: Path) -> None:
        code, err = told(path)
        assert code in (0, 2), err
        if not (path / "run.json").exists():
            train(CONFIG, path)  # what never began is begun
        elif RunDirectory.open(path).manifest().status != "finished":
            resume(path)
        pd.testing.assert_frame_equal(rows(path), expected)
        found = end(path)
        assert all(torch.equal(found[k], parameters[k]) for k in parameters)
        assert told(path)[0] == 0
        assert (path / "log.parquet").exists()
        assert not list(path.rglob("*.tmp"))

    assert deaths(tmp_path, lambda path: train(CONFIG, path), after, stride) > 50 / stride


@forks
@pytest.mark.parametrize("stride", STRIDES)
def test_a_recorder_dies_at_each_write(stride: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 3, generator=generator), torch.randn(5, 1, generator=generator)

    def record(path: Path) -> None:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        steps = torch.optim.SGD(net.parameters(), lr=0.1)
        with Recorder(net, path, data=(x, y), loss="squared", loss_scale=1.0, norms_every=1, keep_path=True,
                      checkpoint_every=2, optimizer={"name": "gd", "schedule": "constant"}) as recorder:  # fmt: skip
            for _ in range(4):
                steps.zero_grad()
                loss = (net(x) - y).square().mean()
                loss.backward()
                recorder.record(loss, steps)
                steps.step()

    record(tmp_path / "whole")
    expected = rows(tmp_path / "whole")

    def after(path: Path) -> None:
        code, err = told(path)
        assert code in (0, 2), err
        with contextlib.suppress(InputError):  # before the first row, or between two tables
            found = rows(path)
            pd.testing.assert_frame_equal(found, expected.iloc[: len(found)], check_dtype=False)

    assert deaths(tmp_path, record, after, stride) > 30 / stride
