"""Hostile names through every command, and standard streams that are closed, full, gone or without Unicode."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train
from tests.command import command
from tests.test_escape import obeyed

COMMANDS = ("train", "ablate", "probe-ntk", "certify", "pl-ratio", "fit-rate", "audit", "report", "list", "watch")
HOSTILE = "\x1b[31m\x1b]0;t\x07\x1b]8;;u\x1b\\\x1b]52;c;aGk=\x07\x9b2J\x9d0;x\x9c\u202e"
# The same without what separates cells.
CONTROLS = HOSTILE.replace(";", ",")
NAMES = ["x[red]y", "[bold]z[", "new\nline", f"esc{HOSTILE}", "a|b`c`<i>", "$x^{$", "_low", "=1+1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sinks")
    config = TrainConfig(DataSpec("mnist", samples=8), ModelSpec(width=4, depth=1), lr=0.02, steps=20, probe_every=10)
    train(config, where / "runs" / "plain")
    for name in NAMES:
        shutil.copytree(where / "runs" / "plain", where / "runs" / name)
    (where / "runs" / "d[").mkdir()
    shutil.copytree(where / "runs" / "plain", where / "runs" / "d[" / "b]")
    log = pd.DataFrame({"step": range(40), f"loss{CONTROLS}": [0.9**i for i in range(40)]})
    log.to_csv(where / f"log{HOSTILE}.csv", index=False)
    (where / "policy.toml").write_text(
        '["\\u001b]0;t\\u0007[/b]"]\nrequire = ["H1.\\u001bholds"]\n[bad]\nrequire = ["no\\u001b[2Jkey >= 1"]\n'
    )
    return where


def clean(done: subprocess.CompletedProcess[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, done.stderr
    assert not obeyed(done.stdout.replace("\n", "")), done.stdout
    assert not obeyed(done.stderr.replace("\n", "")), done.stderr
    return done


@pytest.mark.parametrize("format", ["table", "json", "csv", "markdown"])
def test_list_keeps_every_name(folder: Path, format: str) -> None:
    done = clean(command("list", "runs", "--format", format, cwd=folder))
    if format == "json":
        names = {Path(r["run"]).name for r in json.loads(done.stdout)["runs"]}
        assert names == {*NAMES, "plain", "b]"}
    elif format == "table":
        for name in ("x[red]y", "[bold]z[", "d[/b]", r"new\nline", r"esc\x1b[31m\x1b]0;t\x07", "a|b`c`<i>", "=1+1"):
            assert f"runs/{name}" in done.stdout


def test_a_folder_named_like_closing_markup(folder: Path, tmp_path: Path) -> None:
    """The folder ``[`` with the run ``b]`` in it reads as ``[/b]``, which is no markup of ours."""
    shutil.copytree(folder / "runs" / "plain", tmp_path / "[" / "b]")
    assert "[/b]" in clean(command("list", ".", cwd=tmp_path)).stdout
    assert "[/b]" in clean(command("pl-ratio", "[/b]", cwd=tmp_path)).stdout
    assert "[/b]" in clean(command("watch", "[/b]", "--once", cwd=tmp_path)).stdout


def test_commands_that_read_a_run_keep_its_name(folder: Path, tmp_path: Path) -> None:
    everything = "".join(NAMES).replace("/", "")
    shutil.copytree(folder / "runs" / "plain", tmp_path / everything)
    for arguments in (
        ["pl-ratio", everything, "--figure", "f.svg"],
        ["pl-ratio", everything, "--format", "csv"],
        ["watch", everything, "--once"],
        ["fit-rate", everything, str(folder / "runs" / "plain"), "--figure", "g.svg"],
        ["audit", everything, "--no-certificate", "--fail-on", "never", "--junit", "j.xml", "--markdown", "m.md"],
        ["report", everything, "-o", "page.html", "--no-certificate", "--title", f"<b>{HOSTILE}"],
    ):
        clean(command(*arguments, cwd=tmp_path))
    for written in ("j.xml", "m.md", "f.svg", "g.svg", "page.html"):
        assert not obeyed((tmp_path / written).read_text(encoding="utf-8").replace("\n", "")), written
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<i>" not in page
    assert "a|b`c`&lt;i&gt;" in page
    assert "&lt;b&gt;" in page


def test_columns_and_errors(folder: Path) -> None:
    log = f"log{HOSTILE}.csv"
    for arguments, code in (
        (["fit-rate", log], 0),
        (["fit-rate", log, "--column", f"loss=loss{CONTROLS}"], 0),
        (["fit-rate", log, "--column", f"loss=none{HOSTILE}"], 2),
        (["fit-rate", f"none{HOSTILE}"], 2),
        (["train", f"{HOSTILE}.npz"], 2),
        (["probe-ntk", "policy.toml", "--model", f"{HOSTILE}:x"], 2),
        (["list", "runs", "--require", f"{HOSTILE} > 1"], 2),
        (["list", "runs", f"--{HOSTILE}"], 2),
        (["list", "runs", "--format", HOSTILE], 2),
        ([HOSTILE], 2),
    ):
        done = clean(command(*arguments, cwd=folder), code)
        assert done.stderr.startswith("lplr: ") or not done.stderr
        assert done.stderr.count("\n") == (not done.stdout or "taken as" in done.stderr), done.stderr


def test_sets_of_a_policy(folder: Path) -> None:
    for name in ("", ":bad", ":none", ":\x1b]0;t\x07[/b]"):
        done = clean(command("audit", "runs/plain", "--policy", f"policy.toml{name}", cwd=folder), 2)
        assert done.stderr.count("\n") == 1
    assert r"\x1b]0;t\x07[/b]" in command("audit", "runs/plain", "--policy", "policy.toml:no", cwd=folder).stderr


def test_names_that_are_no_text(folder: Path, tmp_path: Path) -> None:
    """File names are bytes: those that no encoding explains are spelled wherever they come out."""
    shutil.copytree(folder / "runs" / "plain", os.fsdecode(os.fsencode(tmp_path) + b"/r\xff\x9b"))
    for format in ("table", "json", "csv", "markdown"):
        assert r"\udcff" in clean(command("list", ".", "--format", format, cwd=tmp_path)).stdout
    for suffix in (".csv", ".parquet", ".json", ".md"):
        clean(command("list", ".", "--output", f"out{suffix}", cwd=tmp_path))
    clean(command("pl-ratio", "r\udcff\udc9b", "--output", "one.md", cwd=tmp_path))


def test_a_terminal_gets_colours_and_nothing_else(folder: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "lplr_cli", "list", str(folder / "runs")], stdout=follower, env=environment
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode("utf-8")
    assert "\x1b[" in text
    assert not obeyed(re.sub(r"\x1b\[[\d;]*m", "", text).replace("\r\n", ""))
    assert "x[red]y" in text


# One interpreter that forks a child for each case: what a shell would set up, without the start of a process each.
FORKS = """
import gc, json, os, sys
from pathlib import Path
from lplr_cli.cli.main import run
import lplr_cli.cli.app, lplr_cli.diagnostics, lplr_cli.reporting, lplr_cli.runs
gc.freeze()
results = []
for number, (kind, arguments) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    complaint = Path(sys.argv[1]).with_name(f"err{number}")
    child = os.fork()
    if not child:
        os.dup2(os.open(complaint, os.O_CREAT | os.O_WRONLY), 2)
        if kind == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        elif kind == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        elif kind == "both full":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, 1)
            os.dup2(full, 2)
        elif kind == "closed":
            os.close(1)
            sys.stdout = None
        elif kind == "ascii":
            sys.stdout = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="ascii", errors="strict")
        sys.exit(run(arguments))
    _, status = os.waitpid(child, 0)
    results.append([kind, arguments, os.waitstatus_to_exitcode(status), complaint.read_text()])
