"""Bounds shared by many samples against the dense matrices of each of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lplr_cli.certificate import shared
from lplr_cli.certificate.shared import (
    Chain,
    LayerAt,
    Product,
    group_count,
    lengthened,
    norms_of,
    shared_curvature,
    similar,
)


def layers(widths: list[int], n: int, outputs: int, spread: float, seed: int) -> list[LayerAt]:
    """Hidden layers with random weights and slopes, of both signs when the spread is large."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    found = []
    for below, m in zip([3, *widths], widths, strict=False):
        centre = 0.5 + 0.3 * draw(m)
        found.append(
            LayerAt(draw(m, below), centre + spread * draw(n, m), draw(n).square() + 0.1, draw(n, outputs, m).abs())
        )
    return found


def dense(found: list[LayerAt], sample: int) -> list[Tensor]:
    """G_l of one sample by its recursion, from other code than that of the package."""
    grams: list[Tensor] = []
    for level, layer in enumerate(found):
        g = layer.own[sample] * torch.eye(len(layer.weight), dtype=torch.float64)
        if level:
            m = layer.weight @ torch.diag(found[level - 1].slope[sample])
            g = g + m @ grams[-1] @ m.T
        grams.append(g)
    return grams


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1])


def planted(matrix: Tensor, away: Tensor) -> Chain:
    """A chain from the lowest block, of these products, one a group."""
    middle = Product.of(matrix)
    return Chain(0, middle, norms_of([(middle.gram, middle.error)])[0], away)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    outputs=st.integers(1, 3),
    spread=st.sampled_from([0.0, 0.01, 0.2, 3.0]),
    count=st.integers(1, 6),
    sizes=st.tuples(st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([1e-4, 1.0, 1e4])),
    seed=st.integers(0, 10_000),
)
def test_no_sample_exceeds_the_bounds(
    widths: list[int], outputs: int, spread: float, count: int, sizes: tuple[float, float], seed: int
) -> None:
    n = 6
    heavy, bent = sizes
    found = [
        replace(layer, weight=heavy * layer.weight, bend=bent * layer.bend)
        for layer in layers(widths, n, outputs, spread, seed)
    ]
    groups = similar([layer.slope for layer in found], count)
    assert set(groups.tolist()) == set(range(int(groups.max()) + 1))
    bounds = shared_curvature(found, groups)
    for sample in range(n):
        for layer, (dz, da, weighted), g in zip(found, bounds, dense(found, sample), strict=True):
            d = torch.diag(layer.slope[sample])
            # The margin is the caller's, who adds a larger one.
            assert norm(g) <= float(dz[sample]) ** 2 * (1 + 1e-12)
            assert norm(d @ g @ d) <= float(da[sample]) ** 2 * (1 + 1e-12)
            for c in range(outputs):
                root = torch.diag(layer.bend[sample, c].sqrt())
                assert norm(root @ g @ root) <= float(weighted[sample, c]) * (1 + 1e-12)


