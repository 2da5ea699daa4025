"""Runs of lplr's own: started, resumed bit by bit, repeated. What trains is Trainer, what watches are observers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lplr_cli.batches import RESHUFFLED
from lplr_cli.curvature import sharpness
from lplr_cli.data import Dataset, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.factories import SILENT, Word
from lplr_cli.models import parameter_count, refuse_other_size, refuse_unnamed_code
from lplr_cli.runs import (
    EXACT,
    LARGEST_LOSS,
    LOG_COLUMNS,
    NEW_PROBE_COLUMNS,
    PROBE_COLUMNS,
    SAMPLE_NOISE,
    Appender,
    Clock,
    DataFacts,
    LossFacts,
    Manifest,
    OptimizerFacts,
    RunDirectory,
    truncate_before,
)
from lplr_cli.training.config import TrainConfig
from lplr_cli.training.observers import Checkpoints, Divergence, Log, Probes, Progress, Reporter, Signals
from lplr_cli.training.probes import Prober, ProbeSettings
from lplr_cli.training.trainer import Observer, Trainer

# A run may say with how many threads it ran; more than this a core says something else.
_THREADS_PER_CORE = 4


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: its directory.
        status: ``finished``, ``interrupted`` or ``diverged``.
        step: updates made.
        message: what happened, for the last two.
        word: the code of the run, as the user named it.
    """

    run: RunDirectory
    status: str
    step: int
    message: str = ""
    word: Word = SILENT


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
    refuse_unnamed_code(config.model, config.data)
    dataset = load_dataset(config.data, fetch=fetch)
    config.resolved_probe_size(dataset.n, dataset.outputs)
    trainer = Trainer(config, dataset)
    settled = config.with_(lr=config.lr)
    sharp: float | None = None
    if config.lr is None:
        sharp = sharpness(trainer.network(), trainer.inputs, trainer.targets, loss=trainer.loss).value
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
        loss=LossFacts(trainer.loss.name, trainer.loss.formula, trainer.loss.scale, EXACT),
        optimizer=_optimizer(config, lr_rule),
        data=DataFacts(dataset.spec.source, dataset.n, dataset.outputs, dataset.fingerprint, dataset.describe()),
        config={**config.to_dict(), "data": dataset.spec.to_dict()},
        model={**config.model.to_dict(), "parameters": parameter_count(trainer.module)},
        dtype=config.dtype,
        device=str(trainer.device),
    )


def _optimizer(config: TrainConfig, lr_rule: str) -> OptimizerFacts:
    batches = config.optimizer == "sgd"
    return OptimizerFacts(
        config.optimizer,
        config.lr,
        config.momentum,
        config.schedule,
        0.0,
        lr_rule,
        config.batch_size if batches else None,
        RESHUFFLED if batches else None,
    )


def resume(path: Path, *, word: Word = SILENT, on_progress: Callable[[Progress], None] | None = None) -> Outcome:
    """Continue an interrupted run from its last checkpoint; rows after it are computed again, bit by bit the same.

    One that has ended, but was killed before its summary was written, comes back as it is, to be summarized.

    Args:
        path: the run directory.
        word: what the user says of code that run.json names; none of it runs unnamed.
        on_progress: called after each step.

    Raises:
        InputError: no run, a finished or diverged one, data that changed since, or code that the user does not name.
    """
    run = RunDirectory.open(path)
    manifest = run.manifest()
    if manifest.recorded:
        raise InputError(f"{path} was recorded from another program", "resume it there")
    if manifest.status in ("finished", "diverged"):
        if run.is_summarized():
            raise InputError(f"{path} is {manifest.status}", "there is nothing to resume")
        # Its process died between the last row and the summary, which is all that is left to do.
        return Outcome(run, manifest.status, int(run.log()["step"].iloc[-1]), f"the run {manifest.status} before")
    run.lock()
    try:
        trainer = Trainer(*_same(run, word))
        step = _restore(trainer, run)
        run.restore_csv()
        truncate_before(run.log_path, LOG_COLUMNS, step)
        truncate_before(run.probes_path, PROBE_COLUMNS, step)
        run.set_status("running")
        elapsed = run.log()["seconds"].max() if run.log_path.exists() else 0.0
        return _run(trainer, run, step, Clock(float(elapsed) if elapsed == elapsed else 0.0), on_progress)
    finally:
        run.unlock()


