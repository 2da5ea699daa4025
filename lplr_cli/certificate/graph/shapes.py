"""Changes of shape on the way through a network: nothing of what they do is more than a choice of entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lplr_cli.certificate.graph.builder import Builder, Place, refuse


class Samples(int):
    """The number of samples, where a forward pass asks for it."""


def flatten(build: Builder, x: Place, start_dim: int = 0, end_dim: int = -1) -> Place:
    return reshaped(build, x, lambda t: t.flatten(start_dim, end_dim))


def reshape(build: Builder, x: Place, *shape: Any) -> Place:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return reshaped(build, x, lambda t: t.reshape(*(int(s) for s in sizes)))


def reshaped(build: Builder, x: Place, apply: Callable[[Tensor], Tensor]) -> Place:
    """By what it makes of the probe: as numbers keep their order, every sample keeps its own."""
    try:
        found = apply(torch.zeros(x.shape)).shape
    except (RuntimeError, IndexError) as error:
        raise refuse("a change of shape that does not fit") from error
    if not len(found) or found[0] != x.shape[0]:
        raise refuse("a change of shape that mixes samples")
    return build.average(x, "reshape", lambda t: t.reshape(len(t), *found[1:]), 1)


def part_of(build: Builder, x: Place, dim: int, start: int, stop: int) -> Place:
    dim = dim % len(x.shape)
    if dim == 0:
        raise refuse("a part of the samples")
    return build.average(x, "part", lambda t: t.narrow(dim, start, stop - start), 1)


def chunks_of(build: Builder, x: Place, chunks: int, dim: int = 0) -> tuple[Place, ...]:
    size = -(-x.shape[dim] // chunks)
    return split(build, x, size, dim)


def split(build: Builder, x: Place, size: Any, dim: int = 0) -> tuple[Place, ...]:
    whole = x.shape[dim]
    if not isinstance(size, int) or size <= 0:
        raise refuse("a split into parts of different sizes")
    return tuple(part_of(build, x, dim, i, min(i + size, whole)) for i in range(0, whole, size))


def transpose(build: Builder, x: Place, one: int, two: int) -> Place:
    dims = list(range(len(x.shape)))
    one, two = one % len(dims), two % len(dims)
    dims[one], dims[two] = dims[two], dims[one]
    return permute(build, x, dims)


def permute(build: Builder, x: Place, *dims: Any) -> Place:
    order = [int(d) % len(x.shape) for d in (dims[0] if isinstance(dims[0], (tuple, list)) else dims)]
    if order[0] != 0:
        raise refuse("a permutation that moves the samples")
    return build.average(x, "permute", lambda t: t.permute(*order), 1)


def size_of(build: Builder, x: Place, dim: int | None = None) -> Any:
    sizes = (Samples(x.shape[0]), *x.shape[1:])
    return sizes if dim is None else sizes[dim]
