"""Derivatives of activations and their suprema against 60-digit arithmetic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch

from lplr_cli.certificate.smooth import ELEMENTARY_ULPS, Smooth, smooth_activation

NAMES = ["softplus", "tanh", "gelu", "silu"]
# Zeros of φ'' and of φ''', found by mpmath below.
TURNS = {"softplus": (0, 1), "tanh": (1, 2), "gelu": (2, 3), "silu": (2, 3)}


def exact(name: str, beta: float) -> Any:
    return {
        "softplus": lambda z: mpmath.log(1 + mpmath.e ** (mpmath.mpf(beta) * z)) / mpmath.mpf(beta),
        "tanh": mpmath.tanh,
        "gelu": lambda z: z * mpmath.ncdf(z),
        "silu": lambda z: z / (1 + mpmath.e ** (-z)),
    }[name]


def made(name: str, beta: float = 2.0) -> Smooth:
    phi = smooth_activation(name, beta)
    assert phi is not None
    return phi


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_as_accurate_as_assumed(name: str) -> None:
    phi, f = made(name), exact(name, 2.0)
    points = [-30.0, -5.0, -2.4, -1.0, -1e-8, 0.0, 0.3, 1.5, 3.4, 12.0]
    with mpmath.workdps(60):
        for p in points:
            z = torch.tensor([p], dtype=torch.float64)
            for k, derivative in enumerate((phi.value, phi.first, phi.second)):
                truth = mpmath.diff(f, mpmath.mpf(p), k)
                assert abs(mpmath.mpf(float(derivative(z))) - truth) <= 32 * 2**-53 * (1 + abs(p) + abs(truth))


@pytest.mark.parametrize("beta", [1e-24, 1e-6, 1e6, 1e24])
def test_softplus_of_any_sharpness_that_is_certified(beta: float) -> None:
    """Down to where φ'' is hardly above its absolute slack: 32 ulp of 1 + |φ''| is all that is assumed."""
    phi = made("softplus", beta)
    with mpmath.workdps(60):
        for y in (-700.0, -90.0, -58.0, -41.0, -36.0, -1.0, 0.0, 1e-3, 3.0, 38.0, 42.0, 58.0, 59.0, 64.0):
            point = y / beta
            z = torch.tensor([point], dtype=torch.float64)
            s = 1 / (1 + mpmath.e ** (-mpmath.mpf(beta) * mpmath.mpf(point)))
            second = mpmath.mpf(beta) * s * (1 - s)
            value = mpmath.log(1 + mpmath.e ** (mpmath.mpf(beta) * mpmath.mpf(point))) / mpmath.mpf(beta)
            assert second <= float(phi.sup_second(z, z)[0])
            assert abs(mpmath.mpf(float(phi.second(z)[0])) - second) <= 32 * 2**-52 * (1 + second)
            assert abs(mpmath.mpf(float(phi.first(z)[0])) - s) <= 32 * 2**-52
            assert abs(mpmath.mpf(float(phi.value(z)[0])) - value) <= 32 * 2**-52 * (1 + abs(point) + value)


@pytest.mark.parametrize("name", NAMES)
def test_turns_are_the_zeros_of_the_next_derivative(name: str) -> None:
    phi, f = made(name), exact(name, 2.0)
    assert (len(phi.turns_first), len(phi.turns_second)) == TURNS[name]
    with mpmath.workdps(40):
        for turns, order in ((phi.turns_first, 2), (phi.turns_second, 3)):
            for turn in turns:
                root = mpmath.findroot(lambda z, k=order: mpmath.diff(f, z, k), mpmath.mpf(turn))
                assert abs(root - turn) <= 4e-16 * (1 + abs(turn))
    # Between the turns and beyond them the derivative of the derivative keeps its sign.
    for turns, derivative in ((phi.turns_first, phi.first), (phi.turns_second, phi.second)):
        edges = [-8.0, *turns, 8.0]
        for low, high in itertools.pairwise(edges):
            steps = derivative(torch.linspace(low, high, 200, dtype=torch.float64)).diff()
            assert bool((steps <= 1e-12).all()) or bool((steps >= -1e-12).all())


@pytest.mark.parametrize("name", NAMES)
def test_suprema_over_intervals(name: str) -> None:
    phi = made(name)
    generator = torch.Generator().manual_seed(0)
    centre = 4 * torch.randn(200, generator=generator, dtype=torch.float64)
    half = torch.rand(200, generator=generator, dtype=torch.float64) * 3
    grid = centre + half * torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None]
    for f, sup in ((phi.first, phi.sup_first), (phi.second, phi.sup_second)):
        seen, bound = f(grid).abs().amax(dim=0), sup(centre - half, centre + half)
        assert bool((seen <= bound).all())
        assert torch.allclose(seen, bound, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_suprema_that_end_at_a_turn(name: str) -> None:
    """An interval that ends at a critical point holds it; one that stops short does not."""
    phi = made(name)
    for turns, f, sup in ((phi.turns_first, phi.first, phi.sup_first), (phi.turns_second, phi.second, phi.sup_second)):
        for turn in turns:
            t = torch.tensor([turn], dtype=torch.float64)
            peak = float(f(t).abs())
            for low, high in ((t - 1e-3, t), (t, t + 1e-3), (t - 1e-3, t + 1e-3), (t, t)):
                assert peak < float(sup(low, high)) <= max(peak, float(f(low).abs()), float(f(high).abs())) + 1e-13
            short = float(sup(t - 1e-2, t - 5e-3))
            assert short <= max(float(f(t - 1e-2).abs()), float(f(t - 5e-3).abs())) + 1e-13


def test_the_slack_of_a_supremum_is_its_formula() -> None:
    for name in NAMES:
        phi = made(name)
        for low, high in ((-9.0, -8.0), (-0.1, 0.2), (0.0, 0.0)):
            z = torch.tensor([low, high], dtype=torch.float64)
            for f, sup, turns in (
                (phi.first, phi.sup_first, phi.turns_first),
                (phi.second, phi.sup_second, phi.turns_second),
            ):
                inside = torch.tensor([low, high, *(t for t in turns if low <= t <= high)], dtype=torch.float64)
                best = float(f(inside).abs().max())
                expected = best + ELEMENTARY_ULPS * 2**-52 * (1 + best)
                assert float(sup(z[:1], z[1:])) == pytest.approx(expected, rel=1e-15)
                assert float(sup(z[:1], z[1:])) - best >= 31 * 2**-52 * (1 + best)


def test_names() -> None:
    assert smooth_activation("relu") is None
    assert smooth_activation("softplus", 3.0) is not None
    assert made("softplus", 0.5).name == "softplus(0.5)"
    assert [made(n).name for n in NAMES[1:]] == NAMES[1:]
    assert math.isclose(made("tanh").turns_second[1], 0.6584789484624084)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("softplus", 0.3), ("softplus", 1.0), ("softplus", 7.0), ("tanh", 1.0), ("gelu", 1.0), ("silu", 1.0)],
)
def test_the_third_derivative_stays_below_its_bound(name: str, beta: float) -> None:
    """By differences of the second over a fine grid, within three percent where the bound is the supremum."""
    phi = smooth_activation(name, beta)
    assert phi is not None
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64) / beta
    slopes = (phi.second(z).diff() / z.diff()).abs()
    assert (0.59 if name == "silu" else 0.97) * phi.third <= float(slopes.max()) <= phi.third