def test_errors_of_chains_enter_by_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding of visible size, and none of it is lost."""
    monkeypatch.setattr(shared, "gamma", lambda n, dtype: 0.1 * n)
    g = torch.Generator().manual_seed(5)
    matrix = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    product = Product.of(matrix)
    torch.testing.assert_close(product.error, 1.01 * 0.1 * 12 * matrix.square().sum(dim=(1, 2)), rtol=1e-12, atol=0)
    scale = torch.tensor([[0.5, 2.0, 1.0], [3.0, 0.1, 4.0]], dtype=torch.float64)
    gram, error = product.scaled(scale)
    d = torch.diag_embed(scale)
    torch.testing.assert_close(gram, d @ matrix @ matrix.mT @ d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(error, product.error * torch.tensor([4.0, 16.0]).double(), rtol=1e-12, atol=0)
    # One layer more, of equal slopes: what is away is the rounding of the product, and what was away before.
    below, layer = layers([3, 5], 4, 1, 0.0, 6)
    groups = torch.zeros(4, dtype=torch.long)
    for before in (0.0, 2.0):
        first = planted(matrix[:1], torch.tensor([before], dtype=torch.float64))
        longer, fresh = lengthened([first], 2, below, layer, groups, 1)
        step = layer.weight * below.slope[0]
        size = float(torch.linalg.matrix_norm(step))
        rounding = 1.01 * 0.1 * (3 + 4) * size * float(torch.linalg.matrix_norm(matrix[0]))
        assert float(longer.away) >= rounding + before * float(fresh.norm)
        assert float(longer.away) == pytest.approx(rounding + before * float(fresh.norm), rel=1e-6)
        assert float(fresh.away) >= 2.0**-51 * size


def test_what_is_far_from_the_middle_enters_by_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are planted: no bound below its formula, and none above it by more than the proof of a norm."""
    below, layer = (replace(one, slope=1.7 * one.slope) for one in layers([3, 4], 5, 2, 0.8, 9))
    groups, away = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0.3, 2.0], dtype=torch.float64)
    matrix = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    monkeypatch.setattr(shared, "lengthened", lambda *_: [planted(matrix, away)])
    dz, da, weighted = shared_curvature([below, layer], groups)[1]
    for i, k in enumerate(groups.tolist()):
        mine, theirs = layer.slope[i].abs(), layer.slope[groups == k].abs().amax(dim=0)
        own, block, steepest = float(layer.own[i]), float(below.own[i]), float(mine.max())
        size = [norm(d @ matrix[k] @ matrix[k].T @ d) ** 0.5 for d in (torch.eye(4).double(), torch.diag(theirs))]
        first = own + block * (size[0] + float(away[k])) ** 2
        second = min(own * steepest**2 + block * (size[1] + steepest * float(away[k])) ** 2, steepest**2 * first)
        assert first <= float(dz[i]) ** 2 <= 1.05 * first
        assert second <= float(da[i]) ** 2 <= 1.05 * second
        for c in range(2):
            bend, widest = layer.bend[i, c], layer.bend[groups == k, c].amax(dim=0)
            root, most = torch.diag(widest.sqrt()), float(bend.max())
            near = (float((bend / widest).max()) * norm(root @ matrix[k] @ matrix[k].T @ root)) ** 0.5
            third = own * most + block * (near + most**0.5 * float(away[k])) ** 2
            assert third <= float(weighted[i, c]) <= 1.05 * third


def test_what_slopes_that_differ_move_enters_by_its_formula() -> None:
    """||W √r|| ||√r P||, r half the range of the slopes of a group, beside what was away before."""
    below, layer = layers([3, 5], 6, 1, 0.8, 6)
    groups, before = torch.zeros(6, dtype=torch.long), 0.4
    matrix = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    kept = planted(matrix, torch.tensor([before], dtype=torch.float64))
    longer, fresh = lengthened([kept], 2, below, layer, groups, 1)
    root = torch.diag(((below.slope.amax(dim=0) - below.slope.amin(dim=0)) / 2).sqrt())
    spread, reach = layer.weight @ root, root @ matrix[0]
    least = float(torch.linalg.matrix_norm(fresh.middle.matrix[0], 2)) * before
    least += float(torch.linalg.matrix_norm(spread, 2) * torch.linalg.matrix_norm(reach, 2))
    assert least <= float(longer.away) <= 1.05 * least


