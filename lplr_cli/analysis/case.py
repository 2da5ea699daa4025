"""A checkpoint made ready for its Hessian: network, samples, loss, the state of its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lplr_cli.analysis.subject import Source, Subject, open_subject
from lplr_cli.curvature import OptimizerState, PerSample, optimizer_state
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import DTYPES
from lplr_cli.ntk import Network
from lplr_cli.runs import RunDirectory
from lplr_cli.runs.checkpoint import is_checkpoint, parse_checkpoint
from lplr_cli.runs.foreign_weights import read_file
from lplr_cli.training import resolve_device


@dataclass(frozen=True)
class LossName:
    """A loss in words: its scale is None where it is not one of lplr's, and then not ``known``."""

    name: str
    scale: float | None
    formula: str
    known: bool


@dataclass(frozen=True)
class Case:
    """A network at a checkpoint with the samples and the loss that are examined.

    Attributes:
        subject: where it comes from.
        loss: of the file, or given.
        inputs, targets: (n, …).
        network: in the dtype and on the device that were asked for.
        run: that the checkpoint lies in, if any.
        state: of the optimiser, or why it is not known.
    """

    subject: Subject
    loss: Loss | PerSample
    inputs: Tensor
    targets: Tensor
    network: Network
    run: RunDirectory | None
    state: OptimizerState | str

    @property
    def loss_name(self) -> LossName:
        """The loss in words."""
        if isinstance(self.loss, Loss):
            return LossName(self.loss.name, self.loss.scale, self.loss.formula, True)
        return LossName(getattr(self.loss, "__name__", "given"), None, "L = (1/n) sum_i l(f(x_i), y_i)", False)


def open_case(
    path: Path,
    size: int | None,
    loss: Loss | PerSample | None,
    dtype: str,
    device: str,
    source: Source,
    step: int | None,
) -> Case:
    """Open a checkpoint with the first ``size`` samples of its data.

    Raises:
        InputError: as :func:`lplr_cli.analysis.open_subject`; a size or dtype that is out of range; a loss that nobody
            tells, or two that differ.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is unknown", f"choose from {', '.join(DTYPES)}")
    subject = open_subject(path, source, step=step)
    if size is not None and not 1 <= size <= subject.dataset.n:
        raise InputError(f"--size {size} is out of range", f"the checkpoint has {subject.dataset.n} samples")
    run = _run_of(subject.path)
    inputs, targets = (t[:size] for t in subject.dataset.tensors())
    network = subject.network(DTYPES[dtype], resolve_device(device))
    state = optimizer_state(read_file(subject.path), subject.module)
    return Case(subject, _loss(subject.path, run, loss), inputs, targets, network, run, state)


def _run_of(path: Path) -> RunDirectory | None:
    """The run that a checkpoint lies in."""
    folder = path.resolve().parent.parent
    if path.resolve().parent.name != "checkpoints" or not (folder / "run.json").is_file():
        return None
    return RunDirectory.open(folder)


def _loss(path: Path, run: RunDirectory | None, given: Loss | PerSample | None) -> Loss | PerSample:
    """The loss that the file tells, or the user; a known one is not overruled.

    Raises:
        InputError: nobody tells, or the two differ.
    """
    told = run.manifest().loss.known if run is not None else _loss_of_file(path)
    if told is None and given is None:
        raise InputError(f"{path} does not tell its loss", "give --loss squared, cross-entropy, bce or module:function")
    if told is not None and given is not None and given != told:
        raise InputError(f"{path} tells its own loss, {told.formula}", "leave out --loss")
    chosen = told or given
    assert chosen is not None
    return chosen


def _loss_of_file(path: Path) -> Loss | None:
    content = read_file(path)
    if not is_checkpoint(content):
        return None
    scale = parse_checkpoint(content, path).loss_scale
    return None if scale is None else Loss("squared", scale)
