"""Full-batch training with all per-step diagnostics against a bare torch loop of the same steps."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.timing import median_ratio, paired
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.runs import LOG_COLUMNS, Appender, Clock
from lplr_cli.training import TrainConfig, Trainer
from lplr_cli.training.observers import Log

STEPS = 60
LR = 1e-4


def measure(width: int) -> str:
    """A row of the table."""
    data = load_dataset(DataSpec("mnist"))
    x, y = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    # As many gradients as the bare loop takes: that of the last point is followed by no update.
    config = TrainConfig(data.spec, ModelSpec(width=width), lr=LR, steps=STEPS - 1)
    trainer = Trainer(config, data)
    bare = build_model(config.model, (784,), 1)
    optimizer = torch.optim.SGD(bare.parameters(), lr=LR)

    def plain() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = ((bare(x) - y) ** 2).mean()
            loss.backward()
            loss.item()
            optimizer.step()

    def logged() -> None:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder, Appender(Path(folder) / "log.csv", LOG_COLUMNS) as log:
            trainer.descend(0, [Log(log, clock)])

    times = paired({"plain": plain, "logged": logged}, rounds=7)
    ratio = median_ratio(times["logged"], times["plain"])
    return f"| {width} | {min(times['plain']):.3f} | {min(times['logged']):.3f} | {ratio:.3f} |"


def report() -> str:
    """A Markdown table of the ratios for several widths."""
    head = ["| width | bare loop, s | with diagnostics, s | ratio |", "|---:|---:|---:|---:|"]
    return "\n".join(head + [measure(width) for width in (64, 128, 512)])
