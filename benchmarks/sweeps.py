"""How much two processes gain over one in a sweep, one thread each."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from lplr_cli.ablation import LocalProcesses, run_sweep
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig

BASE = TrainConfig(DataSpec("mnist"), ModelSpec(width=64), lr=1e-3, steps=400, probe_every=200, checkpoint_every=0)


def seconds(jobs: int) -> float:
    """A sweep of four seeds with ``jobs`` processes of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run_sweep(BASE, {"seed": [0, 1, 2, 3]}, Path(folder) / "s", executor=LocalProcesses(jobs, threads=1))
        return time.perf_counter() - begun


def report() -> str:
    """A Markdown table."""
    one, two = seconds(1), seconds(2)
    head = "| runs | one process, s | two processes, s | speed-up |\n|---:|---:|---:|---:|"
    return f"{head}\n| 4 | {one:.1f} | {two:.1f} | {one / two:.2f} |"


if __name__ == "__main__":
    print(report())
