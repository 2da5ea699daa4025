"""Runs held against certificates: in units of their own loss, and only where the certificate speaks of them."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import (
    Certificate,
    RatioCheck,
    Trajectory,
    certify,
    check_ratio,
    check_run,
    data_confirmed,
    own_certificate,
    scaled,
    why_not_of,
)
from lplr_cli.models import ModelSpec, build_model

SCALES = [0.01, 0.5, 1.0, 3.0]


def data(targets: float = 1.0) -> tuple[Tensor, Tensor]:
    """Six samples in nine dimensions: a linear net interpolates them."""
    g = torch.Generator().manual_seed(3)
    return torch.randn(6, 9, generator=g).double(), targets * torch.randn(6, 1, generator=g).double()


def descend(scale: float, share: float, steps: int = 60) -> tuple[Certificate, Trajectory]:
    """Gradient descent on (s/n) ||r||² with the share of the largest proved step, written out with autograd."""
    x, y = data()
    module = build_model(ModelSpec(depth=0), (9,), 1, seed=1)
    radius = 4 * math.sqrt(float((module(x) - y).detach().square().mean()))
    found = certify(module, x, y, radius=radius)
    assert found.containment.holds
    eta = share * scaled(found, scale).containment.eta_max
    parameters = list(module.parameters())
    start = [p.detach().clone() for p in parameters]
    losses, drifts, squares = [], [], []
    for _ in range(steps):
        loss = scale * (module(x) - y).square().sum() / len(x)
        gradients = torch.autograd.grad(loss, parameters)
        losses.append(float(loss.detach()))
        drifts.append(
            math.sqrt(sum(float((p - s).detach().square().sum()) for p, s in zip(parameters, start, strict=True)))
        )
        squares.append(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(eta * g)
    run = Trajectory.of_descent(losses, drifts, eta, scale=scale)
    return found, replace(run, grad_norm_sq=np.array(squares), lr=np.full(steps, eta))


@pytest.mark.parametrize("scale", SCALES)
def test_runs_of_every_scale_obey_their_certificate(scale: float) -> None:
    """A true theorem is not reported as refuted for s other than 1, and η is bounded in units of s."""
    found, run = descend(scale, 1.0)
    assert run.eta is not None
    checked = check_run(found, run)
    assert (checked.applies, checked.steps, checked.violations) == (True, 60, 0), checked.reason
    assert check_ratio(found, run).violations == 0
    # K is constant: λ_min(K) gives the true μ and β.
    x, _ = data()
    design = torch.cat([x, torch.ones(6, 1)], dim=1)
    values = torch.linalg.eigvalsh(design @ design.T / 6)
    own = scaled(found, scale)
    mu, beta = own.containment.at.mu_jacobian, own.containment.at.beta
    assert mu is not None
    assert mu == pytest.approx(2 * scale * float(values[0]), rel=2e-2)
    assert 1 <= beta / (2 * scale * float(values[-1])) < 1.5
    assert beta == pytest.approx(scale * found.containment.at.beta)
    assert mu <= 2 * scale * float(values[0])
    assert own.containment.eta_max <= 1 / (2 * scale * float(values[-1]))
    # The step of another scale is not proved for this one.
    assert not check_run(found, replace(run, eta=run.eta * 1.01, lr=run.lr * 1.01)).applies
    assert f"μ = {mu:.4g}" in own.verdict


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 1.1, 1 / 3, 3.3, 1e-5, 97.0])
def test_no_rounding_makes_a_scaled_certificate_better(scale: float) -> None:
    """In rational arithmetic: μ and η downwards, β and the loss upwards; what is the network's alone stays."""
    found, _ = descend(1.0, 0.5, steps=1)
    own, s = scaled(found, scale), Fraction(scale)
    assert found.given is not None
    assert own.given is not None
    for mine, theirs in ((own.given, found.given), (own.containment.at, found.containment.at)):
        for key in ("mu_jacobian", "mu_kernel"):
            mu, other = getattr(mine, key), getattr(theirs, key)
            assert (mu is None) == (other is None)
            assert mu is None or s * Fraction(other) * (1 - Fraction(1, 10**11)) <= mu <= s * Fraction(other)
        assert s * Fraction(theirs.beta) <= mine.beta <= s * Fraction(theirs.beta) * (1 + Fraction(1, 10**11))
        assert (mine.radius, mine.l_j, mine.l_k) == (theirs.radius, theirs.l_j, theirs.l_k)
    square = s * Fraction(found.sqrt_loss_upper) ** 2
    assert square <= Fraction(own.sqrt_loss_upper) ** 2 <= square * (1 + Fraction(1, 10**11))
    eta = Fraction(found.containment.eta_max) / s
    assert eta * (1 - Fraction(1, 10**11)) <= own.containment.eta_max <= eta
    kept = ("holds", "reach", "step_fraction")
    assert [getattr(own.containment, k) for k in kept] == [getattr(found.containment, k) for k in kept]
    same = ("n", "lambda_0", "lambda_0_lower", "sigma_0_lower", "norm_upper", "radius_kernel", "radius_jacobian")
    assert [getattr(own, k) for k in same] == [getattr(found, k) for k in same]
    assert scaled(found, 1.0) is found
    open_ = replace(found, given=replace(found.given, mu_kernel=None, mu_jacobian=None))
    given = scaled(open_, scale).given
    assert given is not None
    assert (given.mu_kernel, given.mu_jacobian, given.beta) == (None, None, own.given.beta)


