"""Where the balls of a walk lie: every piece with its tube in one, no part left out, steps as they were made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import CERTIFIED, Aim, Region, Smoothness, Walk
from lplr_cli.certificate import nodes as points
from lplr_cli.certificate import path as module
from lplr_cli.certificate.nodes import Node, chord_between, descent_from, distance, node_at, piece_between, ratio
from lplr_cli.certificate.path import grouped
from lplr_cli.certificate.pieces import Piece
from lplr_cli.errors import InputError

SLOPES = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def parabola(theta: Tensor) -> tuple[float, Tensor]:
    """L = 1 + ½ Σ h θ²."""
    return 1 + float((SLOPES * theta.square()).sum()) / 2, SLOPES * theta


@dataclass
class Placed:
    """Bounds of a parabola that are looser on larger balls, with the ball that each of them is of."""

    loose: float
    steep: float | None = None
    kind: str = CERTIFIED
    largest: float = math.inf
    at_balls: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    kept: list[Smoothness] = field(default_factory=list)
    balls: int = 0

    def ball(self, centre: Tensor) -> PlacedBall:
        self.balls += 1
        return PlacedBall(self, centre.clone())


@dataclass
class PlacedBall:
    """Around one centre."""

    of: Placed
    centre: Tensor

    def at(self, radius: float) -> Smoothness:
        beta = 2.0 * (1 + self.of.loose * radius)
        if self.of.steep is None:
            found = Smoothness(beta, self.of.loose * radius, 0.0, 1.0)
        else:  # by Lemma A alone, so that segments deviate and are cut
            found = Smoothness(beta, self.of.steep * radius)
        self.of.kept.append(found)  # so that no other has its identity
        self.of.at_balls[id(found)] = (self.centre, radius)
        return found


def zigzag(steps: int, stride: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.tensor([3.0, -2.0, 4.0], dtype=torch.float64)]
    for _ in range(steps):
        found.append(found[-1] + stride * (torch.rand(3, generator=generator, dtype=torch.float64) - 0.6))
    return found


def route(stride: float, seed: int) -> list[Tensor]:
    """25 steps of about this length; or of minus this factor towards the minimum, where balls must be smaller."""
    if stride > 0:
        return zigzag(25, stride, seed)
    return [torch.tensor([3.0, -2.0, 4.0], dtype=torch.float64) * (-stride) ** k for k in range(26)]


@dataclass
class Walked:
    """A walk, its region, and the ends of every piece."""

    region: Region
    pieces: list[Piece]
    ends: list[tuple[Tensor, Tensor]]
    curvature: Placed


def walked(
    path: list[Tensor], monkeypatch: pytest.MonkeyPatch, loose: float = 3.0, steep: float | None = None, **options: Any
) -> Walked:
    made: dict[int, tuple[Piece, Tensor, Tensor]] = {}

    def watched(a: Node, b: Node, allowed: float, smoothness: Smoothness) -> Piece:
        found = piece_between(a, b, allowed, smoothness)
        made[id(found)] = (found, a.theta, b.theta)
        return found

    monkeypatch.setattr(module, "piece_between", watched)
    curvature = Placed(loose, steep)
    walk = Walk(curvature, parabola, **options)
    for step, theta in enumerate(path):
        walk.add(step, theta, *parabola(theta))
    region = walk.region()
    return Walked(region, walk.pieces, [made[id(p)][1:] for p in walk.pieces], curvature)


def line(path: Iterable[Tensor], lr: float | None = None) -> list[Node]:
    """The nodes of a path, each with the segment that ends there."""
    nodes = [node_at(k, theta, *parabola(theta), lr) for k, theta in enumerate(path)]
    for a, b in pairwise(nodes):
        b.since = chord_between(a, b)
    return nodes


def apart(a: Tensor, b: Tensor) -> mpmath.mpf:
    return mpmath.norm([mpmath.mpf(x) - mpmath.mpf(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])


HARD = Aim(1e3, 1e3, 0.0)
# A tube so wide that halves in the same ball are no better: they get balls of their own.
CROWDED = {"radius": 0.2, "budget": 60}


@pytest.mark.parametrize(
    "options", [{}, {"aim": HARD}, {"radius": 0.02}, {"memory": 16 * 3 * 3}, {"aim": HARD, "budget": 60}, CROWDED]
)
@pytest.mark.parametrize(
    ("stride", "loose", "steep"),
    [
        (0.02, 3.0, None),
        (0.5, 3.0, None),
        (0.5, 0.0, None),
        (3.0, 0.3, None),
        (2.0, 0.0, 0.5),
        (-0.93, 0.0, 30.0),
        (-0.85, 1.0, 8.0),
        (-0.7, 0.0, 30.0),
        (3.0, 0.0, 8.0),
    ],
)
def test_every_piece_and_its_tube_lie_in_the_ball_of_its_bounds(
    stride: float, loose: float, steep: float | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = route(stride, 1)
    found = walked(path, monkeypatch, loose, steep, **options)
    with mpmath.workdps(40):
        for piece, (a, b) in zip(found.pieces, found.ends, strict=True):
            centre, radius = found.curvature.at_balls[id(piece.smoothness)]
            for end in (a, b):
                # By convexity the whole segment, and all that is as near to it as the tube.
                assert apart(centre, end) + mpmath.mpf(piece.allowed) <= mpmath.mpf(radius)
            assert apart(a, b) <= mpmath.mpf(piece.length) <= apart(a, b) * (1 + mpmath.mpf("1e-12"))
            assert piece.allowed == options.get("radius", piece.allowed)
            assert found.region.radius is None or found.region.radius <= piece.allowed


@pytest.mark.parametrize(
    "options", [{}, {"aim": HARD}, {"memory": 1}, {"aim": HARD, "budget": 40}, {"budget": 26}, CROWDED]
)
@pytest.mark.parametrize(
    ("stride", "loose", "steep"),
    [
        (0.02, 3.0, None),
        (0.5, 3.0, None),
        (3.0, 3.0, None),
        (1.0, 0.02, 8.0),
        (2.0, 0.0, 0.5),
        (-0.93, 0.0, 30.0),
        (-0.85, 1.0, 8.0),
        (-0.7, 0.0, 30.0),
        (3.0, 0.0, 8.0),
    ],
)
def test_no_part_of_the_path_is_left_out(
    stride: float, loose: float, steep: float | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces join from end to end, and what lies between the others is named as lost."""
    path = route(stride, 2)
    found = walked(path, monkeypatch, loose, steep, **options)
    lost = {row.step for row in found.region.rows if row.pieces == 0}
    assert {row.step for row in found.region.rows} == set(range(25))
    left = {step: path[step] for step in range(25)}
    for piece, (a, b) in zip(found.pieces, found.ends, strict=True):
        assert torch.equal(left[piece.step], a)
        left[piece.step] = b
    for step, end in left.items():
        assert torch.equal(end, path[step + 1] if step not in lost else path[step])
    assert found.region.length == pytest.approx(sum(float((b - a).norm()) for a, b in pairwise(path)))
    assert not lost or "budget" in options
    assert lost or options != {"budget": 26} or loose < 1 or stride < 1
    region = found.region
    assert (region.steps, region.balls, region.pieces) == (25, found.curvature.balls, len(found.pieces))
    # What was measured is measured at every iterate, and where the path was cut.
    ratios = [float(g @ g) / (2 * loss) for loss, g in map(parabola, path)]
    assert region.measured_star is not None
    assert region.measured_star <= min(ratios) * (1 + 1e-12)
    assert region.measured_star == pytest.approx(min(ratios), rel=0.5)


