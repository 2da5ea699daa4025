"""Corners of arithmetic and of data: defined behaviour, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lplr_cli.cli.main import run

STEPS = np.arange(40.0)


def write(path: Path, inputs: np.ndarray, targets: np.ndarray) -> str:
    np.savez(path, inputs=inputs, targets=targets)
    return str(path)


def trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, *options: str, code: int = 0
) -> dict[str, object]:
    found = run(
        [
            "train",
            data,
            "--width",
            "3",
            "--depth",
            "1",
            "--steps",
            "15",
            "--out",
            str(tmp_path / "r"),
            "--format",
            "json",
            *options,
        ]
    )
    out, err = capsys.readouterr()
    assert found == code, err
    record: dict[str, object] = json.loads(out) if out else {}
    return record


def test_a_single_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d.npz", np.ones((1, 4)), np.ones(1))
    record = trained(tmp_path, capsys, data)
    assert record["lambda_min"]["initial"] == record["lambda_max"]["initial"] > 0  # type: ignore[index]
    for command in (["probe-ntk"], ["pl-ratio"], ["fit-rate"], ["audit", "--fail-on", "never"], ["certify"]):
        assert run([command[0], str(tmp_path / "r"), "--format", "json", *command[1:]]) in (0, 2)
    assert "internal" not in capsys.readouterr().err


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "mnist", "--classes", "3", "--targets", "01", "--out", str(tmp_path / "x")]) == 2
    assert "needs two classes" in capsys.readouterr().err
    record = trained(tmp_path, capsys, "mnist", "--classes", "3", "--samples", "6")
    assert record["data"]["outputs"] == 1  # type: ignore[index]


def test_duplicate_samples_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(9, 4))
    inputs[7] = inputs[2]
    data = write(tmp_path / "d.npz", inputs, rng.normal(size=9))
    trained(tmp_path, capsys, data)
    assert run(["probe-ntk", str(tmp_path / "r"), "--format", "json", "--verify"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["duplicate_inputs"] == [2, 7]
    assert record["lambda_min"]["lower"] <= 0
    assert abs(record["lambda_min"]["value"]) < 1e-12 * record["lambda_max"]
    assert run(["probe-ntk", str(tmp_path / "r")]) == 0
    assert "Samples 2 and 7 have equal inputs: λ_min is exactly 0" in capsys.readouterr().out
    assert run(["audit", str(tmp_path / "r"), "--format", "json"]) == 1
    audit = json.loads(capsys.readouterr().out)
    assert audit["H1"]["status"] == "fails"
    assert "samples 2 and 7 have equal inputs" in audit["H1"]["reason"]


def test_more_outputs_than_samples_and_width_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    data = write(tmp_path / "d.npz", rng.normal(size=(3, 3)), rng.normal(size=(3, 7)))
    record = trained(tmp_path, capsys, data, "--width", "1")
    # 21 rows, 18 parameters: K cannot have full rank, and nobody says it has.
    assert record["mu_certified"] is None
    assert run(["certify", str(tmp_path / "r"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["lambda_0_lower"] == 0.0


def test_zero_gradient_and_exact_zero_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Depth 0 with zero inputs and targets that the zero bias meets: loss 0 from the first step on."""
    data = write(tmp_path / "d.npz", np.zeros((3, 2)), np.zeros(3))
    found = run(
        ["train", data, "--depth", "0", "--lr", "0.1", "--steps", "9", "--out", str(tmp_path / "r"), "--format", "json"]
    )
    out, err = capsys.readouterr()
    assert found == 2
    assert out == ""
    assert "no row with a positive, finite loss" in err
    assert len(pd.read_csv(tmp_path / "r" / "log.csv")) == 10
    assert (pd.read_csv(tmp_path / "r" / "log.csv")["grad_norm_sq"] == 0).all()


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("constant", np.full(40, 0.5)),
        ("denormal", 5e-320 * (41 - STEPS)),
        ("huge", 1e300 * 0.9**STEPS),
        ("tiny", 1e-300 * 0.9**STEPS),
        ("to zero", np.maximum(0.5**STEPS - 1e-6, 0.0)),
        ("overflow", np.where(STEPS > 30, np.inf, 0.9**STEPS)),
        ("spikes", np.where(STEPS % 13 == 5, 1e6, 0.9**STEPS)),
        ("rising", 1.1**STEPS),
    ],
)
def test_losses_of_every_size(name: str, loss: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    with np.errstate(all="ignore"):
        pd.DataFrame({"step": STEPS, "loss": loss, "grad_norm_sq": loss}).to_csv(path, index=False)
    for command in ("fit-rate", "pl-ratio", "audit"):
        code = run([command, str(path), "--format", "json"])
        out, err = capsys.readouterr()
        assert code in (0, 2), err
        assert "internal" not in err
        assert "NaN" not in out
        assert "Infinity" not in out
        if command == "fit-rate" and name in ("huge", "tiny"):
            assert json.loads(out)["rate"] == pytest.approx(0.9, abs=1e-6)
        if command == "fit-rate" and name in ("constant", "rising"):
            assert json.loads(out)["verdict"] == {"constant": "undecided", "rising": "none"}[name]
        if command == "pl-ratio" and name == "to zero":
            assert json.loads(out)["dropped_rows"]["not_positive"] == int((loss <= 0).sum())
