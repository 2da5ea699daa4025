"""A transformer on a small sequence task: its NTK while it trains, and an audit of the run.

    python examples/tiny_transformer.py [FOLDER]

Does the first token of a sequence come again? Forty-eight sequences, ±1 targets, squared loss. Embedding, attention,
normalisation and linear layers have rules in the structured engine; the table of positions is a bare parameter, whose
share of the kernel comes from its Jacobian, as the output says.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import lplr_cli as lplr
from lplr_cli.curvature import sharpness
from lplr_cli.ntk import Network, empirical_ntk, spectrum

VOCABULARY, LENGTH, SAMPLES, STEPS = 6, 7, 48, 150


class TinyTransformer(nn.Module):
    """One encoder block with two heads, averaged over positions."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        """Shape (n, LENGTH) of token numbers to (n, 1)."""
        out: Tensor = self.head(self.block(self.tokens(sequence) + self.positions).mean(dim=1))
        return out


def sequences() -> tuple[Tensor, Tensor]:
    """Token numbers (n, LENGTH) and targets (n, 1)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    again = (tokens[:, 1:] == tokens[:, :1]).any(dim=1, keepdim=True)
    return tokens, again.double() * 2 - 1


def main(folder: Path) -> None:
    """Look at the kernel, train at half the edge of stability, audit."""
    torch.manual_seed(0)
    x, y = sequences()
    model = TinyTransformer().double()
    network = Network.from_module(model)
    kernel = empirical_ntk(network, x, engine="structured")
    found = spectrum(kernel.matrix)
    print(f"lambda_min {found.lambda_min:.4g}, lambda_max {found.lambda_max:.4g}, n = {len(x)}")
    print(f"by their Jacobian: {', '.join(kernel.fallback) or 'no layer'}")
    lr = 1 / sharpness(network, x, y).value
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with lplr.Recorder(model, folder / "run", data=(x, y), loss_scale=1.0, norms_every=1, probe_every=50) as recorder:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum() / len(x)
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
        recorder.finish((model(x) - y).square().sum() / len(x))
    audit = lplr.audit(str(folder / "run"), certificate=False)
    print(f"local PL regime {audit.verdict} ({audit.explanation})")
    for finding in audit.findings:
        print(f"  {finding.key}  {finding.status:18}  {finding.reason}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
