"""Points of a path and the segments between them: what a walk keeps of an iterate (docs/theory.md, section 9)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.pieces import Piece, Smoothness
from lplr_cli.certificate.region import Descent
from lplr_cli.linalg import gamma

# Entries that are read together: their differences stay in the caches, and large vectors have none that fill memory.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Chord:
    """What is known of a segment from its ends: ||σ||, ⟨∇L_a, ∇L_b⟩, ||Δ∇L||² and ⟨σ, Δ∇L⟩, as computed."""

    length: float
    inner: float
    change: float
    along: float


@dataclass
class Node:
    """A point of the path: θ of shape (P,), L and ||∇L||² there; ``lr`` where gradient descent steps from it.

    ``since`` is the segment that ends here; ∇L (P,) is kept until the one that begins here is known.
    """

    step: int
    theta: Tensor
    loss: float
    square: float
    gradient: Tensor | None
    lr: float | None = None
    since: Chord | None = None


def node_at(step: int, theta: Tensor, loss: float, gradient: Tensor, lr: float | None) -> Node:
    """With ||∇L||² computed."""
    return Node(step, theta, loss, float(torch.dot(gradient, gradient)), gradient, lr)


def chord_between(a: Node, b: Node) -> Chord:
    """Of two nodes that still have their gradients."""
    assert a.gradient is not None
    assert b.gradient is not None
    square = inner = change = along = 0.0
    for p, q, g, h in _blocks(a.theta, b.theta, a.gradient, b.gradient):
        move, turn = q - p, h - g
        square += float(torch.dot(move, move))
        inner += float(torch.dot(g, h))
        change += float(torch.dot(turn, turn))
        along += float(torch.dot(move, turn))
    return Chord(_norm(square, a.theta.numel()), inner, change, along)


def distance(a: Tensor, b: Tensor) -> float:
    """||a − b||, rounded upwards."""
    square = 0.0
    for p, q in _blocks(a, b):
        move = p - q
        square += float(torch.dot(move, move))
    return _norm(square, a.numel())


def _blocks(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Vectors of the same size a block at a time. Sums of the sums of blocks are sums in one more order."""
    return zip(*(torch.split(v, BLOCK) for v in vectors), strict=True)


def _norm(square: float, size: int) -> float:
    """The root of a sum of ``size`` squares of differences, above the rounding of both."""
    return math.sqrt(square) * (1 + gamma(size + 4, torch.float64))


def ratio(loss: float, square: float, floor: float) -> float:
    """½||∇L||²/(L − floor); infinite where L is no larger."""
    return square / (2 * (loss - floor)) if loss > floor else math.inf


def piece_between(a: Node, b: Node, allowed: float, smoothness: Smoothness) -> Piece:
    """The segment from a to b, b being the node after it, with the bounds of ∇²L on ``allowed`` around it."""
    chord = b.since
    assert chord is not None
    return Piece(
        step=a.step,
        length=chord.length,
        start=a.square,
        end=b.square,
        inner=chord.inner,
        change=chord.change,
        along=chord.along,
        loss_start=a.loss,
        loss_end=b.loss,
        dot_error=gamma(a.theta.numel() + 4, torch.float64),
        allowed=allowed,
        smoothness=smoothness,
    )


def descent_from(a: Node, b: Node, chord: Chord) -> Descent:
    """How far a stored step is from the exact one with the gradient as computed; the gradient's error comes later."""
    assert a.lr is not None
    assert a.gradient is not None
    square = 0.0
    for p, q, g in _blocks(a.theta, b.theta, a.gradient):
        off = torch.add(q - p, g, alpha=a.lr)
        square += float(torch.dot(off, off))
    rounding = 2**-50 * (chord.length + abs(a.lr) * math.sqrt(a.square))
    grown = 1 + gamma(a.theta.numel() + 4, torch.float64)
    return Descent(a.step, a.lr, (math.sqrt(square) + rounding) * grown, a.square)
