"""Bounds of graphs of operations, against dense derivatives at random and searched points of the ball."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lplr_cli.certificate.graph import PUSHED, GraphNetwork, GraphOver, attention, norms, worthwhile
from lplr_cli.certificate.graph.bounds import nonnegative_norm
from lplr_cli.certificate.graph.nodes import Activation, Add, Average, Node
from lplr_cli.certificate.graph.norms import Normalise
from lplr_cli.certificate.graph.state import Ahead, Here
from lplr_cli.certificate.graph.tables import Embedding
from lplr_cli.certificate.graph.times import Times
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.smooth import smooth_activation
from tests.certificate.graph_cases import CASES, Point

SLACK = 1 + 1e-9


def violated(point: Point, over: GraphOver, points: list[Tensor]) -> list[str]:
    """What is broken at some points of the ball; empty where every bound holds."""
    broken = []
    hessians = []
    for theta in points:
        f = point.outputs(theta).detach()
        jacobian = torch.func.jacrev(point.outputs)(theta).detach()
        gradients = jacobian.norm(dim=2)
        each = torch.stack(
            [torch.stack([point.hessian(theta, i, c) for c in range(f.shape[1])]) for i in range(len(f))]
        ).detach()
        hessians.append(each)
        found = {
            "hessians": (torch.linalg.matrix_norm(each, ord=2) <= over.hessians * SLACK).all(),
            "gradients": (gradients <= over.gradients * SLACK).all(),
            "jacobians": (torch.linalg.matrix_norm(jacobian, ord=2) <= over.jacobians * SLACK).all(),
            "f_reach": ((f - point.bounds.f).abs() <= over.f_reach).all(),
        }
        broken += [name for name, holds in found.items() if not bool(holds)]
    at = list(zip(points, hessians, strict=True))
    for (p, h), (q, g) in pairwise(at):
        apart = float((p - q).norm())
        if apart > 1e-7 and bool((torch.linalg.matrix_norm(h - g, ord=2) > over.thirds * apart * SLACK).any()):
            broken.append("thirds")
    return broken


def under(found: Tensor, bound: Tensor) -> Tensor:
    """Whether the bound holds; NaN, which comes of infinite ones, bounds nothing and claims nothing."""
    return (found <= bound * SLACK) | bound.isnan()


def violated_inside(point: Point, over: GraphOver, theta: Tensor) -> list[str]:
    """The same for every tensor of the graph and its adjoint."""
    broken = []
    columns = point.block_columns()
    derivatives = torch.func.jacrev(point.places)(theta)
    start = point.places(point.theta)
    for k, (ahead, value) in enumerate(zip(over.ahead, point.places(theta), strict=True)):
        d = derivatives[k].detach()
        blocks = torch.stack([torch.linalg.matrix_norm(d[:, :, c], ord=2) for c in columns], dim=1)
        rows = torch.stack([d[:, :, c].norm(dim=2).amax(dim=1) for c in columns], dim=1)
        away = value.detach() - start[k].detach()
        found = {
            "blocks": under(blocks, ahead.blocks),
            "rows": under(rows, ahead.rows),
            "size": under(value.detach().norm(dim=1), ahead.size),
            "reach": under(away.norm(dim=1), ahead.reach(over.radius)),
            "entry reach": under(away.abs().amax(dim=1), ahead.entry_reach(over.radius)),
        }
        broken += [f"{name} of place {k}" for name, holds in found.items() if not bool(holds.all())]
    turns = torch.func.jacrev(point.adjoints)(theta)
    for k, (behind, value) in enumerate(zip(over.behind, point.adjoints(theta), strict=True)):
        d = turns[k].detach()
        blocks = torch.stack([torch.linalg.matrix_norm(d[..., c], ord=2) for c in columns], dim=2)
        found = {
            "turn": under(blocks, behind.blocks),
            "adjoint": under(value.detach().norm(dim=2), behind.size),
        }
        broken += [f"{name} of node {k}" for name, holds in found.items() if not bool(holds.all())]
    return broken + violated_seconds(point, over, theta)


def violated_seconds(point: Point, over: GraphOver, theta: Tensor) -> list[str]:
    """||D²t[u, v]|| along some directions."""
    generator = torch.Generator().manual_seed(9)
    for _ in range(2):
        u, v = (torch.randn(len(theta), generator=generator, dtype=torch.float64) for _ in range(2))
        u, v = u / u.norm(), v / v.norm()

        def along(t: Tensor, u: Tensor = u) -> list[Tensor]:
            found: list[Tensor] = torch.func.jvp(point.places, (t,), (u,))[1]
            return found

        second = torch.func.jvp(along, (theta,), (v,))[1]
        for k, (ahead, d) in enumerate(zip(over.ahead, second, strict=True)):
            if bool((d.detach().norm(dim=1) > ahead.second * SLACK).any()):
                return [f"second of place {k}"]
    return []


@pytest.mark.parametrize("directions", [0, 1, 64])
@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=[pytest.mark.slow] * k.startswith(("resnet", "transformer"))) for k in CASES]
)
def test_bounds_hold_at_points_of_the_ball(name: str, directions: int) -> None:
    """With nothing pushed, one direction for each output of a layer, and nearly all of them."""
    point = Point(*CASES[name].make(), directions)
    for radius, searched in ((0.0, 0), (1e-3, 0), (0.3, 1)):
        over = point.bounds.over(radius)
        points = point.worst_points(radius, 1, searched)
        assert violated(point, over, points) == []
        assert violated_inside(point, over, points[-1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_no_search_finds_a_violation(name: str, seed: int) -> None:
    """Thousands of points in all, other weights and data each time."""
    point = Point(*CASES[name].make(seed=seed + 1), directions=(0, 8, 64)[seed])
    for radius in (1e-4, 1e-2, 0.1, 1.0, 5.0):
        over = point.bounds.over(radius)
        points = point.worst_points(radius, 6, 3)
        assert violated(point, over, points) == []
        for theta in points[1:3]:
            assert violated_inside(point, over, theta) == []


@pytest.mark.parametrize(
    ("name", "most", "pushed"),
    [
        ("conv-softplus", 1.5, 1.2),
        ("conv-gelu", 2, 1.4),
        ("pooled", 2, 1.2),
        ("residual", 3, 1.5),
        ("resnet-gelu", 15, 1.4),
        ("group-norm", 6, 1.4),
        ("softmax-alone", 6, 1.5),
        ("product-alone", 3, 1.2),
        ("transformer", 200, 2),
    ],
)
def test_the_bound_is_of_use(name: str, most: float, pushed: float) -> None:
    """At θ_0 within a few times of the norm of the Hessian, by norms of layers and by what is pushed."""
    for directions, factor in ((0, most), (1000, pushed)):
        point = Point(*CASES[name].make(), directions)
        found = torch.linalg.matrix_norm(point.hessian(point.theta, 0, 0), ord=2)
        assert float(found) <= float(point.bounds.over(0.0).hessians[0, 0]) <= factor * float(found)


@pytest.mark.parametrize("directions", [1, 5, 1000])
def test_pushed_derivatives_are_those_of_the_places(directions: int) -> None:
    """Against dense Jacobians at θ_0: from above, and to 3 % where all directions are pushed."""
    point = Point(*CASES["resnet-gelu"].make(), directions)
    pushed, derivatives = point.bounds.pushed, torch.func.jacrev(point.places)(point.theta)
    assert pushed is not None
    for k, d in enumerate(derivatives[1:], 1):
        parts = [d.detach()[:, :, c] for c in point.block_columns()]
        blocks = torch.stack([torch.linalg.matrix_norm(part, ord=2) for part in parts], dim=1)
        rows = torch.stack([part.norm(dim=2).amax(dim=1) for part in parts], dim=1)
        for found, truth in ((pushed.blocks[k], blocks), (pushed.rows[k], rows)):
            assert bool((truth <= found * SLACK).all())
            if directions == 1000:
                assert bool((found <= 1.07 * truth + 1e-9).all())


@pytest.mark.parametrize(
    "name", ["conv-gelu", "norm-alone", "softmax-alone", "product-alone", "times-alone", "table-alone", "branches"]
)
def test_blocks_at_the_centre_are_those_of_the_hessian(name: str) -> None:
    """From above for each pair of layers; where no weights meet what others moved, to rounding and no more."""
    point = Point(*CASES[name].make(), 1000)
    over, pushed = point.bounds.over(0.0), point.bounds.pushed
    assert pushed is not None
    near = point.bounds.near(0.0, over.ahead, over.behind, pushed)[0, 0]
    columns, hessian = point.block_columns(), point.hessian(point.theta, 0, 0)
    truth = torch.stack(
        [torch.stack([torch.linalg.matrix_norm(hessian[p][:, q], ord=2) for q in columns]) for p in columns]
    )
    assert bool((truth <= near * SLACK).all())
    if name.endswith("alone"):
        # Gram matrices are proved within two percent.
        assert bool((near <= 1.02 * truth + 1e-9).all())


GELU = smooth_activation("gelu")
assert GELU is not None


@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        (Activation((0,), "gelu", GELU, 10), [(2, 5)]),
        (attention.Softmax((0,), "softmax", 5, 2), [(2, 5)]),
        (Normalise((0,), "norm", 2, 5, 0.1), [(2, 5)]),
        (attention.Softmax((0,), "softmax", 5, 2, torch.tensor([[1, 1, 0, 1, 0], [0, 1, 0, 0, 0]]) > 0), [(2, 5)]),
        (attention.Product((0, 1), "matmul", 3, 4), [(2, 4, 3), (2, 3, 2)]),
        (Times((0, 1), "product"), [(2, 5), (2, 5)]),
    ],
)
def test_what_an_operation_bends_is_its_second_derivative(node: Node, shapes: list[tuple[int, ...]]) -> None:
    """XᵀNX against automatic differentiation of ⟨λ, g⟩ twice."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    below = [draw(1, *s) for s in shapes]
    adjoint = draw(1, 1, *node.value({}, *below).shape[1:])
    tangents = tuple(draw(1, 3, *s) for s in shapes)

    def moved(along: Tensor) -> Tensor:
        at = [b + torch.einsum("d,d...->...", along, t[0])[None] for b, t in zip(below, tangents, strict=True)]
        return (node.value({}, *at) * adjoint[:, 0]).sum()

    truth = torch.func.hessian(moved)(torch.zeros(3, dtype=torch.float64))
    images = node.bent(adjoint, tangents, tuple(below))
    found = sum(t.flatten(2)[0] @ i.flatten(3)[0, 0].mT for t, i in zip(tangents, images, strict=True))
    assert torch.allclose(torch.as_tensor(found), truth, rtol=1e-10, atol=1e-12)


