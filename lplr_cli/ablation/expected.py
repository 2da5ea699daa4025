"""How long a sweep will train, from a short trial on the same device, before hours are spent on it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lplr_cli.ablation.grid import Cell
from lplr_cli.data import load_dataset
from lplr_cli.training import TrainConfig, train

# Batches of the trial, and its epochs: what an epoch costs is the difference, free of what every run costs once.
_BATCHES, _FEW, _MORE = 2, 1, 3


def expected_seconds(base: TrainConfig, cells: Sequence[Cell]) -> float:
    """Seconds that the runs will train for, one after another; an estimate.

    The shared configuration trains a few batches for one and for three epochs, exact loss and gradient at each epoch
    included. The cost of an epoch is taken to grow with the images and to be the same for all runs; kernel probes and
    checkpoints are left out.

    Args:
        base: of all runs, in epochs of mini-batches.
        cells: the runs.
    """
    images = load_dataset(base.data).n
    few = min(images, _BATCHES * base.batch_size)
    trial = base.with_(samples=few, probe_every=0, probe_size=1, probe_sharpness=False, checkpoint_every=0)
    # The first run pays for what is made once in a process.
    _, short, long = (_seconds(trial.with_(epochs=e)) for e in (_FEW, _FEW, _MORE))
    epoch = max(0.0, long - short) / (_MORE - _FEW) * images / few
    return epoch * sum(int(cell.values.get("epochs", base.epochs) or 0) for cell in cells)


def _seconds(config: TrainConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        train(config, Path(folder) / "trial")
        return time.perf_counter() - begun
