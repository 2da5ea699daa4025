"""Fully connected maps, z_t = W a_t + b: ∂f_c/∂W = Σ_t b_ct a_tᵀ."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.ntk.structured.capture import Capture, arguments, rule
from lplr_cli.ntk.structured.factors import Form, Key, Kind, Part, Room, Term, met, pairs_length, weighted
from lplr_cli.ntk.structured.rules.channelwise import Bias


@rule(F.linear)
def _linear(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    a, weight, bias = arguments("input weight bias", args, kwargs)
    if a.dim() >= 2:
        capture.record(weight, Linear(), a, z)
        capture.record(bias, Bias(-1), None, z)
    return z


@dataclass(frozen=True)
class Linear(Kind):
    """A matrix that meets a vector at each position; z has its channels last, or as :meth:`right` says."""

    @property
    def groups(self) -> int:
        """Blocks on the diagonal of the matrix."""
        return 1

    @property
    def family(self) -> Hashable:
        """Of one layout and number of groups."""
        return type(self), self.groups

    def left(self, a: Tensor, room: Room | None = None) -> Tensor:
        """What goes in, (m, …), as (m, g, t, d), in ``room`` where it has to be copied."""
        return a.reshape(len(a), 1, -1, a.shape[-1])

    def right(self, b: Tensor) -> Tensor:
        """What comes back, (m, q, s, …), as (m, q, s, g, t, o)."""
        m, q, s = b.shape[:3]
        return b.reshape(m, q, s, 1, -1, b.shape[-1])

    def inner(self, a: Tensor, other: Tensor) -> Tensor:
        """a_t·a'_t' of what goes in, (m, …) and (k, …), as (g, m, t, k, t')."""
        return torch.einsum("mgtd,kgud->gmtku", self.left(a), self.left(other))

    def inner_cost(self, a: Tensor) -> int:
        """Multiplications of :meth:`inner` for two samples."""
        g, t, d = self.left(a[:1]).shape[1:]
        return g * t * t * d

    def term(self, key: Key, parts: list[Part]) -> Term:
        """As in :class:`Kind`."""
        return OuterTerm(key, parts)

    def absolute(self, part: Part) -> Tensor:
        """As in :class:`Kind`."""
        assert part.a is not None
        sums: Tensor = torch.linalg.vector_norm(self.right(part.b), dim=5)
        sums = sums * torch.linalg.vector_norm(self.left(part.a), dim=3)[:, None, None]
        return sums.sum(dim=(3, 4)).unsqueeze(3)

    def pull(self, part: Part, v: Tensor) -> Tensor:
        """As in :class:`Kind`: back to (g, s·o, m·t) times what went in, (g, m·t, d)."""
        assert part.a is not None
        a, b = self.left(part.a), weighted(self.right(part.b), v)
        back = b.permute(2, 1, 4, 0, 3).reshape(b.shape[2], b.shape[1] * b.shape[4], -1)
        found = back @ a.transpose(0, 1).reshape(a.shape[1], -1, a.shape[3])
        # (g, s·o, d) to (s, g·o, d).
        found = found.view(b.shape[2], b.shape[1], -1, a.shape[3]).transpose(0, 1)
        return found.reshape(b.shape[1], *part.use.parameter)

    def push(self, part: Part, u: Tensor) -> Tensor:
        """As in :class:`Kind`: what went in, (g, m·t, d), times u as (g, d, s·o)."""
        assert part.a is not None
        a, b = self.left(part.a), self.right(part.b)
        m, _, s, g, t, o = b.shape
        along = u.reshape(s, g, o, -1).permute(1, 3, 0, 2).reshape(g, -1, s * o)
        z = a.transpose(0, 1).reshape(g, m * t, -1) @ along
        return met(b, z.view(g, m, t, s, o).permute(1, 3, 0, 2, 4))

    def change(self, now: Part, then: Part, difference: Tensor) -> list[Part]:
        """b⊗a - b₀⊗a₀ = (b - b₀)⊗a + b₀⊗(a - a₀), two positions instead of one."""
        assert now.a is not None
        assert then.a is not None
        return [Part(now.use, now.a, difference), Part(now.use, now.a - then.a, then.b)]


class OuterTerm(Term):
    """A gradient that is a sum of outer products."""

    takes_bias = True
    _held: Tensor | None = None

    @property
    def _kind(self) -> Linear:
        kind = self.parts[0].use.kind
        assert isinstance(kind, Linear)
        return kind

    def weight_left(self, rows: slice, room: Room | None = None) -> Tensor:
        """What the weight meets, (m, g, t, d), of a single use in ``room``; several stand one after another in t."""
        if self._held is not None:
            return self._held[rows]
        found = []
        room = room if len(self.parts) == 1 else None
        for p in self.parts:
            assert p.a is not None
            assert isinstance(p.use.kind, Linear)
            found.append(p.use.kind.left(p.a[rows], room))
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]

    def left(self, rows: slice) -> Tensor:
        """(m, g, t, d), with a column of ones for the fused bias."""
        a = self.weight_left(rows)
        return a if self.bias is None else torch.cat([a, a.new_ones((*a.shape[:3], 1))], dim=3)

    def right(self, rows: slice) -> Tensor:
        """(m, q, s, g, t, o)."""
        found = [self._kind.right(p.b[rows]) for p in self.parts]
        return torch.cat(found, dim=4) if len(found) > 1 else found[0]

    @property
    def positions(self) -> int:
        """As in :class:`Term`."""
        return self._sizes()[1]

    @property
    def row_unit(self) -> int:
        """A whole group."""
        groups = self._kind.groups
        return self.row_count // groups if groups > 1 else 1

    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """As in :class:`Term`."""
        b = self.right(rows)
        m, q, s, groups, _, width = b.shape
        if groups > 1:
            units = slice(first // width, last // width)
            return torch.einsum("mgtd,mqsgto->mqsgod", self.left(rows)[:, units], b[:, :, :, units]).flatten(3)
        g = b.new_empty((m, q, s, (last - first) * self._sizes()[2]))
        self.fill(g, rows, first, last, b.new_empty)
        return g

    def fill(self, out: Tensor, rows: slice, first: int, last: int, room: Room) -> None:
        """As in :class:`Term`: one product a sample; what comes back from a convolution lies as it wants it."""
        b = self.right(rows)
        if b.shape[3] > 1:
            out.copy_(self.gradient(rows, first, last))
            return
        a = self.weight_left(rows, room)[:, 0]
        back = b[:, :, :, 0, :, first:last].transpose(3, 4).reshape(len(b), -1, b.shape[4])
        whole = out.view(*back.shape[:2], -1)
        torch.bmm(back, a, out=whole[..., : a.shape[2]])
        if self.bias is not None:
            torch.sum(back, dim=2, out=whole[..., a.shape[2]])

    def hold(self) -> None:
        """As in :class:`Term`."""
        self._held = self.weight_left(slice(None))

    def drop(self) -> None:
        """As in :class:`Term`."""
        self._held = None

    def projected(self, u: Tensor) -> Tensor:
        """As in :class:`Term`."""
        b = self.right(slice(None))
        groups = b.shape[3]
        b = (b.sum(dim=(1, 2)) @ u.view(groups, -1, 1)).transpose(0, 1)  # (g, m, t, 1)
        a = self.left(slice(None)).transpose(0, 1)
        return (b.reshape(groups, 1, -1) @ a.reshape(groups, -1, a.shape[3])).squeeze(1)

    def _sizes(self) -> tuple[int, int, int, int]:
        """(g, t, d, o)."""
        g, t, d = self.left(slice(0, 1)).shape[1:]
        return g, t, d, self._kind.right(self.parts[0].b[:1]).shape[5]

    def form(self, samples: int) -> Form:
        """As in :class:`Term`."""
        q, s = self.lead
        g, t, d, o = self._sizes()
        pairwise = samples * (self._inner_cost() + g * t * (t * (q * s * o + 2) + q * q * s * o))
        if t == 1:
            pairwise = samples * g * (d + q * q * (s * o + 2))
        if pairwise >= samples * q * q * s * g * d * o + 2 * q * s * g * t * d * o:
            return Form.EXPLICIT
        return Form.PRODUCT if t == 1 and g == 1 else Form.PAIRWISE

    def _inner_cost(self) -> int:
        """Of two samples; patches of several uses meet each other."""
        if len(self.parts) == 1 and (a := self.parts[0].a) is not None:
            return self._kind.inner_cost(a)
        g, t, d, _ = self._sizes()
        return g * t * t * d

    def workspace(self) -> int:
        """The patches."""
        return self.left(slice(0, 1)).numel()

    def meet(self, rows: slice, other: Term, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Term`; a fused bias meets 1 · 1 at every pair of positions."""
        assert isinstance(other, OuterTerm)
        a, a2 = self.parts[0].a, other.parts[0].a
        if len(self.parts) == 1 and a is not None and a2 is not None:
            met = self._kind.inner(a[rows], a2[columns])
        else:
            met = torch.einsum("mgtd,kgud->gmtku", self.weight_left(rows), other.weight_left(columns))
        return met if self.bias is None else met.add_(1), self.right(rows), other.right(columns)

    def absolute(self, rows: slice) -> Tensor:
        """Σ_t ||a_t|| ||b_t||, (m, q, s, g), the fused bias counted as an input of 1."""
        norms = torch.linalg.vector_norm(self.weight_left(rows), dim=3)
        if self.bias is not None:
            norms = torch.hypot(norms, torch.ones_like(norms))
        sums: Tensor = torch.linalg.vector_norm(self.right(rows), dim=5) * norms[:, None, None]
        return sums.sum(dim=4)

    @property
    def depth(self) -> int:
        """A product at each position, and their sum."""
        return self.positions

    @property
    def columns(self) -> int:
        """As in :class:`Term`."""
        g, _, d, o = self._sizes()
        return self.lead[1] * g * d * o

    def pair_length(self, form: Form) -> int:
        """As in :func:`pairs_length`."""
        g, t, d, o = self._sizes()
        return pairs_length(self.lead[0], g, t, d, self.lead[1] * o)
