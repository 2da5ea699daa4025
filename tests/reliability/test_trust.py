"""Code runs only when the user names it on this line or in this call, whatever files say, and where it is named twice
the two must agree."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lplr_cli as lplr
from lplr_cli.ablation import LocalProcesses, run_sweep
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.factories import UnnamedCodeError, Word, model_options, parse_argument, show_argument
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig, repeat, resume, train
from tests.command import command
from tests.reliability import trust_probe

NETWORK = {"probe-ntk run", "probe-ntk checkpoint", "certify run", "certify checkpoint", "audit", "audit offline",
           "report", "pl-ratio recompute", "api probe_ntk", "api certify", "api audit"}  # fmt: skip
RETRAIN = {"train resume", "train from", "api train"}
# Cells of a sweep are held against the command line: a run that is another one is a failed row.
CELLS = {"ablate resume", "ablate resume jobs"}
OPTION = {
    "shell": "--model os:system --model-arg 'command=touch ran'",
    "process": '--model subprocess:Popen --model-arg \'args=["touch", "ran"]\'',
    "module": "--model payload:go",
    "data": "--data payload:go",
}


def probed(folder: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.reliability.trust_probe", *arguments],
        cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["seen"] == []
    assert not found["ran"]
    return found["results"]


def test_files_run_nothing_under_any_command(tmp_path: Path) -> None:
    results = probed(tmp_path)
    everything = results.pop("everything")
    assert len(everything) > 15
    for name, (code, line) in everything.items():
        if name in NETWORK | RETRAIN:
            assert code == 2, (name, line)
            assert "names code, which runs only when you name it" in line, name
            assert f"{OPTION['shell']} {OPTION['data']}" in line, name
    for name in NETWORK & {*trust_probe.QUICK, *trust_probe.CALLS}:
        assert results["checkpoint model, module"][name][0] == 2
        assert OPTION["module"] in results["checkpoint model, module"][name][1], name
    for name in RETRAIN:
        assert results["configuration, data"][name][0] == 2
        assert OPTION["data"] in results["configuration, data"][name][1], name
    for name, wanted in (("grid base", "payload:go"), ("grid axis", "os:system"), ("grid run", "os:system")):
        code, line = results[name]["ablate grid"]
        assert (code, f"grid.toml names code, which runs only when you name it; where you trust it, add --model "
                f"{wanted}" in line) == (2, True), line  # fmt: skip


@pytest.mark.slow
def test_every_place_under_every_command(tmp_path: Path) -> None:
    results = probed(tmp_path, "all")
    for place in trust_probe.PLACES:
        for name, (code, line) in results[place].items():
            needed = (NETWORK if place.startswith("checkpoint") else set()) | (
                RETRAIN if place.startswith("configuration") else set()
            )
            if name in needed:
                assert code == 2, (place, name, line)
                assert OPTION[place.split()[-1]] in line if place.split()[-1] in OPTION else "names code" in line
            elif name in CELLS:
                assert code in (0, 2, 3), (place, name, line)
            else:
                assert code in (0, 2), (place, name, line)


MINE = (
    "import torch\nfrom torch import nn\n"
    "def net(hidden=4, names=()):\n    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2))\n"
    "def data():\n    g = torch.Generator().manual_seed(0)\n"
    "    return torch.randn(9, 3, generator=g), torch.randn(9, 2, generator=g)\n"
)
NAMED = ("--model", "mine:net", "--model-arg", "hidden=5", "--data", "mine:data")
CONFIG = TrainConfig(
    DataSpec("mine:data"), ModelSpec("mine:net", arguments={"hidden": 5}), lr=0.1, steps=12, probe_every=6,
    checkpoint_every=4,
)  # fmt: skip
WORD = Word("mine:net", {"hidden": 5}, "mine:data")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with the user's code, and one that was interrupted."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("r", "stopped"):
        train(CONFIG, tmp_path / name)
    (tmp_path / "stopped" / "checkpoints" / "step-000012.pt").unlink()
    RunDirectory.open(tmp_path / "stopped").set_status("interrupted")
    return tmp_path


def test_named_code_runs(mine: Path) -> None:
    for line in (
        ("probe-ntk", "r"), ("certify", "r"), ("audit", "r", "--fail-on", "never"), ("train", "--resume", "stopped"),
        ("train", "--from", "r", "--out", "again"),
    ):  # fmt: skip
        silent = command(*line, cwd=mine)
        assert silent.returncode == 2, line
        # The line of the error is the line to type.
        options = shlex.split(silent.stderr.split("where you trust it, add ")[1].split(", or ")[0])
        assert tuple(options) == NAMED
        named = command(*line, *options, cwd=mine)
        assert named.returncode == 0, named.stderr
    log = (mine / "r" / "log.csv").read_text().splitlines()
    for other in ("stopped", "again"):
        rows = (mine / other / "log.csv").read_text().splitlines()
        assert [row.rsplit(",", 1)[0] for row in rows] == [row.rsplit(",", 1)[0] for row in log]
    without = command("audit", "r", "--fail-on", "never", "--no-certificate", cwd=mine)
    assert without.returncode == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"--model": "mine:other"}, "knows its own model: --model mine:net --model-arg hidden=5, not --model mine:oth"),
        ({"--model-arg": "hidden=6"}, "knows its own model"),
        ({"--data": "mine:others"}, "knows its own data: --data mine:data, not --data mine:others"),
        ({"--data": "mnist"}, "knows its own data"),
    ],
)
def test_what_the_user_says_must_be_what_the_file_says(changes: dict[str, str], match: str, mine: Path) -> None:
    pairs = dict(zip(NAMED[::2], NAMED[1::2], strict=True)) | changes
    options = [part for pair in pairs.items() for part in pair]
    for line in (("probe-ntk", "r"), ("train", "--resume", "stopped"), ("train", "--from", "r")):
        done = command(*line, *options, cwd=mine)
        assert done.returncode == 2
        assert match in done.stderr
    with_samples = command("probe-ntk", "r", *NAMED, "--samples", "5", cwd=mine)
    assert "knows its own data: samples is None, not 5" in with_samples.stderr


def test_the_python_api_wants_the_users_word(mine: Path) -> None:
    with pytest.raises(UnnamedCodeError, match="--model mine:net --model-arg hidden=5 --data mine:data"):
        resume(mine / "stopped")
    with pytest.raises(InputError, match="knows its own model"):
        repeat(mine / "r", mine / "again", word=Word("mine:net", {}, "mine:data"))
    assert resume(mine / "stopped", word=WORD).status == "finished"
    source = lplr.Source("mine:net", {"hidden": 5}, DataSpec("mine:data"))
    assert lplr.probe_ntk("r", source=source).record["rows"] == 18
    with pytest.raises(UnnamedCodeError):
        lplr.probe_ntk("r", source=lplr.Source(data=DataSpec("mine:data")))
    from_file = ModelSpec.from_dict(CONFIG.model.to_dict())
    with pytest.raises(UnnamedCodeError):
        train(CONFIG.with_(model=from_file), mine / "n")
    with pytest.raises(UnnamedCodeError):
        train(TrainConfig.from_dict(CONFIG.to_dict()).with_(model=ModelSpec()), mine / "n")


def test_executors_carry_the_users_word(mine: Path) -> None:
    """A sweep with code of the user's, in processes, gone on with, and with a cell that somebody changed."""
    axes: dict[str, list[Any]] = {"seed": [0, 1]}
    frame, _ = run_sweep(CONFIG, axes, mine / "s", executor=LocalProcesses(2))
    assert frame["status"].tolist() == ["finished"] * 2, frame["error"].tolist()
    run = RunDirectory.open(mine / "s" / "seed0")
    run.set_status("interrupted")
    trust_probe.in_json("run.json", status="interrupted", config={"model": trust_probe.SHELL})(mine / "s" / "seed1")
    again, _ = run_sweep(CONFIG, axes, mine / "s", continue_=True)
    assert again["status"].tolist() == ["finished", "failed"]
    assert "holds a run with other options" in again["error"][1]
    assert again["loss_final"][0] == frame["loss_final"][0]


def test_grid_files_may_name_the_code_of_the_line(mine: Path) -> None:
    (mine / "grid.toml").write_text('[[run]]\nkind = "mine:net"\narguments = {hidden = 3}\n')
    line = ("ablate", "mine:data", "--grid", "grid.toml", "--steps", "4", "--lr", "0.1", "--probe-every", "0")
    assert command(*line, "--out", "g", cwd=mine).returncode == 2
    done = command(*line, "--out", "g", "--model", "mine:net", "--format", "json", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["parameters"] == 3 * 3 + 3 + 3 * 2 + 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), VALUES, max_size=3))
def test_arguments_survive_the_shell(arguments: dict[str, Any]) -> None:
    """The options that an error shows, typed in a shell, give the very arguments of the file."""
    assert all(parse_argument(show_argument(v)) == v for v in arguments.values())
    words = shlex.split(model_options("m:f", arguments))
    assert words[:2] == ["--model", "m:f"]
    read = dict(word.split("=", 1) for word in words[3::2])
    assert {k: parse_argument(v) for k, v in read.items()} == arguments
