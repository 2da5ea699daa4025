"""∇²f at θ_0 on the directions that are pushed through a graph, as it is (docs/theory.md, section 10).

What the operations add to a block of ∇²f is summed before its norm is taken: they cancel in part, and what one layer
moves is seldom what another one weighs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lplr_cli.certificate.graph.nodes import Node
from lplr_cli.certificate.graph.state import up
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.norms import operator_norms
from lplr_cli.linalg import gamma

Given = Sequence[Mapping[int, Tensor]]


class Core:
    """Blocks of ∇²f_c of some samples, summed up operation by operation.

    Args:
        samples, outputs, blocks: n, C and K.
        terms: operations.
    """

    def __init__(self, samples: int, outputs: int, blocks: int, terms: int) -> None:
        shape = (samples, outputs, blocks, blocks)
        self._sums: dict[tuple[int, int, int], Tensor] = {}
        self._cross = torch.zeros(shape, dtype=torch.float64)
        self._rounding = torch.zeros(shape, dtype=torch.float64)
        self._terms = terms

    def add(self, node: Node, adjoint: Tensor, given: Given, below: Sequence[Tensor]) -> None:
        """What one operation adds.

        Args:
            node: the operation.
            adjoint: λ̂ of its output, (n, C, …).
            given: the tangents of each input by block, (n, D, …).
            below: its inputs.
        """
        if isinstance(node, Weighted):
            self._add_layer(node, adjoint, given[0])
            return
        present = sorted(set().union(*given))
        if not present:
            return
        sizes = [next(g[p] for g in given if p in g).shape[1] for p in present]
        tangents = tuple(
            torch.cat([_or_zeros(g, p, d, t) for p, d in zip(present, sizes, strict=True)], dim=1)
            for g, t in zip(given, below, strict=True)
        )
        for c in range(adjoint.shape[1]):
            images = node.bent(adjoint[:, c : c + 1], tangents, tuple(below))
            for x, image in zip(tangents, images, strict=False):
                self._add_product(c, present, sizes, x.flatten(2), image[:, 0].flatten(2))

    def _add_product(self, c: int, present: list[int], sizes: list[int], x: Tensor, image: Tensor) -> None:
        """X̂ᵀ (N̂ X̂) of one output, block by block; both (n, D, m)."""
        grown = gamma(x.shape[2] + 2 * self._terms + 16, torch.float64)
        rows, columns = torch.split(x, sizes, dim=1), torch.split(image, sizes, dim=1)
        lengths = [_norm(t) for t in rows], [_norm(t) for t in columns]
        for i, p in enumerate(present):
            for j, q in enumerate(present):
                self._rounding[:, c, p, q] += grown * lengths[0][i] * lengths[1][j]
                # The sum of all operations is symmetric.
                if i <= j:
                    part = rows[i] @ columns[j].mT
                    before = self._sums.get((c, p, q))
                    self._sums[c, p, q] = part if before is None else before + part

    def _add_layer(self, node: Weighted, adjoint: Tensor, tangents: Mapping[int, Tensor]) -> None:
        """λ̂ X̂ᵀ of what its weights meet."""
        own = node.block
        if own is None or not node.weight_trained:
            return
        for q, x in tangents.items():
            met = node.met(adjoint, x)
            found = up(operator_norms(met.flatten(0, 1)).reshape(met.shape[:2]))
            self._cross[:, :, own, q] += found
            self._cross[:, :, q, own] += found

    def norms(self) -> Tensor:
        """≥ the norm of each block, (n, C, K, K)."""
        found = self._cross + torch.maximum(self._rounding, self._rounding.mT)
        for (c, p, q), block in self._sums.items():
            norm = operator_norms(block)
            found[:, c, p, q] += norm
            if p != q:
                found[:, c, q, p] += norm
        return up(found)


def _or_zeros(given: Mapping[int, Tensor], block: int, count: int, like: Tensor) -> Tensor:
    return given[block] if block in given else like.new_zeros((len(like), count, *like.shape[1:]))


def _norm(t: Tensor) -> Tensor:
    found: Tensor = up(torch.linalg.vector_norm(t.flatten(1), dim=1))
    return found
