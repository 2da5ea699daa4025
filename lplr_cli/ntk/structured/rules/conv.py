"""Two-dimensional convolutions: linear maps of patches, at each pixel of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from lplr_cli.ntk.structured.capture import Capture, arguments, rule
from lplr_cli.ntk.structured.factors import Part, Room, met, weighted
from lplr_cli.ntk.structured.rules.channelwise import Bias
from lplr_cli.ntk.structured.rules.linear import Linear

# Multiplications of a matrix product that take as long as one addition of parts of arrays.
_ADDITION = 8


@rule(F.conv2d)
def _conv2d(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, weight, bias, stride, padding, dilation, groups = arguments(
        "input weight bias stride padding dilation groups", args, kwargs
    )
    kernel, dilated = (int(weight.shape[2]), int(weight.shape[3])), _pair(dilation or 1)
    padded = _padding(padding, kernel, dilated)
    if a.dim() == 4 and padded is not None:
        kind = Convolution(kernel, _pair(stride or 1), padded, dilated, int(groups or 1))
        capture.record(weight, kind, a, z)
        capture.record(bias, Bias(1), None, z)
    return z


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if not isinstance(value, Sequence) else (int(value[0]), int(value[-1]))


def _padding(value: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int] | None:
    """Pixels on each side; None where the two sides differ."""
    if value == "same":
        total = [dilation[i] * (kernel[i] - 1) for i in range(2)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    return (0, 0) if value == "valid" else _pair(value or 0)


@dataclass(frozen=True)
class Convolution(Linear):
    """Geometry of a call; z is (n, channels, h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    group_count: int

    @property
    def groups(self) -> int:
        """As in :class:`Linear`."""
        return self.group_count

    def left(self, a: Tensor, room: Room | None = None) -> Tensor:
        """Patches of images (m, c, h, w), as (m, g, t, c/g·kh·kw)."""
        patches = F.pad(a, [self.padding[i] for i in (1, 1, 0, 0)]) if any(self.padding) else a
        for axis, (taps, step, apart) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            patches = patches.unfold(2 + axis, apart * (taps - 1) + 1, step)
        patches = patches[..., :: self.dilation[0], :: self.dilation[1]].permute(0, 1, 4, 5, 2, 3)
        if room is not None and not patches.is_contiguous():
            patches = room(patches.numel()).view(patches.shape).copy_(patches)
        positions = patches.shape[4] * patches.shape[5]
        return patches.reshape(len(a), self.groups, -1, positions).transpose(2, 3)

    def right(self, b: Tensor) -> Tensor:
        """As in :class:`Linear`."""
        m, q, s, channels = b.shape[:4]
        return b.reshape(m, q, s, self.groups, channels // self.groups, -1).transpose(4, 5)

    def inner(self, a: Tensor, other: Tensor) -> Tensor:
        """As in :class:`Linear`: patches meet as their pixels do, whose products many of them share."""
        if not self._by_pixels(a):
            return super().inner(a, other)
        sides = [x.reshape(len(x), self.groups, -1, a.shape[2] * a.shape[3]) for x in (a, other)]
        pixels = torch.einsum("mgcx,kgcy->gmxky", *sides)
        met = pixels.view(self.groups, len(a), *a.shape[2:], len(other), *a.shape[2:])
        for axis in range(2):
            met = self._along(met, axis)
        return met.flatten(5, 6).flatten(2, 3)

    def _along(self, met: Tensor, axis: int) -> Tensor:
        """Σ over the taps along one axis of the image of what is at them, (g, m, h, w, k, h', w') with one size new."""
        taps, stride = self.kernel[axis], self.stride[axis]
        size, count = met.shape[2 + axis], self._counts(met.shape[2:4])[axis]
        shape = list(met.shape)
        shape[2 + axis] = shape[5 + axis] = count
        total = met.new_zeros(shape)
        for tap in range(taps):
            offset = tap * self.dilation[axis] - self.padding[axis]
            first, last = max(0, -(offset // stride)), min(count - 1, (size - 1 - offset) // stride)
            if first > last:
                continue
            there = slice(first * stride + offset, last * stride + offset + 1, stride)
            here = slice(first, last + 1)
            whole = [slice(None)] * 7
            whole[2 + axis] = whole[5 + axis] = here
            part = [slice(None)] * 7
            part[2 + axis] = part[5 + axis] = there
            total[tuple(whole)] += met[tuple(part)]
        return total

    def _counts(self, image: Sequence[int]) -> tuple[int, int]:
        """Positions along both axes."""
        rows, columns = (
            (int(image[i]) + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        )
        return rows, columns

    def _costs(self, a: Tensor) -> tuple[int, int]:
        """Of :meth:`inner` for two samples, by pixels and by patches; an addition is as dear as some products."""
        (h, w), (rows, columns) = a.shape[2:], self._counts(a.shape[2:])
        additions = self.groups * (self.kernel[0] * (rows * w) ** 2 + self.kernel[1] * (rows * columns) ** 2)
        pixels = a.shape[1] * (h * w) ** 2 + _ADDITION * additions
        return pixels, a.shape[1] * self.kernel[0] * self.kernel[1] * (rows * columns) ** 2

    def _by_pixels(self, a: Tensor) -> bool:
        pixels, patches = self._costs(a)
        return pixels < patches

    def inner_cost(self, a: Tensor) -> int:
        """As in :class:`Linear`."""
        return min(self._costs(a))

    def pull(self, part: Part, v: Tensor) -> Tensor:
        """By the convolution's own derivative: patches would take nine times the room."""
        assert part.a is not None
        back = weighted(part.b, v)
        size = part.use.parameter
        found = [
            conv2d_weight(  # type: ignore[no-untyped-call]
                part.a, size, back[:, i], self.stride, self.padding, self.dilation, self.groups
            )
            for i in range(back.shape[1])
        ]
        return torch.stack(found)

    def push(self, part: Part, u: Tensor) -> Tensor:
        """By the convolution itself."""
        a = part.a
        assert a is not None
        z = [F.conv2d(a, w, None, self.stride, self.padding, self.dilation, self.groups) for w in u]
        return met(part.b, torch.stack(z, dim=1))
