"""What is known of one tensor of a graph over a ball, and how bounds are rounded (docs/theory.md, section 10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.network import MARGIN, euclidean
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS

# Added to every bound: far above what underflow can take from it, far below whatever matters.
_FLOOR = 1e-140
EPS = torch.finfo(torch.float64).eps
# Accuracy assumed of elementary functions, relative to 1 + |z| + |value|.
ELEMENTARY = ELEMENTARY_ULPS * EPS


def up(t: Tensor) -> Tensor:
    """A bound, moved outwards by more than the rounding and the underflow of the operations behind it."""
    return t * (1 + MARGIN) + _FLOOR


def up_float(value: float) -> float:
    """As :func:`up`."""
    return value * (1 + MARGIN) + _FLOOR


@dataclass(frozen=True)
class Ahead:
    """A tensor t at every θ of a ball of radius R, from the input up; each bound has a row a sample.

    Attributes:
        size: ≥ ||t||, (n,).
        error: ≥ ||t̂ − t|| of a forward pass as computed, for any order of summation, (n,).
        blocks: ≥ ||∂t/∂θ_p||_op for each block p of parameters, (n, K).
        rows: the same for the entry of t where it is largest, (n, K).
        second: ≥ ||D²t||, (n,).
        drift: ≥ ||∂t/∂θ_p − ∂t/∂θ_p(θ_0)||_op, (n, K).
    """

    size: Tensor
    error: Tensor
    blocks: Tensor
    rows: Tensor
    second: Tensor
    drift: Tensor

    @property
    def norm(self) -> Tensor:
        """≥ ||Dt||_op, (n,)."""
        return euclidean(self.blocks)

    @property
    def row(self) -> Tensor:
        """≥ ||Dt_j|| of every entry, (n,)."""
        return euclidean(self.rows)

    def reach(self, radius: float) -> Tensor:
        """≥ ||t − t̂(θ_0)|| with t̂(θ_0) as computed, (n,)."""
        return radius * self.norm + self.error

    def entry_reach(self, radius: float) -> Tensor:
        """The same for every entry, (n,)."""
        return radius * self.row + self.error


@dataclass(frozen=True)
class Behind:
    """λ = ∂f_c/∂t at every θ of a ball, from the output down; each bound has a row a sample and a column an output.

    Attributes:
        size: ≥ ||λ||, (n, C).
        error: ≥ ||λ̂ − λ|| of a backward pass as computed, (n, C).
        blocks: ≥ ||∂λ/∂θ_p||_op, (n, C, K).
    """

    size: Tensor
    error: Tensor
    blocks: Tensor

    @property
    def norm(self) -> Tensor:
        """≥ ||Dλ||_op, (n, C)."""
        return euclidean(self.blocks)

    def reach(self, radius: float) -> Tensor:
        """≥ ||λ − λ̂(θ_0)|| with λ̂(θ_0) as computed, (n, C)."""
        return radius * self.norm + self.error


Measured = dict[str, Tensor]


@dataclass(frozen=True)
class Tangent:
    """∂t/∂θ_p of one place as X̂ Q_p and the rest, X̂ being what was pushed to it and ||Q_p|| ≤ 1; each (n, K).

    Attributes:
        size: ≥ ||X̂||_op.
        frobenius: ≥ ||X̂||_F.
        rest: ≥ ||∂t/∂θ_p − X̂ Q_p||_op, at θ_0 or over a ball.
    """

    size: Tensor
    frobenius: Tensor
    rest: Tensor

    def over(self, at: Ahead) -> Tangent:
        """The same over a ball."""
        return Tangent(self.size, self.frobenius, up(self.rest + at.drift))


@dataclass(frozen=True)
class Pushed:
    """Derivatives of the places at θ_0 as they are, not by norms of layers; rounding included.

    Attributes:
        blocks: ≥ ||∂t/∂θ_p(θ_0)||_op of each place, (n, K).
        rows: the same for its entries.
        leans: ≥ ||√ŵ ∘ ∂t/∂θ_p(θ_0)||_op with ŵ_j = |λ̂_j φ''(ẑ_j)| of what each activation meets, (n, C, K), by node.
        tangents: of each place.
        core: ≥ the norm of each block of ∇²f_c on what was pushed, as computed, (n, C, K, K).
    """

    blocks: list[Tensor]
    rows: list[Tensor]
    leans: dict[int, Tensor]
    tangents: list[Tangent]
    core: Tensor


@dataclass(frozen=True)
class Here:
    """What a node's rules look at.

    Attributes:
        radius: R.
        measured: norms at θ_0 of this node, each (n,) or (n, C): see its ``measure`` and ``weigh``.
        constants: norms of its parameters at θ_0.
        lean: see :class:`Pushed`, with what its input has there, (n, C, K) and (n, K); None where it was not pushed.
    """

    radius: float
    measured: Measured
    constants: dict[str, float]
    lean: tuple[Tensor, Tensor] | None = None
