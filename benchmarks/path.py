"""Regions along the paths of whole runs: how much of each is certified, how near μ comes to the ratio, time and memory.

Each run is trained and certified in a process of its own, so that its peak of memory is its own. Beside the time that
passed stands the time that its process computed, which on a machine that others use is the one to compare.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lplr_cli.analysis import certify_path
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

# The README's run, and what differs in the others; and the step from which the path is to be certified.
BASE = TrainConfig(DataSpec("mnist"), ModelSpec(width=64), probe_every=0, probe_sharpness=False)
RUNS: dict[str, tuple[TrainConfig, int]] = {
    "gd, width 64 (README)": (BASE, 0),
    "gd, width 256": (BASE.with_(width=256), 0),
    "momentum 0.9, width 64": (BASE.with_(momentum=0.9, lr=1e-4), 0),
    "sgd, 20 epochs, width 64": (BASE.with_(optimizer="sgd", lr=2e-4, steps=None, epochs=20), 0),
    "cross-entropy, width 64": (BASE.with_(loss="cross-entropy", lr=2e-3), 0),
    "cross-entropy, after step 2": (BASE.with_(loss="cross-entropy", lr=2e-3), 2),
    "bce, width 64": (BASE.with_(loss="bce", lr=2e-3), 0),
}
# 784-1024×4-1 with the step at which it stays, and with the one at which it leaves.
LARGE = {
    "gd, width 1024, step 1.37e-4": (BASE.with_(width=1024, lr=1.37e-4), 0),
    "gd, width 1024, step 5e-4": (BASE.with_(width=1024, lr=5e-4), 0),
}


class _Clock:
    """Seconds that passed and that this process computed, and the peak of its memory since the last reading."""

    def __init__(self) -> None:
        self._wall, self._own = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Since it was made or read."""
        wall, own = time.perf_counter(), time.process_time()
        passed = wall - self._wall, own - self._own
        self._wall, self._own = wall, own
        return passed


def _peak() -> float:
    """MiB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(config: TrainConfig, first: int, root: Path, source: Source = OWN, method: str = "auto") -> dict[str, Any]:
    """Figures of the path with seconds (passed, computed) and MiB of training and certificate."""
    clock = _Clock()
    run = train(config, root).run
    trained, before = clock.read(), _peak()
    figures = certify_path(run, first=first, source=source, method=method, kernel=False).figures
    certified = clock.read()
    own = {"trained": trained, "certified": certified, "training_mib": before, "more_mib": _peak() - before}
    return {**figures.to_dict(), **own}


def in_own_process(name: str) -> dict[str, Any]:
    """:func:`measure` of one of the runs."""
    command = [sys.executable, "-m", "benchmarks.path", "--one", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, p: dict[str, Any]) -> str:
    """Of the table."""

    def part(value: str, of: str) -> str:
        return "–" if p[value] is None or not p[of] else f"{p[value]:.4g} ({100 * p[value] / p[of]:.0f} %)"

    def seconds(pair: list[float]) -> str:
        return f"{pair[1]:.0f} ({pair[0]:.0f})"

    first = "–" if p["rate_from_step"] is None else str(p["rate_from_step"])
    return (
        f"| {name} | {p['certified_share']:.4f} | {part('mu_path_star', 'measured_star')} | "
        f"{part('mu_path', 'measured')} | {first} | {p['pieces']} | {p['balls']} | {seconds(p['trained'])} | "
        f"{seconds(p['certified'])} | {p['more_mib']:.0f} |"
    )


HEAD = (
    "| run | share | μ, L* = 0 (of measured) | μ (of measured) | rate from | pieces | balls | run, s | "
    "proof, s | MiB more |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main(arguments: list[str]) -> None:
    """A row a run: those named, or all, or the large ones."""
    runs = {**RUNS, **LARGE}
    if arguments[:1] == ["--one"]:
        config, first = runs[arguments[1]]
        with tempfile.TemporaryDirectory() as root:
            print(json.dumps(measure(config, first, Path(root) / "run")))
        return
    named = list(LARGE) if "--large" in arguments else [a for a in arguments if a in runs] or list(RUNS)
    print(HEAD, flush=True)
    for name in named:
        print(row(name, in_own_process(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
