"""Factors into K: the products of every form, by panels and slices that fit the caches and the memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lplr_cli.linalg import scratch
from lplr_cli.linalg.outer import add_outer
from lplr_cli.ntk.structured.factors import Form, Part, Term, terms_of
from lplr_cli.ntk.structured.rounding import Rounding
from lplr_cli.ntk.structured.rules.linear import OuterTerm

# A panel of K is at most this high and wide: its two buffers stay in the last-level cache.
PANEL = (512, 1024)
# Bytes a thread of what is worked on at a time, by a panel of pairs of positions or for gradients: what a second-level
# cache holds, or little more.
_MOVED = 3 << 19
Pair = tuple[Term, Term]


class InputProducts:
    """x_i·x_j of the inputs of one network, for its kernels at many θ: no θ changes them.

    Args:
        inputs: x, (n, d). Where they are changed, or a layer meets anything else, nothing is taken from here.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._x, self._made = inputs, inputs._version
        self._matrix: Tensor | None = None

    def of(self, a: Tensor) -> Tensor | None:
        """A Aᵀ on and above its diagonal, (n, n), where ``a`` is the inputs in their own memory; else None."""
        x = self._x
        same = (a.dtype, a.shape, a.stride(), a.device) == (x.dtype, x.shape, x.stride(), x.device)
        if not same or a.data_ptr() != x.data_ptr() or x._version != self._made:
            return None
        if self._matrix is None:
            self._matrix = x.new_zeros((len(x), len(x)))
            add_outer(self._matrix, x)
        return self._matrix


def accumulate(
    kernel: Tensor,
    left: list[Part],
    right: list[Part],
    *,
    symmetric: bool,
    q: int,
    budget: int,
    rounding: Rounding | None = None,
    inputs: InputProducts | None = None,
) -> None:
    """Add the contribution of all parts to one block of K.

    Args:
        kernel: the block, (n·q, n'·q); in the symmetric case only what lies on and above its diagonal is right.
        left: parts of the samples of its rows.
        right: those of its columns, the same list in the symmetric case.
        symmetric: whether the block lies on the diagonal of K.
        q: rows of K a sample has.
        budget: bytes of work space.
        rounding: filled with what bounds the rounding of the block.
        inputs: products of what the first layer may meet, in the symmetric case.
    """
    one = terms_of(left)
    two = one if right is left else terms_of(right)
    target = _Accumulator(kernel, q, symmetric, budget)
    samples = kernel.shape[0] // q
    forms: dict[Form, list[Pair]] = {form: [] for form in Form}
    for a, b in zip(one, two, strict=True):
        form = a.form(samples)
        forms[form].append((a, b))
        if form is Form.PAIRWISE:
            target.add_pairwise(a, b)
        elif form is Form.EXPLICIT:
            target.add_explicit(a, b)
    # These of all terms together.
    target.add_products(forms[Form.PRODUCT], inputs if symmetric else None)
    target.add_rows(forms[Form.ROWS])
    if rounding is not None:
        rounding.add({form: [a for a, _ in pairs] for form, pairs in forms.items()})


def account(rounding: Rounding, parts: list[Part]) -> None:
    """Account for what :func:`accumulate` does with the parts of some samples as rows of K."""
    forms: dict[Form, list[Term]] = {form: [] for form in Form}
    for term in terms_of(parts):
        forms[term.form(len(parts[0].b))].append(term)
    rounding.add(forms)


def tiles(count: int, step: int, first: int = 0) -> list[slice]:
    """``first`` to ``count`` in slices of ``step``."""
    return [slice(i, min(count, i + step)) for i in range(first, count, step)]


