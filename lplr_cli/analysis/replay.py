"""The iterates of a run, one after another: trained again bit by bit, or read as a recorder kept them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lplr_cli.analysis.subject import OWN, Source, Subject, open_subject
from lplr_cli.errors import InputError
from lplr_cli.losses import LOSSES
from lplr_cli.models import DTYPES
from lplr_cli.runs import Manifest, RunDirectory
from lplr_cli.runs.iterates import IterateFile
from lplr_cli.training import TrainConfig, Trainer
from lplr_cli.training.loop import threads_of
from lplr_cli.training.objective import Objective
from lplr_cli.training.trainer import End, Point

# Losses of a recorded run, which another program computed, agree to this part.
_ROUNDED = 1e-4


@dataclass(frozen=True)
class Agreement:
    """What a replay was compared with.

    Attributes:
        kind: ``replay``, ``checkpoints`` or ``file``.
        rows: logged losses that were compared.
        identical: how many agree to the last bit.
        largest: relative difference of the worst; None where nothing was compared.
    """

    kind: str
    rows: int = 0
    identical: int = 0
    largest: float | None = None

    def compared(self, logged: float, here: float) -> Agreement:
        """With one row more."""
        difference = abs(logged - here) / max(abs(logged), 1e-300)
        return Agreement(
            self.kind, self.rows + 1, self.identical + (logged == here), max(self.largest or 0.0, difference)
        )

    @property
    def confirmed(self) -> bool:
        """Whether the path is that of the run: bit by bit, or by losses that agree to the rounding of float32."""
        if self.kind == "replay":
            return self.rows == self.identical > 0
        return self.largest is not None and self.largest <= _ROUNDED

    @property
    def sentence(self) -> str:
        """For people."""
        if self.kind != "replay":
            origin = "checkpoints" if self.kind == "checkpoints" else "the file of every step"
            return (
                f"iterates from {origin}; {self.rows} logged losses compared, largest difference {self.largest:.1g}"
                if self.largest is not None
                else f"iterates from {origin}; the log has no exact loss to compare"
            )
        if self.rows == self.identical:
            return f"replayed: all {self.rows} logged losses agree to the last bit"
        return (
            f"replayed, but {self.rows - self.identical} of {self.rows} logged losses differ (by at most "
            f"{self.largest:.1g}, relative): what is said holds for the replayed path"
        )


# Called with step, θ (P,), L, ∇L (P,) and η of a plain gradient step from there, None for any other; all in float64.
Visit = Callable[[int, Tensor, float, Tensor, float | None], None]


def why_no_path(run: RunDirectory) -> str:
    """Why nothing can be proved along the path of a run, as its record tells; empty where nothing speaks against it."""
    manifest = run.manifest()
    loss = manifest.loss
    if loss.name is None:
        return "the loss is not known: tell the Recorder loss or loss_fn"
    if loss.known is None:
        if loss.name in LOSSES:
            return "the scale of the loss is not known: tell the Recorder loss_scale"
        return f"no region is known of {loss.label}"
    steps = set(run.checkpoint_steps())
    # As many as the last one and those before it.
    if not manifest.recorded or IterateFile.there(run.path) or len(steps) > max(steps, default=0):
        return ""
    return "the path between its checkpoints is not known: record with keep_path=True"


class Iterates:
    """The path of a run between two steps.

    Args:
        run: of lplr, or recorded with its path or a checkpoint at every step.
        first, last: steps; from the start to the last one by default.
        source: what the user says of model and data.

    Attributes:
        subject: the network at the first step, with its data.
        objective: L and ∇L at any θ, on its own copy of the network.
        first, last: as resolved.

    Raises:
        InputError: a loss that is not known, steps that are not there, or a path that is not known between checkpoints.
    """

    def __init__(self, run: RunDirectory, *, first: int = 0, last: int | None = None, source: Source = OWN) -> None:
        self.run, self.manifest, self._source = run, run.manifest(), source
        loss = self.manifest.loss.known
        if loss is None:
            raise InputError(
                f"{run.path} was trained with {self.manifest.loss.label}, of which no region can be computed",
                "record the loss by name and scale: squared, cross-entropy or bce",
            )
        steps = run.checkpoint_steps()
        if not steps or steps[0] != 0:
            raise InputError(f"{run.path} has no checkpoint of its start", "record step 0")
        self.log = run.log()
        self.first, self.last = _range(first, last, int(self.log["step"].max()))
        self.subject = _at(run, source, max(s for s in steps if s <= self.first))
        self._file = None
        if self.manifest.recorded:
            if IterateFile.there(run.path):
                self._file = self._opened(max(s for s in steps if s <= self.first))
            known = steps if self._file is None else self._file.steps
            self.last = _contiguous(run, known, self.first, self.last, last is None)
        x, y = self.subject.dataset.tensors(DTYPES.get(self.manifest.dtype or "float64"))
        self.objective = Objective(copy.deepcopy(self.subject.module), x, y, loss)
        origin = "checkpoints" if self._file is None else "file"
        self.agreement = Agreement(origin if self.manifest.recorded else "replay")
        self._exact = _exact_losses(self.manifest, self.log)

    @property
    def _trained(self) -> list[Tensor]:
        """The parameters that θ is made of."""
        return [p for p in self.subject.module.parameters() if p.requires_grad]

    def _opened(self, step: int) -> IterateFile:
        """The file of every step, which must have the parameters of a checkpoint in the order of this network."""
        file = IterateFile(self.run.path, [tuple(p.shape) for p in self._trained])
        if step not in file.steps or not np.array_equal(file.at(step), self._here().cpu().numpy(), equal_nan=True):
            raise InputError(
                f"{file.path} and the checkpoint of step {step} differ", "give the network that was recorded"
            )
        return file

    def _here(self) -> Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in self._trained])

    @property
    def steps(self) -> int:
        """Segments of the path."""
        return self.last - self.first

    def walk(self, visit: Visit) -> None:
        """Tell ``visit`` of every iterate, in order."""
        if self.manifest.recorded:
            self._read(visit)
        else:
            self._train(visit)

    def _read(self, visit: Visit) -> None:
        """As the recorder kept them."""
        rates = self.log.set_index("step")["lr"]
        plain = self.manifest.optimizer.name in ("gd", "sgd") and not self.manifest.optimizer.momentum
        for step in range(self.first, self.last + 1):
            theta = self._kept(step)
            loss, gradient = self.objective(theta)
            self._compare(step, loss)
            lr = float(rates.get(step, math.nan))
            visit(step, theta, loss, gradient, lr if plain and math.isfinite(lr) and lr > 0 else None)

    def _kept(self, step: int) -> Tensor:
        if self._file is not None:
            return torch.from_numpy(self._file.at(step))
        self.subject.move_to(self.run, step)
        return self._here()

    def _train(self, visit: Visit) -> None:
        """By training again from the last checkpoint before the first step."""
        told_by = str(self.run.path / "run.json")
        config = TrainConfig.from_dict(self.manifest.config, told_by).vouched(self._source.word)
        dataset = self.subject.dataset
        if dataset.fingerprint != self.manifest.data.sha256:
            raise InputError(f"the data of {self.run.path} changed since it began", "restore the data")
        with threads_of(self.manifest):
            trainer = Trainer(config, dataset)
            begin = max(s for s in self.run.checkpoint_steps() if s <= self.first)
            trainer.restore(self.run.load(begin))
            shared = config.optimizer == "gd" and config.dtype == "float64" and config.device == "cpu"
            plain = config.optimizer == "gd" and not config.momentum

            def observe(point: Point) -> End | None:
                if point.loss is not None:
                    self._compare(point.step, point.loss)
                if point.step >= self.first:
                    theta = trainer.flat.theta.detach().double().cpu()
                    if shared and point.loss is not None:
                        loss, gradient = point.loss, trainer.flat.grad
                    else:
                        loss, gradient = self.objective(theta)
                    visit(point.step, theta, loss, gradient, point.lr if plain else None)
                return End("finished") if point.step == self.last else None

            trainer.descend(begin, [observe])

    def _compare(self, step: int, loss: float) -> None:
        logged = self._exact.get(step)
        if logged is not None:
            self.agreement = self.agreement.compared(logged, loss)


def _range(first: int, last: int | None, end: int) -> tuple[int, int]:
    stop = end if last is None else last
    if not 0 <= first < stop <= end:
        raise InputError(
            f"steps {first} to {stop} are no stretch of a run of {end} steps", "give --from-step below --to-step"
        )
    return first, stop


def _contiguous(run: RunDirectory, steps: list[int], first: int, last: int, shorten: bool) -> int:
    """The last step up to which every step is known."""
    there = set(steps)
    missing = next((s for s in range(first, last + 1) if s not in there), None)
    if missing is None:
        return last
    if shorten and missing > first + 1 and missing == last:
        return last - 1
    raise InputError(
        f"the path of {run.path} between checkpoints is not known (step {missing} has none)",
        "record with keep_path=True, or give --from-step and --to-step",
    )


def _at(run: RunDirectory, source: Source, step: int) -> Subject:
    subject = open_subject(run.path, source, step=step)
    return replace(subject, module=subject.module.to(torch.float64).eval())


def _exact_losses(manifest: Manifest, log: pd.DataFrame) -> dict[int, float]:
    """By step, where the log has the loss over all data."""
    if not manifest.exact:
        return {}
    known = log[log["loss"].notna()]
    return {int(s): float(v) for s, v in zip(known["step"], known["loss"], strict=True)}
