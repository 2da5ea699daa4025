"""What the Recorder costs a plain PyTorch loop, without probes."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import median_ratio, paired
from lplr_cli.training import Recorder

STEPS = 200
SETTINGS = ((256, 64), (256, 512), (512, 128), (512, 512), (1024, 256))


def _loop(width: int, batch: int, recorder: Recorder | None, module: nn.Module) -> None:
    x, y = torch.randn(batch, 784), torch.randn(batch, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        if recorder is not None:
            recorder.record(loss, optimizer)
        optimizer.step()


def _module(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 1),
    )  # fmt: skip


def report() -> str:
    """A Markdown table: seconds of 200 steps with the recorder open, and the ratio, round by round."""
    rows = []
    for width, batch in SETTINGS:
        bare, recorded = _module(width), _module(width)
        with (
            tempfile.TemporaryDirectory() as folder,
            Recorder(recorded, Path(folder) / "r", log_format="csv") as recorder,
        ):
            candidates = {
                "bare": partial(_loop, width, batch, None, bare),
                "recorded": partial(_loop, width, batch, recorder, recorded),
            }
            times = paired(candidates, rounds=9)
        ratio = median_ratio(times["recorded"], times["bare"])
        rows.append(f"| {width} | {batch} | {min(times['bare']):.3f} | {min(times['recorded']):.3f} | {ratio:.3f} |")
    head = "| width | batch | bare loop, s | recorded, s | ratio |\n|---:|---:|---:|---:|---:|"
    return "\n".join([head, *rows])


if __name__ == "__main__":
    print(report())
