"""Networks of somebody else: written as in any project, without a word of lplr."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyTransformer(nn.Module):
    """Two tokens' worth of attention over sequences of indices."""

    def __init__(self, vocabulary: int = 7, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embedding(tokens)).mean(dim=1))
        return out


class TinyCNN(nn.Module):
    """Convolution, batch normalisation, pooling."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.Tanh())
        self.head = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return out


def mlp() -> nn.Module:
    """An MLP with layers of different sizes."""
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))


def tokens() -> tuple[Tensor, Tensor]:
    """Sequences of indices with two targets."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 7, (6, 5), generator=g), torch.randn(6, 2, generator=g)


def images() -> tuple[Tensor, Tensor]:
    """Small images with one target."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 1, 6, 6, generator=g), torch.randn(8, 1, generator=g)


def table() -> tuple[Tensor, Tensor]:
    """Vectors with two targets."""
    g = torch.Generator().manual_seed(2)
    return torch.randn(10, 5, generator=g), torch.randn(10, 2, generator=g)
