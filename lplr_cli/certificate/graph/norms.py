"""Group and layer normalisation: sets of entries centred and divided by their deviation (docs/theory.md, section 10).

y = p/s of p = x − mean, s² = ||p||²/m + ε over sets of m entries. As a map y has ||Dy|| ≤ 1/s, ||D²y|| ≤ 2/(√3 √m s²)
and ||D³y|| ≤ 3/(m s³). Scale and shift come behind it, as a layer of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.nodes import Form, Node, Values, between
from lplr_cli.certificate.graph.state import Ahead, Behind, Here, Measured, Tangent, up, up_float
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.network import euclidean
from lplr_cli.certificate.norms import frobenius_upper
from lplr_cli.linalg import gamma

SECOND, THIRD = 2 / math.sqrt(3), 3.0
# A deviation that rounding could change by more than this part has no bound.
ROUNDED = 0.01


@dataclass(frozen=True)
class Normalise(Node):
    """y = (x − mean)/√(var + ε) over sets of entries that follow one another.

    Attributes:
        sets: of a sample.
        entries: m of each set.
        epsilon: ε > 0.
    """

    sets: int
    entries: int
    epsilon: float

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        x = below[0].reshape(-1, self.sets, self.entries)
        p, s = self._parts(x)
        return (p / s).reshape(below[0].shape)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = x - x.mean(dim=-1, keepdim=True)
        return p, (p.square().mean(dim=-1, keepdim=True) + self.epsilon).sqrt()

    def _low(self, x: Tensor) -> Tensor:
        """≤ s of each set, above rounding, (n, sets)."""
        s = self._parts(x)[1][..., 0]
        slack = 8 * gamma(2 * self.entries + 16, x.dtype) * euclidean(x) / math.sqrt(self.entries)
        return (s * (1 - 1e-12) - slack).clamp_min(math.sqrt(self.epsilon) * (1 - 1e-12))

    def measure(self, *below: Tensor) -> Measured:
        """``least``: ≤ the smallest s of x̂; ``tops``: ≥ the largest |ŷ|."""
        x = below[0].reshape(-1, self.sets, self.entries)
        p, s = self._parts(x)
        return {"least": self._low(x).amin(dim=1), "tops": up((p / s).abs().amax(dim=(1, 2)))}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``set``: the largest ||λ̂|| of a set; ``weight``: the largest ||λ̂||/s² of one."""
        low = self._low(below[0].reshape(-1, self.sets, self.entries))[:, None]
        sizes = euclidean(adjoint.reshape(*adjoint.shape[:2], self.sets, self.entries))
        return {"set": up(sizes.amax(dim=2)), "weight": up((sizes / low.square()).amax(dim=2))}

    def over_interval(self, here: Here, x: Ahead) -> tuple[Tensor, Tensor]:
        """sup 1/s over the ball, (n,), and sup (ŝ/s)², infinite where s may vanish but for ε: s moves by ||δx||/√m."""
        least, away = here.measured["least"], (x.reach(here.radius) + x.error) / math.sqrt(self.entries)
        left = least - up(away)
        inverse = 1 / left.clamp_min(math.sqrt(self.epsilon) * (1 - 1e-12))
        ratio = torch.where(left > 0, (least / left.clamp_min(1e-300)).square(), torch.inf)
        return up(inverse), up(ratio)

    def _bend(self, inverse: Tensor) -> Tensor:
        """sup ||D²y|| over the ball, (n,)."""
        return up(SECOND * inverse.square() / math.sqrt(self.entries))

    def _weight(self, here: Here, above: Behind, x: Ahead) -> Tensor:
        """sup of ||λ|| ||D²y|| over sets and ball, (n, C)."""
        inverse, ratio = self.over_interval(here, x)
        measured, m = here.measured, math.sqrt(self.entries)
        start = torch.minimum(measured["set"] * inverse.square()[:, None], measured["weight"] * ratio[:, None])
        return up(
            SECOND / m * torch.nan_to_num(start, nan=math.inf) + above.reach(here.radius) * self._bend(inverse)[:, None]
        )

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """By the norms of the derivatives of y."""
        x = below[0]
        inverse, _ = self.over_interval(here, x)
        bend, total = self._bend(inverse), math.sqrt(self.sets * self.entries)
        size = torch.full_like(x.size, total)
        error = inverse * x.error + self._fresh(x, inverse)
        blocks = inverse[:, None] * x.blocks
        # |Dy_j h| ≤ (|h_j| + |mean h| + |y_j| ||h||/√m)/s.
        top = (here.measured["tops"] + inverse * x.reach(here.radius))[:, None] / math.sqrt(self.entries)
        rows = torch.minimum(blocks, inverse[:, None] * (2 * x.rows + top * x.blocks))
        second = bend * x.norm.square() + inverse * x.second
        drift = inverse[:, None] * x.drift + (bend * here.radius * x.norm)[:, None] * x.blocks
        return Ahead(up(size), up(error), up(blocks), up(rows), up(second), up(drift))

    def _relative(self, x: Ahead, inverse: Tensor) -> Tensor:
        """≥ |ŝ − s|/s of a deviation as computed, by sums of squares of any kind; infinite where it is not small."""
        spread = (x.size + x.error).square() / self.entries * inverse.square()
        relative = 8 * gamma(2 * self.entries + 32, torch.float64) * (1 + spread)
        return torch.where(relative < ROUNDED, relative, torch.inf)

    def _fresh(self, x: Ahead, inverse: Tensor) -> Tensor:
        """Rounding of y itself, scale and shift possibly joined with it."""
        moved = 8 * gamma(self.entries + 16, torch.float64) * inverse * (x.size + x.error)
        return moved + 2 * math.sqrt(self.sets * self.entries) * self._relative(x, inverse)

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_x = Dyᵀ λ_y, whose derivative has D²y[Dx] λ_y beside Dyᵀ Dλ_y."""
        x = below[0]
        inverse, _ = self.over_interval(here, x)
        turn = self._weight(here, above, x)[:, :, None] * x.blocks[:, None]
        return ((up(inverse[:, None] * above.size), up(inverse[:, None, None] * above.blocks + turn)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Dy errs with x̂, and is applied with cancelling sums."""
        x = below[0]
        inverse, _ = self.over_interval(here, x)
        away, fresh = self._bend(inverse) * x.error, 8 * inverse * self._relative(x, inverse)
        return (up((inverse + away)[:, None] * error + (away + fresh)[:, None] * (size + error)),)

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """(h − mean h − y mean(y h))/s."""
        (h,) = tangents
        assert h is not None
        p, s = self._parts(below[0].reshape(-1, 1, self.sets, self.entries))
        y, flat = p / s, h.reshape(*h.shape[:2], self.sets, self.entries)
        along = (y * flat).mean(dim=-1, keepdim=True)
        return ((flat - flat.mean(dim=-1, keepdim=True) - y * along) / s).reshape(h.shape)

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As backwards: Dy is symmetric."""
        return self.errors(here, size[:, None], error[:, None], *below)[0][:, 0]

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form:
        """Σ over sets of ⟨λ, D²y[Dx u, Dx u]⟩; and its derivative."""
        x = below[0]
        inverse, _ = self.over_interval(here, x)
        weight, blocks, norm = self._weight(here, above, x), x.blocks[:, None], x.norm[:, None]
        matrix = weight[..., None, None] * blocks[..., :, None] * blocks[..., None, :]
        third = above.norm * self._bend(inverse)[:, None] * norm.square()
        largest = torch.minimum(above.size, here.measured["set"] + above.reach(here.radius))
        third = third + THIRD / self.entries * (inverse**3)[:, None] * largest * norm**3
        return Form(up(matrix), up(third + 2 * weight * norm * x.second[:, None]))

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """−(λyᵀ + yλᵀ + ⟨λ, y⟩ (1 − 3yyᵀ/m))h/(ms²) with λ and h centred."""
        m = self.entries
        p, s = self._parts(below[0].reshape(-1, 1, 1, self.sets, m))
        y = p / s
        h, adj = (t.reshape(*t.shape[:2], self.sets, m) for t in (tangents[0], adjoint))
        h, adj = (h - h.mean(dim=-1, keepdim=True))[:, None], (adj - adj.mean(dim=-1, keepdim=True))[:, :, None]
        along, meet, level = ((a * b).sum(dim=-1, keepdim=True) for a, b in ((y, h), (adj, h), (adj, y)))
        found = -(adj * along + y * meet + level * (h - 3 * y * along / m)) / (m * s.square())
        return (found.reshape(*found.shape[:3], *below[0].shape[1:]),)

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor:
        """N moves with λ and with x."""
        x, m, root = below[0], self.entries, math.sqrt(self.entries)
        inverse, _ = self.over_interval(here, x)
        largest = torch.minimum(above.size, here.measured["set"] + above.reach(here.radius)) + above.error
        change = THIRD / m * inverse**3 * x.reach(here.radius)
        moved = self._bend(inverse)[:, None] * above.reach(here.radius) + change[:, None] * largest
        wrong = self._fresh(x, inverse) + root * (2 * self._relative(x, inverse) + gamma(4 * m + 64, torch.float64))
        rounding = (32 / m * inverse.square() * wrong)[:, None] * largest
        return between(self._weight(here, above, x), moved, rounding, (x, tangents[0]), (x, tangents[0]))


@dataclass(frozen=True)
class Scaled(Weighted):
    """y_c = w_c x_c + b_c: a scale and a shift for each channel, a layer whose groups are single numbers.

    Attributes:
        channels: of them.
        last: whether they come last; behind the samples where not.
    """

    channels: int = 1
    last: bool = False

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        x = below[0]
        shape = self._trailing(x) if self.last else (self.channels, *[1] * (x.dim() - 2))
        y = x * values[self.weight].reshape(shape)
        return y if self.bias is None else y + values[self.bias].reshape(shape)

    def _trailing(self, x: Tensor) -> tuple[int, ...]:
        """The dimensions that hold the channels, where these come last."""
        sizes: list[int] = []
        while math.prod(sizes) < self.channels:
            sizes.insert(0, x.shape[-1 - len(sizes)])
        return tuple(sizes)

    def columns(self, x: Tensor) -> Tensor:
        """A of each channel, (n, channels, 1, T)."""
        return self._apart(x, 1)

    def outputs(self, z: Tensor) -> Tensor:
        """(n, C, …) to (n, C, channels, 1, T)."""
        return self._apart(z, 2)

    def _apart(self, t: Tensor, lead: int) -> Tensor:
        if self.last:
            return t.reshape(*t.shape[:lead], -1, self.channels).mT[..., None, :]
        return t.reshape(*t.shape[:lead], self.channels, 1, -1)

    def _as_output(self, s: Tensor, shape: torch.Size) -> Tensor:
        s = s[..., 0, :]
        return (s.mT if self.last else s).reshape(*s.shape[:2], *shape)

    def constants(self, values: Values, *shapes: torch.Size) -> dict[str, float]:
        """The norm is the largest scale."""
        w = values[self.weight]
        largest = float(w.abs().max())
        found = {
            "norm": largest,
            "frobenius": frobenius_upper(w),
            "row": largest,
            "row_sum": largest,
            "bias": 0.0 if self.bias is None else frobenius_upper(values[self.bias]),
            "terms": 1.0,
            "backward_terms": 1.0,
        }
        return {k: up_float(v) for k, v in found.items()}
