"""The recorder in loops of every kind: what it logs is what the loop did."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lplr_cli.analysis import OWN, Source, open_subject, probe_checkpoints, read_log, recompute_gradients
from lplr_cli.audit.run import audit
from lplr_cli.curvature import optimizer_state
from lplr_cli.data import DataSpec
from lplr_cli.diagnostics import analyse_pl_ratio, batch_noise
from lplr_cli.errors import InputError
from lplr_cli.linalg.tasks import Handle, Here
from lplr_cli.losses import SQUARED
from lplr_cli.ntk import Network
from lplr_cli.runs import RunDirectory
from lplr_cli.training import Recorder, resume
from lplr_cli.training.callbacks import lightning_callback, transformers_callback
from tests.command import DEADLINE, started
from tests.curvature import dense
from tests.foreign_nets import TinyTransformer, mlp, table, tokens

X, Y = table()


def net() -> nn.Module:
    torch.manual_seed(0)
    return mlp().double()


def loss_of(module: nn.Module) -> Tensor:
    loss: Tensor = (module(X.double()) - Y.double()).square().sum() / len(X)
    return loss


def descend(
    module: nn.Module, recorder: Recorder, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> list[tuple[float, float, float]]:
    """Full-batch steps, of gradient descent by default, with a record of its own: loss, ‖∇L‖², drift."""
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.05)
    start = torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(module)
        loss.backward()  # type: ignore[no-untyped-call]
        recorder.record(loss, optimizer)
        gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
        now = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        seen.append((float(loss), float(gradient @ gradient), float((now - start).norm())))
        optimizer.step()
    return seen


class Elsewhere(Here):
    """As other processes see functions, arguments and results: copies, made when a task is submitted."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """See :class:`Tasks`."""
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        return pickle.loads(pickle.dumps(function(*arguments)))

    def share(self, value: Any) -> Handle:
        """See :class:`Tasks`."""
        return pickle.loads(pickle.dumps(value))


def test_a_full_batch_loop(tmp_path: Path) -> None:
    module = net()
    with Recorder(
        module, tmp_path / "r", norms_every=1, checkpoint_every=5, probe_every=10, data=(X.double(), Y.double()),
        loss_scale=1.0, model="tests.foreign_nets:mlp", dataset="tests.foreign_nets:table",
        optimizer={"name": "gd", "lr": 0.05, "momentum": 0.0, "schedule": "constant"},
    ) as recorder:  # fmt: skip
        seen = descend(module, recorder, 20)
        recorder.finish(loss_of(module))
    log = read_log(tmp_path / "r")
    frame = log.log
    assert frame["step"].tolist() == list(range(21))
    for i, column in enumerate(("loss", "grad_norm_sq", "drift")):
        assert frame[column][:20].to_numpy() == pytest.approx([row[i] for row in seen], rel=1e-9)
    assert frame["lr"][:20].tolist() == [0.05] * 20
    assert frame["loss"].iloc[-1] == pytest.approx(float(loss_of(module)))
    run = RunDirectory.open(tmp_path / "r")
    assert run.config()["status"] == "finished"
    assert run.checkpoint_steps() == [0, 5, 10, 15, 20]
    assert run.probes()["step"].tolist() == [0, 10, 20]
    # What theory says of the logged gradient holds for the probe's kernel.
    probe = run.probes().iloc[1]
    row = frame.iloc[10]
    assert 0.5 * row["grad_norm_sq"] / row["loss"] == pytest.approx(2 * probe["residual_rayleigh"], rel=1e-8)
    summary = log.summary
    assert summary is not None
    assert summary.estimates.mu_kernel is not None
    assert log.facts().eta == 0.05
    # The commands that need the network have it, at every step, once its code is named.
    named = Source(model="tests.foreign_nets:mlp", data=DataSpec("tests.foreign_nets:table"))
    subject = open_subject(tmp_path / "r", named, step=20)
    for (name, p), (other, q) in zip(subject.module.named_parameters(), module.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q)
    offline = probe_checkpoints(run, source=named)
    elsewhere = probe_checkpoints(run, source=named, tasks=Elsewhere())
    pd.testing.assert_frame_equal(elsewhere.drop(columns="seconds"), offline.drop(columns="seconds"))
    columns = ["lambda_min", "lambda_max", "ntk_change", "jacobian_change", "sharpness"]
    pd.testing.assert_frame_equal(
        offline[offline["step"] % 10 == 0][columns].reset_index(drop=True), run.probes()[columns], rtol=1e-7, atol=1e-12
    )


def test_exact_values_between_mini_batches(tmp_path: Path) -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    exact = []
    with Recorder(module, tmp_path / "r", data=(X.double(), Y.double()), exact_every=4) as recorder:
        for step in range(10):
            part = slice(step % 5 * 2, step % 5 * 2 + 2)
            if step % 4 == 0:
                twin = copy.deepcopy(module)
                loss = loss_of(twin)
                loss.backward()  # type: ignore[no-untyped-call]
                exact.append(
                    (float(loss), sum(float(p.grad.square().sum()) for p in twin.parameters() if p.grad is not None))
                )
            optimizer.zero_grad()
            batch = (module(X[part].double()) - Y[part].double()).square().mean()
            batch.backward()
            before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            recorder.record(batch, optimizer)
            after = [p.grad for p in module.parameters() if p.grad is not None]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            optimizer.step()
        recorder.finish()
    frame = read_log(tmp_path / "r").log
    known = frame[frame["loss"].notna()]
    assert known["step"].tolist() == [0, 4, 8, 10]
    assert known["loss"][:3].to_numpy() == pytest.approx([e[0] for e in exact], rel=1e-9)
    assert known["grad_norm_sq"][:3].to_numpy() == pytest.approx([e[1] for e in exact], rel=1e-9)
    record = RunDirectory.open(tmp_path / "r").config()
    assert record["config"]["optimizer"] == "sgd"
    assert record["config"]["momentum"] == 0.9
    assert record["loss"]["scale"] == 1.0
    assert module.training


class Wrapped(nn.Module):
    """A network inside another module, as trainers hold it: its parameters have longer names."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize("source", [Source(activation="tanh"), Source(model="tests.foreign_nets:mlp")])
