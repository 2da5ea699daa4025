"""Self-contained checkpoints: specification of model and data, parameters, optimiser and RNG states, step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import DTYPES, ModelSpec
from lplr_cli.runs.atomic import write_atomically
from lplr_cli.runs.foreign_weights import read_record, refuse_strange
from lplr_cli.schema import MOST_SEED, check_fields

FORMAT = "lplr-checkpoint"
_LONGEST_RNG = 1 << 20
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """State of a run before the update of ``step``.

    Attributes:
        model: how to build the module; None where a recorder was not told.
        data: how to load the samples; None where a recorder was not told.
        data_sha256: fingerprint that the loaded samples must have; empty when unknown.
        input_shape: of one sample.
        outputs: C.
        dtype: of training.
        seed: of the run.
        step: number of updates made.
        parameters: θ by name.
        optimizer: momentum buffers by name.
        rng: state of torch's CPU generator.
        loss_scale: s of theory.md section 1; None when unknown.
    """

    model: ModelSpec | None
    data: DataSpec | None
    data_sha256: str
    input_shape: tuple[int, ...]
    outputs: int
    dtype: str
    seed: int
    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    rng: Tensor | None = None
    loss_scale: float | None = 1.0


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically, in torch's zip format, with plain containers and tensors only."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": None if checkpoint.model is None else checkpoint.model.to_dict(),
        "data": None if checkpoint.data is None else checkpoint.data.to_dict(),
        "data_sha256": checkpoint.data_sha256,
        "input_shape": list(checkpoint.input_shape),
        "outputs": checkpoint.outputs,
        "dtype": checkpoint.dtype,
        "seed": checkpoint.seed,
        "step": checkpoint.step,
        "parameters": {k: v.detach().cpu().clone() for k, v in checkpoint.parameters.items()},
        "optimizer": {k: v.detach().cpu().clone() for k, v in checkpoint.optimizer.items()},
        "rng": checkpoint.rng,
        "loss_scale": checkpoint.loss_scale,
    }
    write_atomically(path, lambda temporary: torch.save(record, temporary))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of lplr with ``weights_only=True``: nothing in the file is executed.

    Raises:
        InputError: no such file, not a checkpoint of lplr, truncated, or of a newer schema.
    """
    return parse_checkpoint(read_record(path), path)


def is_checkpoint(record: Any) -> bool:
    """Whether a record read from a file claims to be a checkpoint of lplr."""
    return isinstance(record, dict) and isinstance(record.get("format"), str) and record["format"] == FORMAT


def parse_checkpoint(record: Any, path: Path) -> Checkpoint:
    """A checkpoint from its record; see :func:`load_checkpoint`."""
    if not is_checkpoint(record):
        raise InputError(f"{path} is no checkpoint of lplr", "give a file written by lplr train")
    version = record.get("schema_version")
    if not isinstance(version, int) or version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {str(version)[:20]}",
            f"this lplr reads version {SCHEMA_VERSION}",
        )
    missing = [f.name for f in fields(Checkpoint) if f.name not in record]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}", "the file is damaged")
    values = {f.name: record[f.name] for f in fields(Checkpoint)}
    if isinstance(values["input_shape"], list):
        values["input_shape"] = tuple(values["input_shape"])
    for name, kind in (("model", ModelSpec), ("data", DataSpec)):
        if values[name] is not None:
            values[name] = kind.from_dict(values[name], str(path))
    checkpoint = Checkpoint(**values)
    check_fields(checkpoint, str(path), "the file is damaged")
    _refuse_values(checkpoint, path)
    return checkpoint


def _refuse_values(checkpoint: Checkpoint, path: Path) -> None:
    """Values of the right type that no checkpoint has."""
    c = checkpoint
    wrong = {
        "dtype": c.dtype not in DTYPES,
        "seed": not 0 <= c.seed <= MOST_SEED,
        "step": c.step < 0,
        "outputs": c.outputs < 0,
        "input_shape": min(c.input_shape, default=0) < 0,
        "loss_scale": c.loss_scale is not None and c.loss_scale <= 0,
        "rng": c.rng is not None and (c.rng.dtype != torch.uint8 or c.rng.ndim != 1 or len(c.rng) > _LONGEST_RNG),
    }
    faults = [name for name, is_wrong in wrong.items() if is_wrong]
    if faults:
        raise InputError(f"{path} has a {faults[0]} that no run has", "the file is damaged")
    refuse_strange({**c.parameters, **{f"optimizer.{k}": v for k, v in c.optimizer.items()}}, str(path))
