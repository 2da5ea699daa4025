"""Products of two activations, softmax and multiples: what attention is made of.

Matrix products are bilinear, C = AB for each sample and head. Softmax has ||Dy|| ≤ ½, ||D²y|| ≤ 1/√2 and ||D³y|| ≤ 7/4
(docs/theory.md, section 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.nodes import Form, Node, Values, between
from lplr_cli.certificate.graph.state import ELEMENTARY, EPS, Ahead, Behind, Here, Measured, Tangent, up
from lplr_cli.certificate.norms import operator_norms
from lplr_cli.linalg import gamma

SECOND, THIRD = math.sqrt(0.5), 1.75


@dataclass(frozen=True)
class Product(Node):
    """C = AB over the last two dimensions of tensors that agree in the others.

    Attributes:
        inner: columns of A, the terms of each sum.
        outer: the larger of the rows of A and the columns of B, the terms backwards.
    """

    inner: int
    outer: int

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return below[0] @ below[1]

    def measure(self, *below: Tensor) -> Measured:
        """``left`` and ``right``: ≥ the largest ||A||_op and ||B||_op of a head."""
        left, right = (_largest(t, 1) for t in below)
        return {"left": left, "right": right}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``head``: ≥ the largest ||λ̂||_op of a head."""
        return {"head": _largest(adjoint, 2)}

    def over_interval(self, here: Here, a: Ahead, b: Ahead) -> tuple[Tensor, Tensor]:
        """sup ||A||_op and sup ||B||_op of a head, also of values as computed anywhere on the ball, (n,)."""
        left = here.measured["left"] + a.reach(here.radius) + a.error
        return up(left), up(here.measured["right"] + b.reach(here.radius) + b.error)

    def _head(self, here: Here, above: Behind) -> Tensor:
        """≥ ||λ||_op of the largest head over the ball, (n, C)."""
        return torch.minimum(above.size, here.measured["head"] + above.reach(here.radius))

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """The product rule; ||XY||_F ≤ ||X||_op ||Y||_F."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        grown = gamma(self.inner + 8, torch.float64)
        fresh = grown * (a.size + a.error) * (b.size + b.error)
        error = right * a.error + left * b.error + fresh
        blocks = right[:, None] * a.blocks + left[:, None] * b.blocks
        second = right * a.second + left * b.second + 2 * a.norm * b.norm
        moved = here.radius * (b.norm[:, None] * a.blocks + a.norm[:, None] * b.blocks)
        drift = right[:, None] * a.drift + left[:, None] * b.drift + moved
        return Ahead(
            up(torch.minimum(left * b.size, right * a.size)), up(error), up(blocks), up(blocks), up(second), up(drift)
        )

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_A = λ Bᵀ and λ_B = Aᵀ λ."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        head = self._head(here, above)[:, :, None]
        found = []
        for gain, other in ((right, b), (left, a)):
            blocks = gain[:, None, None] * above.blocks + head * other.blocks[:, None]
            found.append((up(gain[:, None] * above.size), up(blocks)))
        return tuple(found)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Both factors err, and sums are rounded."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        grown, found = gamma(self.outer + 8, torch.float64), []
        for gain, other in ((right, b), (left, a)):
            fresh = other.error + grown * (other.size + other.error)
            found.append(up(gain[:, None] * error + fresh[:, None] * (size + error)))
        return tuple(found)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """TB + AT', of the tangents that there are."""
        parts = []
        if tangents[0] is not None:
            parts.append(tangents[0] @ below[1][:, None])
        if tangents[1] is not None:
            parts.append(below[0][:, None] @ tangents[1])
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As of the values, both parts together."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        grown = gamma(self.inner + 16, torch.float64)
        fresh = a.error + b.error + grown * (a.size + a.error + b.size + b.error)
        return up((left + right) * error + fresh * (size + error))

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form:
        """2 ⟨λ, DA DB⟩, heads being independent; and its derivative."""
        a, b = below
        head = self._head(here, above)
        mixed = a.blocks[:, :, None] * b.blocks[:, None, :]
        matrix = head[..., None, None] * (mixed + mixed.mT)[:, None]
        second = (a.second * b.norm + a.norm * b.second)[:, None]
        third = 2 * above.norm * (a.norm * b.norm)[:, None] + 2 * head * second
        return Form(up(matrix), up(third))

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """2 ⟨λ, XY⟩ of tangents X and Y: λ Yᵀ and Xᵀ λ."""
        x, y = (t[:, None] for t in tangents)
        return adjoint[:, :, None] @ y.mT, x.mT @ adjoint[:, :, None]

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor:
        """N moves with λ alone."""
        a, b = zip(below, tangents, strict=True)
        rounding = gamma(self.outer + 16, torch.float64) * (above.size + above.error)
        return 2 * between(self._head(here, above), above.reach(here.radius), rounding, a, b)


