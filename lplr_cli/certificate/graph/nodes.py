"""Operations without parameters: sums, averages, elementwise activations; and what every node can be asked for.

A node says how its output is computed, what is measured of it at θ_0, and how bounds pass through it over a ball, from
its inputs up and from its output down. The rules are those of docs/theory.md, section 10.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.state import ELEMENTARY, EPS, Ahead, Behind, Here, Measured, Tangent, up
from lplr_cli.certificate.smooth import Smooth
from lplr_cli.linalg import gamma

Values = Mapping[str, Tensor]
# What the whole real line is to an activation: beyond, its derivatives are constant to all digits.
_FAR = 1e3


@dataclass(frozen=True)
class Form:
    """A part of ∇²f: at most Σ_pq ``matrix``_pq |u_p| |u_q|, (n, C, K, K); and its share in ||D³f||, (n, C)."""

    matrix: Tensor
    third: Tensor


@dataclass(frozen=True)
class Node(ABC):
    """One operation.

    Attributes:
        inputs: places of what it meets; 0 is the input of the network, k the output of node k.
        label: for people.
    """

    inputs: tuple[int, ...]
    label: str

    @abstractmethod
    def value(self, values: Values, *below: Tensor) -> Tensor:
        """The output, (n, …), of parameters by name and inputs (n, …)."""

    def constants(self, values: Values, *shapes: torch.Size) -> dict[str, float]:
        """Norms of the parameters at θ_0, for inputs of these shapes without the samples."""
        return {}

    def measure(self, *below: Tensor) -> Measured:
        """Norms of what it meets at θ_0, each (n,)."""
        return {}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """Norms at θ_0 that need λ̂ of the output, (n, C, …), too; each (n, C)."""
        return {}

    @abstractmethod
    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """The output over a ball; its ``size`` is completed by the caller."""

    @abstractmethod
    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """The derivative at θ_0 of the output along tangents (n, D, …) of the inputs; None is zero."""

    @abstractmethod
    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """≥ the Frobenius norm of its rounding, from that of all tangents that come in and of their error, (n,)."""

    @abstractmethod
    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """Bounds of what each input has of λ through this node: its ``size`` and ``blocks``."""

    @abstractmethod
    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """≥ ||λ̂ − λ|| of that, from a bound of ||λ|| of the output and of its error, (n, any)."""

    def gradient_error(self, here: Here, size: Tensor, error: Tensor, terms: int, *below: Ahead) -> list[Tensor]:
        """≥ ||ĝ − g|| of each parameter's ∂f/∂θ, sums of ``terms`` samples being rounded, (n, any)."""
        return []

    def gradient(self, here: Here, above: Behind, *below: Ahead) -> Tensor | None:
        """≥ ||∂f_c/∂θ|| of its block, (n, C)."""
        return None

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form | None:
        """What the node adds to ∇²f; None for a linear one."""
        return None

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """N X at θ_0, ⟨λ, D²g[w, w]⟩ = wᵀ N w being what the node adds to ∇²f; none for a linear one, or a layer.

        Args:
            adjoint: λ̂ of the output, (n, C, …).
            tangents: X of each input, (n, D, …).
            below: the inputs.

        Returns:
            (n, C, D, …) for each input.
        """
        return ()

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor | None:
        """≥ how far the blocks of wᵀ N w over a ball can be from those of X̂ᵀ N̂ X̂, (n, C, K, K).

        Args:
            here, above, below: as in :meth:`form`.
            tangents: of each input over the ball.
        """
        return None