@pytest.mark.parametrize("widths", [[3, 5, 4], [4, 4, 4]])
@pytest.mark.parametrize("together", [1, 1 << 19])
def test_every_chain_knows_its_own_norm(widths: list[int], together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers of the same width, and of others: each norm stands beside the product that it bounds."""
    monkeypatch.setattr(shared, "TOGETHER", together)
    found, groups = layers(widths, 6, 1, 0.5, 11), torch.tensor([0, 1, 1, 0, 1, 0])
    chains: list[Chain] = []
    for level in range(1, len(found)):
        chains = lengthened(chains, level, found[level - 1], found[level], groups, 2)
        assert [chain.source for chain in chains] == list(range(level))
        for chain in chains:
            exact = torch.linalg.matrix_norm(chain.middle.matrix, 2)
            assert bool((exact <= chain.norm).all())
            assert bool((chain.norm <= 1.04 * exact).all())


def test_equal_samples_share_nearly_exact_bounds() -> None:
    """Without spread what is left is the norm of a sum against the sum of norms, and two per cent of the proof."""
    found = layers([20, 20, 20], 8, 1, 0.0, 0)
    bounds = shared_curvature(found, torch.zeros(8, dtype=torch.long))
    for (dz, _, _), g in zip(bounds, dense(found, 3), strict=True):
        assert float(dz[3]) <= 1.15 * norm(g) ** 0.5


def test_closer_groups_make_tighter_bounds() -> None:
    found = layers([16, 16, 16], 48, 1, 0.15, 1)
    sizes = []
    for count in (1, 6, 48):
        groups = similar([layer.slope for layer in found], count)
        sizes.append(float(shared_curvature(found, groups)[-1][0].mean()))
    assert sizes == sorted(sizes, reverse=True)
    exact = sum(norm(dense(found, i)[-1]) ** 0.5 for i in range(48)) / 48
    assert exact < sizes[-1] < 1.5 * exact
    assert sizes[0] > 1.2 * sizes[-1]


@pytest.mark.parametrize(("samples", "expected"), [(4, 1), (40, 5), (4000, 12)])
def test_groups_are_few(samples: int, expected: int) -> None:
    assert group_count(samples, [32, 32, 32], 1e12) == expected
    assert group_count(samples, [32, 32, 32], 1.0) == 1


def test_groups_without_curvature_have_none() -> None:
    """Weights that are all zero, of one output or of all samples of a group, are bounded by zero and no chance."""
    found = layers([4, 5], 6, 2, 0.1, 3)
    flat = [replace(layer, bend=layer.bend * torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]) for layer in found]
    for (_, _, weighted), (_, _, before) in zip(
        shared_curvature(flat, torch.tensor([0, 0, 1, 1, 1, 0])),
        shared_curvature(found, torch.tensor([0, 0, 1, 1, 1, 0])),
        strict=True,
    ):
        assert bool((weighted[:, 0] <= 1e-140).all())
        assert torch.equal(weighted[:, 1], before[:, 1])


def test_norms_are_outward_of_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many go together: the root of eigenvalue and error, above its rounding and hardly more."""
    monkeypatch.setattr(shared, "largest_eigenvalue_upper", lambda g: g.diagonal(dim1=1, dim2=2).amax(dim=1))
    generator = torch.Generator().manual_seed(4)
    values = torch.rand((7, 2, 3), generator=generator, dtype=torch.float64)
    errors = torch.rand((7, 2), generator=generator, dtype=torch.float64)
    for together in (1, 20, 1 << 19):
        monkeypatch.setattr(shared, "TOGETHER", together)
        found = norms_of((torch.diag_embed(v), e) for v, e in zip(values, errors, strict=True))
        assert len(found) == 7
        for norm, v, e in zip(found, values, errors, strict=True):
            for bound, top, error in zip(norm.tolist(), v.amax(dim=1).tolist(), e.tolist(), strict=True):
                least = (Fraction(top) + Fraction(error)) * (1 + Fraction(1, 10**12))
                assert least < Fraction(bound) ** 2 < least * (1 + Fraction(2, 10**12))
    # Sizes that change between: each in its place.
    mixed = [(torch.diag_embed(torch.full((1, size), float(size)).double()), errors[0, :1]) for size in (2, 3, 3, 2, 1)]
    plain = [float(found[0]) for found in map(norms_of, ([pair] for pair in mixed))]
    assert [float(found) for found in norms_of(mixed)] == plain
    assert plain[0] < plain[1] == plain[2]
    assert plain[4] < plain[3] == plain[0]
