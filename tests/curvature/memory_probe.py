"""Run in a subprocess: prints by how many bytes the peak grew while the curvature of a network was surveyed."""

from __future__ import annotations

import json
import resource
import sys

import torch

from lplr_cli.curvature import Effort, survey
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(case: str, n: int, memory: int) -> None:
    torch.manual_seed(0)
    if case == "mlp":
        module = build_model(ModelSpec(width=128), (784,), 3, dtype=torch.float64)
        x = torch.rand(n, 784, dtype=torch.float64)
    else:
        module = build_model(ModelSpec(kind="resnet", width=8), (3, 12, 12), 3, dtype=torch.float64)
        x = torch.rand(n, 3, 12, 12, dtype=torch.float64)
    y = torch.eye(3, dtype=torch.float64)[torch.arange(n) % 3]
    network = Network.from_module(module)
    effort = Effort(eigenvalues=2, products=12, trace_vectors=2, density_vectors=1, density_steps=5)
    # What torch and scipy load at first use is the interpreter's own.
    tiny = Network.from_module(build_model(ModelSpec(width=2), (3,), 3, dtype=torch.float64))
    for batch_memory in (1 << 30, 130 << 20):
        survey(tiny, torch.rand(4, 3), y[:4], Loss("cross-entropy"), effort=effort, memory=batch_memory)
    before = peak()
    found = survey(network, x, y, Loss("cross-entropy"), effort=effort, memory=memory)
    print(json.dumps({"grown": peak() - before, "method": found.method, "batch": found.batch}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