def test_a_wrong_scale_is_seen_at_the_start() -> None:
    found, run = descend(0.5, 0.5)
    for wrong in (1.0, 0.25):
        claimed = replace(run, scale=wrong)
        assert "the log begins with a loss of" in why_not_of(found, claimed)
        assert not check_run(found, claimed).applies
        assert not data_confirmed(found, claimed)


def test_an_unknown_loss_is_not_held_against_it() -> None:
    found, run = descend(1.0, 0.5)
    other = replace(run, scale=None, loss_label="cross-entropy")
    assert check_run(found, other).reason.endswith("this run has cross-entropy")
    assert check_ratio(found, other).rows == 0
    alone = own_certificate(found, other)
    assert alone.given is not None
    assert (alone.given.mu_jacobian, alone.given.mu_kernel, alone.containment.holds) == (None, None, False)
    assert math.isnan(alone.given.beta)
    assert alone.lambda_0_lower == found.lambda_0_lower
    assert alone.given.l_k == found.given.l_k if found.given else False


def test_rows_without_drift_are_not_counted_as_checked() -> None:
    found, run = descend(1.0, 0.5)
    drift = run.drift.copy()
    drift[1::2] = math.nan
    assert check_run(found, replace(run, drift=drift)).steps == 30
    nothing = check_run(found, replace(run, drift=np.full(60, math.nan)))
    assert (nothing.applies, nothing.steps, nothing.violations) == (False, 0, 0)
    # An infinite loss is a row, and breaks the rate; a step outside is seen, too.
    loss = run.loss.copy()
    loss[9] = math.inf
    assert check_run(found, replace(run, loss=loss)).violations == 1
    drift = run.drift.copy()
    drift[-1] = 1.001 * found.containment.at.radius
    assert check_run(found, replace(run, drift=drift)).violations == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"eta": None, "why_no_eta": "the optimiser is adamw"}, "the optimiser is adamw"),
        ({"exact": False}, "mini-batches"),
        ({"dtype": None}, "an unknown dtype"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"diverged": True}, "diverged"),
        ({"lr": np.linspace(0.1, 0.2, 60)}, "the log has step sizes from 0.1 to 0.2"),
        ({"data_known": False, "loss": np.append(math.nan, np.ones(59))}, "nothing tells that the data"),
    ],
)
def test_what_the_theorem_does_not_speak_of(change: dict[str, object], why: str) -> None:
    found, run = descend(1.0, 0.5)
    checked = check_run(found, replace(run, **change))  # type: ignore[arg-type]
    assert not checked.applies
    assert why in checked.reason


def test_the_first_loss_stands_for_unknown_data() -> None:
    found, run = descend(1.0, 0.5)
    recorded = replace(run, data_known=False)
    assert data_confirmed(found, recorded)
    assert check_run(found, recorded).applies
    x, y = data(targets=1.1)
    other = certify(build_model(ModelSpec(depth=0), (9,), 1, seed=1), x, y)
    assert not data_confirmed(other, recorded)
    assert "data or start are others" in why_not_of(other, recorded)


def test_tolerance_is_that_of_the_dtype() -> None:
    found, run = descend(1.0, 0.5)
    slack = 1e-6
    at = found.containment.at
    drift = run.drift.copy()
    drift[-1] = at.radius * (1 + slack)
    assert check_run(found, replace(run, drift=drift)).violations == 1
    assert check_run(found, replace(run, drift=drift, dtype="float32")).violations == 0


def test_a_ratio_below_the_proved_mu_is_seen() -> None:
    found, run = descend(1.0, 0.5)
    squares = run.grad_norm_sq.copy()
    assert found.given is not None
    assert found.given.mu_jacobian is not None
    squares[5] = 2 * run.loss[5] * found.given.mu_jacobian * 0.99
    checked = check_ratio(found, replace(run, grad_norm_sq=squares))
    assert checked.violations == 1
    assert checked.lowest == pytest.approx(0.99 * found.given.mu_jacobian)
    # Outside the ball nothing is said.
    drift = run.drift.copy()
    drift[5] = 2 * found.given.radius
    assert check_ratio(found, replace(run, grad_norm_sq=squares, drift=drift)).violations == 0