def test_checkpoints_under_longer_names_are_those_of_the_run(tmp_path: Path, source: Source) -> None:
    """Offline probes and recomputed gradients see the parameters of each checkpoint, not those of the first."""
    np.savez(tmp_path / "table.npz", inputs=X.numpy(), targets=Y.numpy())
    module = Wrapped()
    with Recorder(
        module, tmp_path / "r", norms_every=1, checkpoint_every=10, dataset=str(tmp_path / "table.npz"), loss_scale=1.0
    ) as recorder:
        descend(module, recorder, 20)
    run = RunDirectory.open(tmp_path / "r")
    with Recorder(
        net(), tmp_path / "direct", probe_every=10, data=(X.double(), Y.double()), loss_scale=1.0
    ) as recorder:
        descend(recorder.module, recorder, 20)
    columns = ["lambda_min", "lambda_max", "ntk_change", "jacobian_change", "sharpness"]
    offline = probe_checkpoints(run, source=source)
    assert offline["step"].tolist() == [0, 10, 20]
    direct = RunDirectory.open(tmp_path / "direct").probes()
    pd.testing.assert_frame_equal(offline[columns][: len(direct)], direct[columns], rtol=1e-6, atol=1e-12)
    again = recompute_gradients(run, source=source)
    logged = run.log().set_index("step")
    for row in again[again["step"] < 20].to_dict("records"):
        assert row["grad_norm_sq"] == pytest.approx(logged["grad_norm_sq"][row["step"]], rel=1e-6)
    assert torch.equal(
        next(iter(open_subject(tmp_path / "r", source, step=20).module.parameters())), next(module.parameters())
    )


