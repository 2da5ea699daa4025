"""The examples run, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lplr_cli.ablation import InProcess, RayCluster
from lplr_cli.certificate import Trajectory, check_run
from lplr_cli.runs import RunDirectory
from tests.command import program

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    return program(EXAMPLES / f"{name}.py")


def test_end_to_end_certificate_at_the_documented_width() -> None:
    """docs/theory.md section 6: width 18,014 is certified, and the run keeps to it; a quarter of it is not."""
    example = load("end_to_end_certificate")
    found, model, x, y = example.certificate(4, 18_014)
    assert found.containment.holds
    assert found.containment.step_fraction < 1
    lr = found.containment.eta_max
    losses, drifts = example.train(model, x, y, lr, 40)
    checked = check_run(found, Trajectory.of_descent(losses, drifts, lr))
    assert checked.applies
    assert checked.violations == 0
    assert not example.certificate(4, 4_500)[0].containment.holds


@pytest.mark.slow
def test_end_to_end_certificate_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "end_to_end_certificate.py")], capture_output=True, text=True, check=True
    )
    assert "certified: every iterate stays within" in done.stdout
    assert " 0 violations" in done.stdout


def test_a_plain_loop_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("audit_plain_loop").main(tmp_path)
    text = capsys.readouterr().out
    linear, hidden = text.split("hidden: ")
    assert linear.startswith("linear: local PL regime yes (certified: ")
    assert linear.count("holds (verified)") == 7
    assert hidden.startswith("local PL regime no (H3 fails")


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_run_is_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("lightning_run")
    monkeypatch.setattr(example, "STEPS", 60)
    example.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    verdict = next(i for i, line in enumerate(lines) if line.startswith("local PL regime"))
    assert "H1  holds (verified)" in lines[verdict + 1]
    assert len(RunDirectory.open(tmp_path / "run").log()) >= 60


def test_a_transformer_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("tiny_transformer").main(tmp_path)
    text = capsys.readouterr().out
    assert "by their Jacobian: positions" in text
    low = float(text.split("lambda_min ")[1].split(",")[0])
    probes = RunDirectory.open(tmp_path / "run").probes()
    assert low == pytest.approx(probes["lambda_min"][0], rel=1e-3)
    assert probes["sharpness"].notna().all()
    assert "H1  holds (verified)" in text


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_of_the_cluster_example(ray: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ray:
        pytest.importorskip("ray")
    load("ray_sweep").main(tmp_path, RayCluster() if ray else InProcess())
    lines = capsys.readouterr().out.splitlines()
    runs = lines[2:]
    assert lines[0] == f"finished: {len(runs)} runs"
    left, stayed = ([line.split()[0] for line in runs if f" {word} " in line] for word in ("left", "stayed"))
    recovered = [line.split()[0] for line in runs if " recovered " in line]
    assert recovered == [f"{name}-recovered" for name in left]
    assert left
    assert stayed


def test_a_step_size_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("choose_step_size").main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    drift = [float(line.split("NTK drift ")[1].split()[0]) for line in lines[1:]]
    assert len(drift) == 4
    assert max(drift[:3]) < 25 < drift[3]
