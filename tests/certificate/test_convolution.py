"""Norms of convolutions against those of the matrices that they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.certificate.graph import convolution
from lplr_cli.certificate.graph.convolution import convolution_norm_upper


class Geometry(NamedTuple):
    """Of a convolution; ``str`` names the test."""

    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    image: tuple[int, int]

    def weights(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.c_out, self.c_in // self.groups, *self.kernel)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def matrix(self, w: Tensor) -> Tensor:
        eye = torch.eye(self.c_in * math.prod(self.image), dtype=torch.float64).reshape(-1, self.c_in, *self.image)
        return F.conv2d(eye, w, None, self.stride, self.padding, 1, self.groups).flatten(1)

    def bound(self, w: Tensor) -> float:
        return convolution_norm_upper(w, self.image, self.stride, self.padding, self.groups)


GEOMETRIES = [
    Geometry(2, 3, (3, 3), (1, 1), (1, 1), 1, (6, 5)),
    Geometry(2, 3, (3, 3), (2, 2), (1, 1), 1, (6, 5)),
    Geometry(4, 4, (3, 3), (1, 1), (1, 1), 2, (5, 5)),
    Geometry(3, 2, (1, 1), (2, 2), (0, 0), 1, (5, 4)),
    Geometry(2, 2, (2, 2), (2, 2), (0, 0), 1, (6, 6)),
    Geometry(1, 2, (5, 5), (3, 2), (2, 1), 1, (7, 9)),
    Geometry(1, 1, (3, 3), (1, 1), (4, 4), 1, (3, 3)),
    Geometry(2, 2, (3, 1), (1, 1), (1, 0), 1, (4, 4)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("written_out", [True, False])
def test_norm_of_a_convolution(geometry: Geometry, written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the norm of its matrix, by the edge of a small image at most, and by little where it is written out."""
    if not written_out:
        monkeypatch.setattr(convolution, "_WRITTEN_OUT", 0)
    for seed in range(4):
        w = geometry.weights(seed)
        truth = float(torch.linalg.matrix_norm(geometry.matrix(w), ord=2))
        assert truth <= geometry.bound(w) <= (1.07 if written_out else 1.5) * truth
        assert geometry.bound(1e-90 * w) >= 0.999e-90 * truth


def test_the_circular_norm_is_attained_on_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wave of the worst frequency, cut off: its image is nearly as long as the bound allows."""
    monkeypatch.setattr(convolution, "_WRITTEN_OUT", 0)
    w = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    wave = (-1.0) ** torch.arange(400, dtype=torch.float64).reshape(1, 1, 1, 400)
    found = convolution_norm_upper(w, (1, 400), (1, 1), (0, 1), 1)
    seen = float(F.conv2d(wave, w, padding=(0, 1)).norm() / wave.norm())
    assert seen <= found <= 4.0 * 1.011
    assert seen >= 0.99 * found / 1.011
