"""Parameters of one number a channel: ∂f_c/∂w = Σ_t b_ct ∘ a_t, with a_t = 1 for a bias."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lplr_cli.ntk.structured.factors import Form, Key, Kind, Part, Term


@dataclass(frozen=True)
class Channelwise(Kind):
    """A number a channel; ``axis`` is that of the channels in z."""

    axis: int

    @property
    def family(self) -> Hashable:
        """All parameters of this form."""
        return Channelwise

    def term(self, key: Key, parts: list[Part]) -> Term:
        """As in :class:`Kind`."""
        return SummedTerm(key, parts)

    def summed(self, part: Part) -> Tensor:
        """As in :class:`Kind`."""
        if part.is_summed:
            return part.b
        axis = 2 + self.axis % len(part.use.shape)
        product = part.b if part.a is None else part.b * part.a[:, None, None]
        rest = [d for d in range(3, product.dim()) if d != axis]
        return product.sum(dim=rest) if rest else product

    def absolute(self, part: Part) -> Tensor:
        """As in :class:`Kind`, the norm over channels taken after the sum over positions."""
        if part.magnitude is not None:
            return part.magnitude
        sizes = self.summed(Part(part.use, None if part.a is None else part.a.abs(), part.b.abs()))
        whole: Tensor = torch.linalg.vector_norm(sizes, dim=3, keepdim=True)
        return whole

    def condensed(self, part: Part) -> Part:
        """As in :class:`Kind`."""
        return part if part.is_summed else Part(part.use, None, self.summed(part), True)

    def pull(self, part: Part, v: Tensor) -> Tensor:
        """As in :class:`Kind`."""
        rows = self.summed(part)
        return (v.reshape(1, -1) @ rows.reshape(v.numel(), -1)).view(rows.shape[2], *part.use.parameter)

    def push(self, part: Part, u: Tensor) -> Tensor:
        """As in :class:`Kind`."""
        rows = self.summed(part)
        return (rows.reshape(len(rows), rows.shape[1], -1) @ u.reshape(-1, 1)).squeeze(2)


@dataclass(frozen=True)
class Bias(Channelwise):
    """The bias of a linear map, which shares what comes back with the weight."""

    joins_weight: ClassVar[bool] = True


class SummedTerm(Term):
    """A gradient small enough to be had at once."""

    @property
    def positions(self) -> int:
        """As in :class:`Term`."""
        return sum(_positions(p) for p in self.parts)

    def summed(self) -> Tensor:
        """As in :class:`Term`."""
        one, *others = (p.use.kind.summed(p) for p in self.parts)
        for other in others:
            one = one + other
        return one

    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """As in :class:`Term`."""
        return self.summed()[rows, :, :, first:last]

    def projected(self, u: Tensor) -> Tensor:
        """As in :class:`Term`."""
        return (u @ self.summed().sum(dim=(0, 1, 2))).reshape(1, 1)

    def form(self, samples: int) -> Form:
        """As in :class:`Term`."""
        return Form.ROWS

    @property
    def depth(self) -> int:
        """A product at each position, their sum, and the sum over uses."""
        return max(_positions(p) for p in self.parts) + len(self.parts) - 1

    @property
    def columns(self) -> int:
        """As in :class:`Term`."""
        return self.lead[1] * self.shape[0]


def _positions(part: Part) -> int:
    return torch.Size(part.use.shape[1:]).numel() // part.use.parameter[0]
