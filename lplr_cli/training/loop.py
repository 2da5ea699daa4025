"""The training loop: gradient descent and mini-batch SGD with exact diagnostics, resumable bit by bit."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from lplr_cli.curvature import sharpness
from lplr_cli.data import Dataset, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.models import DTYPES, build_model, check_outputs, parameter_count
from lplr_cli.ntk import Network
from lplr_cli.runs import (
    EXACT,
    LOG_COLUMNS,
    PROBE_COLUMNS,
    Appender,
    Clock,
    DataFacts,
    LossFacts,
    Manifest,
    OptimizerFacts,
    RunDirectory,
    truncate_before,
)
from lplr_cli.runs.checkpoint import Checkpoint
from lplr_cli.training.config import TrainConfig
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient, squared_loss
from lplr_cli.training.probes import Prober, ProbeSettings

# A loss this many times the initial one has left every regime of interest; waiting for overflow tells nothing more.
BLOW_UP = 1e12

LOSS_FORMULA = "L = (1/n) sum_i ||f(x_i) - y_i||^2"


@dataclass(frozen=True)
class Progress:
    """What a progress display is told after each logged step."""

    step: int
    total: int
    loss: float | None
    drift: float
    lambda_min: float | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: its directory.
        status: ``finished``, ``interrupted`` or ``diverged``.
        step: updates made.
        message: what happened, for the last two.
    """

    run: RunDirectory
    status: str
    step: int
    message: str = ""


def resolve_device(name: str) -> torch.device:
    """The torch device, checked to exist.

    Raises:
        InputError: unknown or absent device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not there", "use cpu, or cuda where torch sees a GPU") from error
    return device


class Trainer:
    """State of one run in memory: data, module, flat parameters, momentum."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self.device = resolve_device(config.device)
        dtype = DTYPES[config.dtype]
        self.inputs, self.targets = dataset.tensors(dtype, self.device)
        shape = dataset.inputs.shape[1:]
        self.module: nn.Module = build_model(config.model, shape, dataset.outputs, seed=config.seed, dtype=dtype)
        # Training and probing see one deterministic function of one sample: no dropout, fixed running statistics.
        self.module.to(self.device).eval()
        check_outputs(self.module, dataset)
        self.flat = FlatParameters(self.module)
        self.momentum = torch.zeros_like(self.flat.theta) if config.momentum else None
        self.steps_per_epoch = config.steps_per_epoch(dataset.n)
        self.total = config.total_steps(dataset.n)

    def network(self) -> Network:
        """The module at the present θ, for curvature computations in float64."""
        return Network.from_module(self.module, dtype=torch.float64, device=self.device)

    def full_gradient(self) -> float:
        """∇L over all samples into ``flat.grad``; returns L. Micro-batches bound the memory."""
        self.flat.grad.zero_()
        return accumulate_gradient(self.module, self.inputs, self.targets, self.config.micro_batch)

    def batch_gradient(self, step: int) -> None:
        """The gradient of the mini-batch of ``step`` into ``flat.grad``.

        The order of an epoch follows from seed and epoch alone, so that a resumed run repeats it.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed((self.config.seed << 32) + epoch)
        order = torch.randperm(self.dataset.n, generator=generator)
        size = self.config.batch_size
        chosen = order[position * size : (position + 1) * size].to(self.device)
        self.flat.grad.zero_()
        loss = squared_loss(self.module, self.inputs[chosen], self.targets[chosen], len(chosen))
        loss.backward()  # type: ignore[no-untyped-call]

    def lr_at(self, step: int, lr: float) -> float:
        """Step size of the update of ``step``."""
        if self.config.schedule == "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * step / self.total))
        return lr

    def update(self, lr: float) -> None:
        """θ ← θ - lr g, or with momentum v ← m v + g, θ ← θ - lr v."""
        with torch.no_grad():
            if self.momentum is None:
                self.flat.theta.add_(self.flat.grad, alpha=-lr)
            else:
                self.momentum.mul_(self.config.momentum).add_(self.flat.grad)
                self.flat.theta.add_(self.momentum, alpha=-lr)

    def checkpoint(self, step: int) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            model=self.config.model,
            data=self.dataset.spec,
            data_sha256=self.dataset.fingerprint,
            input_shape=tuple(self.dataset.inputs.shape[1:]),
            outputs=self.dataset.outputs,
            dtype=self.config.dtype,
            seed=self.config.seed,
            step=step,
            parameters=self.flat.state(),
            optimizer={} if self.momentum is None else {"momentum": self.momentum},
            rng=torch.get_rng_state(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``."""
        self.flat.load(checkpoint.parameters)
        if self.momentum is not None and "momentum" in checkpoint.optimizer:
            self.momentum.copy_(checkpoint.optimizer["momentum"])
        if checkpoint.rng is not None:
            torch.set_rng_state(checkpoint.rng)


