"""λ_min of a large kernel, verified, against the matrix products of the Gram and one Cholesky factorisation.

LPLR_BENCH_DIGITS names an .npz with ``images`` (n, …) of 0 to 255; without it the embedded 1,000 digits serve.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, kernel_spectrum

WIDTH = 128


def digits() -> Tensor:
    """All digits at hand, (n, 784), pixels over 255."""
    path = os.environ.get("LPLR_BENCH_DIGITS")
    if path is None:
        return torch.from_numpy(load_dataset(DataSpec("mnist")).inputs).double()
    images = np.load(path)["images"]
    return torch.from_numpy(images.reshape(len(images), -1) / 255.0)


def seconds(run: Callable[[], object]) -> float:
    """Wall clock of one run."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def report() -> str:
    """A Markdown table with one row."""
    x = digits()
    n = len(x)
    network = Network.from_module(build_model(ModelSpec(width=WIDTH), (784,), 1, dtype=torch.float64))
    found = []
    ours = seconds(lambda: found.append(kernel_spectrum(network, x, verify=True, extremal=5)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spectrum = found[0].spectrum
    kernel = torch.empty((n, n), dtype=torch.float64)
    factors = [x, *(torch.randn(n, WIDTH, dtype=torch.float64) for _ in range(8))]
    gemms = seconds(lambda: [torch.mm(f, f.T, out=kernel) for f in factors])
    kernel.fill_(0.5).diagonal().fill_(1.5)
    info = torch.empty((), dtype=torch.int32)
    factorisation = seconds(lambda: torch.linalg.cholesky_ex(kernel, out=(kernel, info)))
    lower = spectrum.lambda_min_lower
    return "\n".join(
        [
            "| n | verified λ_min, s | GEMMs of the Gram, s | Cholesky, s | ratio | peak of the process, GiB "
            "| λ_min · n | bound / λ_min |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
            f"| {n:,} | {ours:.1f} | {gemms:.1f} | {factorisation:.1f} | {ours / (gemms + factorisation):.2f} "
            f"| {peak:.2f} | {spectrum.lambda_min * n:.4g} | {(lower or 0) / spectrum.lambda_min:.4f} |",
        ]
    )