def test_few_directions_are_pushed_where_more_do_not_pay() -> None:
    """Norms are enough for a shallow net; for two blocks with GELU they are not."""
    for name, expected in (("conv-softplus", {0}), ("resnet-gelu", set(PUSHED))):
        module, x = CASES[name].make()
        assert worthwhile(GraphNetwork.from_module(module, x.shape[1:]), x) in expected


def still(ahead: Callable[..., Ahead]) -> Callable[..., Ahead]:
    """The same without drift."""

    def found(self: Node, here: Here, *below: Ahead) -> Ahead:
        at = ahead(self, here, *below)
        return replace(at, drift=0 * at.drift)

    return found


Patch = pytest.MonkeyPatch


def nothing_left(patch: Patch) -> None:
    whole = Weighted.rest
    patch.setattr(Weighted, "rest", lambda self, x, v: {key: 0 * t for key, t in whole(self, x, v).items()})


def no_drift(patch: Patch) -> None:
    for kind in (Weighted, Activation):
        patch.setattr(kind, "ahead", still(kind.ahead))


def small_slopes(patch: Patch) -> None:
    over = Activation.over_interval
    patch.setattr(Activation, "over_interval", lambda self, here, z: tuple(0.3 * v for v in over(self, here, z)))


def small_norms(patch: Patch) -> None:
    over = Normalise.over_interval
    patch.setattr(
        Normalise, "over_interval", lambda self, here, x: (0.3 * over(self, here, x)[0], over(self, here, x)[1])
    )


