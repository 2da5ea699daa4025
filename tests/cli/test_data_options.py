"""A kernel with more rows than the network has parameters is singular, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lplr_cli.cli.main import run


def test_more_rows_than_parameters_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(30, 2))
    np.savez("d.npz", X=x, y=x[:, :1] ** 2)
    options = ["--width", "2", "--depth", "1", "--steps", "12", "--lr", "0.01", "--probe-every", "6", "--out", "r"]
    assert run(["train", "d.npz", *options]) == 0
    capsys.readouterr()
    assert run(["probe-ntk", "r"]) == 0
    assert "K has 30 rows and a rank of at most 9, the parameters of the network" in " ".join(
        capsys.readouterr().out.split()
    )
    assert run(["probe-ntk", "r", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rank_at_most"] == 9
    assert (np.array(record["smallest"]) < 1e-12 * record["lambda_max"]).all()
    assert run(["audit", "r", "--no-certificate", "--fail-on", "never", "--format", "json"]) == 0
    reasons = capsys.readouterr().out
    assert "30 rows and the network 9 parameters, so that it must be singular" in reasons


def test_classes_of_a_file_are_said_and_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = ["cat", "dog", "eel"] * 4
    Path("d.csv").write_text("a,b,kind\n" + "".join(f"{i},{i * i % 7},{k}\n" for i, k in enumerate(kinds)))
    options = ["--target", "kind", "--width", "4", "--depth", "1", "--steps", "4", "--lr", "1e-4"]
    assert run(["train", "d.csv", *options, "--out", "all"]) == 0
    assert "d.csv: 3 classes of kind (cat, dog, eel), as onehot" in capsys.readouterr().err
    assert run(["train", "d.csv", *options, "--classes", "eel,cat", "--out", "two"]) == 0
    assert "2 classes of kind (eel, cat), as 01" in capsys.readouterr().err
    assert run(["train", "d.csv", *options, "--task", "regression", "--out", "none"]) == 2
    assert "are text" in capsys.readouterr().err
    assert run(["probe-ntk", "all"]) == 0
    capsys.readouterr()
    assert run(["ablate", "d.csv", "--target", "kind", "--classes", "rat", "--seed", "0,1", "--out", "s"]) == 2
    assert "class rat has no samples" in capsys.readouterr().err
    assert not Path("s").exists()
