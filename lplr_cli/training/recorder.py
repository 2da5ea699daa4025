"""A run directory from anybody's training loop."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.curvature import stepping_state
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.runs import (
    LARGEST_LOSS,
    LOG_COLUMNS,
    NEW_PROBE_COLUMNS,
    PRECONDITIONED,
    SAMPLE_NOISE,
    STABLE,
    Appender,
    Clock,
    OptimizerFacts,
    RunDirectory,
    described_optimizer,
)
from lplr_cli.runs.checkpoint import Checkpoint
from lplr_cli.runs.iterates import IterateWriter
from lplr_cli.training.described import (
    check_schedules,
    data_facts,
    described_model,
    loss_facts,
    optimizer_facts,
    recorded_manifest,
    spread,
    target_matrix,
)
from lplr_cli.training.exact import ExactValues
from lplr_cli.training.neighbours import Neighbours
from lplr_cli.training.probes import Prober, ProbeSettings
from lplr_cli.training.tracked import DTYPES, TrackedParameters, number, settled
from lplr_cli.training.wrappers import Ranks, mixes_samples, unscale, unwrapped

# Seconds that rows may wait in memory: writing each would cost more than measuring it.
LAG = 0.5


class Recorder:
    """Write a run directory from a training loop of your own, in three lines.

        with Recorder(model, "runs/mine") as recorder:            # 1
            for x, y in loader:
                loss = loss_fn(model(x), y)
                loss.backward()
                recorder.record(loss, optimizer)                  # 2, before the step
                optimizer.step()
                optimizer.zero_grad()
            recorder.finish(final_loss)                           # 3, optional: the loss at the last parameters

    The run is one of lplr: ``pl-ratio``, ``fit-rate``, ``audit`` and ``report`` read it, and the commands that need the
    network do where ``model`` and ``dataset`` name it (or with ``--model`` and ``--data`` later). The loss is in every
    row, gradient norm and drift in every ``norms_every``-th; but for ``gd`` the variance of the gradient over batches
    is in every fourth of these, or that over samples beside exact values. An exception inside the block leaves a
    readable run with status ``interrupted``, and is never hidden by one of closing, which becomes a note of it. A last
    loss or drift that is not finite makes the run ``diverged``. Rows reach the disk within half a second, so that
    neither ``os._exit`` nor ``kill -9`` costs more.

    Measured are the parameters that train when the recorder is made. One that is frozen later stays among them; one
    that is replaced, added, unfrozen or moved is an error at the next row with norms. A forked child may not record.

    Wrappers of ``torch.compile``, DataParallel and DistributedDataParallel are looked through. With several processes
    only rank 0 writes; every rank must call :meth:`record`, as the logged loss is the mean over ranks. With gradient
    accumulation call :meth:`record` once an optimiser step, with the loss of the whole step; with AMP pass the scaler.

    Args:
        module: the network that is trained.
        out: the run directory, new or empty.
        data: all training inputs (n, …) and targets (n, C), for exact values and probes.
        exact_every: steps between exact losses and gradients over ``data``; these are then the logged ones, and rows
            between have none. 0 logs those of the mini-batch.
        loss_fn: mean loss of outputs and targets, for exact values; L = (1/n) Σ ||f − y||² by default.
        loss: what is trained: ``squared``, ``cross-entropy``, ``bce``, any other name, or a
            :class:`lplr_cli.losses.Loss`. Read off ``loss_fn`` where that is one of torch's; unknown otherwise, and
            then nothing is said that depends on it.
        loss_scale: s of that loss, of the squared one where none is named: (s/n) Σ ||f(x_i) − y_i||² (theory.md section
            1), 1/C for torch's MSELoss; None when unknown.
        log_every: steps between rows of the log.
        norms_every: steps between gradient norms and drifts, each of which costs about a plain optimiser's update.
        checkpoint_every: steps between checkpoints; 0 keeps the first and last. Step 0 is always kept.
        keep_path: keep the parameters of every step in one file, 8 bytes each, for ``lplr certify RUN --path``.
        probe_every: steps between NTK probes on ``data``; 0 for none. Checkpoints allow probes later, offline.
        probe_size: samples of a probe, the first ones.
        probe_sharpness: whether probes measure the sharpness, over all of ``data``.
        model: ``module:factory`` that builds the network, for commands that need it.
        model_arguments: keyword arguments of that factory.
        dataset: what ``--data`` takes, for commands that need the data.
        optimizer: what the optimiser does not tell itself, e.g. {"name": "gd", "schedule": "constant"}: ``gd`` says
            that every batch is all data, which the theory of gradient descent needs; ``batch_size`` and ``sampling``
            (reshuffled or replacement) what the noise of mini-batches does. The rest is read off it.
        log_format: ``csv``, ``parquet`` or ``both``.

    Raises:
        InputError: the directory is not empty, or an option that contradicts another.
    """

    def __init__(
        self,
        module: nn.Module,
        out: str | Path,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        exact_every: int = 0,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        loss: str | Loss | None = None,
        loss_scale: float | None = None,
        log_every: int = 1,
        norms_every: int = 10,
        checkpoint_every: int = 0,
        keep_path: bool = False,
        probe_every: int = 0,
        probe_size: int = 100,
        probe_sharpness: bool = True,
        model: str | None = None,
        model_arguments: Mapping[str, Any] | None = None,
        dataset: str | DataSpec | None = None,
        optimizer: Mapping[str, Any] | None = None,
        log_format: str = "both",
    ) -> None:
        check_schedules((exact_every, checkpoint_every, probe_every), (log_every, norms_every, probe_size))
        if data is None and (exact_every or probe_every):
            raise InputError("exact values and probes need data", "pass data=(inputs, targets)")
        self.module, self.data = unwrapped(module), data
        self.exact_every, self.log_every, self.norms_every = exact_every, log_every, norms_every
        self.checkpoint_every, self.probe_every = checkpoint_every, probe_every
        self._loss = loss_facts(loss, loss_fn, loss_scale, data and data[1], exact=exact_every > 0)
        self._given = None if loss_fn is None else spread(loss_fn)  # a loss without a name still has a Hessian
        self._targets = None if data is None else target_matrix(self.module, *data, self._loss)
        self._log_format = log_format
        self._tracked = TrackedParameters(self.module)
        self._described = None if optimizer is None else described_optimizer(optimizer)
        self._exact = self._exact_values(loss_fn) if exact_every else None
        self._step, self._status = 0, "running"
        self._latest: dict[str, Any] = {}  # the last loss and drift
        self._process = os.getpid()
        self._held: dict[str, Any] | None = None
        self._ranks = Ranks(self._tracked.reference.device)
        self._writes = self._ranks.writes
        self._spec = described_model(model, model_arguments)
        self._data_spec = DataSpec(dataset) if isinstance(dataset, str) else dataset
        self._optimizer: OptimizerFacts | None = None
        self._clock = Clock()
        self.path = Path(out).absolute()  # a loop may change its working directory
        self._prober: Prober | None = None
        self._steps: torch.optim.Optimizer | None = None
        # Exact values have the noise of the samples instead.
        self._near = Neighbours(self._tracked, norms_every, noise=self._has_batches and self._exact is None)
        self._keeps = any((keep_path, probe_every > 0, checkpoint_every > 0))
        self._is_plain = (self._ranks.count, log_every, exact_every, self._keeps) == (1, 1, 0, False)
        if self._writes:
            self._begin(probe_size, probe_sharpness, keep_path)

    def _exact_values(self, loss_fn: Callable[[Tensor, Tensor], Tensor] | None) -> ExactValues | None:
        """What measures them, where there are data to measure them on."""
        if self.data is None or self._targets is None:
            return None
        return ExactValues(
            self.module, self._tracked, self.data, self._targets, loss_fn, self._loss, noise=self._has_batches
        )

    def _begin(self, probe_size: int, probe_sharpness: bool, keep_path: bool) -> None:
        """Make the run directory, with manifest, tables and the checkpoint of step 0."""
        self._run = RunDirectory.create(self.path, "record into another folder, or delete this one first")
        self._write_manifest()
        noise = (SAMPLE_NOISE,) if self._has_batches and self._exact is not None else ()
        self._log = Appender(self._run.log_path, (*LOG_COLUMNS, *self._near.columns, *noise), lag=LAG, settle=settled)
        columns = (*NEW_PROBE_COLUMNS, PRECONDITIONED, STABLE, LARGEST_LOSS)
        self._probes = Appender(self._run.probes_path, columns) if self.probe_every else None
        self._iterates = IterateWriter(self.path, self._tracked.shapes) if keep_path else None
        self._save()
        if self.probe_every and self.data is not None and self._targets is not None:
            size = min(probe_size, len(self.data[0]))
            self._prober = Prober(
                self.module,
                self._tracked.state(),
                self.data[0],
                self._targets,
                ProbeSettings(size=size, sharpness=probe_sharpness, loss=self._loss.known or self._given),
                None if self._loss.known else self.data[1],
            )

    @property
    def _has_batches(self) -> bool:
        """Whether batches may be less than all data."""
        return self._described is None or self._described.name != "gd"

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return  # a child that was forked inside the block leaves it: the run is its parent's
        try:
            self.close("finished" if kind is None else "interrupted")
        except Exception as closing:
            if error is None:
                raise
            error.add_note(f"lplr: the run in {self.path} could not be closed: {closing}")

    def record(
        self, loss: Tensor | float, optimizer: torch.optim.Optimizer | None = None, *, scaler: Any = None
    ) -> None:
        """Log one step: after ``backward``, before ``optimizer.step``.

        Args:
            loss: of this step, at the parameters before the update.
            optimizer: its step size is logged; with AMP its gradients are unscaled.
            scaler: ``torch.amp.GradScaler``, when one is in use.
        """
        step = self._step
        # Most steps are this one, whose few lines lie in the middle of somebody's loop, where each costs some µs.
        plain = self._is_plain and scaler is None and self._held is None
        if plain and step % self.norms_every > 1 and optimizer is self._steps:
            self._refuse_children()
            row = {"step": step, "seconds": self._clock(), "loss": number(loss)}
            if optimizer is not None:
                row["lr"] = number(optimizer.param_groups[0]["lr"])
            self._latest["loss"] = row["loss"]
            self._log.append(row)
            self._step = step + 1
            return
        self._hold(optimizer, scaler, False)
        self._release(loss, None)

    def hold(
        self, optimizer: torch.optim.Optimizer | None = None, *, scaler: Any = None, norms: bool = False
    ) -> float | None:
        """The first half of :meth:`record`, for loops that learn the loss after the update: measures this step.

        Args:
            optimizer: as in :meth:`record`.
            scaler: as in :meth:`record`.
            norms: measure gradient norm and drift of this step, whatever ``norms_every`` says.

        Returns:
            The gradient norm, where this process measured that of the gradients in the parameters.
        """
        self._hold(optimizer, scaler, norms)
        square = None if self._held is None or self.exact_every else self._held.get("grad_norm_sq")
        return None if square is None else math.sqrt(square)

    def _hold(self, optimizer: torch.optim.Optimizer | None, scaler: Any, norms: bool) -> None:
        self._refuse_children()
        if self._status != "running":
            raise InputError("the recorder is closed", "record inside the with block")
        if self._held is not None:
            self._release(None, None)
        step = self._step
        norms = norms or step % self.norms_every == 0 or self._due(self.probe_every, step)
        if norms:
            self._tracked.check()
        if optimizer is not None:
            if self._optimizer is None:
                self._describe(optimizer)
            if scaler is not None:
                unscale(scaler, optimizer)
            self._steps = optimizer
        logged = self._is_logged(step)
        self._held = {"step": step} if logged else {}
        if self._writes:
            self._near.see(step)
            if logged:
                self._measure(self._held, optimizer, norms)
            if self._keeps:
                self._keep(step)
        self._step += 1

    def _describe(self, optimizer: torch.optim.Optimizer) -> None:
        """Write into the manifest what the optimiser is, once it is known."""
        self._optimizer = optimizer_facts(optimizer, self._described)
        if self._writes:
            self._write_manifest()

    def _keep(self, step: int) -> None:
        """Iterate, probe and checkpoint, where it is time."""
        if self._iterates is not None:
            self._iterates.append(step, self._tracked.theta())
        if self._due(self.probe_every, step):
            self._probe(step)
        if step and self._due(self.checkpoint_every, step):
            self._save()

    def release(self, loss: Tensor | float | None, *, grad_norm: float | None = None) -> None:
        """The second half of :meth:`record`: logs the step that was held.

        Args:
            loss: of that step; None where it is unknown.
            grad_norm: of the gradient of that loss, where the loop has clipped or else changed the gradients that it
                left; NaN where it is unknown.
        """
        self._refuse_children()
        self._release(loss, grad_norm)

    def _release(self, loss: Tensor | float | None, grad_norm: float | None) -> None:
        held, self._held = self._held, None
        if not held:
            return
        value = self._ranks.mean(loss)
        if not self.exact_every:
            held["loss"] = value
            if grad_norm is not None:
                held["grad_norm_sq"] = grad_norm**2
        if self._writes:
            self._write(held)

    def finish(self, loss: Tensor | float | None = None) -> None:
        """Log the loss at the last parameters (their gradient is unknown, unless exact values are on) and close."""
        self.release(None)
        if self._status == "running" and (loss is not None or self.exact_every):
            value = self._ranks.mean(loss)
            if self._writes:
                row = {"step": self._step, "loss": value, "drift": self._tracked.drift(), "seconds": self._clock()}
                if self._exact is not None:
                    row |= self._exact()
                self._write(row)
        self.close()

    def close(self, status: str = "finished") -> None:
        """End the run; called by the ``with`` block. A last checkpoint is kept.

        Whatever fails on the way, the rows are written, the tables closed, the status set and the directory freed.

        Args:
            status: ``finished`` or ``interrupted``; the run is ``diverged`` where its last loss or drift is not finite.
        """
        self._refuse_children()
        if self._status != "running":
            return
        self._status, self._is_plain = status if self._finite else "diverged", False
        if not self._writes:
            return
        with contextlib.ExitStack() as always:
            always.callback(self._run.unlock)
            always.callback(lambda: self._run.set_status(self._status))
            always.callback(self._run.finish_tables, self._log_format)
            if self._probes is not None:
                always.callback(self._probes.close)
            always.callback(self._log.close)
            if self._iterates is not None:
                always.callback(self._iterates.close)
            try:
                self._keep_the_end()
            except BaseException:
                self._status = "interrupted" if self._finite else "diverged"
                raise

    def _keep_the_end(self) -> None:
        """The row that waits for its loss, a checkpoint and a probe of the last parameters."""
        if self._held:
            self._write(self._held)
        if not self._step:
            return
        self._tracked.check()
        self._save()
        if self._iterates is not None:
            self._iterates.append(self._step, self._tracked.theta())
        if self._prober is not None and self._status == "finished":
            self._probe(self._step)

    def _refuse_children(self) -> None:
        """A forked process has a copy of the recorder, whose rows would be written twice, and of the parameters."""
        if os.getpid() != self._process:
            raise InputError(
                f"the recorder of {self.path} belongs to process {self._process}, not to its child",
                "record in the process that made it",
            )

    @property
    def _finite(self) -> bool:
        return all(map(math.isfinite, self._latest.values()))

    @staticmethod
    def _due(every: int, step: int) -> bool:
        return every > 0 and step % every == 0

    def _is_logged(self, step: int) -> bool:
        return step % self.log_every == 0 or self._due(self.exact_every, step) or self._due(self.probe_every, step)

    def _measure(self, row: dict[str, Any], optimizer: torch.optim.Optimizer | None, norms: bool) -> None:
        """What a row has but the loss of the loop."""
        row["seconds"] = self._clock()
        exact = self._due(self.exact_every, row["step"])
        if exact and self._exact is not None:
            row |= self._exact()
        elif norms and not self.exact_every:
            row["grad_norm_sq"] = self._tracked.grad_norm_sq()
        self._near.fill(row)
        if exact or norms:
            row["drift"] = self._tracked.drift()
        if optimizer is not None:
            row["lr"] = number(optimizer.param_groups[0]["lr"])

    def _write(self, row: dict[str, Any]) -> None:
        self._latest |= {k: row[k] for k in ("loss", "drift") if row.get(k) is not None}
        self._log.append(row)

    def _probe(self, step: int) -> None:
        if self._prober is not None and self._probes is not None:
            state = None
            # A curvature in evaluation mode, where the moments are those of another function, would be no one's.
            if self._steps is not None and not mixes_samples(self.module):
                state = stepping_state(self._steps, [p for _, p in self._tracked.named])
            self._probes.append(self._prober.measure(step, self._tracked.state(), state))

    def _save(self) -> None:
        reference = self._tracked.reference
        self._run.save(
            Checkpoint(
                model=self._spec,
                data=self._data_spec,
                data_sha256="",
                input_shape=() if self.data is None else tuple(self.data[0].shape[1:]),
                outputs=0 if self._targets is None else self._targets.shape[1],
                dtype=DTYPES.get(reference.dtype, "float32"),
                seed=0,
                step=self._step,
                parameters=self.module.state_dict(),
                loss_scale=self._loss.squared_scale,
            )
        )

    def _write_manifest(self) -> None:
        config = {k: getattr(self, k) for k in ("exact_every", "log_every", "probe_every", "checkpoint_every")}
        optimizer = self._optimizer or self._described or OptimizerFacts()
        facts = data_facts(self.data, self._targets, self._data_spec)
        reference = self._tracked.reference
        manifest = recorded_manifest(self.module, self._spec, reference, facts, self._loss, optimizer, config)
        self._run.write_manifest(manifest)