def test_all_ways_of_a_walk_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths above meet balls that are too large, and segments that are cut in their ball and in others."""
    taken = set()
    for name in ("_closer", "_cut", "_grow"):
        original = getattr(Walk, name)

        def watched(self: Walk, *arguments: Any, name: str = name, original: Any = original) -> Any:
            found = original(self, *arguments)
            taken.add((name, found is None, arguments[-1] if name == "_cut" else 0))
            return found

        monkeypatch.setattr(Walk, name, watched)
    ways = (1.0, 0.02, 8.0), (2.0, 0.0, 0.5), (-0.7, 0.0, 30.0), (-0.93, 0.0, 30.0), (-0.85, 1.0, 8.0)
    for stride, loose, steep in ways:
        walked(route(stride, 2), monkeypatch, loose, steep)
    assert {("_closer", False, 0), ("_closer", True, 0), ("_grow", True, 0)} <= taken
    assert {depth for name, _, depth in taken if name == "_cut"} >= {0, 1, 2}


@pytest.mark.parametrize("lost", [{"gradient_error": 1.2}, {"gradient_error": 50.0}, {"loss_error": 9.0}])
def test_what_is_lost_at_the_nodes_is_not_cut_for(lost: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves lose as much to rounding as the whole: a piece a step, and none is called more than it is."""
    at = PlacedBall.at
    monkeypatch.setattr(PlacedBall, "at", lambda self, radius: replace(at(self, radius), **lost))
    path = zigzag(12, 0.1, 2)
    found = walked(path, monkeypatch)
    assert len(found.pieces) == 12
    assert found.curvature.balls <= 14
    assert found.region.mu_star is None or found.region.mu_star < 0.86 * float(found.region.measured_star or 0)


