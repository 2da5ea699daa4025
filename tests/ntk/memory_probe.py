"""Run in a subprocess: prints by how many bytes the peak grew while the spectrum of a kernel was computed."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from lplr_cli import ntk
from lplr_cli.models import ModelSpec, build_model


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(case: str, engine: str, n: int, memory: int, verify: bool, scratch: str | None = None) -> None:
    torch.manual_seed(0)
    if case == "mlp":
        module = build_model(ModelSpec(width=128), (784,), 1, dtype=torch.float64)
        x = torch.rand(n, 784, dtype=torch.float64)
    else:
        module = build_model(ModelSpec(kind="resnet", width=16), (3, 32, 32), 5, dtype=torch.float64)
        x = torch.rand(n, 3, 32, 32, dtype=torch.float64)
    network = ntk.Network.from_module(module)
    # What torch loads at first use is the interpreter's own.
    tiny = ntk.Network.from_module(build_model(ModelSpec(width=2), (3,), 1, dtype=torch.float64))
    ntk.kernel_spectrum(tiny, torch.rand(4, 3), engine=engine)
    before = peak()
    folder = None if scratch is None else Path(scratch)
    result = ntk.kernel_spectrum(network, x, engine=engine, memory=memory, verify=verify, folder=folder, steps=5)
    found = result.spectrum
    print(
        json.dumps(
            {
                "grown": peak() - before,
                "engine": result.engine,
                "rows": found.size,
                "lambda_min": found.lambda_min,
                "lower": found.lambda_min_lower,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "verify", *sys.argv[6:])
