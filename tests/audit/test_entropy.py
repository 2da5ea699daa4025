"""Statements of cross-entropy: the constant against losses and gradients, the law against runs that have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lplr_cli.analysis import Source, summarize
from lplr_cli.audit.findings import Status
from lplr_cli.audit.run import audit
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec
from lplr_cli.ntk import Network, empirical_ntk
from lplr_cli.reporting.summary import summary_grid
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, TrainConfig, train
from tests.command import command


def points(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve points in twenty dimensions, classes taking turns, one-hot."""
    y = torch.arange(12) % classes
    return torch.randn(12, 20, generator=torch.Generator().manual_seed(0)), nn.functional.one_hot(y, classes).double()


@pytest.mark.parametrize(("name", "classes"), [("cross-entropy", 2), ("cross-entropy", 4), ("bce", 1), ("bce", 3)])
def test_the_constant_of_theory_bounds_any_network(name: str, classes: int) -> None:
    """½||∇L||² ≥ c L² with the true λ_min and the largest loss, for outputs of any size and scale of the loss."""
    random = np.random.default_rng(1)
    for seed in range(30):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(9, 40), nn.Tanh(), nn.Linear(40, classes)).double()
        with torch.no_grad():
            module[2].weight *= 10.0 ** random.uniform(-2, 2)
        x = torch.randn(8, 9).double()
        y = nn.functional.one_hot(torch.randint(classes, (8,)), classes).double() if classes > 1 else None
        y = torch.randint(2, (8, classes)).double() if name == "bce" or y is None else y
        loss = Loss(name, float(random.uniform(0.1, 3)))
        values = loss.values(module(x), y)
        gradients = torch.autograd.grad(values.mean(), list(module.parameters()))
        square = sum(float(g.square().sum()) for g in gradients)
        kernel = empirical_ntk(Network.from_module(module), x).matrix
        low, top = float(np.linalg.eigvalsh(np.asarray(kernel))[0]), float(values.max().detach()) / loss.scale
        kappa = classes / (classes - 1) if name == "cross-entropy" else 1 / classes
        c = 0.5 * low * kappa * (-np.expm1(-top) / top) ** 2
        assert 0.5 * square >= c * float(values.mean().detach()) ** 2 * (1 - 1e-9)


def test_gradient_descent_on_separable_classes(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec("tests.audit.test_entropy:points"), ModelSpec(depth=0), loss="cross-entropy", lr=0.5, steps=600,
        probe_every=200,
    )  # fmt: skip
    train(config, tmp_path / "r")
    result = audit(str(tmp_path / "r"), certificate=False)
    one, two = result["CE1"], result["CE2"]
    assert one.status is Status.ESTIMATED
    assert one.value is not None
    assert one.threshold is not None
    assert one.value > one.threshold > 0
    assert two.value == pytest.approx(1.0, abs=0.25)
    assert [result[k].reason.startswith("not asked") for k in ("H2", "H3", "H4", "H5", "C1", "C2")] == [True] * 6
    record = result.to_dict()
    assert record["CE1"]["holds"] is True
    # The table of the run has no row for what is said of other losses.
    summary = summarize(RunDirectory.open(tmp_path / "r"))
    assert not [row for row in summary_grid(summary).rows if row[0].startswith(("μ estimated", "L_K·R"))]
    assert summary.verdict == "the theory of the ball is of the squared loss, this is cross-entropy"
    # The same keys for every run.
    squared = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=4, depth=1), steps=3)
    train(squared, tmp_path / "s")
    other = audit(str(tmp_path / "s"), certificate=False).to_dict()
    assert other.keys() == record.keys()
    short = summarize(RunDirectory.open(tmp_path / "s"))
    singular = replace(short.estimates, lambda_0=-1e-15, l_k=1.0, radius=2.0, compatible=False)
    assert "fails (2 against -1e-15, which is not positive)" in replace(short, estimates=singular).verdict
    assert other["CE1"] is None
    assert other["sanity"].keys() == record["sanity"].keys()


