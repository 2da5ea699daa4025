"""Regions along the paths of whole runs: how much of each is certified, how near μ comes to the ratio, and the time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from lplr_cli.analysis import PathFigures, certify_path
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

# The README's run, and what differs in the others.
BASE = TrainConfig(DataSpec("mnist"), ModelSpec(width=64), probe_every=0, probe_sharpness=False)
RUNS = {
    "gd, width 64 (README)": BASE,
    "gd, width 256": BASE.with_(width=256),
    "momentum 0.9, width 64": BASE.with_(momentum=0.9, lr=1e-4),
    "sgd, 20 epochs, width 64": BASE.with_(optimizer="sgd", lr=2e-4, steps=None, epochs=20),
    "cross-entropy, width 64": BASE.with_(loss="cross-entropy", lr=2e-3),
    "bce, width 64": BASE.with_(loss="bce", lr=2e-3),
}
# 784-1024×4-1 with the step at which it stays: a quarter of an hour.
LARGE = {"gd, width 1024": BASE.with_(width=1024, lr=1.37e-4)}


def measure(config: TrainConfig, root: Path) -> tuple[PathFigures, float, float]:
    """Figures, seconds of the training, seconds of the certificate with its replay."""
    begun = time.perf_counter()
    outcome = train(config, root)
    trained = time.perf_counter() - begun
    begun = time.perf_counter()
    figures = certify_path(outcome.run, kernel=False).figures
    return figures, trained, time.perf_counter() - begun


def report(runs: dict[str, TrainConfig] | None = None) -> str:
    """A row a run."""
    lines = [
        "| run | share certified | μ, L* = 0 | of measured | μ | of measured | rate from step | pieces | balls | "
        "train s | certify s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, config in (runs or RUNS).items():
        with tempfile.TemporaryDirectory() as root:
            p, trained, certified = measure(config, Path(root) / "run")
        star = "–" if p.mu_path_star is None or not p.measured_star else f"{p.mu_path_star / p.measured_star:.3f}"
        full = "–" if p.mu_path is None or not p.measured else f"{p.mu_path / p.measured:.3f}"
        first = "–" if p.rate_from_step is None else str(p.rate_from_step)
        lines.append(
            f"| {name} | {p.certified_share:.4f} | {p.mu_path_star or 0:.4g} | {star} | "
            f"{p.mu_path or 0:.4g} | {full} | "
            f"{first} | {p.pieces} | {p.balls} | {trained:.1f} | {certified:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    print(report(LARGE if "--large" in sys.argv else None))
