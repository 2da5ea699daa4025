from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lplr_cli.analysis import Source, open_subject, probe_hessian
from lplr_cli.curvature import Effort
from lplr_cli.curvature.optimizer_state import OptimizerState, optimizer_state
from lplr_cli.data import DataSpec
from lplr_cli.losses import SQUARED
from tests import foreign_nets
from tests.curvature import dense

QUICK = Effort(eigenvalues=1, trace_vectors=0, density_vectors=0, parts=False, tolerance=1e-9)


def stepped(optimizer: type[torch.optim.Optimizer], **options: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = foreign_nets.mlp().double()
    used = optimizer(module.parameters(), **options)
    x, y = foreign_nets.table()
    for _ in range(5):
        used.zero_grad()
        SQUARED.total(module(x.double()), y.double(), len(x)).backward()  # type: ignore[no-untyped-call]
        used.step()
    return module, used


def probe(folder: Path, key: str, module: torch.nn.Module, state: Any) -> dict[str, Any]:
    x, y = foreign_nets.table()
    np.savez(folder / "d.npz", inputs=x.double().numpy(), targets=y.double().numpy())
    torch.save({"state_dict": module.state_dict(), key: state}, folder / "c.ckpt")
    source = Source(activation="tanh", data=DataSpec(str(folder / "d.npz")))
    return probe_hessian(folder / "c.ckpt", source=source, loss=SQUARED, effort=QUICK).record


@pytest.mark.parametrize(
    ("kind", "decay"), [(torch.optim.Adam, 0.0), (torch.optim.Adam, 0.1), (torch.optim.AdamW, 0.1)]
)
def test_the_preconditioned_sharpness_of_adam(kind: Any, decay: float, tmp_path: Path) -> None:
    module, used = stepped(kind, lr=0.01, betas=(0.8, 0.99), weight_decay=decay, eps=1e-4)
    state = used.state_dict()
    if decay and "decoupled_weight_decay" not in state["param_groups"][0]:
        state["param_groups"][0]["decoupled_weight_decay"] = kind is torch.optim.AdamW
    record = probe(tmp_path, "optimizer_state_dict", module, state)
    x, y = foreign_nets.table()
    source = Source(activation="tanh", data=DataSpec(str(tmp_path / "d.npz")))
    network = open_subject(tmp_path / "c.ckpt", source).network(torch.float64, torch.device("cpu"))
    matrix = dense.hessian(network, x.double(), y.double(), SQUARED.values)
    if kind is torch.optim.Adam:
        matrix += decay * np.eye(len(matrix))
    moments = np.concatenate([used.state[p]["exp_avg_sq"].reshape(-1).numpy() for p in module.parameters()])
    root = 1 / np.sqrt(np.sqrt(moments / (1 - 0.99**5)) + 1e-4)
    found = record["preconditioned"]
    assert found["lambda_max"]["value"] == pytest.approx(np.linalg.eigvalsh(root * (root * matrix).T)[-1], rel=1e-7)
    decoupled = decay if kind is torch.optim.AdamW else 0.0
    assert found["threshold"] == pytest.approx((2 - 0.01 * decoupled) * 1.8 / (0.2 * 0.01))
    assert found["ratio"] == pytest.approx(found["lambda_max"]["value"] / found["threshold"])
    assert record["stability"]["ratio"] is None


def test_the_threshold_of_sgd_in_a_file(tmp_path: Path) -> None:
    module, used = stepped(torch.optim.SGD, lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.1)
    record = probe(tmp_path, "optimizer_states", module, [used.state_dict()])
    assert record["preconditioned"] is None
    assert record["stability"]["threshold"] == pytest.approx(3 / (2 * 0.02) - 0.1)
    assert record["stability"]["rule"] == "(2 + 2β)/((1 + 2β)η) - 0.1, β = 0.5"


def test_what_is_not_known_is_said() -> None:
    module, used = stepped(torch.optim.Adam, lr=0.01, weight_decay=0.1)
    state = used.state_dict()
    state["param_groups"][0].pop("decoupled_weight_decay", None)
    other = torch.nn.Linear(2, 2)
    rms = torch.optim.RMSprop(module.parameters()).state_dict()
    rms["param_groups"][0].pop("nesterov", None)
    for record, said in (
        ({"optimizer": state}, "how its weights decay"),
        ({"optimizer": {**state, "param_groups": state["param_groups"] * 2}}, "several groups"),
        ({"optimizer": rms}, "neither"),
        ({}, "does not tell"),
        (None, "does not tell"),
        ({"optimizer": {"state": {}, "param_groups": [{"betas": 3, "amsgrad": False}]}}, "not understood"),
    ):
        found = optimizer_state(record, module)
        assert isinstance(found, str)
        assert said in found
    state["param_groups"][0] |= {"weight_decay": 0.0}
    assert isinstance(optimizer_state({"optimizer": state}, module), OptimizerState)
    assert "parameters" in str(optimizer_state({"optimizer": state}, other))
    state["state"][0]["exp_avg_sq"] = torch.zeros(3)
    assert "shapes" in str(optimizer_state({"optimizer": state}, module))
