"""How the time of the kernel grows with n and with the width; also draws docs/figures/kernel-scaling.svg."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.timing import paired
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, empirical_ntk

SIZES = (250, 500, 1000, 2000, 4000)
WIDTHS = (64, 128, 256, 512, 1024)


def measure(n: int, width: int) -> float:
    """Least seconds of three for K of 784-m×4-1 in float64."""
    x = torch.rand((n, 784), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = Network.from_module(build_model(ModelSpec(width=width), (784,), 1, dtype=torch.float64))
    return min(paired({"kernel": lambda: empirical_ntk(network, x)}, rounds=3)["kernel"])


def report() -> str:
    """A Markdown table, and the plot."""
    import matplotlib.pyplot as plt

    times = {(n, m): measure(n, m) for n in SIZES for m in WIDTHS}
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for m in WIDTHS:
        axes[0].loglog(SIZES, [times[n, m] for n in SIZES], marker="o", label=f"m = {m}")
    for n in SIZES:
        axes[1].loglog(WIDTHS, [times[n, m] for m in WIDTHS], marker="o", label=f"n = {n:,}")
    axes[0].set(xlabel="samples n", ylabel="seconds", title="784-m×4-1, float64")
    axes[1].set(xlabel="width m", title="the same, by width")
    axes[0].loglog(SIZES, [times[SIZES[0], 64] * (n / SIZES[0]) ** 2 for n in SIZES], "k:", label="n²")
    for axis, ticks in zip(axes, (SIZES, WIDTHS), strict=True):
        axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, frameon=False)
        axis.grid(True, which="major", alpha=0.3)
        axis.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axis.minorticks_off()
    folder = Path(__file__).parents[1] / "docs" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "kernel-scaling.svg", metadata={"Date": None})
    head = ["| n | " + " | ".join(f"m = {m}" for m in WIDTHS) + " |", "|---:|" + "---:|" * len(WIDTHS)]
    rows = [f"| {n:,} | " + " | ".join(f"{times[n, m]:.3f}" for m in WIDTHS) + " |" for n in SIZES]
    return "\n".join(head + rows)
