"""Curvature bounds of many samples at the price of a few (docs/theory.md, section 5, "Shared norms").

Samples with similar slopes form a group. Products of layers are formed once a group, around the middle of its slopes,
and how far a sample can be from them is bounded by half the range of the slopes, unit by unit. Nothing here costs m³
operations a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from lplr_cli.certificate.norms import largest_eigenvalue_upper
from lplr_cli.linalg import gamma

MAX_GROUPS = 12
# Steps of Lloyd's algorithm: better groups make better bounds, and any groups make valid ones.
_LLOYD_STEPS = 8
# Numbers of Gram matrices whose norms are bounded together, at most, where one alone has fewer.
TOGETHER = 1 << 19
# Outward, above the rounding of the few operations that make a middle and half a range.
_OUTWARD = 1 + 1e-12


@dataclass(frozen=True)
class LayerAt:
    """A hidden layer at θ_0.

    Attributes:
        weight: c W, (m, k).
        slope: φ'(ẑ), (n, m).
        own: squared norm of the block of Dz that belongs to the layer itself, (n,).
        bend: |ê φ''(ẑ)|, (n, C, m).
    """

    weight: Tensor
    slope: Tensor
    own: Tensor
    bend: Tensor


@dataclass(frozen=True)
class Product:
    """A matrix of each group, which only its Gram matrix is asked about.

    Attributes:
        matrix: (g, m, k).
        gram: matrix · matrixᵀ, (g, m, m).
        error: norm of what the floating-point gram may lack, (g,).
    """

    matrix: Tensor
    gram: Tensor
    error: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Product:
        """With the Gram matrix of ``matrix`` and the bound of its rounding."""
        size = matrix.square().sum(dim=(1, 2))
        error = 1.01 * gamma(matrix.shape[2] + 8, matrix.dtype) * size
        return cls(matrix, matrix @ matrix.mT, error)

    def scaled(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Gram matrix, and the bound of its rounding, of diag(scale) · matrix, scale (g, m) and not negative."""
        gram = (self.gram * scale[:, :, None]).mul_(scale[:, None, :])
        return gram, self.error * scale.amax(dim=1).square()


@dataclass(frozen=True)
class Chain:
    """P_{l,p} of a group: the product of the layers between the blocks of layer p and the units of layer l.

    Attributes:
        source: p.
        middle: P with the middle slopes of its group.
        norm: ≥ ||middle||, (g,).
        away: distance of any sample's P from ``middle`` in operator norm, (g,).
    """

    source: int
    middle: Product
    norm: Tensor
    away: Tensor


