"""Tiles of K and their Cholesky by tasks: one worker of one thread against two, on a Ray of this machine.

``python -m benchmarks.cluster 8000``: rows of K. Needs the extra ``ray`` and two idle cores.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from lplr_cli.linalg.cholesky import cholesky
from lplr_cli.linalg.tasks import RayTasks, connected
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, structured
from lplr_cli.ntk.tiled import tiled_kernel


def measure(rows: int, workers: int) -> tuple[float, float]:
    """Seconds of the tiles, and of one factorisation."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        with connected(None) as found:
            tasks = RayTasks(found)
            network = Network.from_module(build_model(ModelSpec(width=128), (784,), 1))
            x = torch.rand((rows, 784), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            plan = structured.plan_for(network, x)
            warm = tiled_kernel(network, x[:64], plan, tasks, "full", 1 << 30, False, samples=8)
            warm.matrix.product(torch.zeros(64).double().numpy())  # every worker has torch from here on
            begun = time.perf_counter()
            kernel = tiled_kernel(network, x, plan, tasks, "full", 1 << 30, False).matrix
            kernel.product(torch.zeros(rows).double().numpy())  # waits for every tile
            formed = time.perf_counter()
            with cholesky(kernel, -1.0) as solve:
                assert solve is not None
            return formed - begun, time.perf_counter() - formed
    finally:
        ray.shutdown()


def report(rows: int = 8000) -> str:
    """A Markdown table."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    one, two = measure(rows, 1), measure(rows, 2)
    lines = [f"| n = {rows:,} | one worker, s | two workers, s | speed-up |", "|---|---:|---:|---:|"]
    for name, a, b in zip(("tiles of K", "Cholesky"), one, two, strict=True):
        lines.append(f"| {name} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
