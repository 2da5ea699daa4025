"""Audit a plain PyTorch loop: record it, judge it, and read the verdict from Python.

    python examples/audit_plain_loop.py [FOLDER]

The regression task is small enough that everything can be proved: a linear model on eight samples in thirty
dimensions. With a hidden layer the same lines give estimates and the reason why there is no proof.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lplr_cli as lplr


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples that a linear model interpolates."""
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(8, 30, generator=generator), torch.randn(8, 1, generator=generator)
    return x.double(), y.double()


def train(module: nn.Module, out: Path, steps: int = 300, lr: float = 0.02) -> None:
    """Full-batch gradient descent on L = (1/n) Σ r², recorded."""
    x, y = data()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    description = {"name": "gd", "lr": lr, "momentum": 0.0, "schedule": "constant"}
    with lplr.Recorder(
        module,
        out,
        data=(x, y),
        dataset=str(out.parent / "data.npz"),
        loss_scale=1.0,
        norms_every=1,
        probe_every=100,
        optimizer=description,
    ) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (module(x) - y).square().sum() / len(x)
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
        recorder.finish((module(x) - y).square().sum() / len(x))


def main(folder: Path) -> None:
    """Both models, their verdicts and their hypotheses."""
    torch.manual_seed(0)
    x, y = data()
    # A file that the commands find again: with the samples and the layers' names and shapes they need no code.
    np.savez(folder / "data.npz", inputs=x.numpy(), targets=y.numpy())
    models = {"linear": nn.Linear(30, 1), "hidden": nn.Sequential(nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 1))}
    for name, module in models.items():
        train(module.double(), folder / name)
        audit = lplr.audit(str(folder / name), foreign=lplr.Source(activation="tanh"))
        print(f"{name}: local PL regime {audit.verdict} ({audit.explanation})")
        for finding in audit.findings:
            print(f"  {finding.key}  {finding.status:18}  {finding.reason}")
        rate = lplr.fit_rate(folder / name).fit
        print(f"  rate {rate.verdict}: rho = {rate.rate}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
