"""pl-ratio and fit-rate on anyone's log, through the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

STEPS = np.arange(300)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three seeds of a linear run with other people's column names, and one power law."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for seed, rate in enumerate((0.979, 0.98, 0.981)):
        loss = (0.05 + 2 * rate**STEPS) * np.exp(rng.normal(0, 0.01, 300))
        table = {"iteration": STEPS, "train/loss": loss, "grads": np.sqrt(loss), "note": "x"}
        pd.DataFrame(table).to_csv(f"seed{seed}.csv", index=False)
    power = 2 * (1 + STEPS / 10) ** -0.8 * np.exp(rng.normal(0, 0.01, 300))
    rows = zip(STEPS.tolist(), power.tolist(), strict=True)
    Path("power.jsonl").write_text("\n".join(json.dumps({"step": s, "loss": v}) for s, v in rows))
    return tmp_path


NAMES = ["--column", "step=iteration", "--column", "loss=train/loss", "--column", "grad_norm=grads"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run([*arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def test_one_log(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = answer(capsys, "fit-rate", "seed1.csv", *NAMES[:4])
    assert record["verdict"] == "linear"
    assert record["rate"] == pytest.approx(0.98, abs=5e-4)
    assert record["rate_low"] < record["rate"] < record["rate_high"]
    assert record["theory"]["rate_certified"] is None
    power = answer(capsys, "fit-rate", "power.jsonl")
    assert power["verdict"] == "sublinear"
    assert power["alpha"] == pytest.approx(0.8, abs=0.05)
    assert run(["fit-rate", "power.jsonl"]) == 0
    assert "sublinear (power law)" in capsys.readouterr().out


def test_several_logs_are_a_table(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["seed0.csv", "seed1.csv", "seed2.csv"]
    record = answer(capsys, "fit-rate", *names, *NAMES[:4], "--require", "rate.mean < 0.99")
    rates = [f["rate"] for f in record["fits"]]
    assert record["count"] == 3
    assert record["verdicts"]["linear"] == 3
    assert record["rate"]["mean"] == pytest.approx(np.mean(rates))
    assert record["rate"]["sd"] == pytest.approx(np.std(rates, ddof=1))
    assert run(["fit-rate", *names, *NAMES[:4], "--format", "csv"]) == 0
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["source"].tolist() == names
    assert run(["fit-rate", *names, *NAMES[:4]]) == 0
    shown = capsys.readouterr().out
    assert "mean" in shown
    assert "sd" in shown
    assert run(["fit-rate", "seed0.csv", "seed0.csv", *NAMES[:4]]) == 2


def test_pl_ratio_squares_a_norm(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = answer(capsys, "pl-ratio", "seed0.csv", *NAMES, "--l-star", "zero")
    # ||∇L||² = L by construction.
    assert record["pl_ratio"]["min"] == pytest.approx(0.5)
    assert record["pl_ratio_star"]["median"] == pytest.approx(0.5)
    assert record["mu_certified"] is None
    assert "log alone" in record["mu_certified_reason"]


def test_stdin_of_any_format(
    logs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    direct = answer(capsys, "fit-rate", "power.jsonl")
    pd.read_json("power.jsonl", lines=True).to_parquet("power.parquet")
    for name in ("power.jsonl", "power.parquet"):
        with Path(name).open("rb") as stream:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
            piped = answer(capsys, "fit-rate", "-")
        assert piped["alpha"] == pytest.approx(direct["alpha"], rel=1e-9)
        assert piped["source"] == "stdin"


def test_windows_and_rows_left_out_are_said(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv("seed1.csv")
    frame.loc[5, "train/loss"] = np.nan
    frame.loc[6, "train/loss"] = -1
    pd.concat([frame.iloc[:250], frame.iloc[200:]]).to_csv("restarted.csv", index=False)
    record = answer(capsys, "fit-rate", "restarted.csv", *NAMES[:4], "--window", "20:280")
    assert record["dropped_rows"] == {
        "missing": 1, "infinite": 0, "not_positive": 1, "superseded": 50, "repeated_step": 0,
    }  # fmt: skip
    assert record["window"]["rule"] == "given"
    assert (record["window"]["start"], record["window"]["stop"]) == (20, 280)
    assert run(["fit-rate", "restarted.csv", *NAMES[:4]]) == 0
    assert "50 superseded by a restart" in capsys.readouterr().out


def test_charts_and_figures(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit-rate", "seed0.csv", *NAMES[:4], "--plot", "--figure", "rate.png"]) == 0
    shown = capsys.readouterr().out
    assert "suboptimality of seed0.csv" in shown
    assert any("⠀" < c <= "⣿" for c in shown)
    assert "\x1b" not in shown
    assert run(["pl-ratio", "seed0.csv", *NAMES, "--plot", "--figure", "ratio.svg"]) == 0
    assert "PL ratio" in capsys.readouterr().out
    assert run(["fit-rate", "seed0.csv", "seed1.csv", *NAMES[:4], "--figure", "several.pdf"]) == 0
    capsys.readouterr()
    assert Path("rate.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in Path("ratio.svg").read_text()
    assert Path("several.pdf").read_bytes()[:4] == b"%PDF"
    assert run(["fit-rate", "seed0.csv", *NAMES[:4], "--figure", "rate.png"]) == 2
    assert run(["fit-rate", "seed0.csv", *NAMES[:4], "--figure", "rate.gif"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pl-ratio", "seed0.csv", "--column", "lr=rate"], "it has iteration, train/loss, grads, note"),
        (["fit-rate", "seed0.csv", "--column", "step=iteration", "--column", "loss=nope"], "no column 'nope'"),
        (["pl-ratio", "power.jsonl"], "no finite gradient norm"),
        (["fit-rate", "power.jsonl", "--window", "5:1"], "--window"),
        (["fit-rate", "power.jsonl", "--window", "5:8"], "too few"),
        (["fit-rate", "power.jsonl", "--window", "1000:"], "holds 0 usable rows"),
        (["pl-ratio", "seed0.csv", *NAMES, "--l-star", "99"], "exceeds L*"),
        (["fit-rate", "short.csv"], "too few"),
    ],
)
def test_bad_input_is_one_line(
    logs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("short.csv").write_text("step,loss\n0,1\n1,0.5\n")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lplr: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_gradients_are_recomputed_from_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(DataSpec("mnist", samples=20), ModelSpec(width=6, depth=1), steps=40, checkpoint_every=5)
    outcome = train(config, tmp_path / "r")
    logged = outcome.run.log()
    log = logged.drop(columns="grad_norm_sq")
    log["grad_norm_sq"] = np.nan
    log.to_csv(tmp_path / "r" / "log.csv", index=False)
    (tmp_path / "r" / "log.parquet").unlink()
    assert run(["pl-ratio", "r", "--l-star", "zero", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    series = pd.read_csv(io.StringIO(out))
    assert series["step"].tolist() == list(range(0, 41, 5))
    assert "computing them at its checkpoints" in err
    expected = 0.5 * logged["grad_norm_sq"] / logged["loss"]
    assert series["pl_ratio"].to_numpy() == pytest.approx(expected[::5].to_numpy(), rel=1e-9)