# -- every condition, on both sides of it ------------------------------------------------------------------------------


def first(run: Trajectory, loss: float) -> Trajectory:
    """The same run with another loss at its start."""
    return replace(run, loss=np.append(loss, run.loss[1:]))


def test_what_the_first_loss_tells() -> None:
    found, run = descend(1.0, 0.5)
    root = found.sqrt_loss_upper
    for dtype, tolerance in (("float64", 1e-6), ("float32", 1e-3)):
        for sign in (1, -1):
            near, far = ((root * (1 + sign * part * tolerance)) ** 2 for part in (0.99, 1.01))
            assert why_not_of(found, first(replace(run, dtype=dtype), near)) == ""
            assert "the log begins with a loss of" in why_not_of(found, first(replace(run, dtype=dtype), far))
    assert "the log begins with a loss of -" in why_not_of(found, first(run, -(root**2)))
    # A start without loss is compared with 1e-12.
    none = replace(found, sqrt_loss_upper=0.0)
    assert why_not_of(none, first(run, 0.0)) == why_not_of(none, first(run, 0.99e-36)) == ""
    assert why_not_of(none, first(run, -1.0)) == ""
    assert why_not_of(none, first(run, 1.01e-36))


@pytest.mark.parametrize("change", [
    {"steps": np.arange(1.0, 61.0)}, {"exact": False}, {"loss": np.append(math.inf, np.ones(59))},
    {"dtype": "bfloat16"}, {"dtype": None},
])  # fmt: skip
def test_without_a_first_loss_the_fingerprint_tells(change: dict[str, object]) -> None:
    found, run = descend(1.0, 0.5)
    known = replace(run, **change)  # type: ignore[arg-type]
    assert why_not_of(found, known) == ""
    assert data_confirmed(found, known)
    unknown = replace(known, data_known=False)
    assert "tell" in why_not_of(found, unknown)
    assert not data_confirmed(found, unknown)
    assert data_confirmed(found, replace(known, scale=None))
    assert not data_confirmed(found, replace(unknown, scale=None))


def test_the_certificate_of_a_run_is_in_its_units_or_of_the_network_alone() -> None:
    found, run = descend(0.5, 0.5)
    assert own_certificate(found, run) == scaled(found, 0.5)
    alone = own_certificate(found, first(run, 7.0))
    at = alone.containment.at
    assert (at.mu_jacobian, at.mu_kernel, at.l_j, at.radius) == (
        None, None, found.containment.at.l_j, found.containment.at.radius,
    )  # fmt: skip
    assert math.isnan(at.beta)
    assert math.isnan(alone.sqrt_loss_upper)
    nothing = (alone.containment.reach, alone.containment.step_fraction, alone.containment.eta_max)
    assert nothing == (0.0, 0.0, 0.0)
    assert alone.verdict.startswith("no certificate of the loss: the log begins with a loss of 7")
    assert (alone.radius_jacobian, alone.norm_upper) == (found.radius_jacobian, found.norm_upper)
    for own in (
        own_certificate(replace(found, given=None), run),
        own_certificate(replace(found, given=None), first(run, 7)),
    ):
        assert own.given is None


def with_row(run: Trajectory, place: int, **values: float) -> Trajectory:
    """The same run with other numbers in one row."""
    changed = {}
    for key, value in values.items():
        changed[key] = getattr(run, key).copy()
        changed[key][place] = value
    return replace(run, **changed)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_steps_are_counted_beyond_the_tolerance(dtype: str, tolerance: float) -> None:
    found, run = descend(1.0, 0.5)
    run, at, top = replace(run, dtype=dtype), found.containment.at, found.sqrt_loss_upper
    assert run.eta is not None
    assert at.mu_jacobian is not None
    rate = math.sqrt(1 - run.eta * at.mu_jacobian) ** 10
    for part, violations in ((0.9, 0), (1.1, 1)):
        slow = (top * (rate + part * tolerance)) ** 2
        assert check_run(found, with_row(run, 10, loss=slow)).violations == violations
        away = at.radius * (1 + part * tolerance)
        assert check_run(found, with_row(run, 10, drift=away)).violations == violations
    both = with_row(run, 10, drift=2 * at.radius, loss=4 * top**2)
    assert check_run(found, both).violations == 1
    assert check_run(found, with_row(both, 11, drift=2 * at.radius)).violations == 2
    # A squared loss below zero is none; a row without loss is none, either.
    assert check_run(found, with_row(run, 10, loss=-1e-300)).violations == 1
    assert check_run(found, with_row(run, 10, loss=0.0)).violations == 0
    assert check_run(found, with_row(run, 10, loss=math.nan)).steps == 59
    assert check_run(found, with_row(run, 10, drift=math.inf)).steps == 59


