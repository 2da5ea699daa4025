"""Does "lazy" by the predicted curve agree with "lazy" by the kernel's change? Forty-eight small runs.

784-m×2-1 on digits, both parametrisations, four widths, three numbers of samples, two step sizes, 150 steps each.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import lplr_cli as lplr
from lplr_cli.analysis import predict_run

# A kernel that changes by less keeps the run in the lazy regime, by the usual rule of thumb.
CHANGE = 0.1


def outcomes() -> list[tuple[str, float, bool, float]]:
    """Name, laziness error, whether it is called lazy, and relative change of the kernel of each run."""
    found = []
    grid = itertools.product(("standard", "ntk"), (16, 64, 256, 1024), (10, 30, 60), ("auto", "quarter"))
    with tempfile.TemporaryDirectory() as folder:
        for form, width, samples, step in grid:
            name = f"{form}-{width}-{samples}-{step}"
            options: dict[str, Any] = {
                "parametrization": form,
                "width": width,
                "depth": 2,
                "samples": samples,
                "steps": 150,
                "probe_every": 0,
                "probe_sharpness": False,
                "probe_size": 1,
                "checkpoint_every": 0,
                "init": "normal" if form == "ntk" else "he",
            }
            run = lplr.train("mnist", Path(folder) / name, **options, lr=_step(step, options))
            prediction = predict_run(run.path)
            assert prediction.error is not None
            assert prediction.lazy is not None
            assert prediction.kernel_change is not None
            found.append((name, prediction.error, prediction.lazy, prediction.kernel_change))
    return found


def _step(name: str, options: dict[str, Any]) -> str | float:
    """1/sharpness, or a quarter of it."""
    if name == "auto":
        return "auto"
    from lplr_cli.curvature import sharpness
    from lplr_cli.data import DataSpec, load_dataset
    from lplr_cli.models import ModelSpec, build_model
    from lplr_cli.ntk import Network

    keys = ("parametrization", "width", "depth", "init")
    module = build_model(ModelSpec(**{k: options[k] for k in keys}), (784,), 1)
    data = load_dataset(DataSpec("mnist", samples=options["samples"]))
    return 0.25 / sharpness(Network.from_module(module), *data.tensors()).value


def report() -> str:
    """A Markdown table and the share of agreement."""
    rows, agree = [], 0
    found = outcomes()
    for name, error, one, change in found:
        two = change < CHANGE
        agree += one == two
        mark = "" if one == two else "disagree"
        rows.append(f"| {name} | {error:.3f} | {100 * change:.1f} % | {'yes' if one else 'no'} | {mark} |")
    head = ["| run | laziness error | kernel change | lazy | |", "|---|---:|---:|---|---|"]
    return "\n".join([*head, *rows, "", f"Agreement: {agree} of {len(found)}."])


if __name__ == "__main__":
    print(report())
