"""``python -m benchmarks``: all reports as Markdown on stdout, their tables as JSON in a file, and what got slower.

Sections can be named; those that would begin after ``--limit`` minutes are left out, and said to be.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import record

# The cheap and telling ones first.
SECTIONS = {
    "Kernel": "kernel.report",
    "Peers": "peers.report",
    "Recorder": "recorder_overhead.report",
    "Training overhead": "training_overhead.report",
    "ResNet": "kernel.resnet_report",
    "Scaling": "scaling.report",
    "Verified λ_min": "large.report",
    "Certificate": "certificate.report",
    "Sweeps": "sweeps.report",
    "Hessian products": "peers.hessian_report",
    "Noise floor": "noise_floor.report",
    "Rates": "rates.report",
    "Lazy runs": "lazy.report",
}


def _report(name: str) -> Callable[[], str]:
    module, function = SECTIONS[name].split(".")
    found: Callable[[], str] = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    return found


def _processor() -> str:
    """Cores and their name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), flags=re.MULTILINE) if info.exists() else []
    return f"{os.cpu_count()} cores, {names[0].strip() if names else platform.machine()}"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where the tables go")
    parser.add_argument("--against", type=Path, default=record.RECORDED, help="results to compare with")
    parser.add_argument("--limit", type=float, default=25.0, help="minutes after which no section begins")
    said = parser.parse_args()
    chosen = said.sections or list(SECTIONS)
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    machine = f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}\n")
    results: dict[str, Any] = {"machine": machine, "sections": {}}
    begun = time.perf_counter()
    for name in chosen:
        if time.perf_counter() - begun > 60 * said.limit:
            print(f"## {name}\n\nLeft out: {said.limit:g} minutes are over.\n", flush=True)
            continue
        since = time.perf_counter()
        text = _report(name)()
        took = round(time.perf_counter() - since, 1)
        print(f"## {name}\n\n{text}\n", flush=True)
        results["sections"][name] = {"seconds": took, "tables": record.tables(text)}
        record.write(said.json, results)
    if said.against.exists():
        print(f"## Against {said.against.name}\n\n{record.slower(results, record.read(said.against))}")


if __name__ == "__main__":
    main()
