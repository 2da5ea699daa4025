"""K in tiles, formed by tasks: the factors of a block of samples once, each tile from those of two blocks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lplr_cli.errors import InputError
from lplr_cli.linalg.cholesky import mirror
from lplr_cli.linalg.precision import full_precision
from lplr_cli.linalg.tasks import Tasks
from lplr_cli.linalg.tiled import TiledMatrix
from lplr_cli.ntk.network import Network
from lplr_cli.ntk.structured import Plan, Rounding
from lplr_cli.ntk.structured.accumulate import account, accumulate, tiles
from lplr_cli.ntk.structured.collect import collect
from lplr_cli.ntk.structured.factors import Part, Use

# Tiles a side at least, where they are not too small to be worth a task: there is work for many, and the least wait.
SIDE = 8
FEWEST_ROWS = 256
# Parts of a task's memory: tiles (a factorisation holds four, and their copies), factors (two blocks, and a copy of
# one on its way out), and an eighth each for the graph of a chunk and for products.
_TILE_COPIES, _TILE_SHARE, _FACTOR_COPIES, _FACTOR_SHARE, _SHARE = 5, 0.5, 3, 0.5, 8

Array = NDArray[np.floating]


@dataclass(frozen=True)
class FormedKernel:
    """K (N, N) in tiles, and the bound of its rounding where it was asked for, as in :class:`lplr_cli.ntk.Kernel`."""

    matrix: TiledMatrix
    formation_error: float | None


def tiled_kernel(
    network: Network,
    x: Tensor,
    plan: Plan,
    tasks: Tasks,
    outputs: str | int,
    budget: int,
    bound_rounding: bool,
    *,
    samples: int | None = None,
) -> FormedKernel:
    """K = J Jᵀ/n by tasks.

    Args:
        network: f and θ, on the CPU.
        x: inputs (n, …).
        plan: of the network, with a rule for every parameter.
        tasks: where they run.
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes of a task, its arguments and result included.
        bound_rounding: also bound the rounding.
        samples: of a block; by default as many as the budget allows, and few enough for some tiles a side.

    Raises:
        InputError: a block of one sample does not fit.
    """
    q = plan.outputs if outputs == "full" else 1
    blocks = tiles(len(x), samples or _block(plan, len(x), q, network.dtype, budget))
    model = tasks.share((network.module, _arrays(network.params), _arrays(network.fixed), network.dtype))
    rules = tasks.share(plan)
    factors = [
        tasks.submit(_factors, model, rules, x[rows].numpy(), outputs, budget, bound_rounding) for rows in blocks
    ]
    formed = {
        (i, j): tasks.submit(_tile, factors[i], factors[j], i == j, q, len(x), budget)
        for i in range(len(blocks))
        for j in range(i, len(blocks))
    }
    matrix = TiledMatrix(tasks, [slice(b.start * q, b.stop * q) for b in blocks], formed, network.dtype)
    if not bound_rounding:
        return FormedKernel(matrix, None)
    total = Rounding()
    for rounding in tasks.get([tasks.submit(_rounding, block) for block in factors]):
        total.join(rounding)
    return FormedKernel(matrix, total.formation_error(len(matrix), network.dtype, len(x)))


def _block(plan: Plan, count: int, q: int, dtype: torch.dtype, budget: int) -> int:
    """Samples of a block."""
    per_sample = max(1, sum(plan.per_sample.values()))
    entry, sample = _TILE_COPIES * dtype.itemsize / _TILE_SHARE, _FACTOR_COPIES * per_sample / _FACTOR_SHARE
    most = int(min((budget / entry) ** 0.5 / q, budget / sample)) if budget > 0 else 0
    least = max(entry * q * q, sample, _SHARE * plan.graph)
    if budget < least or most < 1:
        raise InputError(f"a task needs {(int(least) >> 20) + 1} MiB for a single sample", "give more --memory")
    return min(most, max(-(-count // SIDE), -(-FEWEST_ROWS // q)))


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: t.detach().numpy() for name, t in tensors.items()}


@dataclass(frozen=True)
class _Packed:
    """A part on its way: without the graph it came from."""

    use: Use
    a: Array | None
    b: Array
    is_summed: bool
    magnitude: Array | None


def _factors(
    model: tuple[nn.Module, dict[str, Array], dict[str, Array], torch.dtype],
    plan: Plan,
    x: Array,
    outputs: str | int,
    budget: int,
    measure: bool,
) -> list[_Packed]:
    """The factors of a block of samples."""
    module, params, fixed, dtype = model
    network = Network(
        module,
        {name: _tensor(a).requires_grad_() for name, a in params.items()},
        {name: _tensor(a) for name, a in fixed.items()},
    )
    assert network.dtype == dtype
    chunk = int(max(1, min(len(x), budget // (_SHARE * plan.graph))))
    parts = collect(network, _tensor(x), set(plan.understood), outputs, chunk, plan, measure)
    shared: dict[int, Array] = {}
    return [_packed(part, shared) for part in parts]


def _packed(part: Part, shared: dict[int, Array]) -> _Packed:
    """Parts that share what comes back go on sharing it."""
    nowhere = cast(GradientEdge, None)
    b = shared.setdefault(id(part.b), part.b.detach().numpy())
    a = None if part.a is None else part.a.numpy()
    magnitude = None if part.magnitude is None else part.magnitude.numpy()
    return _Packed(replace(part.use, a=None, edge=nowhere), a, b, part.is_summed, magnitude)


def _unpacked(block: list[_Packed]) -> list[Part]:
    shared: dict[int, Tensor] = {}
    parts = []
    for p in block:
        b = shared.setdefault(id(p.b), _tensor(p.b))
        a = None if p.a is None else _tensor(p.a)
        parts.append(Part(p.use, a, b, p.is_summed, None if p.magnitude is None else _tensor(p.magnitude)))
    return parts


def _tensor(a: Array) -> Tensor:
    """A tensor in the same memory, which nobody writes to: arrays of an object store say that they may not be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(a)


@full_precision()
def _tile(left: list[_Packed], right: list[_Packed], is_diagonal: bool, q: int, n: int, budget: int) -> Array:
    """Rows of one block, columns of another."""
    rows = _unpacked(left)
    columns = rows if is_diagonal else _unpacked(right)
    tile = torch.zeros((len(rows[0].b) * q, len(columns[0].b) * q), dtype=rows[0].b.dtype)
    accumulate(tile, rows, columns, symmetric=is_diagonal, q=q, budget=budget // _SHARE)
    if is_diagonal:
        mirror(tile)
    tile /= n
    # The BLAS wants columns one after another; a symmetric tile has them.
    return tile.numpy().T if is_diagonal else np.asfortranarray(tile.numpy())


def _rounding(block: list[_Packed]) -> Rounding:
    """What bounds the rounding of the rows of a block."""
    parts, rounding = _unpacked(block), Rounding()
    account(rounding, parts)
    return rounding