def _same(run: RunDirectory, word: Word) -> tuple[TrainConfig, Dataset]:
    """Configuration and data of a run, once more.

    Raises:
        InputError: data that changed, a network larger than the run's, or code that the user does not name.
    """
    manifest = run.manifest()
    config = TrainConfig.from_dict(manifest.config, str(run.path / "run.json")).vouched(word)
    dataset = load_dataset(config.data)
    if dataset.fingerprint != manifest.data.sha256:
        raise InputError(f"the data of {run.path} changed since it began", "restore the data or start a new run")
    if 0 in run.checkpoint_steps():
        refuse_other_size(config.model, dataset, run.load(0).parameters, str(run.checkpoint_path(0)))
    return config, dataset


def _restore(trainer: Trainer, run: RunDirectory) -> int:
    """Continue from the last checkpoint that can be read; returns its step.

    Raises:
        InputError: not even that of step 0 can.
    """
    for step in reversed(run.checkpoint_steps()):
        try:
            trainer.restore(run.load(step))
        except InputError:
            if step == 0:
                raise
            continue
        return step
    return 0


def repeat(
    path: Path,
    out: Path | None = None,
    *,
    word: Word = SILENT,
    on_progress: Callable[[Progress], None] | None = None,
    root: Path | None = None,
) -> Outcome:
    """Train anew with the configuration of a run: the same log on the same machine with the same versions.

    The step size is the one that the run used, also where it was chosen from the sharpness.

    Raises:
        InputError: no run of lplr's own, data that changed since, or code that the user does not name (``word``).
    """
    run = RunDirectory.open(path)
    manifest = run.manifest()
    if manifest.recorded:
        raise InputError(f"{path} was recorded from another program", "repeat it there")
    config, _ = _same(run, word)
    with threads_of(manifest):
        where = out or _free_name((root or Path("runs")) / path.resolve().name)
        return train(config, where, on_progress=on_progress)


@contextmanager
def threads_of(manifest: Manifest) -> Iterator[None]:
    """As many threads as the run had, within what the machine bears: sums in another order are other numbers."""
    former = torch.get_num_threads()
    if manifest.threads:
        torch.set_num_threads(min(manifest.threads, _THREADS_PER_CORE * (os.cpu_count() or 1)))
    try:
        yield
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
    """From ``first`` on, everything that watches in its order: a row is written before anything can end the run."""
    if first == 0:
        run.save(trainer.checkpoint(0))
        start, first_loss = trainer.flat.state(), None
    else:
        known = run.log()["loss"].dropna()
        if known.empty:
            raise InputError(f"{run.log_path} has no loss", "the run directory is damaged")
        start, first_loss = run.load(0).parameters, float(known.iloc[0])
    trainer.begin_at(start)
    signals = Signals(run, trainer)
    noisy = (SAMPLE_NOISE,) if trainer.config.optimizer == "sgd" else ()
    columns = (*LOG_COLUMNS, *(("accuracy",) if trainer.loss.classifies else ()), *noisy)
    probe_columns = (*NEW_PROBE_COLUMNS, LARGEST_LOSS) if trainer.loss.classifies else NEW_PROBE_COLUMNS
    with (
        signals.caught(),
        Appender(run.log_path, columns) as log,
        Appender(run.probes_path, probe_columns) as probes,
    ):
        probing = Probes(probes, _prober(trainer, start), trainer)
        observers: list[Observer] = [
            Log(log, clock),
            Divergence(trainer, probing, first_loss),
            probing,
            Checkpoints(run, trainer, first),
        ]
        if on_progress is not None:
            observers.append(Reporter(on_progress, probing, trainer.total))
        step, end = trainer.descend(first, [*observers, signals])
    run.finish_tables(trainer.config.log_format)
    run.set_status(end.status)
    return Outcome(run, end.status, step, end.message, trainer.config.word)


def _prober(trainer: Trainer, start: dict[str, Tensor]) -> Prober:
    """Probes against θ_0 = ``start``."""
    config, dataset = trainer.config, trainer.dataset
    settings = ProbeSettings(
        size=config.resolved_probe_size(dataset.n, dataset.outputs),
        sharpness=config.probe_sharpness,
        loss=trainer.loss,
    )
    reference = {k: v.to(trainer.device) for k, v in start.items()}
    return Prober(trainer.module, reference, trainer.inputs, trainer.targets, settings)
