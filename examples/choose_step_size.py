"""Choose a step size from the sharpness: what happens at 0.5, 1, 1.9 and 3 times 1/sharpness.

    python examples/choose_step_size.py [FOLDER]

Below 2/sharpness the loss falls and the kernel stays; above it the run leaves the regime in which the theory speaks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import lplr_cli as lplr
from lplr_cli.curvature import sharpness
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network

WIDTH, SAMPLES = 32, 60


def main(folder: Path) -> None:
    """Measure the sharpness at initialisation, then train with four multiples of its inverse."""
    dataset = load_dataset(DataSpec("mnist", samples=SAMPLES))
    module = build_model(ModelSpec(width=WIDTH, depth=2), (784,), 1, seed=0, dtype=torch.float64)
    sharp = sharpness(Network.from_module(module), *dataset.tensors()).value
    print(f"sharpness {sharp:.4g}: 1/sharpness = {1 / sharp:.4g}, the edge of stability at {2 / sharp:.4g}")
    for factor in (0.5, 1.0, 1.9, 3.0):
        run = lplr.train(
            "mnist", folder / f"times{factor}", samples=SAMPLES, width=WIDTH, depth=2, lr=factor / sharp, steps=60,
            probe_every=30,
        )  # fmt: skip
        r = run.record
        print(
            f"{factor:>4} / sharpness: {run.status}, loss {r['loss']['final']:.3g}, drift {r['drift']['max']:.3g}, "
            f"NTK drift {r['ntk_drift_percent']:.3g} %"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