def norms_of(matrices: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Upper bounds of norms (g,) from Gram matrices (g, m, m) and the bounds of their rounding.

    Small ones of one m go together: what a call costs is then most of it. Large ones are made one after another.
    """
    found: list[Tensor] = []
    for _, alike in groupby(matrices, key=lambda pair: pair[0].shape[1]):
        found += _norms_alike(alike)
    return found


def _norms_alike(rest: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
    found: list[Tensor] = []
    for first in rest:
        part = [first, *islice(rest, max(1, TOGETHER // first[0].numel()) - 1)]
        top = largest_eigenvalue_upper(torch.cat([gram for gram, _ in part]) if len(part) > 1 else first[0])
        parts = torch.split(top, [len(gram) for gram, _ in part])
        found += [torch.sqrt(t + error) * _OUTWARD for t, (_, error) in zip(parts, part, strict=True)]
    return found


def group_count(samples: int, widths: Sequence[int], operations: float) -> int:
    """Groups whose products take about ``operations`` floating-point operations, at most one for eight samples."""
    hidden = len(widths)
    dearest = 7.0 * sum((level + 1) * float(m) ** 3 for level, m in enumerate(widths[1:]))
    largest = max(widths) ** 2 * max(1, hidden)
    possible = min(MAX_GROUPS, max(1, samples // 8), max(1, int(6e7 / largest)))
    return max(1, min(possible, int(operations / max(1.0, dearest))))


def similar(slopes: Sequence[Tensor], count: int) -> Tensor:
    """A group for each sample, (n,), by Lloyd's algorithm on all its slopes from starts far apart."""
    features = torch.cat(list(slopes), dim=1)
    n = len(features)
    if count == 1:
        return torch.zeros(n, dtype=torch.long)
    chosen = [0]
    distance = (features - features[0]).square().sum(dim=1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(dim=1))
    centres = features[chosen]
    label = _nearest(features, centres)
    for _ in range(_LLOYD_STEPS):
        sums = torch.zeros_like(centres).index_add_(0, label, features)
        sizes = torch.bincount(label, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
        label = _nearest(features, centres)
    numbered: Tensor = torch.unique(label, return_inverse=True)[1]
    return numbered


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """The centre of each sample, (n,), from products: torch takes differences one by one for a few centres."""
    found: Tensor = (centres.square().sum(dim=1) - 2 * features @ centres.T).argmin(dim=1)
    return found


def shared_curvature(layers: Sequence[LayerAt], groups: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each hidden layer upper bounds of ||Dz_l|| (n,), ||Da_l|| (n,) and λ_max(√w G_l √w) (n, C), w the bend.

    Args:
        layers: the hidden layers at θ_0, from below.
        groups: of each sample, (n,), from 0 without gaps.
    """
    count = int(groups.max()) + 1
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    chains: list[Chain] = []
    for level, layer in enumerate(layers):
        if level:
            chains = lengthened(chains, level, layers[level - 1], layer, groups, count)
        slope = layer.slope.abs()
        steepest = slope.amax(dim=1)
        top, widest = _group_max(slope, groups, count), _group_max(layer.bend, groups, count)
        # Each sample's weights relative to the largest of its group: at most 1, and less where the whole is smaller.
        tiny = torch.finfo(slope.dtype).tiny
        share = (layer.bend.clamp_min(tiny) / widest[groups].clamp_min(tiny)).amax(dim=2)
        dz, da = layer.own.clone(), layer.own * steepest.square()
        weighted = layer.own[:, None] * layer.bend.amax(dim=2)
        product: Tensor | None = None
        scales = [top, *(widest[:, c].sqrt() for c in range(widest.shape[1]))]
        every = norms_of(pair for chain in chains for pair in map(chain.middle.scaled, scales))
        for at, chain in enumerate(chains):
            steep, *bent = every[at * len(scales) : (at + 1) * len(scales)]
            block = layers[chain.source].own
            reach = (chain.norm + chain.away)[groups]
            if chain.source == level - 1:
                # One layer at a time: the better bound where the slopes of a group differ much.
                product = layer.own + (reach * found[-1][0]).square()
            dz += block * reach.square()
            da += block * (steep[groups] + steepest * chain.away[groups]).square()
            for c in range(widest.shape[1]):
                near = share[:, c].sqrt() * bent[c][groups]
                far = layer.bend[:, c].amax(dim=1).sqrt() * chain.away[groups]
                weighted[:, c] += block * (near + far).square()
        dz = (dz if product is None else torch.minimum(dz, product)).sqrt()
        found.append((dz, torch.minimum(da.sqrt(), steepest * dz), weighted))
    return found


def lengthened(
    chains: list[Chain], level: int, below: LayerAt, layer: LayerAt, groups: Tensor, count: int
) -> list[Chain]:
    """The chains up to the next layer: P_{l,p} = c W D P_{l-1,p}, and the new one that begins below it.

    In the new one D enters as D² between W and Wᵀ, where the largest slopes of the group bound it. In the others
    D = middle + Δ with |Δ| ≤ half the range r, and ||W Δ P|| ≤ ||W √r|| ||√r P||.
    """
    w = layer.weight
    steep = _group_max(below.slope.abs(), groups, count)
    high = _group_max(below.slope, groups, count)
    low = -_group_max(-below.slope, groups, count)
    middle = (high + low) / 2
    half = torch.maximum(high - middle, middle - low) * _OUTWARD + torch.finfo(w.dtype).tiny
    steepened = w * steep[:, None]
    # c W and its product with the slopes are rounded entry by entry.
    fresh, rounded = Product.of(steepened), 2 * torch.finfo(w.dtype).eps * torch.linalg.matrix_norm(steepened)
    step, root = w * middle[:, None], half.sqrt()
    longer = [Product.of(step @ chain.middle.matrix) for chain in chains]

    def wanted() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((product.gram, product.error) for product in (fresh, *longer))
        if chains:
            ranged = Product.of(w * root[:, None])
            yield ranged.gram, ranged.error
        yield from (chain.middle.scaled(root) for chain in chains)

    own, *norms = norms_of(wanted())
    k = len(chains)
    plain, spread, reaches = norms[:k], norms[k : k + 1] * k, norms[k + 1 :]
    grown = 1.01 * gamma(w.shape[1] + 4, w.dtype) * torch.linalg.matrix_norm(step)
    found = []
    for chain, product, norm, wide, reach in zip(chains, longer, plain, spread, reaches, strict=True):
        rounding = grown * torch.linalg.matrix_norm(chain.middle.matrix)
        away = (own + rounded) * chain.away + wide * reach + rounding
        found.append(Chain(chain.source, product, norm, away * _OUTWARD))
    return [*found, Chain(level - 1, fresh, own, rounded)]


def _group_max(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """The largest value in each group, (n, …) → (g, …)."""
    index = groups.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    start = values.new_full((count, *values.shape[1:]), -torch.inf)
    return start.scatter_reduce(0, index, values, "amax")
