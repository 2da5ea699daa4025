"""Magnitudes that no proof covers, through the command: one line and a documented exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lplr_cli.models import ModelSpec, build_model
from tests.command import command


@pytest.mark.parametrize(
    ("inputs", "weights", "said"),
    [
        (1e-161, 1.0, "inputs of magnitude"),
        (1e160, 1.0, "inputs of magnitude"),
        (1.0, 1e100, "weights of magnitude"),
        (1.0, float("nan"), "weights of magnitude nan"),
    ],
)
def test_certify_refuses_what_it_cannot_bound(inputs: float, weights: float, said: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=inputs * rng.standard_normal((6, 5)), targets=rng.standard_normal((6, 1)))
    module = build_model(ModelSpec(width=4, depth=1, activation="gelu"), (5,), 1, seed=1)
    torch.save({k: weights * v for k, v in module.state_dict().items()}, tmp_path / "weights.pt")
    done = command("certify", "weights.pt", "--data", "data.npz", "--activation", "gelu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("lplr: error:")
    assert said in done.stderr
