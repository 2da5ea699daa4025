"""Products of two activations entry by entry (docs/theory.md, section 10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.nodes import Form, Node, Values, between
from lplr_cli.certificate.graph.state import EPS, Ahead, Behind, Here, Measured, Tangent, up


@dataclass(frozen=True)
class Times(Node):
    """c_j = a_j b_j."""

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        return below[0] * below[1]

    def measure(self, *below: Tensor) -> Measured:
        """``left`` and ``right``: the largest |â_j| and |b̂_j|."""
        left, right = (t.flatten(1).abs().amax(dim=1) for t in below)
        return {"left": left, "right": right}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``top``: the largest |λ̂_j|."""
        return {"top": adjoint.flatten(2).abs().amax(dim=2)}

    def over_interval(self, here: Here, a: Ahead, b: Ahead) -> tuple[Tensor, Tensor]:
        """sup |a_j| and sup |b_j|, also of values as computed anywhere on the ball, (n,)."""
        left = here.measured["left"] + a.entry_reach(here.radius) + a.error
        return up(left), up(here.measured["right"] + b.entry_reach(here.radius) + b.error)

    def _top(self, here: Here, above: Behind) -> Tensor:
        """≥ |λ_j| of every entry over the ball, (n, C)."""
        return up(torch.minimum(above.size, here.measured["top"] + above.reach(here.radius)))

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """The product rule, one factor at its largest."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        size = torch.minimum(left * b.size, right * a.size)
        error = right * a.error + left * b.error + EPS * (size + right * a.error + left * b.error)
        blocks, rows = (right[:, None] * x + left[:, None] * y for x, y in ((a.blocks, b.blocks), (a.rows, b.rows)))
        second = right * a.second + left * b.second + 2 * _met(a, b)
        moved = here.radius * (b.row[:, None] * a.blocks + a.row[:, None] * b.blocks)
        drift = right[:, None] * a.drift + left[:, None] * b.drift + moved
        return Ahead(up(size), up(error), up(blocks), up(rows), up(second), up(drift))

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_a = b λ and λ_b = a λ."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        top, found = self._top(here, above)[:, :, None], []
        for gain, other in ((right, b), (left, a)):
            turn = torch.minimum(top * other.blocks[:, None], above.size[:, :, None] * other.rows[:, None])
            found.append((up(gain[:, None] * above.size), up(gain[:, None, None] * above.blocks + turn)))
        return tuple(found)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """Both factors err, and the product is rounded."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        return tuple(
            up(gain[:, None] * error + (other.error + EPS * gain)[:, None] * (size + error))
            for gain, other in ((right, b), (left, a))
        )

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """X b + a Y, of the tangents that there are."""
        parts = [x * other[:, None] for x, other in ((tangents[0], below[1]), (tangents[1], below[0])) if x is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As of the values, both parts together."""
        a, b = below
        left, right = self.over_interval(here, a, b)
        return up((left + right) * error + (a.error + b.error + 4 * EPS * (left + right)) * (size + error))

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form:
        """2 Σ_j λ_j Da_j Db_j; and its derivative."""
        a, b = below
        top = self._top(here, above)
        mixed = a.blocks[:, :, None] * b.blocks[:, None, :]
        second = (a.second * b.norm + a.norm * b.second)[:, None]
        third = 2 * above.norm * _met(a, b)[:, None] + 2 * top * second
        return Form(up(top[..., None, None] * (mixed + mixed.mT)[:, None]), up(third))

    def bent(self, adjoint: Tensor, tangents: tuple[Tensor, ...], below: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """2 Σ λ_j X_j Y_j of tangents X and Y: λ Y and λ X."""
        x, y = tangents
        return adjoint[:, :, None] * y[:, None], adjoint[:, :, None] * x[:, None]

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor:
        """N moves with λ alone."""
        a, b = zip(below, tangents, strict=True)
        top = self._top(here, above)
        return 2 * between(top, above.reach(here.radius), 4 * EPS * (top + above.error), a, b)


def _met(a: Ahead, b: Ahead) -> Tensor:
    """≥ ||Da[u] Db[v]|| for u and v of length one, entry by entry, (n,)."""
    return torch.minimum(a.row * b.norm, a.norm * b.row)