def test_groups_share_their_ends() -> None:
    nodes = line(zigzag(12, 0.5, 3))
    for spread in (0.0, 0.3, 1.0, 100.0):
        groups = grouped(nodes, spread)
        assert groups[0][0].step == 0
        assert groups[-1][-1].step == 12
        assert all(len(g) >= 2 for g in groups)
        assert all(a[-1] is b[0] for a, b in pairwise(groups))
        assert sum(len(g) - 1 for g in groups) == 12


@pytest.mark.parametrize("block", [1, 2, points.BLOCK])
def test_what_a_piece_keeps_of_its_nodes(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner products to their error, and nothing of one end in the place of the other, in blocks or whole."""
    monkeypatch.setattr(points, "BLOCK", block)
    a, b = line(zigzag(1, 0.5, 4), 0.1)
    smooth = Smoothness(2.0, 0.0)
    piece = piece_between(a, b, 0.25, smooth)
    g, k = ([Fraction(v) for v in parabola(node.theta)[1].tolist()] for node in (a, b))
    s = [Fraction(y) - Fraction(x) for x, y in zip(a.theta.tolist(), b.theta.tolist(), strict=True)]
    y = [v - u for u, v in zip(g, k, strict=True)]

    def dot(u: list[Fraction], v: list[Fraction]) -> float:
        return float(sum(p * q for p, q in zip(u, v, strict=True)))

    wanted = (dot(g, g), dot(k, k), dot(g, k), dot(y, y), dot(s, y))
    assert (piece.start, piece.end, piece.inner, piece.change, piece.along) == pytest.approx(wanted, rel=1e-13)
    assert (piece.step, piece.loss_start, piece.loss_end) == (0, a.loss, b.loss)
    assert (piece.allowed, piece.smoothness) == (0.25, smooth)
    # γ of at least the number of products and sums of a dot product.
    assert 4 * 2.0**-53 <= piece.dot_error <= 10 * 2.0**-53


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("exponent", [-8, 0, 8])
def test_a_step_is_as_far_from_gradient_descent_as_it_is(
    seed: int, exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """||θ' − θ + η ∇L̂|| in 60 digits is below what is kept of it, also where everything cancels."""
    monkeypatch.setattr(points, "BLOCK", (7, 13, 40)[seed % 3])
    generator = torch.Generator().manual_seed(seed)
    theta, gradient = (torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(2))
    lr = 0.37 * 2.0**exponent
    for off in (0.0, 1e-12, 0.1):
        after = theta - lr * gradient + off * torch.randn(40, generator=generator, dtype=torch.float64)
        a, b = node_at(3, theta, 1.0, gradient, lr), node_at(4, after, 0.5, gradient / 2, lr)
        found = descent_from(a, b, chord_between(a, b))
        with mpmath.workdps(60):
            values = zip(after.tolist(), theta.tolist(), gradient.tolist(), strict=True)
            true = mpmath.norm([mpmath.mpf(x) - mpmath.mpf(y) + mpmath.mpf(lr) * mpmath.mpf(z) for x, y, z in values])
            moved = mpmath.mpf(lr) * mpmath.norm([mpmath.mpf(v) for v in gradient.tolist()])
            assert true <= mpmath.mpf(found.error) <= true * (1 + 1e-10) + moved * 1e-14 + off * 1e-9
            # The rounding of θ' − θ + ηg itself is in it, however small the rest.
            assert mpmath.mpf(found.error) >= true + moved * mpmath.mpf(2.0**-50)
            assert apart(a.theta, b.theta) <= mpmath.mpf(distance(a.theta, b.theta))
        assert (found.step, found.lr, found.square) == (3, lr, a.square)
        assert a.square == pytest.approx(float(gradient.square().sum()))


def test_the_ratio_of_a_node() -> None:
    assert [ratio(3.0, 8.0, 1.0), ratio(2.0, 8.0, 0.0), ratio(1.0, 8.0, -1.0)] == [2.0, 2.0, 2.0]
    assert [ratio(1.0, 8.0, 1.0), ratio(0.5, 8.0, 1.0)] == [math.inf, math.inf]


def test_descents_are_those_of_gradient_descent_alone() -> None:
    path = zigzag(6, 0.1, 5)
    walk = Walk(Placed(0.0), parabola)
    for step, theta in enumerate(path):
        walk.add(step, theta, *parabola(theta), None if step == 2 else 0.1)
    assert [d.step for d in walk.descents] == [0, 1, 3, 4, 5]
    assert (walk.steps, walk.region().steps) == (6, 6)


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf, -1e-300])
def test_a_radius_that_is_none_is_refused_at_once(radius: float) -> None:
    with pytest.raises(InputError, match=r"the radius .* of a path is none"):
        Walk(Placed(0.0), parabola, radius=radius)
    assert Walk(Placed(0.0), parabola, radius=0.0).region().radius is None


