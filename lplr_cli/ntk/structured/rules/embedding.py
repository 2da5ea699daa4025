"""Tables that are looked up: row a_t of ∂f_c/∂W receives b_ct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.ntk.structured.capture import Capture, arguments, rule
from lplr_cli.ntk.structured.factors import Form, Key, Kind, Part, Term, met, pairs_length, weighted


@rule(F.embedding)
def _embedding(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    z = func(*args, **kwargs)
    tokens, weight, padding, max_norm, _, by_frequency = arguments(
        "input weight padding_idx max_norm norm_type scale_grad_by_freq", args, kwargs
    )
    if tokens.dim() >= 1 and padding is None and max_norm is None and not by_frequency:
        capture.record(weight, Lookup(), tokens, z)
    return z


@dataclass(frozen=True)
class Lookup(Kind):
    """One row of a table at each position."""

    def term(self, key: Key, parts: list[Part]) -> Term:
        """As in :class:`Kind`."""
        return LookupTerm(key, parts)

    def absolute(self, part: Part) -> Tensor:
        """As in :class:`Kind`."""
        sums: Tensor = torch.linalg.vector_norm(_right(part, slice(None)), dim=4)
        return sums.sum(dim=3, keepdim=True)

    def pull(self, part: Part, v: Tensor) -> Tensor:
        """As in :class:`Kind`."""
        back = weighted(_right(part, slice(None)), v)
        found = back.new_zeros((back.shape[1], *part.use.parameter))
        places = _tokens(part, slice(None)).reshape(-1)
        return found.index_add_(1, places, back.transpose(0, 1).flatten(1, 2))

    def push(self, part: Part, u: Tensor) -> Tensor:
        """As in :class:`Kind`."""
        return met(_right(part, slice(None)), u[:, _tokens(part, slice(None))].transpose(0, 1))


def _tokens(part: Part, rows: slice) -> Tensor:
    """Indices as (m, t)."""
    assert part.a is not None
    return part.a[rows].reshape(part.a[rows].shape[0], -1)


def _right(part: Part, rows: slice) -> Tensor:
    """What comes back as (m, q, s, t, o)."""
    b = part.b[rows]
    return b.reshape(*b.shape[:3], -1, b.shape[-1])


class LookupTerm(Term):
    """A gradient of as many rows that are not zero as tokens were met."""

    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """As in :class:`Term`."""
        total: Tensor | None = None
        for part in self.parts:
            g = _rows(_tokens(part, rows), _right(part, rows), first, last).flatten(3)
            total = g if total is None else total + g
        assert total is not None  # a parameter without a use has no term
        return total

    @property
    def positions(self) -> int:
        """As in :class:`Term`."""
        return sum(_tokens(p, slice(0, 1)).shape[1] for p in self.parts)

    def form(self, samples: int) -> Form:
        """As in :class:`Term`."""
        q, s = self.lead
        t, (rows, o) = self.positions, self.shape
        pairwise = samples * t * (t * (q * s * o + 3) + q * q * s * o)
        explicit = samples * q * q * s * rows * o + q * s * (rows * o + t * o)
        return Form.PAIRWISE if pairwise < explicit else Form.EXPLICIT

    def meet(self, rows: slice, other: Term, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Term`: two positions meet where their tokens are the same."""
        pairs = ((self, rows), (other, columns))
        t, t2 = (torch.cat([_tokens(p, r) for p in term.parts], dim=1) for term, r in pairs)
        b, b2 = (torch.cat([_right(p, r) for p in term.parts], dim=3).unsqueeze(3) for term, r in pairs)
        return (t[:, :, None, None] == t2[None, None]).to(b.dtype)[None], b, b2

    @property
    def depth(self) -> int:
        """The sum at positions of the same token."""
        return self.positions

    @property
    def columns(self) -> int:
        """As in :class:`Term`."""
        rows, o = self.shape
        return self.lead[1] * min(rows, self.positions) * o

    def pair_length(self, form: Form) -> int:
        """As in :func:`pairs_length`, with a·a' that is 0 or 1."""
        q, s = self.lead
        return pairs_length(q, 1, self.positions, 0, s * self.shape[1])


def _rows(tokens: Tensor, b: Tensor, first: int, last: int) -> Tensor:
    """b (m, q, s, t, o) added up by the tokens (m, t) from ``first`` to ``last``, (m, q, s, last - first, o)."""
    m, q, s, _, o = b.shape
    g = b.new_zeros((m, q, s, last - first, o))
    for position in range(tokens.shape[1]):
        token = tokens[:, position]
        inside = ((token >= first) & (token < last)).nonzero()[:, 0]
        g[inside, :, :, token[inside] - first] += b[inside, :, :, position]
    return g
