"""Record and audit a run of PyTorch Lightning: one callback, nothing else changes.

    pip install 'lplr[lightning]'
    python examples/lightning_run.py [FOLDER]

The commands find the network again from the names and shapes of its layers, and the data from the file that the
callback was told of: `lplr audit FOLDER/run --activation tanh` works afterwards, too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lplr_cli as lplr
from lplr_cli.data import DataSpec, load_dataset

STEPS, LR = 200, 0.02


class Digits(pl.LightningModule):  # type: ignore[misc, unused-ignore]
    """A module of Lightning as anybody writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Mean squared error; with one output this is L = (1/n) Σ r², the loss of the theory (scale 1)."""
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=LR)


def main(folder: Path) -> None:
    """Train on sixty digits in full batches, recorded, then audit."""
    pl.seed_everything(0)
    digits = load_dataset(DataSpec("mnist", samples=60))
    x, y = (torch.as_tensor(v, dtype=torch.float32) for v in (digits.inputs, digits.targets))
    np.savez(folder / "digits.npz", inputs=digits.inputs, targets=digits.targets)
    callback = lplr.lightning_callback(
        folder / "run",
        dataset=str(folder / "digits.npz"),
        loss_scale=1.0,
        norms_every=1,
        checkpoint_every=50,
        optimizer={"name": "gd", "lr": LR, "momentum": 0.0, "schedule": "constant"},
    )
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Digits(), DataLoader(TensorDataset(x, y), batch_size=len(x)))
    audit = lplr.audit(str(folder / "run"), foreign=lplr.Source(activation="tanh"), offline_probe=True)
    print(f"local PL regime {audit.verdict} ({audit.explanation})")
    for finding in audit.findings:
        print(f"  {finding.key}  {finding.status:18}  {finding.reason}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
