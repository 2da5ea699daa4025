"""Regions along paths: closed forms, searches that try to break them, and the arithmetic behind them."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import CERTIFIED, Aim, CertifiedCurvature, Region, Smoothness, Walk
from lplr_cli.certificate.pieces import Piece, Pieces
from lplr_cli.losses import Loss
from tests.certificate.path_case import LOSSES, Case, exactly


def walked(case: Case, path: list[Tensor], lr: float | None, curvature: object = None, **options: object) -> Region:
    walk = Walk(curvature or case.curvature, case.objective, **options)  # type: ignore[arg-type]
    for step, theta in enumerate(path):
        loss, gradient = case.objective(theta)
        walk.add(step, theta, loss, gradient, lr)
    return walk.region()


def step_size(case: Case, fraction: float = 0.5) -> float:
    return fraction / float(torch.linalg.eigvalsh(case.hessian(case.start))[-1])


# -- closed forms --


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_least_squares_has_its_curvature_and_ratio(scale: float) -> None:
    """A linear net: β is 2s λ_max of the second moment, nothing deviates from the chord, the ratio is known."""
    case = Case(Loss("squared", scale), depth=0)
    design = torch.cat([case.x, torch.ones(len(case.x), 1, dtype=torch.float64)], dim=1)
    top = float(torch.linalg.eigvalsh(design.T @ design / len(design))[-1])
    lr = 0.8 / (2 * scale * top)
    path = case.path(30, lr)
    region = walked(case, path, lr)
    # The norm of the kernel is bounded by Frobenius' or by rows, never below the true one.
    gram = torch.kron(design @ design.T / len(design), torch.eye(2, dtype=torch.float64))
    upper = min(float(torch.linalg.matrix_norm(gram)), float(gram.abs().sum(dim=1).max()))
    assert region.beta_max is not None
    assert 2 * scale * top <= region.beta_max <= 2 * scale * upper * (1 + 1e-6)
    assert region.certified_share == 1.0
    assert region.kind == CERTIFIED
    assert region.pieces < 40
    assert region.mu is not None
    assert region.measured is not None
    assert 0.9 * region.measured <= region.mu <= region.measured
    assert region.rate is not None
    for a, b in pairwise(path):
        low = region.l_star_lower
        assert low is not None
        assert case.objective(b)[0] - low <= region.rate * (case.objective(a)[0] - low)


# -- the region against searches --


def lowest_ratio(case: Case, path: list[Tensor], radius: float, floor: float, tries: int = 8) -> float:
    """Projected descent on ½||∇L||²/(L − floor) inside the tube, from many places of the path."""
    nodes = torch.stack(path)
    best = math.inf
    generator = torch.Generator().manual_seed(4)
    for attempt in range(tries):
        k = int(torch.randint(0, len(path) - 1, (1,), generator=generator)) if attempt else len(path) - 2
        theta = torch.lerp(path[k], path[k + 1], float(torch.rand((), generator=generator)))
        for _ in range(25):
            theta = theta.detach().requires_grad_()
            loss = case.loss_at(theta)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            ratio = gradient.square().sum() / (2 * (loss - floor))
            best = min(best, float(ratio))
            (down,) = torch.autograd.grad(ratio, theta)
            size = float(down.norm())
            if size == 0:
                break
            theta = project(theta.detach() - 0.7 * radius * down / size, nodes, radius)
    return best


def project(theta: Tensor, nodes: Tensor, radius: float) -> Tensor:
    """Onto the tube around the polygon."""
    a, s = nodes[:-1], nodes[1:] - nodes[:-1]
    t = (((theta - a) * s).sum(dim=1) / s.square().sum(dim=1).clamp_min(1e-300)).clamp(0, 1)
    foot = a + t[:, None] * s
    distance = (theta - foot).norm(dim=1)
    k = int(distance.argmin())
    gap = float(distance[k])
    return theta if gap <= radius else foot[k] + (theta - foot[k]) * (radius * (1 - 1e-12) / gap)


class Unsound:
    """Bounds that claim a part of what they should."""

    kind, largest = CERTIFIED, math.inf

    def __init__(self, curvature: CertifiedCurvature, part: float) -> None:
        self._curvature, self._part = curvature, part

    def ball(self, centre: Tensor) -> Unsound:
        self._ball = self._curvature.ball(centre)
        return self

    def at(self, radius: float) -> Smoothness:
        s = self._ball.at(radius)
        p = self._part
        return replace(s, beta=s.beta * p, alpha=s.alpha * p, gauss_newton=s.gauss_newton * p, rest=s.rest * p)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
@pytest.mark.parametrize("rho", [None, 3e-4])
def test_no_search_finds_a_point_below(loss: Loss, rho: float | None) -> None:
    case = Case(loss, width=4, n=4)
    lr = step_size(case)
    path = case.path(6, lr)
    region = walked(case, path, lr, radius=rho)
    assert region.certified_share == 1.0
    assert region.radius is not None
    assert region.mu is not None
    assert region.mu_star is not None
    assert region.l_star_lower is not None
    assert rho is None or region.radius == rho
    assert region.mu <= lowest_ratio(case, path, region.radius, region.l_star_lower)
    assert region.mu_star <= lowest_ratio(case, path, region.radius, 0.0)
    assert region.l_star_upper is not None
    assert region.l_star_lower <= min(case.objective(p)[0] for p in path) <= region.l_star_upper + 1e-2


def test_the_search_has_teeth() -> None:
    """With bounds of a hundredth of their size the same search finds a point that refutes the region."""
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(6, lr)
    region = walked(case, path, lr, curvature=Unsound(case.curvature, 0.003))
    assert region.mu_star is not None
    assert region.radius is not None
    assert lowest_ratio(case, path, region.radius, 0.0) < region.mu_star


def test_good_parts_of_the_measured_ratio() -> None:
    case = Case(Loss(), width=5, n=6)
    lr = step_size(case)
    region = walked(case, case.path(40, lr), lr)
    assert region.mu is not None
    assert region.mu_star is not None
    assert region.measured is not None
    assert region.measured_star is not None
    assert 0.8 * region.measured <= region.mu <= region.measured
    assert 0.85 * region.measured_star <= region.mu_star <= region.measured_star
    assert region.rate_from_step == 0
    assert region.eta_mu_t == pytest.approx(40 * lr * region.mu)


@pytest.mark.parametrize("steps", [8, 60])
def test_the_run_in_fifty_digits_does_what_is_proved(steps: int) -> None:
    """The ratio at every iterate, the bracket and the factor of every step, with exact losses and gradients."""
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case, 0.9)
    path = case.path(steps, lr)
    region = walked(case, path, lr)
    assert region.certified_share == 1.0
    exact = [exactly(case, theta) for theta in path]
    with mpmath.workdps(50):
        low, high = mpmath.mpf(region.l_star_lower), mpmath.mpf(region.l_star_upper)
        assert low <= high
        halves = [sum(v * v for v in gradient) / 2 for _, gradient in exact]
        for (loss, _), half in zip(exact, halves, strict=True):
            assert loss >= low
            assert half >= region.mu_star * loss
            # L*_D lies in the bracket, so that what holds of it holds of its upper end.
            assert half >= region.mu * (loss - high)
        proved = [(row.step, row.factor) for row in region.rows if row.factor is not None]
        assert len(proved) > steps / 2
        for step, factor in proved:
            before, after = exact[step][0], exact[step + 1][0]
            # With the infimum l in the bracket: after − l ≤ factor (before − l).
            assert after - factor * before <= (1 - factor) * high
    # The factors say something: at some step the proved part of the descent is near what the loss itself loses.
    near = [(1 - factor) / (1 - (exact[step + 1][0] / exact[step][0])) for step, factor in proved]
    assert max(near) > 0.05


def test_any_polygon_will_do() -> None:
    """Momentum with noise: no search finds a point of its tube below μ."""
    case = Case(Loss("bce"), width=4, n=4)
    generator = torch.Generator().manual_seed(3)
    theta, speed, path = case.start.clone(), torch.zeros_like(case.start), [case.start.clone()]
    for _ in range(6):
        noise = 0.05 * torch.randn(len(theta), generator=generator, dtype=torch.float64)
        speed = 0.8 * speed + case.objective(theta)[1] + noise
        theta = theta - step_size(case, 0.3) * speed
        path.append(theta.clone())
    for rho in (None, 2e-3):
        region = walked(case, path, None, radius=rho)
        assert region.rate is None
        for mu, floor in ((region.mu, region.l_star_lower), (region.mu_star, 0.0)):
            if region.radius is not None and mu is not None and floor is not None and region.certified_share == 1:
                assert mu <= lowest_ratio(case, path, region.radius, floor, tries=2)
    assert walked(case, path, None).certified_share == 1


@pytest.mark.parametrize("fraction", [1.5, 2.6])
def test_steps_beyond_the_edge_of_stability_are_named(fraction: float) -> None:
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case, fraction)
    path = case.path(5, lr)
    region = walked(case, path, lr)
    named = {step for step, _ in region.not_certified}
    for step, theta in enumerate(path[:-1]):
        if lr * float(torch.linalg.eigvalsh(case.hessian(theta))[-1]) >= 2:
            assert step in named
    assert fraction < 2 or 0 in named


def test_a_leap_beyond_the_edge_costs_no_balls() -> None:
    """The curvature along it, which every bound exceeds, is named; a long step that descends is worth its balls."""
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case, 6.0)
    path = case.path(1, lr)
    walk = Walk(case.curvature, case.objective)
    for step, theta in enumerate(path):
        loss, gradient = case.objective(theta)
        walk.add(step, theta, loss, gradient, lr)
    region = walk.region()
    # One ball tells how far others reach.
    assert (region.pieces, region.balls, region.certified_share) == (0, 1, 0.0)
    ((_, reason),) = region.not_certified
    named = re.fullmatch(r"beyond the edge of stability: curvature (\S+) along the step, 2/eta = (\S+)", reason)
    assert named is not None
    curvature, stable = map(float, named.groups())
    assert stable == pytest.approx(2 / lr, rel=1e-2)
    assert curvature >= stable
    mean = torch.stack([case.hessian(torch.lerp(path[0], path[1], (k + 0.5) / 64)) for k in range(64)]).mean(dim=0)
    along = path[1] - path[0]
    assert float(along @ mean @ along / (along @ along)) == pytest.approx(curvature, rel=1e-2)
    # The same segment as a step of no gradient descent is cut and tried.
    assert walked(case, path, None).pieces > 8


def test_a_step_that_needs_very_many_balls_asks_for_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lplr_cli.certificate.path.MOST", 9)
    case = Case(Loss(), width=4, n=4)
    path = case.path(1, step_size(case, 6.0))
    asked = walked(case, path, None)
    assert asked.pieces == 0
    assert "--pieces" in asked.not_certified[0][1]
    assert walked(case, path, None, budget=500).pieces > 9


def test_a_segment_over_a_minimum_is_not_certified() -> None:
    """Half way the gradient of a parabola is zero: whatever the pieces, that place is a hole."""
    case = Case(Loss(), depth=0, n=8)
    bottom = case.path(4000, step_size(case, 1.0))[-1]
    side = torch.randn(len(bottom), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    region = walked(case, [bottom - side, bottom + side], None)
    assert region.certified_share < 1.0
    assert region.steps_certified == 0
    assert region.not_certified[0][0] == 0
    assert region.rate is None


def test_a_loss_that_is_not_finite_leaves_a_hole() -> None:
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(3, lr)
    walk = Walk(case.curvature, case.objective)
    for step, theta in enumerate(path):
        loss, gradient = case.objective(theta)
        walk.add(step, theta, math.nan if step == 2 else loss, gradient, lr)
    region = walk.region()
    assert [row.certified for row in region.rows] == [True, False, False]
    assert {1, 2} <= {step for step, _ in region.not_certified}
    assert 0 < region.certified_share < 1


def test_a_budget_of_pieces_ends_the_work_and_not_the_region() -> None:
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(8, lr)
    few = walked(case, path, lr, budget=3)
    assert few.steps == 8
    assert few.pieces <= 8 + 3
    assert few.steps_certified + len({s for s, _ in few.not_certified}) >= 8


# -- memory --


def alive(numel: int) -> int:
    """Tensors of at least this many numbers."""
    return sum(issubclass(type(o), Tensor) and o.numel() >= numel for o in gc.get_objects())


def most_alive(case: Case, steps: int) -> int:
    """Vectors like θ that a walk holds at the worst of its steps; room is for five iterates."""
    numel = case.start.numel()
    # What is there already need not be looked through at every step.
    gc.collect()
    gc.freeze()
    walk = Walk(case.curvature, case.objective, memory=5 * 8 * numel)
    before, most, theta, lr = alive(numel), 0, case.start.clone(), step_size(case)
    for step in range(steps):
        loss, gradient = case.objective(theta)
        walk.add(step, theta, loss, gradient, lr)
        if step % 4 == 0:
            most = max(most, alive(numel) - before)
        theta = theta - lr * gradient
    gc.unfreeze()
    assert walk.region().steps_certified == steps - 1
    return most


def test_a_longer_run_holds_no_more_vectors() -> None:
    case = Case(Loss(), width=4, n=4)
    short, long = most_alive(case, 12), most_alive(case, 44)
    assert short == long <= 2 * 5 + 6


def test_the_theorem_takes_pieces_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of pieces, the arrays over their intervals exist for a block of them only; nothing else changes."""
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(20, lr)
    whole = walked(case, path, lr)
    sizes = []

    class Counted(Pieces):
        def __init__(self, pieces: Sequence[Piece]) -> None:
            sizes.append(len(pieces))
            super().__init__(pieces)

    monkeypatch.setattr("lplr_cli.certificate.region.Pieces", Counted)
    monkeypatch.setattr("lplr_cli.certificate.region.BLOCK", 6)
    assert walked(case, path, lr) == whole
    assert whole.pieces >= 20
    assert max(sizes) == 6