def test_steps_that_are_proved() -> None:
    found, run = descend(1.0, 1.0)
    assert run.eta is not None
    for part, applies in ((1 + 1e-10, True), (1 - 1e-10, True), (1 + 1e-8, False), (1 - 1e-8, False)):
        assert check_run(found, with_row(run, 7, lr=run.eta * part)).applies == applies
    assert check_run(found, replace(run, lr=np.full(60, math.nan))).applies
    assert check_run(found, replace(run, lr=np.append(math.nan, run.lr[1:]))).applies
    above = replace(run, eta=run.eta * (1 + 1e-10))
    assert "is above the" in check_run(found, above).reason
    open_ = replace(found, containment=replace(found.containment, holds=False))
    assert check_run(open_, run).reason == "containment is not proved"
    none = replace(found.containment, at=replace(found.containment.at, mu_jacobian=None))
    assert check_run(replace(found, containment=none), run).reason == "containment is not proved"
    plain = check_run(found, replace(run, eta=None, why_no_eta=""))
    assert plain.reason == "the theorem speaks of full-batch gradient descent with a constant step"
    assert (plain.steps, plain.violations) == (0, 0)


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"exact": False}, {"scale": None}, {"dtype": None}])
def test_ratios_that_are_not_compared(change: dict[str, object]) -> None:
    found, run = descend(1.0, 0.5)
    assert check_ratio(found, replace(run, **change)) == RatioCheck(0, None, 0)  # type: ignore[arg-type]


def test_ratios_are_compared_inside_the_ball_and_above_rounding() -> None:
    found, run = descend(1.0, 0.5)
    assert found.given is not None
    mu, radius, top = found.given.mu_jacobian, found.given.radius, found.sqrt_loss_upper**2
    assert mu is not None
    everything = check_ratio(found, run)
    assert (everything.rows, everything.violations) == (60, 0)
    assert everything.lowest == float((run.grad_norm_sq / run.loss).min()) / 2
    assert check_ratio(replace(found, given=None), run) == RatioCheck(0, None, 0)
    for part, violations in ((0.9, 0), (1.1, 1)):
        low = with_row(run, 5, grad_norm_sq=2 * run.loss[5] * mu * (1 - part * 1e-6))
        assert check_ratio(found, low).violations == violations
        assert check_ratio(found, with_row(low, 5, drift=radius)).violations == violations
    assert check_ratio(found, with_row(run, 5, drift=radius * (1 + 1e-12))).rows == 59
    for part, rows in ((1.01e-6, 60), (0.99e-6, 59)):
        assert check_ratio(found, with_row(run, 5, loss=part * top)).rows == rows
    for bad in ({"grad_norm_sq": math.nan}, {"grad_norm_sq": math.inf}, {"loss": math.nan}, {"drift": math.nan}):
        assert check_ratio(found, with_row(run, 5, **bad)).rows == 59
    outside = replace(run, drift=np.full(60, 2 * radius))
    assert check_ratio(found, outside) == RatioCheck(0, None, 0)
    # Where no μ is proved nothing can be below it.
    open_ = replace(found, given=replace(found.given, mu_jacobian=None))
    assert check_ratio(open_, with_row(run, 5, grad_norm_sq=0.0)).violations == 0
    half, own = descend(0.5, 0.5)
    assert half.given is not None
    assert half.given.mu_jacobian is not None
    between = with_row(own, 5, grad_norm_sq=1.5 * own.loss[5] * half.given.mu_jacobian)
    assert check_ratio(half, between).violations == 0


def test_a_descent_is_what_is_said_of_it() -> None:
    run = Trajectory.of_descent([3.0, 2.0], [0.0, 0.5], 0.1, scale=0.25, dtype="float32")
    assert (run.steps.tolist(), run.loss.tolist(), run.drift.tolist()) == ([0.0, 1.0], [3.0, 2.0], [0.0, 0.5])
    assert np.isnan(run.grad_norm_sq).all()
    assert np.isnan(run.lr).all()
    assert (run.scale, run.loss_label, run.eta, run.why_no_eta) == (0.25, "squared loss, s = 0.25", 0.1, "")
    assert (run.dtype, run.exact, run.data_known, run.diverged) == ("float32", True, True, False)