class _Accumulator:
    """Adds terms to a block of K; in the symmetric case only to tiles on and above the diagonal."""

    def __init__(self, kernel: Tensor, q: int, symmetric: bool, budget: int) -> None:
        self.kernel, self.q, self.symmetric, self.budget = kernel, q, symmetric, budget
        # For the gradients of either side, and for what goes into them.
        self._buffers = [kernel.new_empty(0) for _ in range(3)]

    def panels(self, height: int, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Panels of samples (rows, columns) with the part of K they address, (m·q, m'·q).

        In the symmetric case the first panel of some rows is the square on the diagonal; what lies below the diagonal
        in it is left to :func:`lplr_cli.linalg.cholesky.mirror`.
        """
        rows, columns = self.kernel.shape[0] // self.q, self.kernel.shape[1] // self.q
        for i in tiles(rows, height):
            for j in [i, *tiles(columns, width, i.stop)] if self.symmetric else tiles(columns, width):
                tile = self.kernel[i.start * self.q : i.stop * self.q, j.start * self.q : j.stop * self.q]
                yield i, j, tile
                scratch.release(tile)

    def add_products(self, pairs: list[Pair], inputs: InputProducts | None) -> None:
        """Terms with one position: Σ (A A'ᵀ) ∘ (B B'ᵀ), every product of a tile while it is in the cache."""
        if not pairs:
            return
        q = self.q
        factors = [_product_factors(one, two) for one, two in pairs]
        known = [None if inputs is None else inputs.of(a) for a, *_ in factors]
        height, width = max(1, PANEL[0] // q), max(1, PANEL[1] // q)
        size = min(height, self.kernel.shape[0] // q) * min(width, self.kernel.shape[1] // q)
        buffers = torch.empty(size * (1 + q * q), dtype=self.kernel.dtype, device=self.kernel.device)
        for i, j, tile in self.panels(height, width):
            m, k = i.stop - i.start, j.stop - j.start
            ab = buffers[: m * k].view(m, k)
            bb = buffers[m * k : m * k * (1 + q * q)].view(m * q, k * q)
            for (a, b, a2, b2, start), made in zip(factors, known, strict=True):
                left, right = b[i.start * q : i.stop * q], b2[j.start * q : j.stop * q]
                diagonal = self.symmetric and i == j
                if made is not None:
                    torch.add(made[i, j], start, out=ab)
                elif diagonal:
                    add_outer(ab.copy_(start.expand_as(ab)), a[i])
                else:
                    torch.addmm(start, a[i], a2[j].T, out=ab)
                if diagonal:
                    add_outer(bb.zero_(), left)
                else:
                    torch.mm(left, right.T, out=bb)
                if q == 1:
                    tile.addcmul_(ab, bb)
                else:
                    bb.view(m, q, k, q).mul_(ab[:, None, :, None])
                    tile.add_(bb)

    def add_pairwise(self, one: Term, two: Term) -> None:
        """A term with several positions: Σ_{t,t'} (a_t·a'_t')(b_t·b'_t').

        With several rows a sample, the a·a' are applied to b once for all of them: t'·t numbers then meet q rows, not
        q² pairs of rows.
        """
        q, (height, width) = self.q, self._pairwise_panels(one)
        for i, j, tile in self.panels(height, width):
            meet, b, b2 = one.meet(i, two, j)
            target = tile.view(b.shape[0], q, b2.shape[0], q)
            if q == 1:
                back = torch.einsum("msgto,ksguo->gmtku", b[:, 0], b2[:, 0])
                target[:, 0, :, 0] += back.mul_(meet).sum(dim=(0, 2, 4))
                continue
            left, right = (x.permute(3, 0, 1, 2, 5, 4).flatten(2, 4) for x in (b, b2))  # (g, m, q·s·o, t)
            right = right.reshape(*right.shape[:2], q, -1)
            moved = self._room(0, left.shape[1] * left.shape[2] * meet.shape[4])
            moved = moved.view(left.shape[1], left.shape[2], meet.shape[4])
            for group, k in itertools.product(range(meet.shape[0]), range(meet.shape[3])):
                # Below the diagonal of a square on that of K nothing is asked for.
                m = k + 1 if self.symmetric and i == j else left.shape[1]
                torch.bmm(left[group, :m], meet[group, :m, :, k], out=moved[:m])
                target[:m, :, k] += (moved[:m].view(m * q, -1) @ right[group, k].T).view(-1, q, q)

    def _pairwise_panels(self, one: Term) -> tuple[int, int]:
        """Samples of a panel: as many positions as a panel has rows, and what the room for b, moved or not, holds."""
        b = one.parts[0].b
        size, room = max(1, b[0].numel() * b.element_size()), self.budget // 4
        width = max(1, min(PANEL[0] // one.positions, room // size))
        if b.device.type == "cpu":
            room = min(room, _MOVED * torch.get_num_threads())
        return max(1, min(width, room // size)), width

    def add_rows(self, pairs: list[Pair]) -> None:
        """Terms whose gradients are at hand: one product of them all."""
        if not pairs:
            return
        left = torch.cat([one.summed().flatten(2).flatten(0, 1) for one, _ in pairs], dim=1)
        if self.symmetric:
            self.add_gram(left, left)
        else:
            self.add_gram(left, torch.cat([two.summed().flatten(2).flatten(0, 1) for _, two in pairs], dim=1))

    def add_gram(self, left: Tensor, right: Tensor) -> None:
        """Explicit rows: left · rightᵀ, of which symmetry saves half."""
        if self.symmetric:
            add_outer(self.kernel, left)
            return
        rows, width = self.kernel.shape
        step = rows
        if scratch.is_mapped(self.kernel):
            step = min(step, max(1, scratch.RESIDENT // 4 // (width * self.kernel.element_size())))
        for i in tiles(rows, step):
            self.kernel[i].addmm_(left[i], right.T)
            scratch.release(self.kernel[i])

    def add_explicit(self, one: Term, two: Term) -> None:
        """A term by explicit per-sample gradients, over slices of the parameter's rows."""
        count, unit = one.row_count, one.row_unit
        samples = self.kernel.shape[0] // self.q + (0 if one is two else self.kernel.shape[1] // self.q)
        q, s = one.lead
        # One more column a row for a fused bias; too many by a row's share for the others.
        columns = torch.Size(one.shape).numel() + count
        itemsize = self.kernel.dtype.itemsize
        per_row = samples * q * s * -(-columns // count) * itemsize
        most = max(1, self.budget // max(1, 2 * per_row) // unit)
        # Slices of one size: a small one would be the dearest.
        step = unit * -(-count // (unit * -(-count // (unit * most))))
        terms = (one,) if one is two else (one, two)
        held = [t for t in terms if step < count and t.workspace() * len(t.parts[0].b) * itemsize <= self.budget // 8]
        for term in held:
            term.hold()
        for first in range(0, count, step):
            last = min(count, first + step)
            rows = [self._explicit_rows(side, term, first, last) for side, term in enumerate(terms)]
            self.add_gram(rows[0], rows[-1])
        for term in held:
            term.drop()

    def _explicit_rows(self, side: int, term: Term, first: int, last: int) -> Tensor:
        """Per-sample gradients (n·q, s·columns), a chunk of samples at a time because of the work space."""
        count, (q, s) = len(term.parts[0].b), term.lead
        width = term.gradient(slice(0, 1), first, last).shape[3]
        whole = self._room(side, count * q * s * width).view(count, q, s, width)
        for rows in tiles(count, min(count, self._together(term))):
            term.fill(whole[rows], rows, first, last, partial(self._room, 2))
        return whole.flatten(2).flatten(0, 1)

    def _together(self, term: Term) -> int:
        """Samples whose gradients are formed at a time: as many for each thread, what they take near it."""
        b = term.parts[0].b
        size = term.workspace() * b.element_size()
        if not size:
            return len(b)
        fitting = self.budget // (8 * size)
        if b.device.type == "cpu":
            threads = torch.get_num_threads()
            fitting = min(fitting, max(1, _MOVED // size) * threads)
        return max(1, fitting)

    def _room(self, use: int, count: int) -> Tensor:
        """So many numbers of memory that is kept from call to call."""
        if self._buffers[use].numel() < count:
            self._buffers[use] = self.kernel.new_empty(count)
        return self._buffers[use][:count]


def _product_factors(one: Term, two: Term) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a (n, d) and b (n·q, s·o) of both sides at their one position, and what the products of a begin with."""
    assert isinstance(one, OuterTerm)
    assert isinstance(two, OuterTerm)
    sides = []
    for term in (one,) if one is two else (one, two):
        a, b = term.weight_left(slice(None))[:, 0, 0], term.right(slice(None))[:, :, :, 0, 0]
        sides.append((a, b.flatten(2).flatten(0, 1)))
    # A fused bias meets 1 · 1 at the one position.
    start = sides[0][0].new_full((), 0.0 if one.bias is None else 1.0)
    return *sides[0], *sides[-1], start