Path(sys.argv[2]).write_text(json.dumps(results))
"""


def outcomes(cases: list[tuple[str, list[str]]], folder: Path, tmp_path: Path) -> list[tuple[str, list[str], int, str]]:
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path / "cases.json"), str(tmp_path / "results.json")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[tuple[str, list[str], int, str]] = json.loads((tmp_path / "results.json").read_text())
    return found


def every_command(tmp_path: Path, kind: str) -> list[list[str]]:
    out = str(tmp_path / kind.replace(" ", "-"))
    tiny = ["--samples", "6", "--width", "3", "--depth", "1", "--lr", "0.02", "--steps", "2", "--probe-every", "0"]
    run = "runs/plain"
    return [
        [], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS),
        ["train", "mnist", *tiny, "--no-sharpness", "--out", f"{out}-train"],
        ["ablate", "mnist", *tiny, "--no-sharpness", "--seed", "0,1", "--out", f"{out}-ablate"],
        ["probe-ntk", run], ["certify", run, "--directions", "0", "--bounds", "fast"], ["pl-ratio", run],
        ["fit-rate", run], ["audit", run, "--no-certificate", "--fail-on", "never"], ["list", "runs"],
        ["report", run, "-o", f"{out}.html", "--no-certificate"], ["watch", run, "--once"],
        *(["list", "runs", "--format", format] for format in ("json", "csv", "markdown")),
    ]  # fmt: skip


EXPECTED = {"pipe": 141, "full": 3, "closed": 3, "both full": 3, "ascii": 0}


def judge(cases: list[tuple[str, list[str]]], folder: Path, tmp_path: Path) -> None:
    for kind, arguments, code, complaint in outcomes(cases, folder, tmp_path):
        assert code == EXPECTED[kind], (kind, arguments, code, complaint)
        assert "Traceback" not in complaint
        assert "Exception ignored" not in complaint
        told = [line for line in complaint.splitlines() if line.startswith("lplr: error")]
        assert len(told) == (kind in ("full", "closed")), (kind, arguments, complaint)
        assert all("stdout" in line for line in told)


def test_streams_that_fail(folder: Path, tmp_path: Path) -> None:
    some: list[list[str]] = [[], ["list", "--help"], ["list", "runs"], ["list", "runs", "--format", "json"]]
    judge([(kind, arguments) for kind in EXPECTED for arguments in some], folder, tmp_path)


@pytest.mark.slow
def test_streams_that_fail_have_one_meaning_in_every_command(folder: Path, tmp_path: Path) -> None:
    judge([(kind, arguments) for kind in EXPECTED for arguments in every_command(tmp_path, kind)], folder, tmp_path)
    # What was computed is kept.
    assert all((tmp_path / f"{kind.replace(' ', '-')}-train" / "summary.json").exists() for kind in EXPECTED)


@pytest.mark.parametrize("arguments", [["list", "runs"], ["list", "runs", "--format", "json"]])
def test_a_locale_without_unicode(folder: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run(
        [sys.executable, "-m", "lplr_cli", *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    text = done.stdout.decode("ascii")
    assert not obeyed(text.replace("\n", ""))
    if "json" in arguments:
        record: dict[str, Any] = json.loads(text)
        assert record["command"] == "list"


def test_a_shell_pipe_and_closed_descriptors(folder: Path) -> None:
    """The real thing once: a shell, an interpreter that starts without stdin, stdout or stderr."""
    lplr = f"{sys.executable} -m lplr_cli"
    script = (
        f"{lplr} list --help | true; echo ${{PIPESTATUS[0]}}; {lplr} --help >&- <&-; echo $?; "
        f"{lplr} list runs >&- 2>&-; echo $?; {lplr} fit-rate - <&- 2>/dev/full; echo $?"
    )
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["141", "3", "3", "2"], done.stderr
    assert done.stderr == "lplr: error: cannot write stdout (it is closed); check where it goes\n"


def test_debug_shows_a_traceback_and_keeps_the_code(folder: Path) -> None:
    done = command("pl-ratio", f"none{HOSTILE}", "--debug", cwd=folder)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert not obeyed(done.stderr.replace("\n", ""))
    assert done.stderr.splitlines()[-1].startswith("lplr: error: no run or log none")
