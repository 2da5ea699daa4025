"""Loss curves of real small runs with the verdict drawn in: optimisers, losses, schedules, catapults, plateaus.

``python -m benchmarks.real_curves FOLDER`` trains every run on the embedded digits (or a synthetic problem), fits its
rate and writes a figure each, with ``verdicts.md`` beside them. The plots are looked at one by one; see
docs/howto/curves.md for twelve of them.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.diagnostics import Convergence, analyse_rate, clean_series
from lplr_cli.reporting import figures

Tensor = torch.Tensor


@dataclass(frozen=True)
class Run:
    """A small run.

    Attributes:
        name: for the file.
        title: what was trained.
        loss: squared, cross-entropy or logistic.
        optimizer: parameters → optimiser.
        steps, batch: number of steps, samples a step (0 for all).
        schedule: share of the step size at a share of the run.
        logged: whether the step size is in the log.
        depth, width: of the tanh network; depth 0 is linear.
        scale: of the last layer at the start.
        samples, label_noise: of the data.
    """

    name: str
    title: str
    loss: str
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 400
    batch: int = 0
    schedule: Callable[[float], float] = lambda share: 1.0
    logged: bool = False
    depth: int = 2
    width: int = 32
    scale: float = 1.0
    samples: int = 120
    label_noise: float = 0.0


def gd(lr: float, momentum: float = 0.0) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Gradient descent."""
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum)


def adam(lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr)


def cosine(share: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + float(np.cos(np.pi * share))) + 1e-3


def warm(share: float) -> float:
    """Linear over the first fifth."""
    return min(1.0, share / 0.2 + 1e-2)


def decay(share: float) -> float:
    """A tenth at a half and at three quarters."""
    return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01


RUNS: tuple[Run, ...] = (
    Run("gd", "full batch, squared loss", "squared", gd(0.05), 600),
    Run("gd_long", "full batch, squared loss, 3,000 steps", "squared", gd(0.05), 3000),
    Run("gd_wide", "full batch, wide net", "squared", gd(0.02), 500, width=256),
    Run("least_squares", "least squares (linear model)", "squared", gd(0.05), 800, depth=0),
    Run("logistic", "logistic regression, separable", "logistic", gd(2.0), 2000, depth=0, samples=60),
    Run("logistic_noise", "logistic regression, noisy labels", "logistic", gd(1.0), 2000, depth=0, label_noise=0.25),
    Run("cross_entropy", "cross-entropy, full batch", "cross-entropy", gd(0.2), 1500),
    Run("momentum", "heavy ball 0.9", "squared", gd(0.01, 0.9), 400),
    Run("momentum_99", "heavy ball 0.99: oscillates", "squared", gd(0.002, 0.99), 600),
    Run("adam", "Adam, full batch", "squared", adam(1e-3), 500),
    Run("adam_fast", "Adam, large step", "squared", adam(3e-2), 500),
    Run("sgd", "mini-batches of 20", "squared", gd(0.02), 1000, batch=20),
    Run("sgd_small", "mini-batches of 4", "squared", gd(0.02), 1500, batch=4),
    Run("sgd_noise", "mini-batches, noisy labels: plateau", "squared", gd(0.02), 1500, batch=10, label_noise=0.2),
    Run("sgd_decay", "mini-batches, step decay, logged", "squared", gd(0.05), 1200, 10, decay, True, label_noise=0.2),
    Run("sgd_decay_unlogged", "mini-batches, step decay", "squared", gd(0.05), 1200, 10, decay, label_noise=0.2),
    Run("cosine", "full batch, cosine schedule, logged", "squared", gd(0.05), 600, 0, cosine, True),
    Run("warm_up", "full batch, warm-up, step size not logged", "squared", gd(0.05), 600, 0, warm),
    Run("edge", "full batch, step beyond 2/sharpness", "squared", gd(0.35), 600),
    Run("catapult", "full batch, far beyond: catapults", "squared", gd(0.6), 400, width=128),
    Run("diverges", "momentum with too large a step", "squared", gd(0.12, 0.9), 300, width=128),
    Run("plateau", "deep net from a small start: plateau", "squared", gd(0.1), 2500, depth=4, scale=0.1),
    Run("adam_batch", "Adam, mini-batches, cross-entropy", "cross-entropy", adam(2e-3), 1000, 20),
    Run("short", "forty steps", "squared", gd(0.05), 40),
)


