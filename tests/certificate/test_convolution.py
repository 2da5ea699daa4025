"""Norms of convolutions against those of the matrices that they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import mpmath  # type: ignore[import-untyped]
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
        monkeypatch.setattr(convolution, "WRITTEN_OUT", 0)
    for seed in range(4):
        w = geometry.weights(seed)
        truth = float(torch.linalg.matrix_norm(geometry.matrix(w), ord=2))
        assert truth <= geometry.bound(w) <= (1.07 if written_out else 1.5) * truth
        assert geometry.bound(1e-90 * w) >= 0.999e-90 * truth


def test_the_circular_norm_is_attained_on_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wave of the worst frequency, cut off: its image is nearly as long as the bound allows."""
    monkeypatch.setattr(convolution, "WRITTEN_OUT", 0)
    w = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    wave = (-1.0) ** torch.arange(400, dtype=torch.float64).reshape(1, 1, 1, 400)
    found = convolution_norm_upper(w, (1, 400), (1, 1), (0, 1), 1)
    seen = float(F.conv2d(wave, w, padding=(0, 1)).norm() / wave.norm())
    assert seen <= found <= 4.0 * 1.011
    assert seen >= 0.99 * found / 1.011


def symbols(w: Tensor, image: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Ŵ of every folded frequency by the fast transform, (frequencies, c_out, c_in · aliases), of weights up to one."""
    sizes = [s * math.ceil((n + k - 1) / s) for n, k, s in zip(image, w.shape[2:], stride, strict=True)]
    whole = torch.fft.fft2(w, s=sizes)
    rows, columns = (n // s for n, s in zip(sizes, stride, strict=True))
    parts = whole.reshape(*w.shape[:2], stride[0], rows, stride[1], columns)
    found: Tensor = parts.permute(3, 5, 0, 1, 2, 4).flatten(3).flatten(0, 1) / math.sqrt(math.prod(stride))
    return found


LARGE = [g for g in GEOMETRIES if g.groups == 1]


@pytest.mark.parametrize("geometry", LARGE, ids=str)
def test_the_norm_is_that_of_its_largest_symbol(geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "WRITTEN_OUT", 0)
    w = geometry.weights(1)
    exact = float(torch.linalg.matrix_norm(symbols(w, geometry.image, geometry.stride), ord=2).max())
    assert exact * (1 + 1e-13) <= geometry.bound(w) <= 1.011 * exact
    for exponent in (-300, 0, 300):
        assert geometry.bound(w * 2.0**exponent) == geometry.bound(w) * 2.0**exponent


@pytest.mark.parametrize("geometry", LARGE, ids=str)
def test_roundings_of_symbols_and_of_their_products_show(geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the counts that they have: of the taps, and of the longer side, as complex numbers."""
    w, taps = geometry.weights(2), math.prod(geometry.kernel)
    w = w / (1.01 * w.abs().max())
    symbol = symbols(w, geometry.image, geometry.stride)
    longest, frobenius = max(symbol.shape[1:]), float(symbol.abs().square().sum(dim=(1, 2)).max().sqrt())
    asked: dict[int, float] = {}
    monkeypatch.setattr(convolution, "gamma", lambda count, dtype: asked[count])
    for products, of_taps, twiddle in ((1e20, 1e10, 0.0), (1e20, 0.0, 3e9)):
        asked.clear()
        # Two numbers of terms may be one; then both are the same.
        asked[2 * taps + 8] = of_taps
        asked[4 * longest + 8] = products
        monkeypatch.setattr(convolution, "TWIDDLE", twiddle)
        exact = math.sqrt(4 * asked[4 * longest + 8]) * frobenius
        exact += (twiddle + asked[2 * taps + 8]) * math.sqrt(taps) * float(w.norm())
        assert exact <= convolution.norm_on_circle(w, geometry.image, geometry.stride) <= exact * (1 + 1e-8)


def test_extreme_weights_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "WRITTEN_OUT", 0)

    def bound(w: Tensor) -> float:
        return convolution_norm_upper(w, (4, 4), (1, 1), (1, 1), 1)

    ones = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    assert bound(0 * ones) == 0
    assert bound(ones[:0]) == 0
    assert bound(math.inf * ones) == bound(math.nan * ones) == bound(1.7e308 * ones) == math.inf
    assert 18 * 1e300 <= bound(1e300 * ones) <= 18.2e300
    holes = -ones
    holes[0, 0] = 0
    for part in (holes, -holes):
        exact = float(torch.linalg.matrix_norm(symbols(part, (4, 4), (1, 1)), ord=2).max())
        assert exact <= bound(part) <= 1.02 * exact
    # The largest of the groups.
    w = torch.cat([ones, 3 * ones])
    assert 54 <= convolution_norm_upper(w, (4, 4), (1, 1), (1, 1), 2) <= 54.6
    assert 54 <= convolution_norm_upper(w.flip(0), (4, 4), (1, 1), (1, 1), 2) <= 54.6


def test_symbols_are_complex(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 − e^{−2iω}) (1, e^{−iω}) is longest at ω = π/2, where half of its square is imaginary."""
    monkeypatch.setattr(convolution, "WRITTEN_OUT", 0)
    w = torch.zeros(2, 2, 1, 4, dtype=torch.float64)
    w[0, 0, 0], w[1, 0, 0] = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    for part in (w, w.transpose(2, 3), w.transpose(0, 1), w.transpose(0, 1).transpose(2, 3)):
        image = (1, 13) if part.shape[3] == 4 else (13, 1)
        found = convolution_norm_upper(part, image, (1, 1), (0, 0), 1)
        assert math.sqrt(8) <= found <= 1.02 * math.sqrt(8)


@pytest.mark.parametrize(("size", "taps", "stride"), [(5, 60, 1), (40, 30, 3), (7, 2, 2)])
def test_phases_are_accurate_at_every_tap(size: int, taps: int, stride: int) -> None:
    """In 40 digits: within the error of a twiddle factor that is charged for them."""
    found, count = convolution.phase_matrix(size, taps, stride), stride * -(-(size + taps - 1) // stride)
    assert found.shape == (count // stride, stride, taps)
    with mpmath.workdps(40):
        for f in range(count // stride):
            for a in range(stride):
                for j in range(taps):
                    turn = mpmath.mpf(-2) * (f + a * (count // stride)) * j / count
                    exact = mpmath.expjpi(turn)
                    assert abs(mpmath.mpc(complex(found[f, a, j])) - exact) <= convolution.TWIDDLE