def test_a_transformer_is_probed_with_its_sharpness(tmp_path: Path) -> None:
    """Fast attention has no second derivatives; the probes take the plain form."""
    x, y = tokens()
    module = TinyTransformer().double()
    with Recorder(module, tmp_path / "r", data=(x, y.double()), probe_every=1, loss_scale=1.0) as recorder:
        recorder.record(0.0)
    probe = RunDirectory.open(tmp_path / "r").probes().iloc[0]
    module.eval()
    names = [k for k, _ in module.named_parameters()]
    start = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    sizes = [p.shape for p in module.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in sizes])
        parameters = {k: p.view(s) for k, p, s in zip(names, parts, sizes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            out = torch.func.functional_call(module, parameters, (x,))
        value: Tensor = (out - y.double()).square().sum() / len(x)
        return value

    hessian = torch.autograd.functional.hessian(loss, start)  # type: ignore[no-untyped-call]
    assert probe["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def test_gradient_accumulation_and_a_late_loss(tmp_path: Path) -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    with Recorder(module, tmp_path / "r", norms_every=1) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for i in range(0, 10, 5):
                part = (module(X[i : i + 5].double()) - Y[i : i + 5].double()).square().sum() / 10
                part.backward()
                total = total + part.detach()
            full = loss_of(copy.deepcopy(module))
            recorder.hold(optimizer)
            optimizer.step()
            recorder.release(total)
            assert float(total) == pytest.approx(float(full))
    frame = read_log(tmp_path / "r").log
    assert frame["loss"].notna().all()
    assert frame["grad_norm_sq"].notna().all()


def test_amp_gradients_are_unscaled(tmp_path: Path) -> None:
    module = net().float()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms = []
    with Recorder(module, tmp_path / "r", norms_every=1) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (module(X) - Y).square().mean()
            scaler.scale(loss).backward()
            if step % 2:
                scaler.unscale_(optimizer)  # as for clipping: a second time would be an error
            recorder.record(loss, optimizer, scaler=scaler)
            norms.append(sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None))
            scaler.step(optimizer)
            scaler.update()
    assert read_log(tmp_path / "r").log["grad_norm_sq"].to_numpy() == pytest.approx(norms, rel=1e-4)
    assert max(norms) < 100


def test_compiled_modules_are_looked_through(tmp_path: Path) -> None:
    module = net()
    compiled = torch.compile(module, backend="eager")
    with Recorder(compiled, tmp_path / "r", norms_every=1) as recorder:  # type: ignore[arg-type]
        descend(compiled, recorder, 3)  # type: ignore[arg-type]
    assert set(RunDirectory.open(tmp_path / "r").load(3).parameters) == set(module.state_dict())


def test_a_crash_leaves_a_readable_run(tmp_path: Path) -> None:
    module = net()

    def crash() -> None:
        with Recorder(module, tmp_path / "r") as recorder:
            descend(module, recorder, 12)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    run = RunDirectory.open(tmp_path / "r")
    assert run.config()["status"] == "interrupted"
    assert len(run.log()) == 12
    assert (tmp_path / "r" / "log.parquet").exists()
    with pytest.raises(InputError, match="recorded from another program"):
        resume(tmp_path / "r")


def test_a_run_without_names_asks_for_them(tmp_path: Path) -> None:
    module = net()
    with Recorder(module, tmp_path / "r") as recorder:
        descend(module, recorder, 3)
    with pytest.raises(InputError, match="--data"):
        open_subject(tmp_path / "r", OWN)
    from lplr_cli.data import DataSpec

    subject = open_subject(tmp_path / "r", Source(data=DataSpec("tests.foreign_nets:table"), activation="tanh"))
    assert float(loss_of(subject.module)) == pytest.approx(float(loss_of(module)))


def test_bad_options_are_said_before_anything_is_written(tmp_path: Path) -> None:
    for options, match in (
        ({"probe_every": 5}, "need data"),
        ({"model": "no reference"}, "module:factory"),
        ({"log_every": 0}, "negative"),
    ):
        with pytest.raises(InputError, match=match):
            Recorder(net(), tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine").touch()
    with pytest.raises(InputError, match="exists already; record into another folder"):
        Recorder(net(), tmp_path / "r")


DDP = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from lplr_cli import Recorder
from tests.foreign_nets import TinyTransformer, mlp, table, tokens
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
module = DistributedDataParallel(mlp().double())
x, y = (t.double() for t in table())
optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
mine = slice(5 * rank, 5 * rank + 5)
with Recorder(module, out, norms_every=1) as recorder:
    for _ in range(6):
        optimizer.zero_grad()
        loss = (module(x[mine]) - y[mine]).square().sum() / 5
        loss.backward()
        recorder.record(loss, optimizer)
        optimizer.step()
# Rank 0 writes on for a while: who leaves before it breaks its connection.
dist.barrier()
dist.destroy_process_group()
"""


def test_two_gloo_processes_write_one_run(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                started([sys.executable, "-c", DDP, str(rank), str(tmp_path / "store"), str(tmp_path / "r")], root)
            )
            for rank in range(2)
        ]
        for worker in workers:
            _, err = worker.communicate(timeout=DEADLINE)
            assert worker.returncode == 0, err.decode()
    # Mean over ranks of losses and of gradients: the same as one process with all samples.
    module = net()
    with Recorder(module, tmp_path / "one", norms_every=1) as recorder:
        descend(module, recorder, 6)
    two, one = (read_log(tmp_path / name).log for name in ("r", "one"))
    for column in ("step", "loss", "grad_norm_sq", "drift"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Plain(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            loss: Tensor = (self.net(x) - y).square().sum() / len(x)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    trainer = lightning.Trainer(
        max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[lightning_callback(tmp_path / "r", norms_every=1)], default_root_dir=tmp_path,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(X.double(), Y.double())
    trainer.fit(Plain(), torch.utils.data.DataLoader(data, batch_size=10))
    module = net()
    with Recorder(module, tmp_path / "one", norms_every=1) as recorder:
        descend(module, recorder, 6)
    theirs, ours = (read_log(tmp_path / name).log for name in ("r", "one"))
    for column in ("step", "loss", "grad_norm_sq", "drift", "lr"):
        assert theirs[column].to_numpy() == pytest.approx(ours[column].to_numpy(), rel=1e-9, abs=1e-12)
    assert RunDirectory.open(tmp_path / "r").config()["status"] == "finished"


class ReturnsLoss(nn.Module):
    """A model as transformers has them; without its own loss on request."""

    def __init__(self, returns: bool = True) -> None:
        super().__init__()
        self.net, self.returns = net(), returns

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = self.net(x)
        if labels is None or not self.returns:
            return {"logits": out}
        return {"loss": (out - labels).square().sum() / len(x), "logits": out}


@pytest.mark.parametrize("loss_fn", [None, nn.CrossEntropyLoss()])
def test_models_that_answer_with_a_record(loss_fn: Any, tmp_path: Path) -> None:
    """Exact values and probes are those of the logits; the loop goes on with the record."""
    found = []
    for record in (False, True):
        torch.manual_seed(0)
        module = ReturnsLoss(False)
        network = module if record else module.net
        y = Y.double() if loss_fn is None else torch.arange(len(X)) % Y.shape[1]
        path = tmp_path / str(record)
        with Recorder(
            network, path, data=(X.double(), y), loss_fn=loss_fn, exact_every=2, probe_every=3, optimizer={"name": "gd"}
        ) as recorder:
            optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
            for _ in range(4):
                optimizer.zero_grad()
                answer = network(X.double())
                assert isinstance(answer, dict) == record
                loss = ((answer["logits"] if record else answer) - Y.double()).square().sum() / len(X)
                loss.backward()
                recorder.record(loss, optimizer)
                optimizer.step()
        run = RunDirectory.open(path)
        found.append((run.log().drop(columns="seconds"), run.probes().drop(columns="seconds")))
    for one, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, other)


def hugging_face(tmp_path: Path, *, returns: bool = True, norms_every: int = 5, **options: Any) -> pd.DataFrame:
    """The log of a run of full-batch gradient descent, 12 steps, by the real Trainer."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def compute(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return (outputs["logits"] - labels).square().sum() / len(labels)

    rows = [{"x": x, "labels": y} for x, y in zip(X.double(), Y.double(), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "hf"), max_steps=12, learning_rate=0.05, lr_scheduler_type="constant", optim="sgd",
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        **{"per_device_train_batch_size": 10, "max_grad_norm": 0.0, **options},
    )  # fmt: skip
    callback = transformers_callback(tmp_path / "r", norms_every=norms_every)
    own = {} if returns else {"compute_loss_func": compute}
    model = ReturnsLoss(returns)
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback], **own).train()
    assert not model._forward_hooks
    return read_log(tmp_path / "r").log


def by_hand(tmp_path: Path) -> pd.DataFrame:
    module = net()
    with Recorder(module, tmp_path / "one", norms_every=1) as recorder:
        descend(module, recorder, 12)
    return read_log(tmp_path / "one").log


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 5},
        pytest.param({"logging_steps": 1}, marks=pytest.mark.slow),
        pytest.param({"logging_steps": 7, "logging_first_step": True}, marks=pytest.mark.slow),
        pytest.param({"logging_strategy": "no"}, marks=pytest.mark.slow),
        {"logging_steps": 100, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2},
    ],
)
def test_hugging_face_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    """Loss in every row and gradient norm beside it, at any logging_steps: as a loop of one's own has them."""
    frame, ours = hugging_face(tmp_path, **options), by_hand(tmp_path)
    assert RunDirectory.open(tmp_path / "r").manifest().optimizer.name == "sgd"  # inside Accelerate's wrapper
    assert frame["step"].tolist() == list(range(12))
    assert frame["loss"].to_numpy() == pytest.approx(ours["loss"].to_numpy(), rel=1e-9)
    norms = frame[frame["grad_norm_sq"].notna()]
    assert norms["step"].tolist() == [0, 5, 10]
    expected = ours[ours["step"] % 5 == 0]
    for column in ("loss", "grad_norm_sq", "drift"):
        assert norms[column].to_numpy() == pytest.approx(expected[column].to_numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_with_a_loss_of_ones_own(tmp_path: Path) -> None:
    """Known where the trainer logs, as a mean since the last time; the gradient norm is in the same rows."""
    frame, ours = hugging_face(tmp_path, returns=False, logging_steps=4), by_hand(tmp_path)
    known = frame[frame["loss"].notna()]
    assert known["step"].tolist() == [3, 7, 11]
    means = [ours["loss"][i : i + 4].mean() for i in (0, 4, 8)]
    assert known["loss"].to_numpy() == pytest.approx(means, rel=1e-3)
    assert known["grad_norm_sq"].to_numpy() == pytest.approx(ours["grad_norm_sq"][[3, 7, 11]].to_numpy(), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_clips(tmp_path: Path) -> None:
    """The norm of a clipped gradient is not that of the loss: before clipping it is known where the trainer logs."""
    frame = hugging_face(tmp_path, norms_every=1, logging_steps=3, max_grad_norm=1e-3)
    known = frame[frame["grad_norm_sq"].notna()]
    assert known["step"].tolist() == [2, 5, 8, 11]
    module = net()
    loss_of(module).backward()  # type: ignore[no-untyped-call]
    start = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
    assert known["grad_norm_sq"].iloc[0] == pytest.approx(start, rel=1e-2)
    assert frame["loss"].notna().all()


def _noisy(path: Path, steps: int = 400, **options: Any) -> tuple[pd.DataFrame, float]:
    """SGD with batches of two of a linear regression, at a step size that moves nothing; the log, and tr Σ."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1).double()
    x, y = torch.randn(12, 3).double(), torch.randn(12, 1).double()
    residual = 2 * (module(x) - y).detach()
    gradients = torch.cat([residual * x, residual], dim=1)
    trace = float((gradients - gradients.mean(dim=0)).square().sum() / 12)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-9)
    reshuffled = options.get("optimizer", {}).get("sampling") == "reshuffled"
    if options.pop("whole", False):
        options["data"] = (x, y)
    with Recorder(module, path, norms_every=1, **options) as recorder:
        for step in range(steps):
            if step % 6 == 0:
                order = torch.randperm(12)
            chosen = order[2 * (step % 6) : 2 * (step % 6) + 2] if reshuffled else torch.randint(12, (2,))
            optimizer.zero_grad()
            loss = (module(x[chosen]) - y[chosen]).square().mean()
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
    return read_log(path).log, trace


def test_noise_of_mini_batches_from_neighbouring_steps(tmp_path: Path) -> None:
    told = {"batch_size": 2, "sampling": "replacement"}
    log, trace = _noisy(tmp_path / "r", optimizer=told)
    known = log["grad_noise_sq"].dropna()
    assert known.index.tolist() == list(range(1, 400, 4))
    assert known.mean() == pytest.approx(trace / 2, rel=4 * known.std() / 10 / (trace / 2))
    # ||g||² less its noise is ||∇L||², which the ratio of the mini-batches overstates.
    result = analyse_pl_ratio(read_log(tmp_path / "r").series(), facts=read_log(tmp_path / "r").facts())
    assert result.noise is not None
    assert result.noise.batch_size == 2
    assert result.pl_ratio_corrected.median is not None
    assert result.pl_ratio_star.median is not None
    manifest = RunDirectory.open(tmp_path / "r").manifest()
    assert (manifest.optimizer.batch_size, manifest.optimizer.sampling) == (2, "replacement")


def test_neighbours_of_one_epoch_differ_by_more(tmp_path: Path) -> None:
    """Disjoint batches: the variance is the part 1 − b/n of what they tell, where n is known."""
    told = {"batch_size": 2, "sampling": "reshuffled"}
    log, trace = _noisy(tmp_path / "r", 2400, whole=True, optimizer=told)
    known = log["grad_noise_sq"].dropna()
    facts = read_log(tmp_path / "r").facts()
    assert facts.neighbour_share == pytest.approx(1 - 2 / 12)
    expected = trace * (12 / 2 - 1) / 11
    found = facts.neighbour_share * known.mean()
    assert found == pytest.approx(expected, rel=4 * known.std() / np.sqrt(len(known)) / known.mean())
    found_noise = batch_noise(read_log(tmp_path / "r").series(), facts)
    assert found_noise is not None
    assert found_noise.middle.scale is not None
    square = float(log["grad_norm_sq"].mean()) - found
    assert found_noise.middle.scale == pytest.approx(trace / square, rel=0.5)


def test_noise_of_samples_beside_exact_values(tmp_path: Path) -> None:
    log, trace = _noisy(tmp_path / "r", 12, whole=True, exact_every=4, loss_scale=1.0)
    assert log["noise_trace"].notna().tolist() == log["loss"].notna().tolist()
    # Parts of one sample each leave nothing to chance.
    assert log["noise_trace"].dropna().to_numpy() == pytest.approx(trace, rel=1e-6)
    log, _ = _noisy(tmp_path / "gd", 4, whole=True, exact_every=2, loss_scale=1.0, optimizer={"name": "gd"})
    assert "noise_trace" not in log


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_curvature_that_adam_sees(kind: Any, tmp_path: Path) -> None:
    """λ_max of P^(−½) H P^(−½) at a probe, and what Adam bears, against dense matrices; the updates between steps."""
    module = net()
    groups = [
        {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=0.01, betas=(0.8, 0.99), eps=1e-4)
    flat = [torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])]
    with Recorder(
        module, tmp_path / "r", norms_every=1, probe_every=4, data=(X.double(), Y.double()), loss_scale=1.0
    ) as recorder:
        for step in range(9):
            optimizer.zero_grad()
            loss = loss_of(module)
            loss.backward()  # type: ignore[no-untyped-call]
            recorder.record(loss, optimizer)
            if step == 8:
                values = {k: p.detach().clone() for k, p in module.named_parameters()}
                moments = [optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**8) for p in module.parameters()]
            optimizer.step()
            flat.append(torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()]))
    probes = RunDirectory.open(tmp_path / "r").probes()
    root = torch.cat([1 / (m.sqrt() + 1e-4).sqrt().reshape(-1) for m in moments]).numpy()
    network = Network.from_module(module, values=values)
    matrix = dense.hessian(network, X.double(), Y.double(), SQUARED.values)
    decoupled = kind is torch.optim.AdamW
    matrix += 0.0 if decoupled else 0.1 * np.eye(len(matrix))
    found = probes.loc[probes["step"] == 8].iloc[0]
    assert found["preconditioned"] == pytest.approx(np.linalg.eigvalsh(root * (root * matrix).T)[-1], rel=1e-5)
    assert found["stable_curvature"] == pytest.approx((2 - 0.01 * 0.1 * decoupled) * 1.8 / (0.2 * 0.01))
    # No moments before the first step.
    assert probes["preconditioned"].isna().tolist() == [True, False, False, False]
    moved = read_log(tmp_path / "r").log["update_norm"].to_numpy()
    assert np.isnan(moved[0])
    assert moved[1:] == pytest.approx([float((b - a).norm()) for a, b in pairwise(flat[:-1])])
    row = audit(str(tmp_path / "r"), certificate=False)["step_size"]
    ratio = (probes["preconditioned"] / probes["stable_curvature"]).max()
    assert row.value == pytest.approx(ratio)
    assert row.holds is bool(ratio < 1)
    assert "as Adam sees it" in row.reason


@pytest.mark.parametrize("train", [True, False])
def test_batch_normalisation_is_another_function_while_it_trains(train: bool, tmp_path: Path) -> None:
    """Adam's moments are of the one, probes of the other: the bias below it, whose gradient is none there, shows it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(X.shape[1], 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, Y.shape[1])).double()
    module.train(train)
    with Recorder(
        module, tmp_path / "r", probe_every=2, data=(X.double(), Y.double()), loss_scale=1.0, exact_every=1
    ) as recorder:
        descend(module, recorder, 4, torch.optim.Adam(module.parameters(), lr=0.01))
    probes = RunDirectory.open(tmp_path / "r").probes()
    assert probes["preconditioned"].notna().any() != train
    found = audit(str(tmp_path / "r"), certificate=False)
    assert ("in evaluation mode" in found.scope.line) == train
    assert ("batch normalisation" in found["step_size"].reason) == train


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_schedule_that_ends_at_zero(kind: Any, tmp_path: Path) -> None:
    """The last probe finds a step size of zero: no threshold there, and the run goes on."""
    module = net()
    optimizer = kind(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    with Recorder(module, tmp_path / "r", probe_every=2, data=(X.double(), Y.double()), loss_scale=1.0) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of(module)
            loss.backward()  # type: ignore[no-untyped-call]
            recorder.record(loss, optimizer)
            optimizer.step()
            schedule.step()
    probes = RunDirectory.open(tmp_path / "r").probes()
    assert probes["stable_curvature"].notna().tolist() == [kind is torch.optim.SGD, True, False]
    assert probes["sharpness"].notna().all()
    found = optimizer_state({"optimizer_state_dict": optimizer.state_dict()}, module)
    assert found == "the step size of its optimiser is 0, as at the end of a schedule"
