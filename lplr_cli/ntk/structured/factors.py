"""Factors of a per-sample gradient: what a use of a parameter is, what is kept of it, and what terms ask of it.

Axes: n or m samples, q rows of K a sample has (its outputs, or 1), s outputs summed within a row (for the trace),
g groups, t positions, d what a position brings in, o what comes back to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

# So many numbers of memory, whose values mean nothing; asked again it gives the same.
Room = Callable[[int], Tensor]


@dataclass(frozen=True)
class Key:
    """A parameter, or the rows ``start`` to ``stop`` of one (disjoint rows are separate parameters)."""

    name: str
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class Use:
    """One use of one parameter in a forward pass.

    Attributes:
        key: the parameter.
        kind: how its gradient follows from what goes in and what comes back.
        a: what the parameter meets: inputs, normalised inputs or indices, first axis the samples; None for ones.
        edge: where ∂f/∂z arrives.
        shape: of z.
        parameter: shape of what ``key`` names.
    """

    key: Key
    kind: Kind
    a: Tensor | None
    edge: GradientEdge
    shape: tuple[int, ...]
    parameter: tuple[int, ...]

    @property
    def place(self) -> tuple[int, int]:
        """Where ∂f/∂z arrives, the same for uses that share it, while the graph lives."""
        return id(self.edge.node), self.edge.output_nr


@dataclass
class Part:
    """Factors of one use for n samples: a (n, …) as in :class:`Use`, b (n, q, s, …) with z's shape at the end.

    A use whose kind sums its positions at once keeps their sum in b, (n, q, s, columns), and no a; ``magnitude`` is
    then Σ_t ||a_t|| ||b_t||, (n, q, s, 1), where the rounding is bounded.
    """

    use: Use
    a: Tensor | None
    b: Tensor
    is_summed: bool = False
    magnitude: Tensor | None = None

    def at(self, rows: slice) -> Part:
        """The same of some samples."""
        if rows == slice(None):
            return self
        a = None if self.a is None else self.a[rows]
        magnitude = None if self.magnitude is None else self.magnitude[rows]
        return Part(self.use, a, self.b[rows], self.is_summed, magnitude)


class Form(Enum):
    """How a term adds to K."""

    ROWS = auto()  # its gradients are at hand: one product for all such terms together
    PRODUCT = auto()  # one position: (A A'ᵀ) ∘ (B B'ᵀ)
    PAIRWISE = auto()  # Σ_{t,t'} (a_t·a'_t') (b_t·b'_t')
    EXPLICIT = auto()  # gradients formed and multiplied, some rows of the parameter at a time


class Kind(ABC):
    """How the gradient of a parameter follows from what goes in, a, and what comes back, b = ∂f/∂z, at each position.

    Kinds are compared by value: they hold the geometry of a call and nothing of its data.
    """

    # Whether positions are summed as soon as the factors are known, because the sum is far smaller than they are.
    sums_at_once: ClassVar[bool] = False
    # Whether this is a bias that a weight used in the same places takes in as one more column.
    joins_weight: ClassVar[bool] = False

    @property
    def family(self) -> Hashable:
        """Uses of one parameter that agree in this make one term of :meth:`term`; others a :class:`Mixed` one."""
        return type(self)

    @abstractmethod
    def term(self, key: Key, parts: list[Part]) -> Term:
        """The term that all uses of one parameter make."""

    @abstractmethod
    def absolute(self, part: Part) -> Tensor:
        """Σ_t ||a_t|| ||b_t||, (n, q, s, 1)."""

    def summed(self, part: Part) -> Tensor:
        """The per-sample gradient with its positions summed, (n, q, s, columns), for kinds that sum at once."""
        raise NotImplementedError

    @abstractmethod
    def pull(self, part: Part, v: Tensor) -> Tensor:
        """Σ_i Σ_q v_iq ∂f_iq, (s, …) with the parameter's shape at the end, for v (m, q)."""

    @abstractmethod
    def push(self, part: Part, u: Tensor) -> Tensor:
        """Σ_s ⟨∂f_iqs, u_s⟩, (m, q), for u (s, …) with the parameter's shape at the end."""

    def condensed(self, part: Part) -> Part:
        """The part as products with vectors want it: its positions summed where that is far smaller."""
        return part

    def change(self, now: Part, then: Part, difference: Tensor) -> list[Part]:
        """Parts of J - J_then; ``difference`` is b - b_then. What goes in is the same, or summed into b already."""
        return [Part(now.use, now.a, difference, now.is_summed)]


def weighted(b: Tensor, v: Tensor) -> Tensor:
    """Σ_q v_iq b_iq, (m, s, …), for b (m, q, s, …) and v (m, q)."""
    m, q = v.shape
    if q == 1:
        return b[:, 0] * v.view(m, *[1] * (b.dim() - 2))
    return (v.unsqueeze(1) @ b.reshape(m, q, -1)).view(m, *b.shape[2:])


def met(b: Tensor, z: Tensor) -> Tensor:
    """⟨b_iq, z_i⟩, (m, q), for b (m, q, s, …) and z (m, s, …)."""
    m, q = b.shape[:2]
    if q == 1:
        one: Tensor = torch.linalg.vecdot(b.reshape(m, -1), z.reshape(m, -1))
        return one.unsqueeze(1)
    return (b.reshape(m, q, -1) @ z.reshape(m, -1, 1)).squeeze(2)