class _StopRequest:
    """Set by SIGINT or SIGTERM, read between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


@contextmanager
def _graceful_signals() -> Iterator[_StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; the former handlers come back."""
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def train(
    config: TrainConfig,
    out: Path | None = None,
    *,
    source: str = "data",
    fetch: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    root: Path | None = None,
) -> Outcome:
    """Train from the start into a new run directory.

    Args:
        config: what to do.
        out: the run directory; a free name below ``root`` by default.
        source: name of the data set in that directory name.
        fetch: download the data set first.
        on_progress: called after each step.
        root: parent of unnamed runs.

    Raises:
        InputError: anything wrong with the data, the model or the directory, before anything is written.
    """
    dataset = load_dataset(config.data, fetch=fetch)
    config.resolved_probe_size(dataset.n, dataset.outputs)
    trainer = Trainer(config, dataset)
    settled = config.with_(lr=config.lr)
    sharp: float | None = None
    if config.lr is None:
        sharp = sharpness(trainer.network(), trainer.inputs, trainer.targets).value
        if not (math.isfinite(sharp) and sharp > 0):
            raise InputError(f"the sharpness at initialisation is {sharp:g}", "give --lr")
        settled = config.with_(lr=1.0 / sharp)
    path = out or _free_name((root or Path("runs")) / config.run_name(source))
    run = RunDirectory.create(path)
    try:
        lr_rule = "given" if sharp is None else "1/sharpness at initialisation (Lanczos, an estimate)"
        run.write_manifest(_manifest(settled, trainer, lr_rule))
        trainer.config = settled
        return _run(trainer, run, 0, Clock(), on_progress)
    finally:
        run.unlock()


def _manifest(config: TrainConfig, trainer: Trainer, lr_rule: str) -> Manifest:
    """Of a run that starts; ``config`` has the step size that was settled on."""
    dataset = trainer.dataset
    return Manifest.begin(
        loss=LossFacts(config.loss, LOSS_FORMULA, 1.0, EXACT),
        optimizer=OptimizerFacts(config.optimizer, config.lr, config.momentum, config.schedule, 0.0, lr_rule),
        data=DataFacts(dataset.spec.source, dataset.n, dataset.outputs, dataset.fingerprint, dataset.describe()),
        config={**config.to_dict(), "data": dataset.spec.to_dict()},
        model={**config.model.to_dict(), "parameters": parameter_count(trainer.module)},
        dtype=config.dtype,
        device=str(trainer.device),
    )


def resume(path: Path, *, on_progress: Callable[[Progress], None] | None = None) -> Outcome:
    """Continue an interrupted run from its last checkpoint; rows after it are computed again, bit by bit the same.

    Raises:
        InputError: no run, a finished or diverged one, or data that changed since.
    """
    run = RunDirectory.open(path)
    manifest = run.manifest()
    if manifest.recorded:
        raise InputError(f"{path} was recorded from another program", "resume it there")
    if manifest.status in ("finished", "diverged"):
        raise InputError(f"{path} is {manifest.status}", "there is nothing to resume")
    run.lock()
    try:
        config = TrainConfig.from_dict(manifest.config)
        dataset = load_dataset(config.data)
        if dataset.fingerprint != manifest.data.sha256:
            raise InputError(f"the data of {path} changed since it began", "restore the data or start a new run")
        trainer = Trainer(config, dataset)
        step = 0
        for candidate in reversed(run.checkpoint_steps()):
            try:
                trainer.restore(run.load(candidate))
            except InputError:
                if candidate == 0:
                    raise
                continue
            step = candidate
            break
        run.restore_csv()
        truncate_before(run.log_path, LOG_COLUMNS, step)
        truncate_before(run.probes_path, PROBE_COLUMNS, step)
        run.set_status("running")
        elapsed = run.log()["seconds"].max() if run.log_path.exists() else 0.0
        return _run(trainer, run, step, Clock(float(elapsed) if elapsed == elapsed else 0.0), on_progress)
    finally:
        run.unlock()


