"""Other libraries on the same work: the kernel of 784-m×4-1 on 500 samples in float32, and a product with it.

Those of other environments are timed by their own Python, which LPLR_BENCH_NT_PYTHON (neural-tangents) and
LPLR_BENCH_PEERS_PYTHON (nngeometry, curvlinops) name; without them their cells stay empty.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel import N, contraction
from benchmarks.timing import paired
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, empirical_ntk, ntk_operator

WIDTHS = (128, 512)


def elsewhere(variable: str, script: str) -> dict[str, Any]:
    """What a script of this folder prints as JSON under the Python that an environment variable names; else nothing."""
    python = os.environ.get(variable)
    if python is None:
        return {}
    here = Path(__file__)
    # The script may want lplr beside its own libraries.
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    command = [python, str(here.with_name(script))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def report() -> str:
    """A Markdown table, seconds."""
    x = torch.rand(N, 784)
    v = torch.rand(N).double().numpy()
    ours: dict[str, dict[str, float]] = {"lplr": {}, "lplr product": {}, "torch.func": {}}
    for width in WIDTHS:
        model = build_model(ModelSpec(width=width), (784,), 1, dtype=torch.float32)
        network = Network.from_module(model, dtype=torch.float32)
        operator = ntk_operator(network, x, engine="operator")
        times = paired(
            {
                "lplr": lambda network=network: empirical_ntk(network, x),  # type: ignore[misc]
                "lplr product": lambda operator=operator: operator @ v,  # type: ignore[misc]
                "torch.func": lambda model=model: contraction(model, x),  # type: ignore[misc]
            },
            rounds=9,
        )
        for name, seconds in times.items():
            ours[name][str(width)] = min(seconds)
    others = elsewhere("LPLR_BENCH_PEERS_PYTHON", "torch_peers.py")
    tangents = elsewhere("LPLR_BENCH_NT_PYTHON", "neural_tangents_peer.py")

    def cells(found: dict[str, float]) -> list[str]:
        return [f"{found[str(width)]:.4f}" if str(width) in found else "–" for width in WIDTHS]

    none = ["–", "–"]
    rows = [
        ["lplr", *cells(ours["lplr"]), *cells(ours["lplr product"])],
        ["torch.func (tutorial)", *cells(ours["torch.func"]), *none],
        ["neural-tangents 0.6.5", *cells(tangents), *none],
        ["nngeometry 0.4", *cells(others.get("nngeometry", {})), *none],
        ["curvlinops 3.0.1", *none, *cells(others.get("curvlinops_product", {}))],
    ]
    head = ["| | K, m = 128 | K, m = 512 | K v, m = 128 | K v, m = 512 |", "|---|---:|---:|---:|---:|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def hessian_report() -> str:
    """Products with the Hessian by other libraries, a Markdown table; needs LPLR_BENCH_HESSIAN_PYTHON."""
    found = elsewhere("LPLR_BENCH_HESSIAN_PYTHON", "hessian_peers.py")
    if not found:
        return "Not measured: LPLR_BENCH_HESSIAN_PYTHON names no Python."
    names = list(next(iter(found["product"].values())))
    rows = ["| width | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for width, seconds in found["product"].items():
        rows.append(f"| {width} | " + " | ".join(f"{1e3 * seconds[name]:.1f} ms" for name in names) + " |")
    told = [f"{name} {count} products, {error:.1e} off" for name, (count, error) in found["lambda_max"].items()]
    return "\n".join([*rows, "", f"λ_max: {'; '.join(told)}."])


if __name__ == "__main__":
    print(report())
