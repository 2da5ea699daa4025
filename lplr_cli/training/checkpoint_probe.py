"""The NTK of a checkpoint, after the fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lplr_cli import ntk
from lplr_cli.data import Dataset, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.models import DTYPES, build_model
from lplr_cli.ntk import Network
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain
from lplr_cli.runs.checkpoint import Checkpoint, load_checkpoint
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loop import resolve_device


@dataclass(frozen=True)
class KernelProbe:
    """Spectrum of the NTK at a checkpoint: the JSON record and the eigenvalues, ascending."""

    record: dict[str, Any]
    eigenvalues: NDArray[np.float64]


def find_checkpoint(path: Path) -> Path:
    """``path`` itself, or the last checkpoint of a run directory."""
    if not path.is_dir():
        return path
    run = RunDirectory.open(path)
    steps = run.checkpoint_steps()
    if not steps:
        raise InputError(f"{path} has no checkpoint", "give a run that lplr train wrote")
    return run.checkpoint_path(steps[-1])


def open_checkpoint(path: Path, data_dir: Path | None = None) -> tuple[Checkpoint, Dataset]:
    """A checkpoint and the very samples that it was trained on.

    Raises:
        InputError: the checkpoint cannot be read, or its data are not the same any more.
    """
    checkpoint = load_checkpoint(path)
    spec = checkpoint.data
    if data_dir is not None:
        spec = replace(spec, data_dir=str(data_dir))
    dataset = load_dataset(spec)
    if dataset.fingerprint != checkpoint.data_sha256:
        raise InputError(f"the data of {path} changed since it was written", "restore the data")
    return checkpoint, dataset


def checkpoint_network(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Network:
    """The network at the checkpoint's θ."""
    module = build_model(checkpoint.model, checkpoint.input_shape, checkpoint.outputs, dtype=DTYPES[checkpoint.dtype])
    FlatParameters(module).load(checkpoint.parameters)
    return Network.from_module(module.eval(), dtype=dtype, device=device)


def probe_checkpoint(
    path: Path,
    *,
    size: int | None = None,
    engine: str = "auto",
    outputs: str = "full",
    eigenvalues: int = 5,
    verify: bool = False,
    dtype: str = "float64",
    memory: int = ntk.DEFAULT_MEMORY,
    device: str = "cpu",
    data_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KernelProbe:
    """Spectrum of the normalised NTK at a checkpoint or at the last checkpoint of a run.

    Args:
        path: checkpoint or run directory.
        size: samples, the first of the training set; None means all.
        engine: see :func:`lplr_cli.ntk.kernel_spectrum`.
        outputs: ``full``, ``trace`` or an index.
        eigenvalues: extremal eigenvalues at each end where not all are computed.
        verify: prove a lower bound of λ_min.
        dtype: of the arithmetic.
        memory: bytes for everything beyond the model and the data.
        device: where to compute.
        data_dir: where the original files of the data set lie now.
        progress: called with (products done, products at most) where the kernel is matrix-free.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is unknown", f"choose from {', '.join(DTYPES)}")
    path = find_checkpoint(path)
    checkpoint, dataset = open_checkpoint(path, data_dir)
    if size is not None and not 1 <= size <= dataset.n:
        raise InputError(f"--size {size} is out of range", f"the checkpoint has {dataset.n} samples")
    network = checkpoint_network(checkpoint, DTYPES[dtype], resolve_device(device))
    inputs = torch.from_numpy(dataset.inputs[:size])
    kernel = ntk.kernel_spectrum(
        network,
        inputs,
        engine=engine,
        outputs=outputs,
        memory=memory,
        extremal=eigenvalues,
        verify=verify,
        progress=progress,
    )
    spectrum = kernel.spectrum
    record: dict[str, Any] = {
        "command": "probe-ntk",
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(path),
        "step": checkpoint.step,
        "normalisation": {"ntk": "K = J J^T / n", "n": kernel.n},
        "samples": dataset.n,
        "n": kernel.n,
        "subset": kernel.n < dataset.n,
        "outputs": str(kernel.outputs),
        "rows": spectrum.size,
        "parameters": network.parameter_count,
        "engine": kernel.engine,
        "fallback": list(kernel.fallback),
        "dtype": dtype,
        "method": spectrum.method,
        "verified": verify,
        "lambda_min": {
            "value": spectrum.lambda_min,
            "lower": spectrum.lambda_min_lower,
            "resolution": spectrum.resolution,
            "digits": spectrum.digits,
            "residual": spectrum.residual,
            "upper_bound_full": spectrum.lambda_min * kernel.n / dataset.n,
        },
        "lambda_max": spectrum.lambda_max,
        "trace": spectrum.trace,
        "effective_rank": spectrum.effective_rank,
        "condition_number": spectrum.condition_number,
        "smallest": [float(v) for v in spectrum.eigenvalues[:eigenvalues]],
        "largest": [float(v) for v in spectrum.eigenvalues[::-1][:eigenvalues]],
    }
    cleaned: dict[str, Any] = plain(record)
    return KernelProbe(cleaned, spectrum.eigenvalues)
