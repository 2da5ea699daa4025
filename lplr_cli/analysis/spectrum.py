"""The NTK of a checkpoint, after the fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli import ntk
from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.data import Dataset
from lplr_cli.errors import InputError
from lplr_cli.linalg.tasks import Tasks
from lplr_cli.models import DTYPES
from lplr_cli.runs import NORMALISATION, SCHEMA_VERSION, plain
from lplr_cli.shown import Shown
from lplr_cli.training import resolve_device


@dataclass(frozen=True, repr=False)
class KernelProbe(Shown):
    """Spectrum of the NTK at a checkpoint.

    Attributes:
        checkpoint: its file. step: of the optimiser; None where the file does not tell.
        assumptions: what was read off the file rather than written down.
        kernel: the spectrum, and which engine served.
        formula: which kernel it is, with its normalisation.
        samples: of the data set, of which the kernel takes the first n.
        parameters: P.
        rank_at_most: what the rank of K cannot exceed.
        dtype: of the arithmetic.
        verified: whether a lower bound of λ_min was asked for.
        duplicate_inputs: the first two samples of equal inputs, which make λ_min exactly 0.
        upper_bound_full: what λ_min of all samples and outputs cannot exceed.
        shown: extremal eigenvalues at each end in the record.
    """

    checkpoint: Path
    step: int | None
    assumptions: tuple[str, ...]
    kernel: ntk.KernelSpectrum
    formula: str
    samples: int
    parameters: int
    rank_at_most: int
    dtype: str
    verified: bool
    duplicate_inputs: tuple[int, int] | None
    upper_bound_full: float
    shown: int

    @property
    def spectrum(self) -> ntk.Spectrum:
        """Of K."""
        return self.kernel.spectrum

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """All of them, or the extremal ones, ascending."""
        return self.spectrum.eigenvalues

    @property
    def subset(self) -> bool:
        """Whether K is of less than all samples."""
        return self.kernel.n < self.samples

    def to_dict(self) -> dict[str, Any]:
        """The record of ``probe-ntk --format json``."""
        kernel, spectrum = self.kernel, self.spectrum
        record = {
            "command": "probe-ntk",
            "schema_version": SCHEMA_VERSION,
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "assumptions": self.assumptions,
            "normalisation": {"ntk": self.formula, "n": kernel.n},
            "samples": self.samples,
            "n": kernel.n,
            "subset": self.subset,
            "outputs": str(kernel.outputs),
            "rows": spectrum.size,
            "parameters": self.parameters,
            "rank_at_most": self.rank_at_most,
            "engine": kernel.engine,
            "fallback": kernel.fallback,
            "dtype": self.dtype,
            "method": spectrum.method,
            "verified": self.verified,
            "lambda_min": {
                "value": spectrum.lambda_min,
                "lower": spectrum.lambda_min_lower,
                "resolution": spectrum.resolution,
                "digits": spectrum.digits,
                "residual": spectrum.residual,
                "upper_bound_full": self.upper_bound_full,
            },
            "lambda_max": spectrum.lambda_max,
            "trace": spectrum.trace,
            "effective_rank": spectrum.effective_rank,
            "condition_number": spectrum.condition_number,
            "duplicate_inputs": self.duplicate_inputs,
            "smallest": list(self.eigenvalues[: self.shown]),
            "largest": list(self.eigenvalues[::-1][: self.shown]),
        }
        cleaned: dict[str, Any] = plain(record)
        return cleaned

    @property
    def record(self) -> dict[str, Any]:
        """The same as :meth:`to_dict`."""
        return self.to_dict()

    def to_frame(self) -> pd.DataFrame:
        """A row an eigenvalue, ascending."""
        return pd.DataFrame({"index": range(len(self.eigenvalues)), "eigenvalue": self.eigenvalues})


def _duplicate(dataset: Dataset, n: int) -> tuple[int, int] | None:
    """The first pair of equal inputs among the first ``n`` samples: it makes λ_min exactly 0."""
    pair = dataset.duplicate()
    return pair if pair is not None and pair[1] < n else None


def _rank_bound(parameters: int, count: int, outputs: str) -> int:
    """What the rank of K cannot exceed: J has a column a parameter, and the trace kernel is a sum over outputs."""
    return parameters * (count if outputs == "trace" else 1)


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
    scratch: Path | None = None,
    source: Source = OWN,
    step: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tasks: Tasks | None = None,
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
        scratch: folder where K may lie in a file when it does not fit into ``memory``.
        source: what the user says of a file that is not of lplr.
        step: which checkpoint of a run directory; the last by default.
        progress: called with (products done, products at most) where the kernel is matrix-free.
        tasks: where the kernel is formed and factored in tiles, e.g. :class:`lplr_cli.linalg.tasks.RayTasks`; each task
            then keeps to ``memory``.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is unknown", f"choose from {', '.join(DTYPES)}")
    subject = open_subject(path, source, step=step)
    dataset = subject.dataset
    if size is not None and not 1 <= size <= dataset.n:
        raise InputError(f"--size {size} is out of range", f"the checkpoint has {dataset.n} samples")
    network = subject.network(DTYPES[dtype], resolve_device(device))
    inputs = dataset.tensors()[0][:size]
    kernel = ntk.kernel_spectrum(
        network,
        inputs,
        engine=engine,
        outputs=outputs,
        memory=memory,
        extremal=eigenvalues,
        verify=verify,
        folder=scratch,
        progress=progress,
        tasks=tasks,
    )
    return KernelProbe(
        checkpoint=subject.path,
        step=subject.step,
        assumptions=tuple(subject.assumptions),
        kernel=kernel,
        formula=_formula(outputs),
        samples=dataset.n,
        parameters=network.parameter_count,
        rank_at_most=min(kernel.spectrum.size, _rank_bound(network.parameter_count, dataset.outputs, outputs)),
        dtype=dtype,
        verified=verify,
        duplicate_inputs=_duplicate(dataset, kernel.n),
        upper_bound_full=_upper_bound(kernel, dataset.n, dataset.outputs if outputs == "trace" else 1),
        shown=eigenvalues,
    )


def _formula(outputs: str) -> str:
    """Which kernel it is."""
    if outputs == "full":
        return NORMALISATION["ntk"]
    if outputs == "trace":
        return "K = sum_c J_c J_c^T / n, the trace over the outputs c"
    return f"K = J_c J_c^T / n of output c = {outputs} alone"


def _upper_bound(kernel: ntk.KernelSpectrum, samples: int, summed: int) -> float:
    """What λ_min of K of all samples and outputs cannot exceed.

    A principal submatrix (a subset of samples, one output) has a λ_min no smaller by interlacing; the trace over C
    outputs, a sum of C such, has one C times as large at least.
    """
    return kernel.spectrum.lambda_min * kernel.n / samples / summed
