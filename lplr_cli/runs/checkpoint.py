"""Self-contained checkpoints: specification of model and data, parameters, optimiser and RNG states, step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs.atomic import write_atomically
from lplr_cli.runs.foreign_weights import read_record

FORMAT = "lplr-checkpoint"
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
    return isinstance(record, dict) and record.get("format") == FORMAT


def parse_checkpoint(record: Any, path: Path) -> Checkpoint:
    """A checkpoint from its record; see :func:`load_checkpoint`."""
    if not is_checkpoint(record):
        raise InputError(f"{path} is no checkpoint of lplr", "give a file written by lplr train")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {record.get('schema_version')!r}",
            f"this lplr reads version {SCHEMA_VERSION}",
        )
    try:
        return Checkpoint(
            model=None if record["model"] is None else ModelSpec.from_dict(record["model"], str(path)),
            data=None if record["data"] is None else DataSpec.from_dict(record["data"], str(path)),
            data_sha256=str(record["data_sha256"]),
            input_shape=tuple(int(v) for v in record["input_shape"]),
            outputs=int(record["outputs"]),
            dtype=str(record["dtype"]),
            seed=int(record["seed"]),
            step=int(record["step"]),
            parameters={str(k): v for k, v in record["parameters"].items()},
            optimizer={str(k): v for k, v in record["optimizer"].items()},
            rng=record["rng"],
            loss_scale=None if record["loss_scale"] is None else float(record["loss_scale"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} lacks or garbles {error}", "the file is damaged") from error
