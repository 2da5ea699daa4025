"""Self-contained checkpoints: specification of model and data, parameters, optimiser and RNG states, step."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs.atomic import write_atomically

FORMAT = "lplr-checkpoint"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """State of a run before the update of ``step``.

    Attributes:
        model: how to build the module.
        data: how to load the samples.
        data_sha256: fingerprint that the loaded samples must have.
        input_shape: of one sample.
        outputs: C.
        dtype: of training.
        seed: of the run.
        step: number of updates made.
        parameters: θ by name.
        optimizer: momentum buffers by name.
        rng: state of torch's CPU generator.
        loss_scale: s of theory.md section 1.
    """

    model: ModelSpec
    data: DataSpec
    data_sha256: str
    input_shape: tuple[int, ...]
    outputs: int
    dtype: str
    seed: int
    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    rng: Tensor | None = None
    loss_scale: float = 1.0


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically, in torch's zip format, with plain containers and tensors only."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": checkpoint.model.to_dict(),
        "data": checkpoint.data.to_dict(),
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
    if not path.is_file():
        raise InputError(f"no checkpoint {path}", "give a file such as RUN/checkpoints/step-000000.pt")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds objects that only unpickling could read, which may run code",
            "save a state dict of tensors instead",
        ) from error
    except Exception as error:  # what torch raises on garbage is open-ended
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {path} ({first})", "the file is truncated or no checkpoint") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of lplr", "give a file written by lplr train")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {record.get('schema_version')!r}",
            f"this lplr reads version {SCHEMA_VERSION}",
        )
    try:
        return Checkpoint(
            model=ModelSpec.from_dict(record["model"]),
            data=DataSpec.from_dict(record["data"]),
            data_sha256=str(record["data_sha256"]),
            input_shape=tuple(int(v) for v in record["input_shape"]),
            outputs=int(record["outputs"]),
            dtype=str(record["dtype"]),
            seed=int(record["seed"]),
            step=int(record["step"]),
            parameters={str(k): v for k, v in record["parameters"].items()},
            optimizer={str(k): v for k, v in record["optimizer"].items()},
            rng=record["rng"],
            loss_scale=float(record["loss_scale"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} lacks or garbles {error}", "the file is damaged") from error