@dataclass
class Term(ABC):
    """All uses of one parameter (with its bias fused in where both are used alike)."""

    key: Key
    parts: list[Part]
    bias: Key | None = None
    # Whether a bias used in the same places can be fused in.
    takes_bias: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.parts[0].use.parameter

    @property
    def lead(self) -> tuple[int, int]:
        """(q, s)."""
        q, s = self.parts[0].b.shape[1:3]
        return q, s

    @property
    def row_count(self) -> int:
        """Rows of the parameter along its first axis."""
        return self.shape[0] if self.shape else 1

    @property
    def row_unit(self) -> int:
        """Smallest number of them that :meth:`gradient` can give."""
        return 1

    @property
    @abstractmethod
    def positions(self) -> int:
        """t, all uses together."""

    @abstractmethod
    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the parameter's per-sample gradient, (m, q, s, columns)."""

    def fill(self, out: Tensor, rows: slice, first: int, last: int, room: Room) -> None:
        """Write :meth:`gradient` into ``out``: fresh memory for each part of it would cost as much as the numbers.

        ``room`` gives memory, as much as :meth:`workspace` says for each of these samples.
        """
        out.copy_(self.gradient(rows, first, last))

    def hold(self) -> None:  # noqa: B027 - most terms have nothing to keep
        """Keep what :meth:`workspace` counts, of all samples, until :meth:`drop`."""

    def drop(self) -> None:  # noqa: B027
        """Let go of what was kept."""

    def projected(self, u: Tensor) -> Tensor:
        """uᵀG, G the gradient summed over samples and outputs, u one number a row; (groups, columns)."""
        g = self.gradient(slice(None), 0, self.row_count).sum(dim=(0, 1, 2))
        return (u @ g.reshape(self.row_count, -1)).unsqueeze(0)

    def form(self, samples: int) -> Form:
        """The form that takes the fewest floating-point operations for ``samples`` samples."""
        return Form.EXPLICIT

    def workspace(self) -> int:
        """Numbers a sample needs beside its gradient while that is formed, where they are many."""
        return 0

    def summed(self) -> Tensor:
        """The gradient itself, (n, q, s, columns), of terms whose form is ``ROWS``."""
        raise NotImplementedError

    def meet(self, rows: slice, other: Term, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """For the pairwise form: a_t·a'_t' as (g, m, t, k, t'), and b of both as (m, q, s, g, t, o)."""
        raise NotImplementedError

    def absolute(self, rows: slice) -> Tensor:
        """Σ_t ||a_t|| ||b_t|| over all uses, (m, q, s, 1) or (m, q, s, g)."""
        return torch.stack([p.use.kind.absolute(p.at(rows)) for p in self.parts]).sum(dim=0)

    @property
    @abstractmethod
    def depth(self) -> int:
        """Roundings behind an entry of :meth:`gradient`."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Entries of a row of gradients, s outputs together, that need not be zero."""

    def pair_length(self, form: Form) -> int:
        """Roundings behind an entry of K in the forms ``PRODUCT`` and ``PAIRWISE``."""
        raise NotImplementedError


class Mixed(Term):
    """A parameter whose uses are of several families: the sum of their gradients."""

    def _single(self) -> list[Term]:
        return [p.use.kind.term(self.key, [p]) for p in self.parts]

    @property
    def positions(self) -> int:
        """As in :class:`Term`."""
        return sum(term.positions for term in self._single())

    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """As in :class:`Term`."""
        one, *others = self._single()
        total = one.gradient(rows, first, last)
        for other in others:
            total = total + other.gradient(rows, first, last)
        return total

    @property
    def depth(self) -> int:
        """As in :class:`Term`."""
        return max(term.depth for term in self._single()) + len(self.parts) - 1

    @property
    def columns(self) -> int:
        """As in :class:`Term`."""
        return self.lead[1] * torch.Size(self.shape).numel()


def pairs_length(q: int, g: int, t: int, d: int, o: int) -> int:
    """Roundings behind what pairs of t positions in g groups add to an entry of K, a·a' of length d, b·b' of length o.

    With one row a sample the two inner products meet at g·t² pairs; with more, Σ_t (a_t·a'_t') b_t passes d and t
    roundings, its product with b' then o·t', and groups follow one another. Its square is at least the number of
    products (see :attr:`lplr_cli.ntk.structured.rounding.Rounding.products`).
    """
    if q == 1:
        return d + o + g * t * t
    return max(d + t + o * t + g, math.isqrt(g * (t * t * (d + o) + t * o)) + 1)


def term_of(key: Key, parts: list[Part]) -> Term:
    """All uses of one parameter as one term."""
    if len({p.use.kind.family for p in parts}) > 1:
        return Mixed(key, parts)
    return parts[0].use.kind.term(key, parts)


def by_key(parts: list[Part]) -> dict[Key, list[Part]]:
    """Parts of each parameter, in the order of first use."""
    grouped: dict[Key, list[Part]] = {}
    for part in parts:
        grouped.setdefault(part.use.key, []).append(part)
    return grouped


def terms_of(parts: list[Part]) -> list[Term]:
    """Parts grouped by parameter; a bias joins the weight that is used in the same places."""
    terms = {key: term_of(key, found) for key, found in by_key(parts).items()}
    places = {key: tuple(id(p.b) for p in term.parts) for key, term in terms.items()}
    weights = {places[key]: key for key, term in terms.items() if term.takes_bias}
    for key in list(terms):
        home = weights.get(places[key])
        if home is not None and all(p.use.kind.joins_weight for p in terms[key].parts):
            terms[home].bias = key
            del terms[key]
    return list(terms.values())