@dataclass(frozen=True)
class Add(Node):
    """The sum of two tensors of one shape."""

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return below[0] + below[1]

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Triangle inequalities, block by block."""
        a, b = below
        size = a.size + b.size
        error = a.error + b.error + EPS * (size + a.error + b.error)
        blocks, rows = up(a.blocks + b.blocks), up(a.rows + b.rows)
        return Ahead(size, up(error), blocks, rows, up(a.second + b.second), up(a.drift + b.drift))

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """The sum."""
        a, b = tangents
        if a is None or b is None:
            found = b if a is None else a
            assert found is not None
            return found
        return a + b

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """One rounding; both parts are in ``size`` and ``error``."""
        return up(error + EPS * (size + error))

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ itself, twice."""
        return (above.size, above.blocks), (above.size, above.blocks)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Nothing is computed."""
        return error, error


@dataclass(frozen=True)
class Average(Node):
    """Means over sets of ``count`` entries, each entry being in at most ``overlap`` of them; or a change of shape.

    Attributes:
        apply: the operation.
        count: 1 for a change of shape.
        overlap: see above.
    """

    apply: Callable[[Tensor], Tensor]
    count: int
    overlap: int

    @property
    def gain(self) -> float:
        """Cauchy-Schwarz: ||mean||² ≤ overlap/count ||x||²."""
        return math.sqrt(self.overlap / self.count)

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return self.apply(below[0])

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Linear: everything times the norm of the mean."""
        x, gain = below[0], self.gain
        size = gain * x.size
        error = gain * x.error + self._rounding * (x.size + x.error)
        rows = torch.minimum(x.rows, x.blocks * self.count**-0.5)
        blocks, drift = up(gain * x.blocks), up(gain * x.drift)
        return Ahead(up(size), up(error), blocks, up(rows), up(gain * x.second), drift)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """Linear."""
        (x,) = tangents
        assert x is not None
        return folded(self.apply, x)

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As of the values."""
        return up(self.gain * error + self._rounding * (size + error))

    @property
    def _rounding(self) -> float:
        return 0.0 if self.count == 1 else self.gain * gamma(self.count + 8, torch.float64)

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """The adjoint has the same norm."""
        return ((up(self.gain * above.size), up(self.gain * above.blocks)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """An entry is a sum of ``overlap`` quotients."""
        gain = self.gain
        fresh = 0.0 if self.count == 1 else gain * gamma(self.overlap + 8, torch.float64)
        return (up(gain * error + fresh * (size + error)),)


@dataclass(frozen=True)
class Activation(Node):
    """a = φ(z), entry by entry.

    Attributes:
        smooth: φ.
        entries: of a sample.
    """

    smooth: Smooth
    entries: int

    @property
    def steepest(self) -> tuple[float, float]:
        """sup |φ'| and sup |φ''| over the real line."""
        far = torch.tensor([_FAR], dtype=torch.float64)
        return float(self.smooth.sup_first(-far, far)), float(self.smooth.sup_second(-far, far))

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return self.smooth.value(below[0])

    def measure(self, *below: Tensor) -> Measured:
        """``slope`` and ``bend``: the largest |φ'(ẑ)| and |φ''(ẑ)|."""
        z = below[0].flatten(1)
        return {"slope": _largest(self.smooth.first(z), z), "bend": _largest(self.smooth.second(z), z)}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``weight``: the largest |λ̂_j φ''(ẑ_j)|; ``top``: the largest |λ̂_j|."""
        return {"weight": self.weights(adjoint, below[0]).amax(dim=2), "top": adjoint.flatten(2).abs().amax(dim=2)}

    def weights(self, adjoint: Tensor, z: Tensor) -> Tensor:
        """|λ̂_j φ''(ẑ_j)| with the error of φ'', (n, C, entries)."""
        z = z.flatten(1)[:, None]
        return adjoint.flatten(2).abs() * _raised(self.smooth.second(z), z)

    def over_interval(self, here: Here, z: Ahead) -> tuple[Tensor, Tensor]:
        """sup |φ'| and sup |φ''| over the ball, (n,): φ'' and φ''' bound how far they can be from those at ẑ."""
        first, second = self.steepest
        away = z.entry_reach(here.radius)
        slope = (here.measured["slope"] + second * away).clamp_max(first)
        return up(slope), up((here.measured["bend"] + self.smooth.third * away).clamp_max(second))

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Da = φ' Dz and D²a = φ''(Dz)² + φ' D²z."""
        z = below[0]
        slope, bend = self.over_interval(here, z)
        first, _ = self.steepest
        value = abs(float(self.smooth.value(torch.zeros(1, dtype=torch.float64)))) * self.entries**0.5 + first * z.size
        error = first * z.error + ELEMENTARY * (self.entries**0.5 + z.size + z.error + value)
        second = bend * z.row * z.norm + slope * z.second
        blocks, rows = up(slope[:, None] * z.blocks), up(slope[:, None] * z.rows)
        # φ' changes by at most sup|φ''| times what z does: the largest change times Dz, or all changes times its rows.
        every, largest = bend * here.radius * z.norm, bend * here.radius * z.row
        turned = torch.minimum(largest[:, None] * z.blocks, every[:, None] * z.rows)
        return Ahead(up(value), up(error), blocks, rows, up(second), up(slope[:, None] * z.drift + turned))

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """φ'(ẑ) times each tangent."""
        (x,) = tangents
        assert x is not None
        return self.smooth.first(below[0])[:, None] * x

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """φ' errs with ẑ and by itself, and the product is rounded."""
        slope, away = self._slope_error(here, below[0])
        return up((slope + away) * error + away * size + 8 * EPS * (slope + away) * (size + error))

    def _slope_error(self, here: Here, z: Ahead) -> tuple[Tensor, Tensor]:
        """sup |φ'| over the ball, and how far φ'(ẑ) as computed can be from φ'(z)."""
        _, second = self.steepest
        return self.over_interval(here, z)[0], second * z.error + ELEMENTARY * (1 + z.size + z.error)

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_z = φ'(z) λ_a, whose derivative has φ''(z) Dz λ_a beside φ'(z) Dλ_a."""
        z = below[0]
        slope, bend = self.over_interval(here, z)
        weight, spare = self._weight(here, z), above.reach(here.radius) * bend[:, None]
        turn = weight[:, :, None] * z.blocks[:, None] + spare[:, :, None] * z.rows[:, None]
        return ((up(slope[:, None] * above.size), up(slope[:, None, None] * above.blocks + turn)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """φ' errs with z and by itself, and the product is rounded."""
        slope, away = self._slope_error(here, below[0])
        steep = (slope + away)[:, None]
        return (up(steep * error + away[:, None] * size + 8 * EPS * steep * (size + error)),)

    def _weight(self, here: Here, z: Ahead) -> Tensor:
        """sup |λ̂_j φ''(z_j)| over entries and ball, (n, C)."""
        away = self.smooth.third * z.entry_reach(here.radius)
        return up(here.measured["weight"] + away[:, None] * here.measured["top"])

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form:
        """Σ_j λ_j φ''_j (Dz_j u)², λ split into λ̂ and the rest; and its derivative."""
        z = below[0]
        _, bend = self.over_interval(here, z)
        weight, spare = self._weight(here, z), above.reach(here.radius) * bend[:, None]
        blocks, rows, lean = z.blocks[:, None], z.rows[:, None], self._lean(here, weight, z)
        mixed = rows[..., :, None] * blocks[..., None, :]
        matrix = lean[..., :, None] * lean[..., None, :] + spare[..., None, None] * (mixed + mixed.mT) / 2
        norm, row = z.norm[:, None], z.row[:, None]
        third = above.norm * bend[:, None] * row * norm
        third = third + self.smooth.third * row * norm * (here.measured["top"] * norm + above.reach(here.radius) * row)
        third = third + 2 * (weight * norm + spare * row) * z.second[:, None]
        return Form(up(matrix), up(third))

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """N = diag(λ φ'')."""
        return ((adjoint * self.smooth.second(below[0])[:, None])[:, :, None] * tangents[0][:, None],)

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor:
        """N moves with λ and with φ''."""
        z, top = below[0], here.measured["top"]
        _, bend = self.over_interval(here, z)
        spare = above.reach(here.radius) * bend[:, None]
        computed = ELEMENTARY * (2 + z.size + z.error + bend)[:, None] * top
        moved = self.smooth.third * z.entry_reach(here.radius)[:, None] * top + spare + computed
        return between(self._weight(here, z) + spare, moved, computed, (z, tangents[0]), (z, tangents[0]))

    def _lean(self, here: Here, weight: Tensor, z: Ahead) -> Tensor:
        """sup ||√w ∘ ∂z/∂θ_p|| with w_j = |λ̂_j φ''(z_j)|, (n, C, K): by the largest w, or from θ_0 and the drift."""
        largest = weight.sqrt()[:, :, None] * z.blocks[:, None]
        if here.lean is None:
            return up(largest)
        leaned, start = here.lean
        away = self.smooth.third * z.entry_reach(here.radius)
        more = up(away[:, None] * here.measured["top"] + 8 * EPS * here.measured["weight"])
        near = (leaned.square() + more[:, :, None] * start.square()[:, None]).sqrt()
        return up(torch.minimum(largest, near + weight.sqrt()[:, :, None] * z.drift[:, None]))


