"""A sweep on a Ray cluster: widths and seeds, with recovery of the runs that leave the local regime.

    pip install 'lplr[ray]'
    python examples/ray_sweep.py [FOLDER]                      # Ray on this machine
    python examples/ray_sweep.py FOLDER --address auto         # the cluster of `ray start`
    python examples/ray_sweep.py FOLDER --local                # two processes, without Ray

Put FOLDER on storage that all nodes share: then a run whose node dies goes on from its last checkpoint elsewhere.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lplr_cli as lplr
from lplr_cli.ablation import Executor, LocalProcesses, RayCluster


def main(folder: Path, executor: Executor) -> None:
    """Run the grid and print its table."""
    sweep = lplr.ablate(
        "mnist",
        folder / "sweep",
        {"width": [32, 64], "lr": [0.01, 0.04]},
        executor=executor,
        recover=True,
        samples=30,
        depth=2,
        steps=60,
        probe_every=20,
    )
    print(f"{sweep.status}: {len(sweep.table)} runs")
    print(sweep.table[["run", "status", "regime", "drift", "ntk_drift_percent"]].to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--local", action="store_true")
    options = parser.parse_args()
    chosen = LocalProcesses(2) if options.local else RayCluster(address=options.address)
    with tempfile.TemporaryDirectory() as temporary:
        main(options.folder or Path(temporary), chosen)
