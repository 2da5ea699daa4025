"""Kernels and predicted curves against neural-tangents, which is not installed beside torch: what it once printed is
kept, and where LPLR_BENCH_NT_PYTHON names a Python that has it, printed again.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lplr_cli.ntk import Linearised, Modes, Network, cross_ntk, empirical_ntk

HERE = Path(__file__).parent
# Their loss is half the mean over samples and outputs: s = 1/(2C).
SAMPLES, OUTPUTS = 6, 2


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    record = json.loads((HERE / "neural_tangents.json").read_text())
    return {k: v if k == "params" else np.array(v) for k, v in record.items()}


@pytest.fixture(scope="module")
def network(theirs: dict[str, Any]) -> Network:
    layers = (nn.Linear(3, 5), nn.Linear(5, OUTPUTS))
    module = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
    with torch.no_grad():
        for layer, (w, b) in zip(layers, theirs["params"], strict=True):
            layer.weight.copy_(torch.tensor(w, dtype=torch.float64).T)
            layer.bias.copy_(torch.tensor(b, dtype=torch.float64))
    return Network.from_module(module)


def flow(at: Callable[[NDArray[np.float64]], NDArray[np.float64]], time: float) -> NDArray[np.float64]:
    """The limit of small steps, by Richardson's extrapolation of descent with 512 to 4,096 of them."""
    table = [at(np.full(count, time / count)) for count in (512, 1024, 2048, 4096)]
    for order in range(1, len(table)):
        table = [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in itertools.pairwise(table)]
    return table[0]


def test_kernels_are_those_of_neural_tangents(theirs: dict[str, Any], network: Network) -> None:
    x, others = torch.tensor(theirs["x"]), torch.tensor(theirs["others"])
    ours = SAMPLES * empirical_ntk(network, x).matrix.numpy()
    np.testing.assert_allclose(ours, theirs["kernel"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cross_ntk(network, others, x).numpy(), theirs["cross"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_predictions_are_those_of_neural_tangents(theirs: dict[str, Any], network: Network, index: int) -> None:
    y = theirs["y"].reshape(-1)
    start, before = (theirs[key][0].reshape(-1) for key in ("train", "test"))
    run = Linearised(Modes.of(theirs["kernel"] / SAMPLES, start - y, SAMPLES), 1 / (2 * OUTPUTS))
    time = float(theirs["times"][index])
    after = y + flow(run.residual, time)
    np.testing.assert_allclose(after, theirs["train"][index].reshape(-1), atol=1e-8, rtol=0)
    elsewhere = flow(lambda steps: run.outputs(steps, theirs["cross"], before), time)
    np.testing.assert_allclose(elsewhere, theirs["test"][index].reshape(-1), atol=1e-8, rtol=0)
    loss = flow(lambda steps: run.losses(steps)[-1:], time)
    measured = ((theirs["train"][index] - theirs["y"]) ** 2).mean() / 2
    np.testing.assert_allclose(loss, measured, atol=1e-8, rtol=0)


@pytest.mark.skipif("LPLR_BENCH_NT_PYTHON" not in os.environ, reason="LPLR_BENCH_NT_PYTHON names no Python")
def test_what_is_kept_is_what_it_prints(theirs: dict[str, Any]) -> None:
    command = [os.environ["LPLR_BENCH_NT_PYTHON"], str(HERE / "make_neural_tangents.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, value in json.loads(done.stdout).items():
        if name != "params":
            np.testing.assert_allclose(np.array(value), theirs[name], rtol=1e-11, atol=1e-11)