# -- arithmetic --


def test_errors_that_are_inflated_show_in_the_result() -> None:
    """A million times the rounding of loss, gradient and inner products weakens every bound."""
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(4, lr)
    clean = walked(case, path, lr)
    assert clean.mu is not None
    assert clean.l_star_lower is not None

    class Wrong(Unsound):
        def __init__(self, field: str) -> None:
            super().__init__(case.curvature, 1.0)
            self.field = field

        def at(self, radius: float) -> Smoothness:
            s = super().at(radius)
            return replace(s, **{self.field: 1e-3})

    for field in ("loss_error", "gradient_error"):
        worse = walked(case, path, lr, curvature=Wrong(field))
        assert worse.mu is not None
        assert worse.l_star_lower is not None
        assert worse.mu < clean.mu
        if field == "loss_error":
            assert worse.l_star_lower < clean.l_star_lower - 0.9e-3
        else:
            assert worse.rate is not None
            assert clean.rate is not None
            assert worse.rate > clean.rate


def test_aims_change_the_work_and_never_the_truth() -> None:
    case = Case(Loss(), width=4, n=4)
    lr = step_size(case)
    path = case.path(5, lr)
    low = walked(case, path, lr, aim=Aim(1e-9, 1e-9, 0.0))
    high = walked(case, path, lr, aim=Aim(1e9, 1e9, 0.0))
    assert low.mu is not None
    assert high.mu is not None
    assert low.pieces <= high.pieces
    for region in (low, high):
        assert region.mu_star is not None
        assert region.radius is not None
        assert region.mu_star <= lowest_ratio(case, path, region.radius, 0.0, tries=4)


def test_radius_must_be_one() -> None:
    case = Case(Loss(), width=4, n=4)
    for radius in (-1.0, math.nan, math.inf):
        with pytest.raises(Exception, match="radius"):
            walked(case, case.path(1, 0.01), 0.01, radius=radius)
