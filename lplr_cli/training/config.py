"""Configuration of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.factories import Word, is_factory_reference
from lplr_cli.losses import LOSSES
from lplr_cli.models import DTYPES, ModelSpec, refuse_unnamed_code
from lplr_cli.runs import LOG_FORMATS
from lplr_cli.schema import MOST_SEED, check_fields

OPTIMIZERS = ("gd", "sgd")
SCHEDULES = ("constant", "cosine")
AUTO_PROBE_ROWS = 1024
AUTO_PROBE_SAMPLES = 100


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run; stored in run.json.

    Attributes:
        data: which samples.
        model: which network.
        loss: ``squared``, ``cross-entropy`` or ``bce``, see :class:`lplr_cli.losses.Loss`; s = 1.
        optimizer: ``gd`` (full batch) or ``sgd`` (mini-batches, reshuffled each epoch).
        lr: step size; None means 1/sharpness at initialisation.
        momentum: heavy-ball momentum, torch's convention v ← m v + g, θ ← θ - lr v.
        batch_size: of ``sgd``.
        schedule: ``constant`` or ``cosine`` (to zero at the last step).
        steps: optimiser steps; exactly one of ``steps`` and ``epochs`` is set.
        epochs: passes over the data.
        probe_every: steps between NTK probes; 0 probes the first and last step only.
        probe_size: samples of the probe, the first of the training set; ``all``, or ``auto``: all while K has at
            most :data:`AUTO_PROBE_ROWS` rows, else :data:`AUTO_PROBE_SAMPLES`.
        probe_sharpness: whether probes measure the sharpness of the loss.
        checkpoint_every: steps between checkpoints; 0 keeps the first and last only.
        seed: of weights and shuffling.
        device: ``cpu``, ``cuda``, …
        dtype: ``float64`` or ``float32``, of training; probes are float64 always.
        micro_batch: samples in one forward pass of the exact loss and gradient.
        log_format: ``csv``, ``parquet`` or ``both``.
    """

    data: DataSpec
    model: ModelSpec
    loss: str = "squared"
    optimizer: str = "gd"
    lr: float | None = None
    momentum: float = 0.0
    batch_size: int = 64
    schedule: str = "constant"
    steps: int | None = 500
    epochs: int | None = None
    probe_every: int = 50
    probe_size: int | str = "auto"
    probe_sharpness: bool = True
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float64"
    micro_batch: int = 4096
    log_format: str = "both"

    def __post_init__(self) -> None:
        """Check every value at once.

        Raises:
            InputError: a value of the wrong type or out of range, naming it.
        """
        check_fields(self, "the configuration")
        self._check_choices()
        self._check_numbers()
        if self.loss == "cross-entropy" and self.data.targets is None and self.data.source in ("mnist", "cifar10"):
            # Their labels are classes, of which the softmax needs one output each.
            object.__setattr__(self, "data", replace(self.data, targets="onehot"))

    def _check_choices(self) -> None:
        for name, value, allowed in (
            ("loss", self.loss, LOSSES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("log-format", self.log_format, LOG_FORMATS),
        ):
            if value not in allowed:
                raise InputError(f"--{name} {value!r} is unknown", f"choose from {', '.join(allowed)}")
        if isinstance(self.probe_size, str) and self.probe_size not in ("auto", "all"):
            raise InputError(f"--probe-size {self.probe_size!r} is no size", "give a number, all or auto")
        if (self.steps is None) == (self.epochs is None):
            raise InputError("--steps and --epochs exclude each other", "give one of them")

    def _check_numbers(self) -> None:
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr} is no step size", "give a positive number or auto")
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum} is out of range", "give a number from 0 to below 1")
        for name, number, least in (
            ("steps", self.steps, 1),
            ("epochs", self.epochs, 1),
            ("batch-size", self.batch_size, 1),
            ("probe-every", self.probe_every, 0),
            ("probe-size", None if isinstance(self.probe_size, str) else self.probe_size, 1),
            ("checkpoint-every", self.checkpoint_every, 0),
            ("micro-batch", self.micro_batch, 1),
            ("seed", self.seed, 0),
        ):
            if number is not None and number < least:
                raise InputError(f"--{name} {number} is too small", f"give at least {least}")
        if self.seed > MOST_SEED:
            raise InputError(f"--seed {self.seed} is too large", f"give at most {MOST_SEED}")

    def total_steps(self, n: int) -> int:
        """Optimiser steps for n samples."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch(n)

    def steps_per_epoch(self, n: int) -> int:
        """Optimiser steps in a pass over n samples."""
        return 1 if self.optimizer == "gd" else -(-n // self.batch_size)

    def resolved_probe_size(self, n: int, outputs: int) -> int:
        """Samples of the probe for n samples with ``outputs`` outputs each.

        Raises:
            InputError: more than there are.
        """
        if isinstance(self.probe_size, int):
            if self.probe_size > n:
                raise InputError(f"--probe-size {self.probe_size} exceeds the {n} samples", "use all or fewer")
            return self.probe_size
        if self.probe_size == "all" or n * outputs <= AUTO_PROBE_ROWS:
            return n
        return min(n, AUTO_PROBE_SAMPLES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = asdict(self)
        record["data"], record["model"] = self.data.to_dict(), self.model.to_dict()
        return record

    @classmethod
    def from_dict(cls, record: Any, told_by: str = "a file") -> TrainConfig:
        """The inverse of :meth:`to_dict`; unknown keys and values of the wrong type are refused.

        Code that the record names does not run before the user has named it, too: see :meth:`vouched`.
        """
        if not isinstance(record, Mapping) or not {"data", "model"} <= set(record):
            raise InputError(f"{told_by} has an incomplete configuration", "the run directory is damaged")
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(f"configuration with keys {sorted(map(str, unknown))}", "it comes from another version")
        data, model = DataSpec.from_dict(record["data"], told_by), ModelSpec.from_dict(record["model"], told_by)
        return cls(**{**record, "data": data, "model": model})

    @property
    def word(self) -> Word:
        """What the user said of code when making this configuration; nothing where a file did."""
        model, data = self.model, self.data
        named = is_factory_reference(model.kind) and model.told_by is None
        return Word(
            model.kind if named else None,
            model.arguments if named else None,
            data.source if data.told_by is None and data.code is not None else None,
        )

    def vouched(self, word: Word) -> TrainConfig:
        """This configuration with its code named by the user.

        Raises:
            InputError: the user says something else.
            UnnamedCodeError: code that the user does not name.
        """
        config = replace(self, model=self.model.vouched(word), data=self.data.vouched(word))
        refuse_unnamed_code(config.model, config.data)
        return config

    def with_(self, **changes: Any) -> TrainConfig:
        """A copy with ``changes``; names of :class:`ModelSpec` and :class:`DataSpec` fields reach those."""
        own = {f.name for f in fields(self)}
        model = {k: v for k, v in changes.items() if k not in own and k in {f.name for f in fields(ModelSpec)}}
        data = {k: v for k, v in changes.items() if k not in own and k not in model}
        rest = {k: v for k, v in changes.items() if k in own}
        parts = {
            "model": replace(rest.pop("model", self.model), **model),
            "data": replace(rest.pop("data", self.data), **data),
        }
        return replace(self, **parts, **rest)

    def run_name(self, source: str) -> str:
        """A directory name from the configuration, e.g. ``mnist-mlp64-s0``."""
        return f"{source}-{self.model.label}-s{self.seed}"