def classify(module: nn.Module, recorder: Recorder, steps: int, optimizer: torch.optim.Optimizer) -> None:
    """Steps on the cross-entropy of all points, recorded."""
    x, y = points()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x.double()), y)
        loss.backward()  # type: ignore[no-untyped-call]
        recorder.record(loss, optimizer)
        optimizer.step()


def test_findings_that_apply_come_first_and_one_reason_is_said_once(tmp_path: Path) -> None:
    module = nn.Linear(20, 3).double()
    with Recorder(module, tmp_path / "r", loss="cross-entropy", norms_every=1) as recorder:
        classify(module, recorder, 30, torch.optim.AdamW(module.parameters(), lr=0.01))
    found = command("audit", "r", "--fail-on", "never", "--no-certificate", cwd=tmp_path)
    lines = found.stdout.splitlines()
    rows = [line.split()[0] for line in lines if line.startswith((" H", " C", " P"))]
    assert rows == ["CE1", "CE2"]
    assert " ".join(lines[:2]).count("H1, CE1, CE2, P2 can be asked; H2, H3, H4, H5, C1, C2,") == 1
    assert [line for line in lines if line.startswith("H1 unknown: no probe, and no certificate (not asked for)")]
    assert [line for line in lines if line.startswith("H2, H3, H4, H5, C1, C2 not asked:")]
    assert [
        line for line in lines if line.startswith("P2 unknown: the scale of the loss is not known: tell the Recorder")
    ]


