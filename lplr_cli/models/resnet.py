"""The residual network of the paper's section 6.3."""

from __future__ import annotations

from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.models.activations import make_activation

GROUPS = 8


class ResidualBlock(nn.Module):
    """conv3×3, GroupNorm, φ, conv3×3, GroupNorm, added to the (projected) input, φ."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: str, beta: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.activation = make_activation(activation, beta)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.GroupNorm(GROUPS, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) to (n, channels, h/stride, w/stride)."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.activation(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Three stages of two residual blocks with channels w, 2w, 4w, GroupNorm(8), global average pooling.

    With w = 64, three input channels and five outputs it has 2,776,389 parameters.
    """

    def __init__(
        self, channels_in: int, outputs: int, *, width: int = 64, activation: str = "relu", beta: float = 1.0
    ) -> None:
        super().__init__()
        if width < GROUPS or width % GROUPS:
            raise InputError(f"resnet width {width}", f"give a multiple of {GROUPS} (GroupNorm has {GROUPS} groups)")
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.activation = make_activation(activation, beta)
        blocks = []
        channels = width
        for stage in range(3):
            for index in range(2):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(channels, width << stage, stride, activation, beta))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) to (n, C)."""
        y = self.activation(self.norm(self.stem(x)))
        out: Tensor = self.head(self.blocks(y).mean(dim=(-2, -1)))
        return out