def digits(samples: int, label_noise: float) -> tuple[Tensor, Tensor]:
    """Embedded digits of two classes, centred and of unit mean square, labels ±1."""
    data = load_dataset(DataSpec("mnist", samples=samples))
    x = torch.as_tensor(np.asarray(data.inputs, dtype=np.float64)).reshape(samples, -1)
    x = (x - x.mean(0)) / x.std() / x.shape[1] ** 0.5
    target = torch.as_tensor(data.targets).reshape(samples, -1)[:, :1]
    y = torch.where(target > target.mean(), 1.0, -1.0).to(torch.float64)
    flips = torch.rand(samples, 1, generator=torch.Generator().manual_seed(1)) < label_noise
    return x, torch.where(flips, -y, y)


def network(run: Run, features: int) -> nn.Module:
    """A tanh network with one output."""
    torch.manual_seed(0)
    sizes = [features, *[run.width] * run.depth, 1]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=torch.float64), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(run.scale * (1.7 if parameter.ndim == 2 else 0.0))
    return model


def objective(name: str, output: Tensor, target: Tensor) -> Tensor:
    """Mean loss."""
    if name == "squared":
        return ((output - target) ** 2).mean()
    return nn.functional.softplus(-output * target).mean()


def train(run: Run) -> pd.DataFrame:
    """The log of a run: the loss of each step's own batch."""
    x, y = digits(run.samples, run.label_noise)
    x = x * 4
    model = network(run, x.shape[1])
    optimizer = run.optimizer(list(model.parameters()))
    base = optimizer.param_groups[0]["lr"]
    draw = torch.Generator().manual_seed(2)
    rows = []
    for step in range(run.steps):
        lr = optimizer.param_groups[0]["lr"] = base * run.schedule(step / run.steps)
        batch = torch.randint(len(x), (run.batch,), generator=draw) if run.batch else slice(None)
        loss = objective(run.loss, model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rows.append({"step": step, "loss": float(loss), **({"lr": lr} if run.logged else {})})
        if not np.isfinite(rows[-1]["loss"]) or rows[-1]["loss"] > 1e12:
            break
    return pd.DataFrame(rows)


def draw(run: Run, log: pd.DataFrame, result: Convergence, path: Path) -> None:
    """Loss, law and effective rate of a run, the verdict as the title."""
    with figures.style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        top.plot(log["step"], log["loss"], color=figures.BLACK, lw=0.7, label="L")
        figures.curve(top, result.table, "fitted", color=figures.VERMILION, ls="--", label="law")
        for segment in result.segments[1:]:
            top.axvline(segment.start, color=figures.GREEN, lw=0.8)
        if result.fit.part is not None:
            top.axvspan(result.fit.part.start, result.fit.part.stop, color=figures.SKY, alpha=0.2, lw=0)
        top.set_yscale("log")
        figures.readable_ticks(top)
        figures.legend(top)
        figures.effective_axes(below, result)
        rate = "" if result.fit.rate is None else f" ρ = {result.fit.rate:.5f}"
        figure.suptitle("\n".join(textwrap.wrap(f"{run.title}. {result.fit.says}{rate}", 78)), fontsize=8)
        figure.savefig(path, dpi=90)


def main(folder: Path) -> None:
    """All runs into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| run | verdict | rate ρ | reason |", "|---|---|---:|---|"]
    for run in RUNS:
        log = train(run)
        result = analyse_rate(clean_series(log))
        draw(run, log, result, folder / f"{run.name}.png")
        rate = "" if result.fit.rate is None else f"{result.fit.rate:.6f}"
        lines.append(f"| {run.title} | {result.fit.says} | {rate} | {result.fit.reason} |")
        print(lines[-1], flush=True)
    (folder / "verdicts.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "curves"))