@pytest.mark.parametrize(
    ("loss_fn", "name", "kinks"),
    [
        (nn.L1Loss(), "l1", True),
        (nn.HuberLoss(), "huber", False),
        (nn.SoftMarginLoss(), "softmargin", False),
        (lambda f, y: (1 - f * y).clamp_min(0).mean(), "hinge", True),
        (lambda f, y: ((f - y) ** 4).mean(), "quartic", False),
    ],
)
def test_other_losses(loss_fn: Any, name: str, kinks: bool, tmp_path: Path) -> None:
    """The sharpness is of the loss that was used; one with kinks lets no Hessian say that a step is small."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y = points(2)
    x, y = x.double(), 2 * y[:, :1] - 1
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    told = None if isinstance(loss_fn, nn.Module) else name
    with Recorder(
        module, tmp_path / "r", data=(x, y), probe_every=10, exact_every=1, loss_fn=loss_fn,
        optimizer={"name": "gd", "schedule": "constant"}, loss=told,
    ) as recorder:  # fmt: skip
        for _ in range(20):
            optimizer.zero_grad()
            loss_fn(module(x), y).backward()
            recorder.record(0.0, optimizer)
            optimizer.step()
    result = audit(str(tmp_path / "r"), certificate=False)
    flat = [p.detach().clone() for p in module.parameters()]
    names = [k for k, _ in module.named_parameters()]

    def mean(*values: torch.Tensor) -> Any:
        return loss_fn(torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,)), y)

    blocks = torch.autograd.functional.hessian(mean, tuple(flat))  # type: ignore[no-untyped-call]
    matrix = torch.cat(
        [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for row, p in zip(blocks, flat, strict=True)]
    )
    last = result.to_dict()["sharpness"]["max"]
    assert last is not None
    probes = np.asarray(torch.linalg.eigvalsh((matrix + matrix.T) / 2))
    assert last >= probes[-1] * (1 - 1e-2)
    row = result["step_size"]
    assert row.status is (Status.UNKNOWN if kinks else Status.ESTIMATED)
    assert ("kinks" in row.reason) is kinks
    assert result["C1"].reason.startswith("not asked")
    assert result.figures.pl_ratio_star is not None


def test_a_checkpoint_alone(tmp_path: Path) -> None:
    """What one point tells, for the loss that is named; everything about a path is not asked."""
    torch.manual_seed(0)
    module = nn.Linear(20, 3).double()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    x, y = points()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x.double()), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    loss = nn.functional.cross_entropy(module(x.double()), y)
    square = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(module.parameters())))
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.ckpt")
    source = Source(data=DataSpec("tests.audit.test_entropy:points"))
    found = audit(str(tmp_path / "c.ckpt"), foreign=source, loss=Loss("cross-entropy"))
    assert found.figures.loss.first == pytest.approx(float(loss), rel=1e-12)
    assert found["CE1"].value == pytest.approx(0.5 * square / float(loss) ** 2, rel=1e-9)
    assert found["H1"].holds
    assert found["step_size"].holds
    assert "as Adam sees it" in found["step_size"].reason
    assert {f.key for f in found.findings if "has no path" in f.reason} >= {"C1", "C2", "P2", "CE2"}
    assert found.verdict == "undetermined"
    unknown = audit(str(tmp_path / "c.ckpt"), foreign=source).to_dict()
    assert unknown["loss"]["first"] is None
    assert unknown["CE1"] is None
    assert unknown.keys() == found.to_dict().keys()
    assert "at this checkpoint" in found["H1"].reason


def test_the_loss_of_a_log_as_the_user_tells_it(tmp_path: Path) -> None:
    """Its own statements are asked, others are not, and nothing is verified."""
    t = np.arange(1.0, 201.0)
    pd.DataFrame({"step": t, "loss": 1 / t, "grad_norm": 0.3 / t}).to_csv(tmp_path / "l.csv", index=False)
    path = str(tmp_path / "l.csv")
    assert audit(path).to_dict()["CE1"] is None
    found = audit(path, loss=Loss("cross-entropy"))
    assert found.scope.loss == "cross-entropy, as told"
    assert found.scope.asked == ["CE1", "CE2"]
    assert found["CE1"].value == pytest.approx(0.5 * 0.3**2)
    assert (found["CE1"].status, found["CE2"].status) == (Status.UNKNOWN, Status.ESTIMATED)
    assert found["CE2"].value == pytest.approx(1.0, rel=0.05)
    squared = audit(path, loss=Loss("squared", 0.5))
    assert squared.scope.loss == "squared loss, s = 0.5, as told"
    assert "see --loss" in audit(path)["C1"].reason
    assert "see --loss" not in squared["C1"].reason


def test_the_loss_of_a_run_as_the_user_tells_it(tmp_path: Path) -> None:
    """One that the run tells is not overruled; offline probes measure its sharpness."""
    x, y = points()
    for name, told in (("r", None), ("told", Loss("cross-entropy"))):
        torch.manual_seed(0)
        module = nn.Linear(20, 3).double()
        with Recorder(module, tmp_path / name, loss=told) as recorder:
            classify(module, recorder, 9, torch.optim.SGD(module.parameters(), lr=0.1))
    source = Source(data=DataSpec("tests.audit.test_entropy:points"))
    both = [
        audit(str(tmp_path / name), foreign=source, loss=Loss("cross-entropy"), offline_probe=True)
        for name in ("r", "told")
    ]
    assert [one.scope.loss for one in both] == ["cross-entropy, as told", "cross-entropy"]
    assert both[0]["step_size"].value == pytest.approx(both[1]["step_size"].value)
    assert both[0]["step_size"].value == pytest.approx(0.05 * cross_entropy_sharpness(x.double(), y), rel=1e-4)
    assert not any(f.status is Status.VERIFIED for f in both[0].findings)
    with pytest.raises(InputError, match="tells its own loss, cross-entropy"):
        audit(str(tmp_path / "told"), loss=Loss("squared"))


def cross_entropy_sharpness(x: torch.Tensor, y: torch.Tensor) -> float:
    """λ_max of the Hessian at the start of that run, by plain autograd."""
    torch.manual_seed(0)
    module = nn.Linear(20, 3).double()

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(x @ weight.T + bias, y)

    tops = []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(module.weight, module.bias)
        value.backward()  # type: ignore[no-untyped-call]
        at = (module.weight.detach(), module.bias.detach())
        blocks = torch.autograd.functional.hessian(loss, at)  # type: ignore[no-untyped-call]
        rows = [torch.cat([b.reshape(n, -1) for b in row], 1) for row, n in zip(blocks, (60, 3), strict=True)]
        tops.append(float(torch.linalg.eigvalsh(torch.cat(rows))[-1]))
        optimizer.step()
    return max(tops[0], tops[-1])