def unchanging(patch: Patch) -> None:
    form = Activation.form
    patch.setattr(Activation, "form", lambda *a: replace(form(*a), third=0 * form(*a).third))


# What makes one rule too small, and how many directions are pushed meanwhile.
PLANTED: dict[str, tuple[Callable[[Patch], None], int]] = {
    "weights meet each entry once": (lambda patch: patch.setattr(Weighted, "overlap_root", 0.3), 0),
    "no own block": (lambda patch: patch.setattr(Weighted, "own", lambda self, here, x: 0 * x.size), 0),
    "activations without curvature": (lambda patch: patch.setattr(Activation, "form", lambda *_: None), 0),
    "curvature does not change": (unchanging, 0),
    "weights without cross terms": (lambda patch: patch.setattr(Weighted, "form", lambda *_: None), 0),
    "sums keep the first": (lambda patch: patch.setattr(Add, "ahead", lambda self, here, *below: below[0]), 0),
    "means shrink too much": (lambda patch: patch.setattr(Average, "gain", 0.1), 0),
    "slopes are small": (small_slopes, 0),
    "what is not pushed is nothing": (nothing_left, 1),
    "derivatives do not drift": (no_drift, 64),
    "normalisation does not bend": (lambda patch: patch.setattr(norms, "SECOND", 0.05), 0),
    "normalisation does not amplify": (small_norms, 0),
    "softmax does not bend": (lambda patch: patch.setattr(attention, "SECOND", 0.02), 0),
    "entries do not meet": (lambda patch: patch.setattr(Times, "form", lambda *_: None), 0),
    "tables are still": (lambda patch: patch.setattr(Embedding, "own", lambda self, here, x: 0 * x.size), 0),
    "products do not meet": (lambda patch: patch.setattr(attention.Product, "form", lambda *_: None), 0),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_rule_that_is_too_small_is_found_out(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, directions = PLANTED[what]
    change(monkeypatch)
    broken = []
    for name in (
        "pooled",
        "residual",
        "conv-frozen-head",
        "norm-alone",
        "softmax-alone",
        "product-alone",
        "times-alone",
        "table-alone",
    ):
        point = Point(*CASES[name].make(), directions)
        over = point.bounds.over(0.1)
        broken += violated(point, over, point.worst_points(0.1, 1, 0))
        broken += violated_inside(point, over, point.worst_points(0.1, 1, 0)[-1])
    assert broken


@pytest.mark.parametrize("kind", ["random", "diagonal", "zero"])
def test_norms_of_non_negative_matrices(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    m = {"random": draws + draws.T, "diagonal": torch.diag(draws[0]), "zero": torch.zeros_like(draws)}[kind]
    reducible = torch.zeros(14, 14, dtype=torch.float64)
    reducible[:6, :6], reducible[6:12, 6:12] = m, 3 * m
    for matrix in (m, reducible):
        truth = float(torch.linalg.matrix_norm(matrix, ord=2))
        assert truth * (1 - 1e-14) <= float(nonnegative_norm(matrix[None])[0]) <= truth * 1.01 + 1e-100


def derivatives(node: Node, x: Tensor, h: Tensor, order: int) -> Tensor:
    """The derivative of this order along h, (n, …)."""
    if order == 0:
        return node.value({}, x)
    found: Tensor = torch.func.jvp(lambda v: derivatives(node, v, h, order - 1), (x,), (h,))[1]
    return found


def test_derivatives_of_normalisation_reach_their_bounds_and_no_more() -> None:
    """D²y and D³y along one direction, in units of 1/(√m s²) and 1/(m s³), at thousands of points."""
    m, epsilon = 6, 0.3
    node = Normalise((0,), "norm", 1, m, epsilon)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, m, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-3, 2, 4000, dtype=torch.float64)[:, None]
    h = torch.randn(4000, m, generator=generator, dtype=torch.float64)
    h = h - h.mean(dim=1, keepdim=True)
    # Half of them near the direction of x itself, where the extremes lie.
    p = x - x.mean(dim=1, keepdim=True)
    h[::2] = p[::2] / p[::2].norm(dim=1, keepdim=True) + 1.2 * torch.rand(2000, 1, generator=generator) * h[::2]
    h = h / h.norm(dim=1, keepdim=True)

    s = (p.square().mean(dim=1) + epsilon).sqrt()
    for order, most in ((1, 1.0), (2, norms.SECOND), (3, norms.THIRD)):
        sizes = derivatives(node, x, h, order).norm(dim=1) * s**order * m ** ((order - 1) / 2)
        assert 0.99 * most <= float(sizes.max()) <= most * SLACK


def test_derivatives_of_softmax_stay_below_their_bounds() -> None:
    """At thousands of points and directions, those of two entries among them; the first two are nearly reached."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 5, generator=generator, dtype=torch.float64) * 3
    x[::2, 2:] -= 30.0
    h = torch.randn(6000, 5, generator=generator, dtype=torch.float64)
    h[::2, 2:] = 0.0
    h[::4, 1] = -h[::4, 0]
    h = h / h.norm(dim=1, keepdim=True)
    node = attention.Softmax((0,), "softmax", 5, 1)
    for order, most, near in ((1, 0.5, 0.99), (2, attention.SECOND, 0.3), (3, attention.THIRD, 0.25)):
        sizes = derivatives(node, x, h, order).norm(dim=1)
        assert near * most <= float(sizes.max()) <= most * SLACK
