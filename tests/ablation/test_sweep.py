"""Sweeps on every executor give the same table; failures are rows; dead processes and nodes are survived."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lplr_cli.ablation import Cell, LocalProcesses, RayCluster, failures, run_sweep
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import TrainConfig
from tests.command import DEADLINE, grown, started, wait_for

BASE = TrainConfig(
    DataSpec("mnist", samples=12), ModelSpec(depth=1), lr=0.01, steps=12, probe_every=6, checkpoint_every=4
)
AXES: dict[str, list[Any]] = {"width": [3, 5], "seed": [0]}
EXACT = ["run", "status", "regime", "parameters", "lr", "drift", "loss_final", "lambda_min_start", "lambda_min_end"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    frame, status = run_sweep(BASE, AXES, tmp_path_factory.mktemp("sweep") / "s")
    assert status == "finished"
    assert frame["status"].tolist() == ["finished"] * 2
    return frame


def same(frame: pd.DataFrame, reference: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame[EXACT], reference[EXACT], rtol=1e-9)


def test_local_processes_give_the_same_table(
    tmp_path: Path, reference: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder with modules of the names that a process imports first: nobody has named them."""
    (tmp_path / "theirs" / "lplr_cli").mkdir(parents=True)
    for name in ("json", "torch", "numpy", "runpy", "lplr_cli/__init__"):
        (tmp_path / "theirs" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path / "theirs")
    grown: list[int] = []
    frame, status = run_sweep(
        BASE, AXES, tmp_path / "s", executor=LocalProcesses(2), on_row=lambda table: grown.append(len(table))
    )
    assert status == "finished"
    assert grown == [1, 2]
    assert not (tmp_path / "ran").exists()
    same(frame, reference)
    for name in ("results.csv", "results.parquet"):
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        same(read(tmp_path / "s" / name).astype(dict.fromkeys(("run", "status", "regime"), "string")), reference)


def test_a_failed_cell_is_a_row(tmp_path: Path) -> None:
    single = [Cell("wild", {"lr": 1e4}), Cell("wrong", {"kind": "nowhere:model"})]
    frame, status = run_sweep(BASE, {}, tmp_path / "s", single=single, executor=LocalProcesses(2))
    assert status == "finished"
    assert frame["status"].tolist() == ["diverged", "failed"]
    assert frame["regime"].fillna("").tolist() == ["left", ""]
    assert [name for name, _ in failures(frame)] == ["wild", "wrong"]
    assert "nowhere" in frame["error"][1]


def test_wrong_data_are_found_before_the_first_cell(tmp_path: Path) -> None:
    single = [Cell("fine", {}), Cell("wrong", {"classes": (0, 1)})]
    with pytest.raises(InputError, match="wrong: class 0 has no samples here"):
        run_sweep(BASE, {}, tmp_path / "s", single=single)
    assert not (tmp_path / "s").exists()


# Stands for Python: a worker that dies by SIGKILL once, right after the checkpoint of step 4.
DYING = """#!{python}
import os, signal, sys
from pathlib import Path

sys.path.insert(0, {root!r})
from lplr_cli.runs import RunDirectory

mark, save = Path({mark!r}), RunDirectory.save

def dying(self, checkpoint):
    save(self, checkpoint)
    if checkpoint.step == 4 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

RunDirectory.save = dying
sys.argv = sys.argv[3:]
exec(sys.argv[0])
"""