def test_margins_grow_with_the_number_of_parameters() -> None:
    count, u = 5000, 2.0**-53
    generator = torch.Generator().manual_seed(2)
    theta, gradient = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = node_at(0, theta, 1.0, gradient, 0.1), node_at(1, theta + gradient, 1.0, theta, 0.1)
    with mpmath.workdps(40):
        assert distance(a.theta, b.theta) >= float(apart(a.theta, b.theta)) * (1 + (count - 500) * u)
        off = [mpmath.mpf(x) * mpmath.mpf(1.1) for x in gradient.tolist()]
        assert descent_from(a, b, chord_between(a, b)).error >= float(mpmath.norm(off)) * (1 + (count - 500) * u)
    b.since = chord_between(a, b)
    assert piece_between(a, b, 0.0, Smoothness(1.0, 1.0)).dot_error >= count * u


@pytest.mark.parametrize("size", [1.0, 1e6, 1e12])
def test_a_ball_has_room_for_the_rounding_of_cuts(size: float) -> None:
    placed = Placed(0.0)
    walk = Walk(placed, parabola, radius=0.25)
    path = [torch.full((3,), size, dtype=torch.float64) + k for k in range(3)]
    walk.bounded(line(path), placed.ball(path[1]), 2.0)
    ((_, radius),) = placed.at_balls.values()
    assert Fraction(radius) >= Fraction(2.25) + Fraction(2) ** -50 * Fraction(size) * Fraction(1732, 1000)


def test_no_balls_where_a_loss_is_no_number() -> None:
    for broken in (math.nan, math.inf):
        for where in ("loss", "gradient"):
            walk = Walk(Placed(0.0), parabola)
            for step, theta in enumerate(zigzag(6, 0.1, 5)):
                loss, gradient = parabola(theta)
                bad = step == 3
                wrong = gradient * broken if bad and where == "gradient" else gradient
                walk.add(step, theta, broken if bad and where == "loss" else loss, wrong, 0.1)
            region = walk.region()
            assert {row.step for row in region.rows if row.pieces == 0} == {2, 3}
            assert [row.certified for row in region.rows] == [True, True, False, False, True, True]
            assert region.measured is not None
            assert math.isfinite(region.measured)
