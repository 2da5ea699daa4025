"""Constants, and layers that look rows of a table up (docs/theory.md, section 10).

A learnt tensor that is added, say of positions, is a scale of ones (:class:`lplr_cli.certificate.graph.norms.Scaled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.certificate.graph.nodes import Form, Node, Values
from lplr_cli.certificate.graph.state import Ahead, Behind, Here, Tangent, up, up_float
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.norms import frobenius_upper
from lplr_cli.linalg import gamma


@dataclass(frozen=True)
class Constant(Node):
    """The same tensor for every sample.

    Attributes:
        tensor: it, without samples.
    """

    tensor: Tensor

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return self.tensor.expand(len(below[0]), *self.tensor.shape)

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """It depends on nothing."""
        x, none = below[0], torch.zeros_like(below[0].blocks)
        size = torch.full_like(x.size, frobenius_upper(self.tensor.double()))
        return Ahead(up(size), torch.zeros_like(size), none, none, torch.zeros_like(size), none)

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """Nothing goes to the input."""
        return ((torch.zeros_like(above.size), torch.zeros_like(above.blocks)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Nothing goes to the input."""
        return (torch.zeros_like(error),)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """There is no tangent of the input."""
        raise AssertionError("tangents of a constant")

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """There is no tangent of the input."""
        raise AssertionError("tangents of a constant")


@dataclass(frozen=True)
class Embedding(Weighted):
    """Rows of a table at the whole numbers of the input: z = Wᵀ A with columns of A that are unit vectors.

    Attributes:
        rows: of the table.
    """

    rows: int = 1

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return F.embedding(below[0].long(), values[self.weight])

    def columns(self, x: Tensor) -> Tensor:
        """A of each sample, (n, 1, rows of the table, T)."""
        return F.one_hot(x.long().flatten(1), self.rows).to(torch.float64).mT[:, None]

    def constants(self, values: Values, *shapes: torch.Size) -> dict[str, float]:
        """``longest``: the largest norm of a row; nothing else is asked for."""
        w = values[self.weight]
        return {"longest": up_float(max(frobenius_upper(row) for row in w))}

    def leading(self, x: Tensor, count: int) -> Tensor:
        """The unit vectors of the rows that are looked up most often."""
        often = self.columns(x)[:, 0].sum(dim=2)
        rank = min(self.rows, x[0].numel(), max(1, count // self.outputs_per_group))
        places = often.topk(rank, dim=1).indices
        return F.one_hot(places, self.rows).to(torch.float64).mT[:, None]

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Linear in the table; looked up without rounding."""
        x = below[0]
        none, blocks, rows = torch.zeros_like(x.size), torch.zeros_like(x.blocks), torch.zeros_like(x.blocks)
        longest = here.constants["longest"]
        if self.block is not None:
            longest += here.radius
            blocks[:, self.block] = here.measured["own"]
            rows[:, self.block] = 1.0
        size = torch.full_like(x.size, math.sqrt(self.positions) * longest)
        return Ahead(up(size), none, up(blocks), up(rows), none, torch.zeros_like(x.blocks))

    def own(self, here: Here, x: Ahead) -> Tensor:
        """||A||_op, the root of how often the most frequent row is looked up."""
        return here.measured["own"]

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """Whole numbers have no derivative."""
        return ((torch.zeros_like(above.size), torch.zeros_like(above.blocks)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Whole numbers have no derivative."""
        return (torch.zeros_like(error),)

    def gradient_error(self, here: Here, size: Tensor, error: Tensor, terms: int, *below: Ahead) -> list[Tensor]:
        """Each row of the gradient is a sum over the positions where it was looked up."""
        if not self.weight_trained:
            return []
        grown = gamma(terms * self.positions + 256, torch.float64)
        own = self.own(here, below[0])[:, None]
        return [up(error * own + grown * (size + error) * math.sqrt(self.positions))]

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form | None:
        """None: linear in the table, and the input does not move."""
        return None

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor | None:
        """None."""
        return None