def test_a_killed_process_is_tried_again(
    tmp_path: Path, reference: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies in the middle of a run; the sweep goes on from its checkpoint."""
    script, mark = tmp_path / "python", tmp_path / "died"
    script.write_text(DYING.format(python=sys.executable, root=str(Path(__file__).parents[2]), mark=str(mark)))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    out = tmp_path / "s"
    frame, status = run_sweep(BASE, AXES, out, executor=LocalProcesses(1))
    assert mark.exists()
    assert status == "finished"
    same(frame, reference)
    # The log was continued, not begun again: every step is there once.
    assert RunDirectory.open(out / "width3-seed0").log()["step"].tolist() == list(range(13))


def test_a_process_that_always_dies_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    frame, _ = run_sweep(BASE, {"width": [3]}, tmp_path / "s", executor=LocalProcesses(1))
    assert frame["status"].tolist() == ["failed"]
    assert "its process died (exit code 1)" in frame["error"][0]


def test_resume_runs_only_what_is_missing(tmp_path: Path, reference: pd.DataFrame) -> None:
    out = tmp_path / "s"
    run_sweep(BASE, AXES, out)
    kept, lost = out / "width3-seed0", out / "width5-seed0"
    stamp = (kept / "log.csv").stat().st_mtime_ns
    # One run is lost, one never got as far as run.json.
    for name in ("run.json", "log.csv", "log.parquet", "probes.csv", "probes.parquet", "summary.json"):
        (lost / name).unlink()
    for path in (lost / "checkpoints").iterdir():
        path.unlink()
    frame, _ = run_sweep(BASE, AXES, out, continue_=True)
    same(frame, reference)
    assert (kept / "log.csv").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="other options"):
        run_sweep(BASE, {"width": [3]}, out, continue_=True)
    with pytest.raises(InputError, match="holds a sweep already"):
        run_sweep(BASE, AXES, out)


def test_interrupting_parallel_runs_keeps_them_resumable(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "lplr_cli", "ablate", "mnist", "--samples", "12", "--depth", "1", "--width", "3,5",
        "--steps", "100000", "--probe-every", "0", "--no-sharpness", "--checkpoint-every", "0", "--jobs", "2",
        "--out", str(tmp_path / "s"),
    ]  # fmt: skip
    names = ("width3", "width5")
    with started(command, tmp_path) as process:
        wait_for(lambda: all(grown(tmp_path / "s" / n / "log.csv", 2000) for n in names), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert b"--resume --out" in err
    for name in names:
        directory = RunDirectory.open(tmp_path / "s" / name)
        assert directory.config()["status"] == "interrupted"
        assert len(directory.checkpoint_steps()) == 2


def test_runs_that_left_are_followed(tmp_path: Path) -> None:
    base = BASE.with_(samples=60, width=64, depth=4, steps=40, probe_size=20, probe_every=20)
    frame, _ = run_sweep(base, {"lr": [1e-4, 1e-2]}, tmp_path / "s", recover=True)
    assert frame["run"].tolist() == ["lr0.0001", "lr0.01", "lr0.01-recovered"]
    assert frame["regime"].tolist() == ["stayed", "left", "recovered"]
    assert frame["follows"].fillna("").tolist() == ["", "", "lr0.01"]
    left, again = frame.iloc[1], frame.iloc[2]
    assert again["lr"] == pytest.approx(min(1 / left["sharpness_max"], left["lr"] / 2))
    assert again["lr_over_stable"] < 1 < left["lr_over_stable"] * 1.2
    twice, _ = run_sweep(base, {"lr": [1e-4, 1e-2]}, tmp_path / "s", recover=True, continue_=True)
    pd.testing.assert_frame_equal(twice, frame)


def test_presets_have_the_papers_parameter_counts() -> None:
    from lplr_cli.ablation import preset
    from lplr_cli.models import build_model, parameter_count

    chosen = preset("paper-width")
    counts = [parameter_count(build_model(chosen.base.with_(**c.values).model, (784,), 1)) for c in chosen.cells]
    assert counts == [150_145, 398_593, 1_190_401, 3_953_665]
    cnn = preset("paper-cnn", full=True)
    assert parameter_count(build_model(cnn.base.model, (3, 32, 32), 5)) == 2_776_389
    with pytest.raises(InputError, match="paper-mnist, paper-width, paper-cnn"):
        preset("paper")


@pytest.mark.parametrize(("name", "keys"), [("paper-mnist", 6), ("paper-width", 12), ("paper-cnn", 6)])
def test_the_fast_presets_judge_every_statement(
    name: str, keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["ablate", "--preset", name, "--fast", "--format", "json", "--figure", "f.svg"]) == 0
    record = json.loads(capsys.readouterr().out)
    statements = record["statements"]
    assert len(statements) == keys
    assert all(s["figures"] and s["text"] for s in statements.values())
    assert (tmp_path / "f.svg").stat().st_size > 10_000
    if name == "paper-width":
        rows = {r["run"]: r for r in record["results"]}
        # The presets certify the paths themselves.
        assert rows["width8"]["path_share_certified"] == 1.0
        assert statements["W3"]["holds"] == (
            rows["width8"]["loss_final"] > rows["width16"]["loss_final"] > rows["width32"]["loss_final"]
        )
        assert rows["width64"]["regime"] == "left"
        assert statements["T2"]["holds"] == (rows["width64"]["path_breaks"] is not None)
        assert rows["width64"]["lambda_min_full_lower"] <= rows["width64"]["lambda_min_start"]
        assert run(["ablate", "--preset", name, "--width", "3"]) == 2
    elif name == "paper-cnn":
        assert [r["run"] for r in record["results"]] == ["seed0", "seed1", "seed2", "constant-seed0"]
        assert statements["C6"]["holds"] is not None
        assert all(record["results"][0][f"alignment_{when}"] > 0 for when in ("start", "middle", "end"))


@pytest.mark.slow
def test_the_width_preset_says_what_the_docs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The full preset, an hour with its paths: every verdict and the figures that docs/reproduction.md states."""
    text = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    text = text[text.index("## Widths") : text.index("## The convolutional")]
    verdicts = dict(re.findall(r"^\| ([WRBT]\d?) \| .*? \| \**(holds|does not hold)\** \|", text, re.MULTILINE))
    assert len(verdicts) == 12
    monkeypatch.chdir(tmp_path)
    assert run(["ablate", "--preset", "paper-width", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = {k: "holds" if s["holds"] else "does not hold" for k, s in record["statements"].items()}
    assert {k: found[k] for k in verdicts} == verdicts
    rows = {r["run"]: r for r in record["results"]}
    assert [rows[f"width{w}"]["drift"] for w in (128, 256, 512)] == pytest.approx([0.198, 0.177, 0.230], rel=0.02)
    assert rows["width1024"]["lambda_min_end"] < 0.5 * rows["width1024"]["lambda_min_start"]
    assert rows["width1024-recovered"]["drift"] == pytest.approx(0.0918, rel=0.05)
    assert all(0 < r["certified_radius"] < 1e-4 < r["drift"] for r in rows.values())


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node(tmp_path: Path, reference: pd.DataFrame) -> None:
    """Two nodes on this machine, one of them killed while it works: the table is that of the local executor."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    out = tmp_path / "s"

    def kill_node() -> None:
        wait_for(lambda: len(list(out.glob("*/checkpoints/step-000000.pt"))) >= 2)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill_node, daemon=True)
    try:
        thread.start()
        frame, status = run_sweep(BASE.with_(steps=12), AXES, out, executor=RayCluster(cpus=1))
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call, unused-ignore]
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert status == "finished"
    same(frame, reference)


def test_paths_of_a_sweep_are_certified_once(tmp_path: Path) -> None:
    base = TrainConfig(
        DataSpec("mnist", samples=12),
        ModelSpec(width=4, depth=1),
        lr=0.004,
        steps=4,
        probe_every=0,
        probe_sharpness=False,
    )
    frame, _ = run_sweep(base, {"seed": [0, 1]}, tmp_path / "s")
    assert frame["mu_path_star"].isna().all()
    frame, _ = run_sweep(base, {"seed": [0, 1]}, tmp_path / "s", continue_=True, along=True)
    assert (frame["path_share_certified"] == 1.0).all()
    assert (frame["mu_path_star"] > 0).all()
    made = [(tmp_path / "s" / name / "path.json").stat().st_mtime_ns for name in frame["run"]]
    again, _ = run_sweep(base, {"seed": [0, 1]}, tmp_path / "s", continue_=True, along=True)
    assert again["mu_path"].tolist() == frame["mu_path"].tolist()
    assert made == [(tmp_path / "s" / name / "path.json").stat().st_mtime_ns for name in frame["run"]]