def repeat(
    path: Path,
    out: Path | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    root: Path | None = None,
) -> Outcome:
    """Train anew with the configuration of a run: the same log on the same machine with the same versions.

    The step size is the one that the run used, also where it was chosen from the sharpness.

    Raises:
        InputError: no run of lplr's own, or data that changed since.
    """
    manifest = RunDirectory.open(path).manifest()
    if manifest.recorded:
        raise InputError(f"{path} was recorded from another program", "repeat it there")
    config = TrainConfig.from_dict(manifest.config)
    if load_dataset(config.data).fingerprint != manifest.data.sha256:
        raise InputError(f"the data of {path} changed since it began", "restore the data")
    former = torch.get_num_threads()
    if manifest.threads:
        torch.set_num_threads(manifest.threads)
    try:
        where = out or _free_name((root or Path("runs")) / path.resolve().name)
        return train(config, where, on_progress=on_progress)
    finally:
        torch.set_num_threads(former)


def _free_name(path: Path) -> Path:
    """``path``, or with a number behind it when it is taken."""
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate


def _run(
    trainer: Trainer,
    run: RunDirectory,
    first: int,
    clock: Clock,
    on_progress: Callable[[Progress], None] | None,
) -> Outcome:
    config = trainer.config
    lr = config.lr
    assert lr is not None
    if first == 0:
        run.save(trainer.checkpoint(0))
        start = trainer.flat.state()
    else:
        start = run.load(0).parameters
    theta0 = torch.cat([start[k].reshape(-1) for k in trainer.flat.names]).to(trainer.flat.theta, copy=True)
    settings = ProbeSettings(
        size=config.resolved_probe_size(trainer.dataset.n, trainer.dataset.outputs),
        sharpness=config.probe_sharpness,
    )
    prober = Prober(
        trainer.module,
        {k: v.to(trainer.device) for k, v in start.items()},
        trainer.inputs,
        trainer.targets,
        settings,
    )
    status, message, step = "finished", "", first
    last_probe: dict[str, Any] = {}
    limit = math.inf if first == 0 else BLOW_UP * max(float(run.log()["loss"].iloc[0]), 1.0)
    lambda_min: float | None = None
    with (
        _graceful_signals() as request,
        Appender(run.log_path, LOG_COLUMNS) as log,
        Appender(run.probes_path, PROBE_COLUMNS) as probes,
    ):
        for step in range(first, trainer.total + 1):
            final = step == trainer.total
            exact = config.optimizer == "gd" or step % trainer.steps_per_epoch == 0 or final
            loss = trainer.full_gradient() if exact else None
            drift = trainer.flat.drift(theta0)
            row: dict[str, Any] = {
                "step": step,
                "epoch": step // trainer.steps_per_epoch,
                "loss": loss,
                "grad_norm_sq": trainer.flat.grad_norm_sq() if exact else None,
                "drift": drift,
                "lr": None if final else trainer.lr_at(step, lr),
                "seconds": clock(),
            }
            log.append(row)
            if loss is not None and step == 0:
                limit = BLOW_UP * max(loss, 1.0)
            if not math.isfinite(drift) or (loss is not None and not loss <= limit):
                status, message = "diverged", _divergence(step, lr, last_probe)
                break
            due = final or (step % config.probe_every == 0 if config.probe_every else step == 0)
            if due:
                last_probe = prober.measure(step, trainer.flat.state())
                lambda_min = last_probe["lambda_min"]
                probes.append(last_probe)
            if final or (config.checkpoint_every and step % config.checkpoint_every == 0 and step > first):
                run.save(trainer.checkpoint(step))
            if on_progress is not None:
                on_progress(Progress(step, trainer.total, loss, drift, lambda_min))
            if request.signal is not None and not final:
                run.save(trainer.checkpoint(step))
                status, message = (
                    "interrupted",
                    f"stopped by {signal.Signals(request.signal).name} at step {step}",
                )
                break
            if final:
                break
            if config.optimizer == "sgd":
                trainer.batch_gradient(step)
            trainer.update(trainer.lr_at(step, lr))
    run.finish_tables(config.log_format)
    run.set_status(status)
    return Outcome(run, status, step, message)


def _divergence(step: int, lr: float, probe: dict[str, Any]) -> str:
    message = f"the loss is not finite, or beyond {BLOW_UP:g} times its start, at step {step}"
    sharp = probe.get("sharpness")
    if sharp and lr > 2.0 / sharp:
        message += f": the step size {lr:.3g} exceeds 2/sharpness = {2.0 / sharp:.3g} (probe of step {probe['step']})"
    return message
