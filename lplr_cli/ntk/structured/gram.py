"""K from its factors: which are held together, which blocks of K they serve, and what has no rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import mirror
from lplr_cli.ntk import jacobian
from lplr_cli.ntk.network import Network
from lplr_cli.ntk.structured.accumulate import InputProducts, accumulate, tiles
from lplr_cli.ntk.structured.collect import FlowChangedError, collect, difference
from lplr_cli.ntk.structured.factors import Part
from lplr_cli.ntk.structured.plan import Plan, new_plan, plan_for
from lplr_cli.ntk.structured.rounding import Rounding

# Part of the budget for the graph of a chunk, and for products; the factors take a third. The allocator keeps some of
# what is freed, so the parts do not add up to the whole.
_SHARE = 8


@dataclass(frozen=True)
class Gram:
    """What :func:`gram` gives.

    Attributes:
        matrix: (rows, rows'), unnormalised.
        fallback: the parameters without a rule, whose Jacobian was used.
        rounding: what bounds the rounding of the matrix, where it was asked for.
    """

    matrix: Tensor
    fallback: tuple[str, ...]
    rounding: Rounding | None


def gram(
    network: Network,
    x: Tensor,
    other: Tensor | None,
    *,
    outputs: str | int = "full",
    budget: int = 1 << 30,
    reference: Network | None = None,
    plan: Plan | None = None,
    bound_rounding: bool = False,
    folder: Path | None = None,
    inputs: InputProducts | None = None,
) -> Gram:
    """J Jᵀ (or J(x) J(other)ᵀ, or (J - J_ref)(J - J_ref)ᵀ), unnormalised.

    Args:
        network: f and θ.
        x: inputs (n, …).
        other: further inputs, or None for the symmetric case.
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes for factors and work space, K itself not counted.
        reference: the network at another θ whose Jacobian is subtracted (symmetric case only).
        plan: from an earlier call with the same module, to save the check.
        bound_rounding: also take what bounds the rounding (symmetric case without ``reference`` only).
        folder: where the matrix lies in a file; in memory by default.
        inputs: products of ``x``, kept from one θ to the next.

    Raises:
        InputError: samples interact, outputs are not finite, or the forward pass is not the same for all samples.
    """
    now = plan or plan_for(network, x)
    task = _Task(network, x, other, outputs, budget, reference, now, bound_rounding, folder, inputs)
    try:
        return task.run()
    except FlowChangedError:
        # The plan was made at another θ: once more with one of this θ.
        return replace(task, plan=new_plan(network, x)).run()


@dataclass(frozen=True)
class _Task:
    """The arguments of :func:`gram`, and how the work is cut."""

    network: Network
    x: Tensor
    other: Tensor | None
    outputs: str | int
    budget: int
    reference: Network | None
    plan: Plan
    bound_rounding: bool
    folder: Path | None
    inputs: InputProducts | None

    @property
    def q(self) -> int:
        """Rows of K a sample has."""
        return self.plan.outputs if self.outputs == "full" else 1

    @property
    def right_inputs(self) -> Tensor:
        return self.x if self.other is None else self.other

    @property
    def copies(self) -> int:
        """Sets of factors held at the same time."""
        return (2 if self.reference is not None else 1) * (1 if self.other is None else 2)

    @cached_property
    def chunk(self) -> int:
        """Samples differentiated together."""
        return int(max(1, min(4096, self.budget // (_SHARE * self.plan.graph))))

    def run(self) -> Gram:
        kernel = self._zeros()
        rounding = Rounding() if self.bound_rounding else None
        for names in self._groups():
            self._add_group(kernel, names, rounding)
        if self.other is None:
            mirror(kernel)
        if self.plan.fallback:
            self._add_fallback(kernel, rounding)
        return Gram(kernel, tuple(self.plan.fallback), rounding)

    def _zeros(self) -> Tensor:
        rows, columns = len(self.x) * self.q, len(self.right_inputs) * self.q
        if self.folder is not None:
            return scratch.matrix_in_file(rows, self.network.dtype, self.folder)
        return torch.zeros((rows, columns), dtype=self.network.dtype, device=self.network.device)

    def _groups(self) -> Iterator[set[str]]:
        """Names whose factors are held together; a fresh pass serves each group."""
        samples = self.copies * max(len(self.x), len(self.right_inputs))
        group: set[str] = set()
        used = 0
        for name in self.plan.understood:
            size = self.plan.per_sample[name] * samples
            if group and used + size > self.budget // 3:
                yield group
                group, used = set(), 0
            group.add(name)
            used += size
        if group:
            yield group

    def _factors(self, inputs: Tensor, names: set[str]) -> list[Part]:
        now = collect(self.network, inputs, names, self.outputs, self.chunk, self.plan, self.bound_rounding)
        if self.reference is None:
            return now
        return difference(now, collect(self.reference, inputs, names, self.outputs, self.chunk, self.plan, False))

    def _add_group(self, kernel: Tensor, names: set[str], rounding: Rounding | None) -> None:
        """Block by block of K, the factors of two sets of samples at a time."""
        symmetric, q = self.other is None, self.q
        per_sample = max(1, sum(self.plan.per_sample[name] for name in names))
        step = int(max(1, self.budget // (3 * self.copies * per_sample)))
        for i in tiles(len(self.x), step):
            left = self._factors(self.x[i], names)
            for j in tiles(len(self.right_inputs), step):
                if symmetric and j.start < i.start:
                    continue
                diagonal = symmetric and i == j
                right = left if diagonal else self._factors(self.right_inputs[j], names)
                accumulate(
                    kernel[i.start * q : i.stop * q, j.start * q : j.stop * q],
                    left,
                    right,
                    symmetric=diagonal,
                    q=q,
                    budget=self.budget // _SHARE,
                    rounding=rounding if diagonal else None,
                    inputs=self.inputs,
                )
                del right
            del left

    def _add_fallback(self, kernel: Tensor, rounding: Rounding | None) -> None:
        """Parameters without a rule, by their Jacobian."""
        rest = _restricted(self.network, self.plan.fallback)
        if self.reference is not None:
            then = _restricted(self.reference, self.plan.fallback)
            kernel += jacobian.change_gram(rest, then, self.x, outputs=self.outputs, budget=self.budget)
            return
        addition = jacobian.gram(rest, self.x, self.other, outputs=self.outputs, budget=self.budget)
        if rounding is not None:
            rounding.add_jacobian(addition.diagonal(), rest.parameter_count)
        kernel += addition


def _restricted(network: Network, names: list[str]) -> Network:
    """The same network with only ``names`` differentiated."""
    params = {k: p for k, p in network.params.items() if k in names}
    rest = {k: p.detach() for k, p in network.params.items() if k not in names}
    return Network(network.module, params, {**network.fixed, **rest})


def trace(network: Network, x: Tensor, *, outputs: str | int = "full", budget: int = 1 << 30) -> float:
    """trace(J Jᵀ), unnormalised, without K: from its diagonal tiles."""
    plan = plan_for(network, x)
    rows = plan.outputs if outputs == "full" else 1
    # Tiles whose factors fit together, so that one pass serves each.
    factors = max(1, sum(plan.per_sample.values()))
    step = max(1, min(256 // rows, budget // (_SHARE * factors)))
    diagonals = (
        gram(network, x[i], None, outputs=outputs, budget=budget, plan=plan).matrix.diagonal()
        for i in tiles(len(x), step)
    )
    return math.fsum(float(diagonal.double().sum()) for diagonal in diagonals)
