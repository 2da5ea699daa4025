"""Trace, norm and density against matrices whose eigenvalues are planted, and the density of a dense Hessian."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import nn

from lplr_cli.curvature import LossCurvature, StepRule, preconditioned, spectral_density, xtrace
from lplr_cli.curvature.density import Quadrature
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.ntk import Network
from tests.curvature import dense
from tests.curvature.test_products import problem
from tests.linalg.test_lanczos import planted

EIGENVALUES = np.sort(
    np.concatenate([0.05 * np.random.default_rng(3).standard_normal(194), [3.0, 2.5, 2.0, -1.0, -0.8, -0.7]])
)
MATRIX = planted(EIGENVALUES)


def apply(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return MATRIX @ v


def test_trace_and_norm_are_unbiased_with_honest_errors() -> None:
    found = [xtrace(apply, 200, vectors=10, seed=seed) for seed in range(200)]
    for values, errors, truth in (
        ([f.trace for f in found], [f.trace_error for f in found], EIGENVALUES.sum()),
        ([f.square for f in found], [f.square_error for f in found], (EIGENVALUES**2).sum()),
    ):
        away = np.array(values) - truth
        assert abs(away.mean()) < 3.5 * away.std() / math.sqrt(len(away))
        # Student's t with nine degrees of freedom leaves 5 % beyond 2.26; the estimates of the ten are not independent.
        assert np.mean(np.abs(away) > 2.26 * np.array(errors)) < 0.15
    hutchinson = math.sqrt(2 * float((EIGENVALUES**2).sum()) / 20)
    assert np.std([f.trace for f in found]) < 0.5 * hutchinson
    assert all(f.products == 20 and not f.exact for f in found)


@pytest.mark.parametrize(("rank", "vectors"), [(4, 10), (200, 200), (0, 3)])
def test_a_range_that_is_spanned_leaves_no_error(rank: int, vectors: int) -> None:
    values = np.zeros(200)
    values[:rank] = EIGENVALUES[200 - rank :]
    matrix = planted(values)
    found = xtrace(lambda v: matrix @ v, 200, vectors=vectors)
    assert found.exact
    assert found.trace == pytest.approx(values.sum(), abs=1e-10)
    assert found.frobenius == pytest.approx(np.linalg.norm(values), abs=1e-10)
    assert found.trace_error == found.square_error == 0.0


def test_the_quadratures_bounds_hold_for_every_measure() -> None:
    vectors = np.linalg.eigh(MATRIX)[1]
    values = np.linalg.eigvalsh(MATRIX)
    for seed in range(20):
        (sample,) = spectral_density(apply, 200, vectors=1, steps=15, seed=seed).samples
        start = np.random.default_rng(seed).standard_normal(200)
        measure = (vectors.T @ (start / np.linalg.norm(start))) ** 2
        assert sample.weights.sum() == pytest.approx(1.0)
        for t in [*np.linspace(-1.1, 3.1, 60), *np.linspace(-0.1, 0.1, 40), *sample.nodes, -9.0, 9.0]:
            low, high = sample.below(float(t))
            assert low - 1e-12 <= measure[values < t].sum()
            assert measure[values <= t].sum() <= high + 1e-12


def test_bounds_at_the_nodes_by_hand() -> None:
    sample = Quadrature(np.array([0.0, 1.0, 2.0]), np.array([0.2, 0.3, 0.5]))
    for t, low, high in ((-1.0, 0.0, 0.2), (0.0, 0.0, 0.2), (0.5, 0.0, 0.5), (1.0, 0.2, 0.5), (3.0, 0.5, 1.0)):
        assert sample.below(t) == pytest.approx((low, high))


def test_shares_and_weights_lie_in_their_intervals() -> None:
    missed = {"share": 0, "weight": 0, "mean": 0}
    for seed in range(60):
        found = spectral_density(apply, 200, vectors=4, steps=25, seed=seed)
        for name, interval, truth in (
            ("share", found.share_below(-0.02), float(np.mean(EIGENVALUES < -0.02))),
            ("weight", found.negative_weight(), -EIGENVALUES[EIGENVALUES < 0].sum() / np.abs(EIGENVALUES).sum()),
            ("mean", found.mean(np.square), float(np.mean(EIGENVALUES**2))),
        ):
            assert interval.low is not None
            assert interval.high is not None
            missed[name] += not interval.low <= truth <= interval.high
    # Three of 60 are expected for normal values, fewer with the quadrature's bounds.
    assert missed["share"] <= 3
    assert missed["weight"] <= 9
    assert missed["mean"] <= 9
    single = spectral_density(apply, 200, vectors=1)
    assert single.share_below(0.0).low is None
    assert single.negative_weight().high is None


def test_the_density_of_a_dense_hessian() -> None:
    network, x, y = problem("mlp-ntk-gelu-3")
    loss = Loss("cross-entropy").values
    matrix = dense.hessian(network, x, y, loss)
    truth = np.linalg.eigvalsh(matrix)
    spread = truth[-1] - truth[0]
    grid, width = np.linspace(truth[0] - spread / 2, truth[-1] + spread / 2, 2001), 0.03 * spread
    smooth = np.exp(-0.5 * ((grid[:, None] - truth) / width) ** 2).mean(axis=1) / (width * math.sqrt(2 * math.pi))
    flat = wasserstein_distance(truth, np.linspace(truth[0], truth[-1], 50))
    covered = []
    for seed in range(4):
        found = spectral_density(lambda v: matrix @ v, len(matrix), vectors=16, steps=30, seed=seed)
        distance = wasserstein_distance(truth, *_pair(found.points()))
        assert distance < 0.01 * spread
        assert distance < 0.1 * flat
        mean, low, high = found.curve(grid, width)
        assert np.trapezoid(mean, grid) == pytest.approx(1.0, abs=1e-3)
        covered.append(np.mean(((low <= smooth) & (smooth <= high))[smooth > 1e-6 * smooth.max()]))
    assert np.mean(covered) > 0.75


def test_as_many_products_as_parameters_find_every_eigenvalue() -> None:
    """The nodes of a quadrature that went on to the end, from products of the network, against the dense Hessian."""
    network, x, y = problem("shared")
    loss = Loss("squared").values
    truth = np.linalg.eigvalsh(dense.hessian(network, x, y, loss))
    curvature = LossCurvature(network, x, y, loss)
    (sample,) = spectral_density(curvature.hessian, curvature.size, vectors=1, steps=curvature.size).samples
    away = np.abs(sample.nodes[:, None] - truth)
    scale = np.abs(truth).max()
    assert away.min(axis=0).max() < 1e-6 * scale
    assert away.min(axis=1).max() < 1e-6 * scale


def _pair(points: tuple[Any, Any]) -> tuple[Any, None, Any]:
    return points[0], None, points[1]


def _grows(optimizer: torch.optim.Optimizer, theta: nn.Parameter, curvature: torch.Tensor) -> bool:
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * curvature * theta.square()).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if not float(theta.detach().abs().max()) < 1e6:
            return True
    return float(theta.detach().abs().max()) > 1.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.6, "dampening": 0.5},
        {"momentum": 0.7, "nesterov": True},
        {"momentum": 0.5, "weight_decay": 0.3},
    ],
)
def test_thresholds_are_those_of_torchs_optimisers(options: dict[str, Any]) -> None:
    threshold = StepRule(lr=0.1, **options).threshold
    assert threshold is not None
    for factor, grows in ((0.97, False), (1.03, True)):
        curvature = torch.tensor([1.0, factor * threshold], dtype=torch.float64)
        theta = nn.Parameter(torch.full((2,), 1e-3, dtype=torch.float64))
        assert _grows(torch.optim.SGD([theta], lr=0.1, **options), theta, curvature) is grows


@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.4, False), (0.4, True)])
def test_the_threshold_of_adam_with_a_frozen_preconditioner(decay: float, decoupled: bool) -> None:
    lr, beta, root = 0.05, 0.9, np.array([2.0, 0.5, 3.0])
    rule = StepRule(lr, momentum=beta, dampening=beta, adaptive=True, weight_decay=decay, decoupled=decoupled)
    threshold = rule.threshold
    assert threshold is not None
    # Coupled decay joins the gradient before P divides: it is measured in P's units.
    shift = decay * (1 - 1 / root.min()) if decay and not decoupled else 0.0
    for factor, grows in ((0.97, False), (1.03, True)):
        h = np.array([0.1, (factor * threshold + shift) * root[1], 0.1])
        theta, m = np.full(3, 1e-3), np.zeros(3)
        for _ in range(600):
            gradient = h * theta + (0.0 if decoupled else decay * theta)
            m = beta * m + (1 - beta) * gradient
            theta = theta * (1 - lr * decay if decoupled else 1.0) - lr * m / root
            if not np.abs(theta).max() < 1e6:
                break
        assert (np.abs(theta).max() > 1.0) is np.bool_(grows)


def test_preconditioned_products() -> None:
    moments = np.random.default_rng(0).uniform(0, 2, 200)
    root = np.diag(1 / np.sqrt(np.sqrt(moments) + 1e-3))
    v = np.random.default_rng(1).standard_normal(200)
    np.testing.assert_allclose(preconditioned(apply, moments, 1e-3)(v), root @ MATRIX @ root @ v, atol=1e-10)
    for wrong, epsilon in ((-moments, 1e-3), (0 * moments, 0.0), (np.inf * moments, 1e-3)):
        with pytest.raises(InputError):
            preconditioned(apply, wrong, epsilon)
    for lr, momentum in ((0.0, 0.0), (1.0, 1.0)):
        with pytest.raises(InputError):
            StepRule(lr, momentum)
    assert StepRule(1.0, momentum=0.5, nesterov=True, dampening=0.1).threshold is None


def test_a_network_at_its_threshold() -> None:
    """The largest eigenvalue and the threshold together tell what gradient descent does on a linear model."""
    torch.manual_seed(0)
    x = torch.randn(12, 4, dtype=torch.float64)
    network = Network.from_module(nn.Linear(4, 1))
    curvature = LossCurvature(network, x, x[:, :1], Loss().values)
    top = np.linalg.eigvalsh(np.stack([curvature.hessian(e) for e in np.eye(5)]))[-1]
    for eta, falls in ((1.95 / top, True), (2.05 / top, False)):
        assert (top < StepRule(eta).threshold) is np.bool_(falls)
        theta = np.ones(5)
        for _ in range(600):
            theta -= eta * curvature.hessian(theta)
        assert (np.abs(theta).max() < 1) is np.bool_(falls)