def _largest(t: Tensor, lead: int) -> Tensor:
    """≥ the largest ||·||_op of the matrices of a batch, the first dimensions kept."""
    sizes = operator_norms(t.flatten(0, -3)).reshape(t.shape[:-2])
    return up(sizes.flatten(lead).amax(dim=lead) if sizes.dim() > lead else sizes)


@dataclass(frozen=True)
class Softmax(Node):
    """y = exp(z)/Σ exp(z) over the last dimension.

    Attributes:
        entries: summed over.
        rows_of_sample: how many sums a sample has.
        kept: which entries there are, of the last dimensions, one in every row at least; all where None.
    """

    entries: int
    rows_of_sample: int
    kept: Tensor | None = None

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        z = below[0] if self.kept is None else below[0].masked_fill(~self.kept, -math.inf)
        return torch.softmax(z, dim=-1)

    def measure(self, *below: Tensor) -> Measured:
        """``top``: the largest entry, which bounds ||Dy||: diag y − y yᵀ ≤ max y."""
        return {"top": up(self.value({}, *below).flatten(1).amax(dim=1))}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``set``: the largest ||λ̂|| of a row; ``range``: the largest difference of two entries of one."""
        wide = adjoint.amax(dim=-1) - adjoint.amin(dim=-1)
        size = adjoint.square().sum(dim=-1).sqrt()
        return {"set": up(size.flatten(2).amax(dim=2)), "range": up(wide.flatten(2).amax(dim=2))}

    def _slope(self, here: Here, z: Ahead) -> Tensor:
        """sup ||Dy|| over the ball, (n,): y moves by at most half of what z does."""
        away = (z.reach(here.radius) + z.error) / 2 + self._fresh(z)
        return up((here.measured["top"] + away).clamp_max(0.5))

    def _set(self, here: Here, above: Behind) -> Tensor:
        return torch.minimum(above.size, here.measured["set"] + above.reach(here.radius))

    def _bend(self, here: Here, above: Behind, z: Ahead) -> Tensor:
        """sup ||⟨λ, D²y⟩|| over rows and ball, (n, C): by ||λ||, or by what its entries differ times ||Dy||."""
        wide = here.measured["range"] + math.sqrt(2) * above.reach(here.radius)
        return up(torch.minimum(SECOND * self._set(here, above), wide * self._slope(here, z)[:, None]))

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """By the norms of the derivatives of y."""
        z = below[0]
        slope, size = self._slope(here, z), math.sqrt(self.rows_of_sample)
        blocks = slope[:, None] * z.blocks
        # |y_j (h_j − yᵀh)| ≤ ½ max|h|.
        rows = torch.minimum(blocks, z.rows / 2)
        second = SECOND * z.norm.square() + slope * z.second
        drift = slope[:, None] * z.drift + (SECOND * here.radius * z.norm)[:, None] * z.blocks
        error = slope * z.error + self._fresh(z)
        return Ahead(up(torch.full_like(z.size, size)), up(error), up(blocks), up(rows), up(second), up(drift))

    def _fresh(self, z: Ahead) -> Tensor:
        """Rounding of y: of exponentials of differences, their sum and a quotient, relative to y ≤ 1."""
        return 2 * math.sqrt(self.rows_of_sample * self.entries) * self._relative(z)

    def _relative(self, z: Ahead) -> Tensor:
        """Of one entry."""
        return 4 * ELEMENTARY * (1 + z.size + z.error) + gamma(self.entries + 8, torch.float64)

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_z = Dyᵀ λ_y, whose derivative has D²y[Dz] λ_y beside Dyᵀ Dλ_y."""
        z = below[0]
        slope = self._slope(here, z)
        turn = self._bend(here, above, z)[:, :, None] * z.blocks[:, None]
        return ((up(slope[:, None] * above.size), up(slope[:, None, None] * above.blocks + turn)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """y (λ − yᵀλ) with a y that errs, and a rounded sum."""
        z = below[0]
        slope, away = self._slope(here, z), 4 * (z.error + self._fresh(z)) + 8 * gamma(self.entries + 16, torch.float64)
        return (up((slope + away)[:, None] * error + away[:, None] * size),)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """y (h − yᵀh)."""
        (h,) = tangents
        assert h is not None
        y = self.value({}, *below)[:, None]
        return y * (h - (y * h).sum(dim=-1, keepdim=True))

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As backwards: Dy is symmetric."""
        return self.errors(here, size[:, None], error[:, None], *below)[0][:, 0]

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form:
        """⟨λ, D²y[Dz, Dz]⟩, rows being independent; and its derivative."""
        z, bend = below[0], self._bend(here, above, below[0])
        blocks, norm = z.blocks[:, None], z.norm[:, None]
        matrix = bend[..., None, None] * blocks[..., :, None] * blocks[..., None, :]
        third = SECOND * above.norm * norm.square() + THIRD * self._set(here, above) * norm**3
        return Form(up(matrix), up(third + 2 * bend * norm * z.second[:, None]))

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Σ_j y_j (λ_j − yᵀλ)(h_j − yᵀh)²."""
        y = self.value({}, *below)[:, None]
        weight = (y * (adjoint - (y * adjoint).sum(dim=-1, keepdim=True)))[:, :, None]
        y, h = y[:, None], tangents[0][:, None]
        heavy = weight * (h - (y * h).sum(dim=-1, keepdim=True))
        return (heavy - y * heavy.sum(dim=-1, keepdim=True),)

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor:
        """N moves with λ and with y."""
        z, size = below[0], self._set(here, above) + above.error
        computed = 64 * self.entries * (4 * self._relative(z) + gamma(self.entries + 16, torch.float64))
        moved = SECOND * above.reach(here.radius) + THIRD * size * z.reach(here.radius)[:, None]
        rounding = computed[:, None] * size
        return between(self._bend(here, above, z), moved, rounding, (z, tangents[0]), (z, tangents[0]))


@dataclass(frozen=True)
class Multiple(Node):
    """y = c x with a number c.

    Attributes:
        factor: c.
    """

    factor: float

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return below[0] * self.factor

    @property
    def _size(self) -> float:
        return abs(self.factor)

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Everything times |c|; a quotient by 1/c is rounded once more."""
        x, c = below[0], self._size
        error = c * x.error + 4 * EPS * c * (x.size + x.error)
        return Ahead(up(c * x.size), up(error), up(c * x.blocks), up(c * x.rows), up(c * x.second), up(c * x.drift))

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """Everything times |c|."""
        return ((up(self._size * above.size), up(self._size * above.blocks)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """As forwards."""
        return (up(self._size * (error + 4 * EPS * (size + error))),)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """c times each."""
        (x,) = tangents
        assert x is not None
        return x * self.factor

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As of the values."""
        return up(self._size * (error + 4 * EPS * (size + error)))