def between(
    norm: Tensor, moved: Tensor, rounding: Tensor, a: tuple[Ahead, Tangent], b: tuple[Ahead, Tangent]
) -> Tensor:
    """≥ the distance of the blocks of Daᵀ N Db over a ball from X̂ᵀ N̂ Ŷ, the mean with those of its transpose.

    Args:
        norm: ≥ ||N||, (n, C).
        moved: ≥ ||N − N̂||, (n, C).
        rounding: of N̂ Ŷ as computed, relative to ||Ŷ||_F, (n, C).
        a, b: bounds and tangents.
    """
    (_, x), (ahead, y) = a, b
    whole = torch.minimum(ahead.blocks, y.size + y.rest)
    rest = x.rest[:, :, None] * whole[:, None] + x.size[:, :, None] * y.rest[:, None]
    start, sizes = x.size[:, :, None] * y.size[:, None], x.frobenius[:, :, None] * y.frobenius[:, None]
    found = sum(f[..., None, None] * m[:, None] for f, m in ((norm, rest), (moved, start), (rounding, sizes)))
    assert isinstance(found, Tensor)
    return up((found + found.mT) / 2)


def folded(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A linear map of samples on tangents (n, D, …)."""
    found = apply(x.flatten(0, 1))
    return found.reshape(*x.shape[:2], *found.shape[1:])


def _raised(values: Tensor, z: Tensor) -> Tensor:
    """|values|, by more than the error of elementary functions."""
    size = values.abs()
    return size + ELEMENTARY * (1 + z.abs() + size)


def _largest(values: Tensor, z: Tensor) -> Tensor:
    result: Tensor = _raised(values, z).amax(dim=1)
    return result
