"""What is verified holds for the loss, scale, optimiser, data and arithmetic that the run had; the rest is unknown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lplr_cli.analysis import Source, certify_start, probe_checkpoints, recompute_gradients
from lplr_cli.audit.findings import Status
from lplr_cli.audit.run import Audit, audit
from lplr_cli.cli.main import run as lplr
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, TrainConfig, train

N, FEATURES = 8, 30
GD = {"name": "gd", "schedule": "constant"}


def inputs() -> Tensor:
    """Eight samples in thirty dimensions, which a linear model interpolates."""
    return torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(4))


def real() -> tuple[Tensor, Tensor]:
    return inputs(), torch.randn(N, 1, generator=torch.Generator().manual_seed(5))


def pairs() -> tuple[Tensor, Tensor]:
    return inputs(), torch.randn(N, 2, generator=torch.Generator().manual_seed(5))


def classes() -> tuple[Tensor, Tensor]:
    """One-hot rows of three classes."""
    return inputs(), nn.functional.one_hot(torch.arange(N) % 3).float()


def zero_one() -> tuple[Tensor, Tensor]:
    return inputs(), (torch.arange(N) % 2).float()[:, None]


def one() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 1))


def two() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 2))


def three() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 3))


@dataclass(frozen=True)
class Case:
    """A training loop of somebody's: network, data, loss, and what the recorder is told of it."""

    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    told: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.02
    steps: int = 120
    dtype: torch.dtype = torch.float64
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD

    @property
    def source(self) -> Source:
        here = "tests.audit.test_scope"
        return Source(model=f"{here}:{self.build.__name__}", data=DataSpec(f"{here}:{self.data.__name__}"))

    def record(self, out: Path) -> Path:
        torch.manual_seed(1)
        module = self.build().to(self.dtype)
        x, y = (t.to(self.dtype) for t in self.data())
        optimizer = self.optimizer(module.parameters(), lr=self.lr)
        options = {"optimizer": GD, "norms_every": 1, "checkpoint_every": 40, **self.told}
        with Recorder(module, out, **options) as recorder:
            for _ in range(self.steps):
                optimizer.zero_grad()
                loss = self.loss(module(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                recorder.record(loss, optimizer)
                optimizer.step()
            recorder.finish(self.loss(module(x), y))
        return out

    def audit(self, out: Path, **options: Any) -> Audit:
        return audit(str(self.record(out)), foreign=self.source, **options)


def squared(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda f, y: scale * (f - y).square().sum() / len(y)


CROSS_ENTROPY = Case(three, classes, nn.functional.cross_entropy, {"loss": Loss("cross-entropy")}, lr=0.5)
BCE = Case(one, zero_one, nn.functional.binary_cross_entropy_with_logits, {"loss": Loss("bce")}, lr=0.5)
L1 = Case(one, real, nn.functional.l1_loss, {"loss": "l1"})


@pytest.mark.parametrize(("case", "name"), [(CROSS_ENTROPY, "cross-entropy"), (BCE, "bce"), (L1, "l1")])
def test_nothing_of_another_loss_is_verified(case: Case, name: str, tmp_path: Path) -> None:
    """The kernel is verified; μ, containment and rate of the squared loss are not those of this run."""
    result = case.audit(tmp_path / "r")
    found = {f.key: f.status for f in result.findings if not f.key.startswith("P")}
    assert found["C1"] == found["C2"] == Status.UNKNOWN
    assert found["H5"] is not Status.VERIFIED
    assert found["H4"] is not Status.VERIFIED
    assert (result.verdict, result.figures.mu_certified, result.figures.mu_estimated) == ("undetermined", None, None)
    assert name in result["C1"].reason
    assert name in result.scope.line
    assert {"C1", "C2"} <= set(result.scope.not_asked)
    record = certify_start(tmp_path / "r", source=case.source).to_dict()
    assert record["given"]["mu_jacobian"] is None
    assert record["containment"]["holds"] is False
    assert record["run"]["check"]["applies"] is False
    assert name in record["normalisation"]["loss"]


@pytest.mark.parametrize("told", [{}, {"loss_fn": lambda f, y: nn.functional.cross_entropy(f, y)}])
def test_an_unknown_loss_is_not_the_squared_one(told: dict[str, Any], tmp_path: Path) -> None:
    case = Case(three, classes, nn.functional.cross_entropy, told, lr=0.5)
    result = case.audit(tmp_path / "r")
    assert result["C1"].status is Status.UNKNOWN
    assert result["C2"].status is not Status.VERIFIED
    assert "the loss is not known" in result["C1"].reason
    assert result.figures.mu_certified is None
    # The run's own ratio is far below twice λ_min(K), which the squared loss would have.
    ratio = result.figures.pl_ratio_star
    assert ratio is not None
    assert ratio.min is not None
    assert result["H1"].value is not None
    assert ratio.min < 2 * result["H1"].value


@pytest.mark.parametrize(
    ("scale", "build", "data"),
    [
        pytest.param(0.1, one, real, marks=pytest.mark.slow),
        (0.5, one, real),
        (0.5, two, pairs),
        pytest.param(4.0, one, real, marks=pytest.mark.slow),
        (8.0, one, real),
    ],
)
def test_scales_other_than_one(scale: float, build: Any, data: Any, tmp_path: Path) -> None:
    """MSE of half, summed or averaged over outputs: a true theorem is verified, and with the μ of that scale."""
    case = Case(build, data, squared(scale), {"loss_scale": scale}, lr=0.02 / scale, steps=300)
    result = case.audit(tmp_path / "r", offline_probe=True)
    assert {f.key: f.status for f in result.findings if not f.key.startswith("P")} == dict.fromkeys(
        ["H1", "H2", "H3", "H4", "H5", "C1", "C2"], Status.VERIFIED
    ), [f.reason for f in result.findings]
    design = torch.cat([inputs().double(), torch.ones(N, 1, dtype=torch.float64)], dim=1)
    values = torch.linalg.eigvalsh(design @ design.T / N)
    assert result["C1"].value == pytest.approx(2 * scale * float(values[0]), rel=0.02)
    assert result["H4"].value is not None
    assert result["H4"].value >= case.lr * 2 * scale * float(values[-1])
    assert result.figures.sharpness.max == pytest.approx(2 * scale * float(values[-1]), rel=1e-3)
    # certify says the same of the same run.
    record = certify_start(tmp_path / "r", source=case.source).to_dict()
    assert record["given"]["mu_jacobian"] == result.figures.mu_certified
    assert (record["run"]["check"]["applies"], record["run"]["check"]["violations"]) == (True, 0)


def test_a_scale_that_was_told_wrong_is_found_out(tmp_path: Path) -> None:
    case = Case(one, real, squared(0.5), {"loss_scale": 1.0})
    result = case.audit(tmp_path / "r")
    assert all(f.status is not Status.VERIFIED for f in result.findings)
    assert "the log begins with a loss of" in result["H1"].reason


def test_data_that_nothing_confirms_verify_nothing(tmp_path: Path) -> None:
    """Named data without a fingerprint, and no exact loss of the start to compare with."""
    case = Case(one, real, squared(1.0), {"loss_scale": 1.0, "optimizer": None})
    result = case.audit(tmp_path / "r")
    assert all(f.status is not Status.VERIFIED for f in result.findings)
    assert "nothing tells that the data named are those of the run" in result["H1"].reason


def test_certify_and_audit_agree_on_a_float32_run(tmp_path: Path) -> None:
    case = Case(one, real, squared(1.0), {"loss_scale": 1.0}, steps=600, dtype=torch.float32)
    result = case.audit(tmp_path / "r")
    check = certify_start(tmp_path / "r", source=case.source).to_dict()["run"]["check"]
    assert (check["applies"], check["violations"]) == (True, 0)
    assert result["C2"].status is Status.VERIFIED
    assert "float32" in result["H5"].reason
    loop = TrainConfig(
        DataSpec("tests.audit.test_scope:real"), ModelSpec(depth=0), lr=0.02, steps=200, dtype="float32", probe_every=0
    )
    train(loop, tmp_path / "own")
    source = Source(data=loop.data)
    check = certify_start(tmp_path / "own", source=source).to_dict()["run"]["check"]
    assert (check["applies"], check["violations"], check["steps"]) == (True, 0, 201)
    assert audit(str(tmp_path / "own"), foreign=source)["C2"].status is Status.VERIFIED


def test_containment_needs_a_radius_that_is_not_the_runs_own(tmp_path: Path) -> None:
    result = Case(one, real, squared(1.0), {"loss_scale": 1.0}).audit(tmp_path / "r", certificate=False)
    assert result["H5"].status is Status.UNKNOWN
    assert result["H5"].value == result.figures.drift_max


def test_offline_sharpness_is_that_of_the_runs_loss(tmp_path: Path) -> None:
    """The squared loss would have it hundreds of times larger: against autograd's Hessian of the cross-entropy."""
    path = CROSS_ENTROPY.record(tmp_path / "r")
    run = RunDirectory.open(path)
    found = probe_checkpoints(run, source=CROSS_ENTROPY.source).set_index("step")["sharpness"]
    x, y = (t.double() for t in classes())
    for step in (0, 120):
        weight, bias = run.load(step).parameters.values()

        def loss(flat: Tensor, shape: torch.Size = weight.shape) -> Tensor:
            w, b = flat[: -shape[0]].view(shape), flat[-shape[0] :]
            return nn.functional.cross_entropy(x @ w.T + b, y)

        hessian = torch.autograd.functional.hessian(loss, torch.cat([weight.flatten(), bias]))  # type: ignore[no-untyped-call]
        assert found[step] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=2e-3)
    result = audit(str(path), foreign=CROSS_ENTROPY.source, offline_probe=True)
    assert result.figures.sharpness.max == found.max()
    # Its gradients, too, are recomputed for that loss, or not at all.
    again = recompute_gradients(run, source=CROSS_ENTROPY.source)
    logged = run.log().set_index("step")
    assert again["loss"].to_numpy()[:3] == pytest.approx(logged["loss"][again["step"][:3]].to_numpy(), rel=1e-9)
    assert again["grad_norm_sq"].to_numpy()[:3] == pytest.approx(
        logged["grad_norm_sq"][again["step"][:3]].to_numpy(), rel=1e-9
    )


def test_of_an_unknown_loss_there_is_no_sharpness(tmp_path: Path) -> None:
    case = Case(three, classes, nn.functional.cross_entropy, lr=0.5)
    path = case.record(tmp_path / "r")
    assert probe_checkpoints(RunDirectory.open(path), source=case.source)["sharpness"].isna().all()
    result = audit(str(path), foreign=case.source, offline_probe=True)
    assert result["H4"].status is Status.UNKNOWN
    assert "the loss is not known" in result["H4"].reason
    with pytest.raises(InputError, match="cannot be computed"):
        recompute_gradients(RunDirectory.open(path), source=case.source)


def test_ratios_of_mini_batches_are_no_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Least squares with noisy labels: gradients of batches stay, that of L goes; nothing is read off the former."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g).double()
    y = x @ torch.ones(5, 1).double() + torch.randn(200, 1, generator=g).double()
    module = nn.Sequential(nn.Linear(5, 1)).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    true = []
    with Recorder(module, tmp_path / "r", norms_every=1, loss_scale=1.0) as recorder:
        for _ in range(300):
            chosen = torch.randint(200, (10,), generator=g)
            optimizer.zero_grad()
            full = (module(x) - y).square().mean()
            gradients = torch.autograd.grad(full, list(module.parameters()))
            true.append(0.5 * sum(float(q.square().sum()) for q in gradients) / float(full.detach()))
            loss = (module(x[chosen]) - y[chosen]).square().mean()
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
    result = audit(str(tmp_path / "r"))
    star = result.figures.pl_ratio_star
    assert star is not None
    assert star.min is not None
    assert star.min > 10 * min(true)
    assert result["C1"].value is None
    assert "½‖∇L‖²/L" not in result["C1"].reason
    assert "mini-batches" in result.scope.line
    assert lplr(["pl-ratio", str(tmp_path / "r")]) == 0
    shown = capsys.readouterr().out
    assert "valid from below" not in shown
    assert "mini-batches" in shown


def test_the_rate_of_gradient_descent_is_not_asked_of_other_optimisers(tmp_path: Path) -> None:
    case = Case(
        three, classes, nn.functional.cross_entropy, {"loss": Loss("cross-entropy"), "optimizer": None}, lr=0.01,
        optimizer=torch.optim.AdamW,
    )  # fmt: skip
    result = case.audit(tmp_path / "r")
    assert result["C2"].status is Status.UNKNOWN
    assert result["H4"].status is Status.UNKNOWN
    assert "not asked" in result["C2"].reason
    assert result.scope.line.startswith(
        "adamw, weight decay 0.01; cross-entropy; values of mini-batches. H1, CE1, CE2, P2 can be asked; H2, H3, H4,"
    )
    adam = Case(one, real, squared(1.0), {"loss_scale": 1.0}, lr=0.01, optimizer=torch.optim.Adam)
    again = adam.audit(tmp_path / "adam")
    assert again["C2"].status is Status.UNKNOWN
    assert "adam" in again["C2"].reason
    assert again["step_size"].status is Status.UNKNOWN
    heavy = Case(
        one, real, squared(1.0), {"loss_scale": 1.0, "loss": "squared"}, lr=0.005,
        optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    )  # fmt: skip
    third = heavy.audit(tmp_path / "heavy")
    assert third["C2"].status is Status.UNKNOWN
    assert "momentum is 0.9" in third["C2"].reason
    # The ball is what it is, whoever walks in it.
    assert third["C1"].status is Status.VERIFIED


def test_a_schedule_that_the_log_shows_is_known(tmp_path: Path) -> None:
    told = {"loss_scale": 1.0, "optimizer": {"name": "gd"}}
    case = Case(one, real, squared(1.0), told)
    assert case.audit(tmp_path / "r")["C2"].status is Status.VERIFIED
    every_other = Case(one, real, squared(1.0), {**told, "log_every": 2})
    result = every_other.audit(tmp_path / "gaps")
    assert result["C2"].status is not Status.VERIFIED
    assert "the schedule is not known" in result.scope.line


def test_rows_that_contradict_a_proved_mu_are_told(tmp_path: Path) -> None:
    path = Case(one, real, squared(1.0), {"loss_scale": 1.0}).record(tmp_path / "r")
    log = (path / "log.csv").read_text().splitlines()
    names = log[0].split(",")
    row = log[20].split(",")
    row[names.index("grad_norm_sq")] = repr(float(row[names.index("grad_norm_sq")]) * 1e-6)
    log[20] = ",".join(row)
    (path / "log.csv").write_text("\n".join(log) + "\n")
    case = Case(one, real, squared(1.0))
    result = audit(str(path), foreign=case.source)
    assert result["C1"].status is Status.FAILS
    assert result.verdict == "no"


def test_the_audit_begins_with_its_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Case(one, real, squared(1.0), {"loss_scale": 1.0}).record(tmp_path / "r")
    arguments = ["audit", str(path), "--model", "tests.audit.test_scope:one", "--data", "tests.audit.test_scope:real"]
    assert lplr([*arguments, "--format", "json"]) == 0
    scope = json.loads(capsys.readouterr().out)["scope"]
    assert scope["loss"] == "squared loss, s = 1"
    assert scope["optimizer"] == "full-batch gradient descent, η = 0.02"
    assert (scope["not_asked"], scope["unknown"]) == ({}, [])
    assert lplr(arguments) == 0
    first = " ".join(capsys.readouterr().out.split("key")[0].split())
    assert "full-batch gradient descent, η = 0.02; squared loss, s = 1; exact values" in first
    table = tmp_path / "l.csv"
    np.savetxt(
        table, np.column_stack([np.arange(50), 0.9 ** np.arange(50)]), delimiter=",", header="step,loss", comments=""
    )
    assert audit(str(table)).scope.line.startswith("unknown optimiser; unknown loss")


def test_a_checkpoint_alone_is_certified_in_units_of_its_scale(tmp_path: Path) -> None:
    start = Path("checkpoints") / "step-000000.pt"
    found = {}
    for name, told in (("unknown", {}), ("one", {"loss_scale": 1.0}), ("half", {"loss_scale": 0.5})):
        case = Case(one, real, squared(0.5), told, steps=1)
        path = case.record(tmp_path / name)
        found[name] = certify_start(path / start, radius=0.1, directions=0, source=case.source).to_dict()
    assert found["half"]["given"]["mu_jacobian"] == pytest.approx(0.5 * found["one"]["given"]["mu_jacobian"])
    assert found["half"]["containment"]["eta_max"] == pytest.approx(2 * found["one"]["containment"]["eta_max"])
    assert found["half"]["normalisation"]["loss"] == "L = (0.5/n) ||r||^2"
    assert "the squared loss with s = 1" in found["unknown"]["assumptions"]
    assert "the squared loss with s = 1" not in found["one"]["assumptions"]
