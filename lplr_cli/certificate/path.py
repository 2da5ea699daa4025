"""A locally PL region around the path of a run (docs/theory.md, section 9).

A :class:`Walk` is given the iterates one after another, with loss and gradient at each. It puts balls over stretches
of the path, cuts the segments on which the bounds lose too much, and keeps a few numbers of each piece;
:meth:`Walk.region` makes the theorem from them. What the loss can do on a ball comes from a :class:`Curvature`, which
is a proof or an estimate; the region is called what its curvature is.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lplr_cli.certificate.nodes import Chord, Node, chord_between, descent_from, distance, node_at, piece_between, ratio
from lplr_cli.certificate.pieces import Array, Piece, Pieces, Smoothness
from lplr_cli.certificate.region import TUBE, Descent, Lost, Region, assemble
from lplr_cli.errors import InputError

CERTIFIED, ESTIMATE = "certified", "estimate"
# A piece is good enough from this part of the smallest ratio measured on, with L* = 0 and with the smallest loss.
_QUALITY_STAR, _QUALITY = 0.86, 0.82
# And from this ηβ on downwards: from 2 on no descent is proved.
_STABLE = 1.95
# Pieces that a run may have, as a multiple of its steps, and as many on top.
PIECES_PER_STEP, PIECES_MORE = 4, 2000
# A step beyond the edge of stability is tried up to so many pieces, any other up to so many.
_LEAP, MOST = 8, 250
# A segment is halved at most this often.
_MAX_DEPTH = 8
# The first ball: the largest whose β exceeds that of its centre by at most this factor.
_FIRST_GROWTH = 1.25
# A smaller ball is worth its price where it makes μ larger by this factor.
_WORTH = 1.05
_UP = 1 + 1e-12


class Ball(Protocol):
    """Bounds of ∇²L on balls around one centre."""

    def at(self, radius: float) -> Smoothness:
        """On the ball of this radius; infinite β where nothing is known."""


class Curvature(Protocol):
    """Where the bounds of ∇²L come from.

    Attributes:
        kind: :data:`CERTIFIED` or :data:`ESTIMATE`.
        largest: radius that a ball may have.
    """

    kind: str
    largest: float

    def ball(self, centre: Tensor) -> Ball:
        """For balls around θ = ``centre``, (P,)."""


@dataclass(frozen=True)
class Aim:
    """The smallest ratios along the run as its log has them; None where it has none.

    Attributes:
        star: min of ½||∇L||²/L.
        ratio: min of ½||∇L||²/(L − floor).
        floor: the smallest loss.
    """

    star: float | None = None
    ratio: float | None = None
    floor: float | None = None


class Walk:
    """Walk along the iterates of a run, in memory that does not grow with their number but for a few scalars a piece.

    Args:
        curvature: bounds of ∇²L on balls.
        evaluate: θ (P,) → L and ∇L (P,), in float64, at the points where a segment is cut.
        aim: the ratios to come near to.
        radius: ρ of the tube; by :data:`TUBE` when None.
        budget: pieces at most; beyond, segments are taken as they are.
        memory: bytes of iterates that may be held back.

    Raises:
        InputError: a radius that is none.
    """

    def __init__(
        self,
        curvature: Curvature,
        evaluate: Callable[[Tensor], tuple[float, Tensor]],
        *,
        aim: Aim | None = None,
        radius: float | None = None,
        budget: int | None = None,
        memory: int = 256 << 20,
    ) -> None:
        if radius is not None and not 0 <= radius < math.inf:
            raise InputError(f"the radius {radius} of a path is none", "give a number of at least 0, or auto")
        self._curvature, self._evaluate = curvature, evaluate
        self._aim = aim or Aim()
        self._radius, self._budget, self._memory = radius, budget, memory
        self._group: list[Node] = []
        self._reach: float | None = None
        self.pieces: list[Piece] = []
        self.descents: list[Descent] = []
        self._allowed = 0.0
        self._lost: list[Lost] = []
        self._nodes = array("d"), array("d")
        self._lowest = math.inf
        self.balls = 0
        self.steps = 0

    # -- walking -----------------------------------------------------------------------------------------------------

    def add(self, step: int, theta: Tensor, loss: float, gradient: Tensor, lr: float | None = None) -> None:
        """The next iterate.

        Args:
            step: of the optimiser, increasing by one.
            theta: (P,), float64; copied.
            loss: L(θ).
            gradient: ∇L(θ), (P,), float64; copied.
            lr: η of the plain gradient descent step from here; None for any other optimiser.
        """
        node = node_at(step, theta.clone(), loss, gradient.clone(), lr)
        if not self._group:
            self._group = [node]
            self._see(node)
            return
        before = self._group[-1]
        self.steps += 1
        if not all(math.isfinite(v) for v in (before.loss, before.square, node.loss, node.square)):
            self._leave(node, "the loss or its gradient is not finite")
            return
        chord = chord_between(before, node)
        if before.lr is not None:
            self.descents.append(descent_from(before, node, chord))
        if self._reach is None:
            self._reach = self.first_reach(before.theta)
        count = max(1, math.ceil(min(chord.length / (1.6 * self._reach), 1e6)))
        hopeless = self._hopeless(before, chord, count)
        if hopeless:
            self._leave(node, hopeless)
            return
        for cut in range(1, count):
            self._append(self._between(before, node, cut / count))
        self._append(node, chord if count == 1 else None)

    def _hopeless(self, a: Node, chord: Chord, count: int) -> str:
        """Why no balls are put on a step that would take so many pieces; empty where they are.

        The mean curvature along a step is known from its ends. From 2/η on any β there is larger, so that no descent
        can be proved, and the slope along the step changes its sign on it.
        """
        # A step that does not move, or less than squares can tell, has no curvature along it.
        square = chord.length * chord.length
        along = chord.along / square if square > 0 else 0.0
        if a.lr is not None and count > _LEAP and a.lr * along >= 2:
            return f"beyond the edge of stability: curvature {along:.3g} along the step, 2/eta = {2 / a.lr:.3g}"
        if self._spent(count):
            return f"it would need {count} pieces more, and --pieces allows fewer"
        if self._budget is None and count > MOST:
            return f"so long a step needs {count} balls or more: give --pieces to have them"
        return ""

    def _leave(self, node: Node, reason: str) -> None:
        """A hole in the region between the last node and this one."""
        last = self._group[-1]
        self._lost.append(Lost(last.step, distance(last.theta, node.theta), reason))
        self._close(self._group, 0)
        self._group = [node]
        self._see(node)

    def _append(self, node: Node, chord: Chord | None = None) -> None:
        assert self._reach is not None
        self._see(node)
        last = self._group[-1]
        node.since = chord or chord_between(last, node)
        last.gradient = None
        held = max(2, self._memory // (8 * node.theta.numel()))
        if len(self._group) >= held or distance(self._group[0].theta, node.theta) > 1.8 * self._reach:
            self._close(self._group, 0)
            self._group = self._group[-1:]
        self._group.append(node)

    def _see(self, node: Node) -> None:
        for kept, value in zip(self._nodes, (node.loss, node.square), strict=True):
            kept.append(value)
        self._lowest = min(self._lowest, ratio(node.loss, node.square, 0.0))

    def _between(self, a: Node, b: Node, share: float) -> Node:
        """A node on the segment, where the path is cut."""
        theta = torch.lerp(a.theta, b.theta, share)
        loss, gradient = self._evaluate(theta)
        return node_at(a.step, theta, loss, gradient.clone(), a.lr)

    def _with_gradient(self, node: Node) -> Node:
        """The same point, evaluated anew where its gradient was given up."""
        if node.gradient is not None:
            return replace(node)
        loss, gradient = self._evaluate(node.theta)
        return node_at(node.step, node.theta, loss, gradient.clone(), node.lr)

    def _spent(self, more: int) -> bool:
        allowed = PIECES_PER_STEP * self.steps + PIECES_MORE if self._budget is None else self._budget
        return len(self.pieces) + len(self._group) + more > allowed

    # -- balls -------------------------------------------------------------------------------------------------------

    def first_reach(self, centre: Tensor) -> float:
        """The largest radius by halves on which β stays near that of the centre."""
        ball = self._curvature.ball(centre)
        self.balls += 1
        least = ball.at(0.0).beta
        radius = min(self._curvature.largest, 0.1 * float(torch.linalg.vector_norm(centre)) + 1e-12)
        for _ in range(60):
            if ball.at(radius).beta <= _FIRST_GROWTH * least:
                break
            radius /= 2
        return radius

    def _close(self, nodes: Sequence[Node], depth: int) -> None:
        """One ball over these nodes; or several, where one is not good enough."""
        if len(nodes) < 2:
            return
        centre = torch.lerp(nodes[0].theta, nodes[-1].theta, 0.5)
        far = max(distance(centre, node.theta) for node in nodes)
        ball = self._curvature.ball(centre)
        self.balls += 1
        found = self.bounded(nodes, ball, far)
        value, descent = self._value(found, nodes)
        if (np.minimum(value, descent) >= 1).all():
            self.pieces += found
            self._grow(nodes, ball, far)
            return
        closer = self._closer(nodes, ball, far, value, descent) if depth < _MAX_DEPTH and not self._spent(0) else None
        if closer is not None:
            self._reach = closer
            for group in grouped(nodes, 1.8 * closer):
                self._close(group, depth + 1)
            return
        for (a, b), piece, enough in zip(pairwise(nodes), found, value, strict=True):
            if enough >= 1:
                self.pieces.append(piece)
            else:
                self._cut(a, b, piece, float(enough), depth)

    def _grow(self, nodes: Sequence[Node], ball: Ball, far: float) -> None:
        """Larger balls from here on, where this one could have been larger."""
        assert self._reach is not None
        larger = min(1.5 * max(self._reach, far), self._curvature.largest)
        if far > 0.5 * self._reach and larger > self._reach:
            value, descent = self._value(self.bounded(nodes, ball, larger), nodes)
            if (np.minimum(value, descent) >= 1).all():
                self._reach = larger

    def _closer(self, nodes: Sequence[Node], ball: Ball, far: float, value: Array, descent: Array) -> float | None:
        """The largest radius by halves on which all that can be good enough is; None where no smaller ball helps."""
        nearest = max(distance(a.theta, b.theta) for a, b in pairwise(nodes)) / 2
        if far <= 1.5 * nearest:
            return None
        best, steady = self._value(self.bounded(nodes, ball, nearest), nodes)
        # A smaller ball is worth its price only where it changes something.
        gains = (value < 1) & (best > _WORTH * value) | (descent < 1) & (steady >= 1)
        if not gains.any():
            return None
        radius = far / 2
        while radius > 1.5 * nearest:
            there, stable = self._value(self.bounded(nodes, ball, radius), nodes)
            if (np.where(steady >= 1, np.minimum(there, stable), there)[gains] >= 1).all():
                return radius
            radius /= 2
        return nearest

    def _cut(self, a: Node, b: Node, piece: Piece, value: float, depth: int) -> None:
        """Halve a segment in the same ball, and in balls of its own where that does not help."""
        if depth >= _MAX_DEPTH or self._spent(1) or min(a.square, b.square) == 0 or self._is_best(a, b, piece, value):
            self.pieces.append(piece)
            return
        a, middle, b = self._with_gradient(a), self._between(a, b, 0.5), self._with_gradient(b)
        self._see(middle)
        middle.since, b.since = chord_between(a, middle), chord_between(middle, b)
        for left, right in ((a, middle), (middle, b)):
            half = piece_between(left, right, piece.allowed, piece.smoothness)
            now = float(self._value([half], [left, right])[0][0])
            if now >= 1:
                self.pieces.append(half)
            elif now > _WORTH * value:
                self._cut(left, right, half, now, depth + 1)
            else:
                self._close([left, right], depth + 1)

    def _is_best(self, a: Node, b: Node, piece: Piece, value: float) -> bool:
        """Whether no cut can help: at an end alone the bounds lose as much, to rounding or to a vanishing gradient."""
        # A point has no chord to deviate from, whatever is known of the third derivatives.
        here = replace(piece.smoothness, gauss_newton=0.0, rest=0.0)
        points = (replace(n, since=Chord(0.0, n.square, 0.0, 0.0)) for n in (a, b))
        least = min(float(self._value([piece_between(n, n, piece.allowed, here)], [a, b])[0][0]) for n in points)
        return least <= _WORTH * value

    def bounded(self, nodes: Sequence[Node], ball: Ball, far: float) -> list[Piece]:
        """The pieces between these nodes, with the bounds on the ball that holds them and the tube around them."""
        allowed = self._radius
        if allowed is None:
            if self._allowed == 0.0:
                self._allowed = self._room(nodes, ball.at(far))
            allowed = self._allowed
        # A cut is rounded off its segment, by far less than this.
        rounded = 2.0**-50 * float(torch.linalg.vector_norm(nodes[0].theta))
        smoothness = ball.at((far + allowed) * _UP + rounded)
        if self._radius is None:
            # What the next ball leaves room for; this one's tube is what its own ball holds.
            self._allowed = self._room(nodes, smoothness)
        return [piece_between(a, b, allowed, smoothness) for a, b in pairwise(nodes)]

    @staticmethod
    def _room(nodes: Sequence[Node], smoothness: Smoothness) -> float:
        least = math.sqrt(min(node.square for node in nodes))
        return TUBE * least / smoothness.beta if 0 < smoothness.beta < math.inf else least

    def _value(self, found: list[Piece], nodes: Sequence[Node]) -> tuple[Array, Array]:
        """μ of each piece relative to what it is asked for, and 1.95 relative to ηβ; at least 1 is good enough."""
        pieces, ends = Pieces(found), list(pairwise(nodes))
        rho = self._radius if self._radius is not None else pieces.share(TUBE)
        star = self._lowest if self._aim.star is None else self._aim.star
        value: Array = pieces.mu(rho, 0.0) / _asked(ends, 0.0, star, _QUALITY_STAR)
        if self._aim.floor is not None and self._aim.ratio is not None:
            floor = self._aim.floor
            value = np.minimum(value, pieces.mu(rho, floor) / _asked(ends, floor, self._aim.ratio, _QUALITY))
        eta = np.array([a.lr or 0.0 for a, _ in ends])
        with np.errstate(divide="ignore"):
            descent: Array = np.where(eta > 0, _STABLE / (eta * pieces.beta), np.inf)
        return value, descent

    # -- the theorem -------------------------------------------------------------------------------------------------

    def region(self) -> Region:
        """The region of everything that was walked."""
        self._close(self._group, 0)
        self._group = self._group[-1:]
        return assemble(
            self._curvature.kind,
            self.pieces,
            self.descents,
            self._lost,
            np.array(self._nodes),
            radius=self._radius,
            balls=self.balls,
            steps=self.steps,
        )


def grouped(nodes: Sequence[Node], spread: float) -> list[Sequence[Node]]:
    """Consecutive stretches that share their ends, each at most this wide where a segment is not wider."""
    groups: list[Sequence[Node]] = []
    first = 0
    for last in range(1, len(nodes)):
        if last > first + 1 and distance(nodes[first].theta, nodes[last].theta) > spread:
            groups.append(nodes[first:last])
            first = last - 1
    return [*groups, nodes[first:]]


def _asked(ends: list[tuple[Node, Node]], floor: float, known: float, quality: float) -> Array:
    """A part of the smallest ratio of the run, or of the piece's own ends."""
    own = [min(known, *(ratio(node.loss, node.square, floor) for node in pair)) for pair in ends]
    asked: Array = quality * np.maximum(np.array(own), 1e-300)
    return asked
