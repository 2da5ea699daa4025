"""The Jacobian engine: torch.func's vmap(jacrev), over blocks of parameters and chunks of samples.

It asks nothing of the model but that torch.func can differentiate it, and never holds more than one block of
J (N × P_block), so memory is bounded whatever P is. K = Σ_blocks J_block J_blockᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lplr_cli.ntk.network import Network, evaluation_mode


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` of the parameter ``name`` seen as a matrix of rows along its first axis."""

    name: str
    start: int
    stop: int


def parameter_blocks(network: Network, rows: int, budget: int) -> Iterator[list[Block]]:
    """Groups of parameter slices, each group's Jacobian of ``rows`` rows fitting into ``budget`` bytes.

    Whole parameters are grouped where they fit; one that does not is cut along its first axis, down to single
    slices, below which the Jacobian is not divided further.
    """
    itemsize = network.dtype.itemsize
    limit = max(1, budget // (rows * itemsize))
    group: list[Block] = []
    used = 0
    for name, parameter in network.params.items():
        if parameter.numel() == 0:
            continue
        first = parameter.shape[0] if parameter.dim() else 1
        per_slice = parameter.numel() // first
        step = max(1, limit // per_slice)
        for start in range(0, first, step):
            block = Block(name, start, min(first, start + step))
            size = (block.stop - block.start) * per_slice
            if group and used + size > limit:
                yield group
                group, used = [], 0
            group.append(block)
            used += size
    if group:
        yield group


def jacobian_block(network: Network, x: Tensor, group: list[Block], *, chunk: int) -> Tensor:
    """∂f/∂θ_block for every sample and output, shape (n, C, P_block), unnormalised; ``chunk`` samples at a time."""
    slices = [_slice(network.params[b.name].detach(), b) for b in group]

    def single(parts: list[Tensor], sample: Tensor) -> Tensor:
        replace: dict[str, Tensor] = {}
        for block, part in zip(group, parts, strict=True):
            whole = replace.get(block.name, network.params[block.name].detach())
            replace[block.name] = _patched(whole, block, part)
        return network.forward(sample.unsqueeze(0), replace).squeeze(0)

    rows: Tensor | None = None
    # Without the outer graph that the parameters of other blocks would drag along; jacrev keeps its own.
    with torch.no_grad(), evaluation_mode(network.module):
        for start in range(0, len(x), chunk):
            pieces = vmap(jacrev(single), in_dims=(None, 0))(slices, x[start : start + chunk])
            if rows is None:
                shape = (len(x), pieces[0].shape[1], sum(s.numel() for s in slices))
                rows = torch.empty(shape, dtype=network.dtype, device=network.device)
            first = 0
            # Into place at once: rows of a parameter are views that would keep the gradient of the whole alive.
            for piece in pieces:
                flat = piece.flatten(2)
                rows[start : start + chunk, :, first : first + flat.shape[2]] = flat
                first += flat.shape[2]
    assert rows is not None  # there is at least one sample
    return rows


def _slice(parameter: Tensor, block: Block) -> Tensor:
    return parameter[block.start : block.stop] if parameter.dim() else parameter


def _patched(whole: Tensor, block: Block, part: Tensor) -> Tensor:
    if not whole.dim() or part.shape[0] == whole.shape[0]:
        return part
    return torch.cat([whole[: block.start], part, whole[block.stop :]])


def _select(jacobian: Tensor, outputs: str | int) -> Tensor:
    """Rows of J for the asked block option: (rows, columns) whose Gram matrix is the kernel."""
    n = jacobian.shape[0]
    if outputs == "full":
        return jacobian.flatten(0, 1)
    if outputs == "trace":
        return jacobian.reshape(n, -1)
    return jacobian[:, int(outputs)]


def _chunk(network: Network, x: Tensor, budget: int) -> int:
    """Samples differentiated together: their rows of J take an eighth of the budget at most."""
    with torch.no_grad():
        outputs = network.forward(x[:1]).shape[1]
    per_sample = outputs * network.parameter_count * network.dtype.itemsize
    return int(min(256, max(1, budget // (8 * max(1, per_sample)))))


def gram(
    network: Network, x: Tensor, other: Tensor | None, *, outputs: str | int = "full", budget: int = 1 << 30
) -> Tensor:
    """J Jᵀ (or J(x) J(other)ᵀ), unnormalised, shape (rows, rows').

    Args:
        network: f and θ.
        x: inputs (n, …).
        other: further inputs (n', …), or None for the symmetric case.
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes of work space, of which a block of J takes a third.
    """
    with torch.no_grad(), evaluation_mode(network.module):
        per_sample = network.forward(x[:1]).shape[1]
    samples = len(x) + (len(other) if other is not None else 0)
    chunk = _chunk(network, x, budget)
    kernel: Tensor | None = None
    for group in parameter_blocks(network, samples * per_sample, budget // 3):
        left = _select(jacobian_block(network, x, group, chunk=chunk), outputs)
        right = left if other is None else _select(jacobian_block(network, other, group, chunk=chunk), outputs)
        if kernel is None:
            kernel = left @ right.T
        else:
            kernel.addmm_(left, right.T)
        del left, right
    assert kernel is not None  # Network refuses an empty θ
    return kernel


def change_gram(
    network: Network, reference: Network, x: Tensor, *, outputs: str | int = "full", budget: int = 1 << 30
) -> Tensor:
    """(J − J_ref)(J − J_ref)ᵀ, unnormalised: the difference is taken before squaring, so nothing cancels."""
    with torch.no_grad(), evaluation_mode(network.module):
        per_sample = network.forward(x[:1]).shape[1]
    chunk = _chunk(network, x, budget)
    kernel: Tensor | None = None
    for group in parameter_blocks(network, 2 * len(x) * per_sample, budget // 3):
        difference = jacobian_block(network, x, group, chunk=chunk)
        difference -= jacobian_block(reference, x, group, chunk=chunk)
        rows = _select(difference, outputs)
        kernel = rows @ rows.T if kernel is None else kernel.addmm_(rows, rows.T)
        del difference, rows
    assert kernel is not None
    return kernel


def least_memory(network: Network, rows: int) -> int:
    """Bytes below which :func:`gram` cannot go: the smallest block of J and the differentiation of one sample."""
    largest = max(p.numel() // max(1, p.shape[0] if p.dim() else 1) for p in network.params.values())
    return 8 * network.dtype.itemsize * (rows * largest + network.parameter_count)
