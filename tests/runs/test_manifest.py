"""run.json: one typed record, written alike by loop and recorder, refused where a value has a wrong type."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lplr_cli.cli.main import run as lplr
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.runs import EXACT, Manifest, RunDirectory
from lplr_cli.training import Recorder
from lplr_cli.training.loop import threads_of
from tests.foreign_nets import mlp, table

GOLDEN = Path(__file__).parents[1] / "reliability" / "golden-v1"
X, Y = table()


def golden() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((GOLDEN / "run.json").read_text())
    return record


def test_a_run_of_schema_1_is_read() -> None:
    manifest = RunDirectory.open(GOLDEN).manifest()
    assert (manifest.status, manifest.recorded, manifest.parameters) == ("finished", False, 1579)
    assert (manifest.loss.name, manifest.loss.scale, manifest.loss.values) == ("squared", 1.0, EXACT)
    assert manifest.optimizer.plain_step == 0.05
    assert (manifest.data.n, manifest.data.outputs, manifest.dtype) == (5, 1, "float64")
    written = manifest.to_dict()
    assert written["loss"].pop("values") == EXACT
    assert written == golden()
    assert Manifest.from_dict(written, "again") == manifest


WRONG: list[tuple[str, Any]] = [
    ("status", None),
    ("status", "done"),
    ("kind", "other"),
    ("loss", None),
    ("loss", []),
    ("loss.name", 3),
    ("loss.scale", "1"),
    ("loss.scale", 0.0),
    ("loss.scale", -1),
    ("loss.scale", True),
    ("loss.scale", 10**400),
    ("loss.values", "some"),
    ("config", "x"),
    ("config.optimizer", {}),
    ("config.lr", "fast"),
    ("config.lr", -0.1),
    ("config.momentum", []),
    ("config.schedule", 1),
    ("config.steps", 1.5),
    ("config.epochs", "3"),
    ("config.batch_size", -1),
    ("data", 1),
    ("data.n", []),
    ("data.n", 0),
    ("data.n", 5.0),
    ("data.outputs", True),
    ("data.sha256", 5),
    ("model", None),
    ("model.parameters", "many"),
    ("model.kind", []),
    ("dtype", 64),
    ("threads", -1),
    ("versions", [1]),
    ("versions", {"lplr": 1}),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_values_of_a_wrong_type_are_refused(path: str, value: Any) -> None:
    record = golden()
    section, _, key = path.rpartition(".")
    (record[section] if section else record)[key] = value
    with pytest.raises(InputError, match=key):
        Manifest.from_dict(record, "run.json")


@pytest.mark.parametrize("command", ["pl-ratio", "fit-rate", "audit", "certify", "report", "watch"])
def test_commands_refuse_a_damaged_manifest(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("log.csv", "probes.csv"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000.pt").write_bytes((GOLDEN / "checkpoints" / "step-000000.pt").read_bytes())
    record = golden()
    record["loss"]["scale"] = [2]
    (tmp_path / "run.json").write_text(json.dumps(record))
    extra = ["-o", str(tmp_path / "r.html")] if command == "report" else ["--once"] if command == "watch" else []
    assert lplr([command, str(tmp_path), *extra]) == 2
    assert "loss.scale is [2], not a finite number" in capsys.readouterr().err


def recorded(out: Path, stepper: torch.optim.Optimizer, module: nn.Module, **options: Any) -> Manifest:
    with Recorder(module, out, **options) as recorder:
        for _ in range(3):
            stepper.zero_grad()
            loss = (module(X.double()) - Y.double()).square().sum() / len(X)
            loss.backward()
            recorder.record(loss, stepper)
            stepper.step()
    return RunDirectory.open(out).manifest()


def net() -> nn.Module:
    torch.manual_seed(0)
    return mlp().double()


def test_what_a_recorder_is_not_told_stays_unknown(tmp_path: Path) -> None:
    module = net()
    found = recorded(tmp_path / "r", torch.optim.SGD(module.parameters(), lr=0.05), module)
    assert (found.recorded, found.loss.name, found.loss.scale, found.exact) == (True, None, None, False)
    assert found.loss.label == "unknown loss"
    assert (found.optimizer.name, found.optimizer.lr, found.optimizer.momentum) == ("sgd", 0.05, 0.0)
    assert found.optimizer.plain_step is None
    assert found.optimizer.why_not_plain == "the optimiser is sgd"
    assert (found.data.n, found.data.sha256) == (None, None)


@pytest.mark.parametrize(
    ("build", "said", "plain", "why"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.05), {"name": "gd", "schedule": "constant"}, 0.05, ""),
        (lambda p: torch.optim.SGD(p, lr=0.05), {"name": "gd"}, None, "the schedule is not known"),
        (lambda p: torch.optim.SGD(p, lr=0.05), {"name": "gd", "schedule": "cosine"}, None, "the schedule is cosine"),
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), {"name": "gd", "schedule": "constant"}, None,
         "momentum is 0.9"),
        # What the optimiser is outweighs what is said of it.
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), {"name": "gd", "momentum": 0.0, "schedule": "constant"},
         None, "momentum is 0.9"),
        (lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1), {"name": "gd", "schedule": "constant"}, None,
         "weights decay"),
        (lambda p: torch.optim.AdamW(p, lr=0.05), {"name": "gd", "momentum": 0.0, "schedule": "constant"}, None,
         "the optimiser is adamw"),
        (lambda p: torch.optim.SGD(p, lr=0.05, maximize=True), {"name": "gd", "schedule": "constant"}, None,
         "the optimiser is sgd"),
        (lambda p: torch.optim.SGD([{"params": q, "lr": 0.05 * (i + 1)} for i, q in enumerate(p)]),
         {"name": "gd", "schedule": "constant"}, None, "the optimiser is sgd"),
    ],
)  # fmt: skip
def test_what_plain_gradient_descent_is(build: Any, said: dict[str, Any], plain: Any, why: str, tmp_path: Path) -> None:
    module = net()
    found = recorded(tmp_path / "r", build(list(module.parameters())), module, optimizer=said)
    assert found.optimizer.plain_step == plain
    assert found.optimizer.why_not_plain == why


C2 = torch.nn.functional.one_hot(torch.arange(len(X)) % 2).double()


@pytest.mark.parametrize(
    ("options", "targets", "name", "scale"),
    [
        ({}, Y, "squared", 1.0),
        ({"loss_scale": 0.5}, Y, "squared", 0.5),
        ({"loss_fn": nn.MSELoss()}, C2, "squared", 1 / 2),
        ({"loss_fn": torch.nn.functional.mse_loss}, Y, "squared", 1 / Y.shape[1]),
        ({"loss_fn": nn.MSELoss(reduction="sum")}, Y, "squared", None),
        ({"loss_fn": nn.CrossEntropyLoss()}, torch.arange(len(X)) % 2, "cross-entropy", 1.0),
        ({"loss_fn": nn.CrossEntropyLoss()}, torch.arange(len(X)) % 2 - 100, "cross-entropy", None),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, C2, "cross-entropy with label_smoothing", None),
        ({"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(3))}, C2, "cross-entropy with weight", None),
        ({"loss_fn": nn.BCEWithLogitsLoss()}, C2, "bce", 1 / 2),
        ({"loss_fn": nn.L1Loss()}, Y, "l1", None),
        ({"loss_fn": torch.nn.functional.huber_loss}, Y, "huber", None),
        ({"loss_fn": lambda a, b: (a - b).abs().mean()}, Y, None, None),
        ({"loss_fn": lambda a, b: (a - b).square().mean(), "loss_scale": 1.0}, Y, "squared", 1.0),
        ({"loss": "hinge", "loss_fn": lambda a, b: (a * b).mean()}, Y, "hinge", None),
        ({"loss": Loss("bce", 0.5)}, C2, "bce", 0.5),
    ],
)
def test_losses_are_named_where_they_are_known(
    options: dict[str, Any], targets: torch.Tensor, name: str | None, scale: float | None, tmp_path: Path
) -> None:
    recorder = Recorder(net(), tmp_path / "r", data=(X.double(), targets), exact_every=10**9, **options)
    recorder.close("interrupted")
    loss = RunDirectory.open(tmp_path / "r").manifest().loss
    assert loss.name == name
    assert loss.scale == pytest.approx(scale)
    assert loss.squared_scale == (pytest.approx(scale) if name == "squared" else None)
    assert (loss.formula is None) == (loss.known is None)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    for options, match in (
        ({"loss": Loss("bce", 0.5), "loss_scale": 1.0}, "not that of the loss"),
        ({"loss_scale": 0.0}, "no scale"),
        ({"optimizer": {"name": "gd", "step": 1}}, "optimizer with keys"),
        ({"optimizer": {"name": "gd", "lr": "0.1"}}, "lr is '0.1', not a finite number"),
    ):
        with pytest.raises(InputError, match=match):
            Recorder(net(), tmp_path / "r", **options)
    with pytest.raises(InputError, match="exact values of hinge need its function"):
        Recorder(net(), tmp_path / "r", data=(X.double(), Y), exact_every=1, loss="hinge")
    assert not (tmp_path / "r").exists()


def test_losses_that_earlier_recorders_wrote() -> None:
    record = {**golden(), "kind": "recorded"}
    for written, name, scale in (
        ({"name": "given", "formula": None, "scale": None, "values": "mini-batch"}, None, None),
        ({"name": "given", "formula": None, "scale": 0.5, "values": "exact"}, "squared", 0.5),
    ):
        found = Manifest.from_dict(copy.deepcopy({**record, "loss": written}), "run.json").loss
        assert (found.name, found.scale) == (name, scale)


@pytest.mark.parametrize("threads", [1, 2**40, 2**70])
def test_threads_that_a_file_names_are_bounded_by_the_machine(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with threads_of(replace(Manifest.from_dict(golden(), "run.json"), threads=threads)):
        pass
    assert asked == [min(threads, 4 * (os.cpu_count() or 1)), torch.get_num_threads()]
