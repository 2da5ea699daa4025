"""Noise floors against enumeration of all orders of an epoch, dense matrices and simulated runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.noise_floor import case, predicted, run, tail_floor
from lplr_cli.analysis.noise import NoiseFloor, read_kept
from lplr_cli.batches import REPLACEMENT, Batches
from lplr_cli.curvature import GradientNoise, StepRule, excess
from lplr_cli.curvature.noise import EPOCHS, OWN_BATCH, STEPS
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.ntk import Network
from tests.curvature.dense import hessian

SAMPLES = np.array([1.3, -0.4, 0.9, -2.1, 0.3])


def step(rule: StepRule, curvature: float) -> tuple[np.ndarray, np.ndarray]:
    """One step of torch's SGD as a matrix on (x, v) and what it does with the noise, read off the optimiser itself."""

    def moved(x: float, v: float, noise: float) -> list[float]:
        p = torch.nn.Parameter(torch.tensor([x], dtype=torch.float64))
        optimizer = torch.optim.SGD(
            [p],
            lr=rule.lr,
            momentum=rule.momentum,
            dampening=rule.dampening,
            nesterov=rule.nesterov,
            weight_decay=rule.weight_decay,
        )
        if rule.momentum:
            optimizer.state[p]["momentum_buffer"] = torch.tensor([v], dtype=torch.float64)
        p.grad = curvature * p.detach() + noise
        optimizer.step()
        buffer = optimizer.state[p].get("momentum_buffer")
        return [float(p.detach()), 0.0 if buffer is None else float(buffer)]

    return np.array([moved(1, 0, 0), moved(0, 1 if rule.momentum else 0, 0)]).T, np.array(moved(0, 0, 1))


RULES = [
    StepRule(0.3),
    StepRule(0.2, momentum=0.7),
    StepRule(0.2, momentum=0.7, dampening=0.4),
    StepRule(0.1, momentum=0.6, nesterov=True),
    StepRule(0.3, weight_decay=0.4),
    StepRule(0.2, momentum=0.7, dampening=0.4, weight_decay=0.2),
    StepRule(0.1, momentum=0.6, nesterov=True, weight_decay=0.3),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_is_the_mean_over_all_orders(rule: StepRule, size: int) -> None:
    curvature = 0.8
    noise = SAMPLES - SAMPLES.mean()
    move, push = step(rule, curvature)
    count = -(-len(noise) // size)
    whole = np.linalg.matrix_power(move, count)
    gathered = np.zeros((2, 2))
    orders = list(itertools.permutations(range(len(noise))))
    for order in orders:
        z = np.zeros(2)
        for k in range(count):
            z = move @ z + push * noise[list(order[k * size : (k + 1) * size])].mean()
        gathered += np.outer(z, z) / len(orders)
    ends = np.linalg.solve(np.eye(4) - np.kron(whole, whole), gathered.reshape(4)).reshape(2, 2)
    within = own = 0.0
    root = np.linalg.cholesky(ends + 1e-18 * np.eye(2))
    for order in orders:
        # The end of an epoch before, with its covariance: independent of the order that follows.
        starts, z = root, np.zeros(2)
        for k in range(count):
            batch = noise[list(order[k * size : (k + 1) * size])].mean()
            loss = 0.5 * curvature * (z[0] ** 2 + starts[0] @ starts[0])
            within += loss / count / len(orders)
            own += (loss + batch * z[0]) / count / len(orders)
            starts, z = move @ starts, move @ z + push * batch
    batches, variance = Batches(len(noise), size), float((noise**2).mean())
    for at, expected in ((EPOCHS, 0.5 * curvature * ends[0, 0]), (STEPS, within), (OWN_BATCH, own)):
        found = excess(np.array([curvature]), rule, batches, at=at)
        assert found is not None
        assert variance * found[0] == pytest.approx(expected, rel=1e-9)


def test_with_replacement_it_is_the_known_formula() -> None:
    values, eta = np.array([0.01, 0.5, 3.0]), 0.4
    found = excess(values, StepRule(eta), Batches(1000, 8, REPLACEMENT))
    assert found is not None
    np.testing.assert_allclose(found, eta / (2 * 8) / (2 - eta * values), rtol=1e-12)
    # Heavy ball, to leading order η/(1 − β) in place of η.
    slow = excess(np.array([1e-3]), StepRule(0.02, momentum=0.9), Batches(1000, 8, REPLACEMENT))
    assert slow is not None
    assert slow[0] == pytest.approx(0.2 / (4 * 8), rel=1e-3)


def test_reshuffling_leaves_less_and_a_small_last_batch_more() -> None:
    values, rule = np.array([1.0]), StepRule(0.002)
    even, odd = Batches(320, 32), Batches(321, 32)
    plain, known, worse = (excess(values, rule, b) for b in (Batches(320, 32, REPLACEMENT), even, odd))
    assert plain is not None
    assert known is not None
    assert worse is not None
    # m (m + 1)(ηλ)²/12 and the factor of drawing without replacement within the batch, to leading order.
    assert known[0] / plain[0] == pytest.approx(10 * 11 * 0.002**2 / 12 * (320 - 32) / 319, rel=2e-2)
    # One sample that has a step of its own undoes nearly all of it.
    assert worse[0] > 1000 * known[0]


def test_the_ends_of_what_is_known() -> None:
    batches = Batches(10, 2)
    assert excess(np.array([1.0]), StepRule(0.1, adaptive=True), batches) is None
    assert excess(np.array([1.0]), StepRule(0.1, weight_decay=0.1, decoupled=True), batches) is None
    # Held by the decay alone, x varies with η/(b (2 − η(λ + w))(λ + w)) and L falls by ½|λ| of it.
    held = excess(np.array([-0.1, -0.5]), StepRule(0.1, weight_decay=0.3), Batches(1000, 2, REPLACEMENT))
    assert held is not None
    assert held.tolist() == [pytest.approx(-0.05 * 0.1 / (2 * (2 - 0.02) * 0.2), rel=1e-9), 0.0]
    found = excess(np.array([-1.0, 0.0, 20.0]), StepRule(0.1), batches)
    assert found is not None
    assert found.tolist() == [0.0, 0.0, np.inf]
    full = excess(np.array([1.0]), StepRule(0.1), Batches(10, 10))
    assert full is not None
    assert full[0] == 0.0
    with pytest.raises(InputError, match="sampling"):
        Batches(10, 2, "shuffled")
    with pytest.raises(InputError, match="batches of 0"):
        Batches(10, 0)


def test_noise_that_has_only_begun() -> None:
    """After few steps the slow directions have gathered a part: for plain descent 1 − (1 − ηλ)^2t of it."""
    rule, batches, values = StepRule(0.1), Batches(40, 4, REPLACEMENT), np.array([0.02, 2.0])
    late, early = excess(values, rule, batches), excess(values, rule, batches, steps=30)
    assert late is not None
    assert early is not None
    np.testing.assert_allclose(early / late, 1 - (1 - 0.1 * values) ** 60, rtol=1e-10)


def test_the_spectrum_of_the_noise_against_dense_matrices() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x, y = torch.randn(30, 3).double(), torch.randn(30, 2).double()
    network, loss = Network.from_module(module), Loss("squared", 0.5)
    rows = []
    for i in range(30):
        value = loss.values(module(x[i : i + 1]), y[i : i + 1]).sum()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(module.parameters()))]).numpy())
    gradients = np.array(rows)
    sigma = np.cov(gradients.T, bias=True)
    values, vectors = np.linalg.eigh(hessian(network, x, y, loss.values))
    rule, batches = StepRule(0.05), Batches(30, 4)
    each = excess(values, rule, batches, steps=400)
    assert each is not None
    exact = float(np.einsum("pi,pq,qi->i", vectors, sigma, vectors) @ each)
    found = GradientNoise(network, x, y, loss.values, products=16).spectrum(60)
    assert found.trace == pytest.approx(np.trace(sigma), rel=0.1)
    assert found.additive_floor(rule, batches, steps=400) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("seed", [4, 13, 26, 87])
def test_planted_least_squares(seed: int) -> None:
    """One of each kind of sampling and of momentum; the benchmark has a hundred."""
    problem = case(seed)
    losses, theta = run(problem, seed)
    assert 0.5 < predicted(problem, theta) / tail_floor(problem, losses) < 2


@pytest.mark.parametrize(
    "rule",
    [
        StepRule(0.09),
        StepRule(0.02, momentum=0.7),
        StepRule(0.03, momentum=0.6, nesterov=True),
    ],
    ids=str,
)
def test_batches_of_different_curvature(rule: StepRule) -> None:
    """Least squares of six samples and two parameters: the mean over all 720 orders of the true products."""
    random = np.random.default_rng(3)
    x, y = random.standard_normal((6, 2)), random.standard_normal(6)
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    values, vectors = np.linalg.eigh(2 * x.T @ x / 6)
    forces = 2 * x * (x @ theta - y)[:, None]
    (move, push), zero = step(rule, 0.0), np.zeros((2, 2))
    free = np.kron(move, np.eye(2))
    give = np.concatenate([push[0] * np.eye(2), push[1] * np.eye(2)])
    orders = list(itertools.permutations(range(6)))
    kron, gathered = np.zeros((16, 16)), np.zeros((4, 4))
    for order in orders:
        whole, z = np.eye(4), np.zeros(4)
        for k in range(0, 6, 2):
            rows = list(order[k : k + 2])
            one = free + give @ np.concatenate([2 * x[rows].T @ x[rows] / len(rows), zero], axis=1)
            whole, z = one @ whole, one @ z + give @ forces[rows].mean(axis=0)
        kron += np.kron(whole, whole) / len(orders)
        gathered += np.outer(z, z) / len(orders)
    covariance = np.linalg.solve(np.eye(16) - kron, gathered.reshape(16)).reshape(4, 4)[:2, :2]
    exact = 0.5 * float(np.einsum("pi,pq,qi->i", vectors, covariance, vectors) @ values)
    layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(theta[None]))
    noise = GradientNoise(Network.from_module(layer), torch.from_numpy(x), torch.from_numpy(y[:, None]), Loss().values)
    found = noise.floor(rule, Batches(6, 2), epochs=120)
    assert noise.floor(replace(rule, weight_decay=0.1), Batches(6, 2)) is None
    plain = noise.spectrum(60).additive_floor(rule, Batches(6, 2))
    assert found is not None
    assert plain is not None
    assert found == pytest.approx(exact, rel=0.3)
    assert abs(plain - exact) > abs(found - exact)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_weights_that_decay(momentum: float) -> None:
    """Batches of two of six samples with replacement: the exact mean of L over all 36 of them at every step."""
    rule = StepRule(0.003, momentum=momentum, weight_decay=3.0)
    random = np.random.default_rng(3)
    x, y = random.standard_normal((6, 2)), random.standard_normal(6)
    curvature, zero = 2 * x.T @ x / 6, np.zeros((2, 2))
    # Where the run would end without noise: there L has a slope.
    theta = np.linalg.solve(curvature + rule.weight_decay * np.eye(2), 2 * x.T @ y / 6)
    move, push = step(replace(rule, weight_decay=0.0), 0.0)
    free = np.kron(move, np.eye(2))
    give = np.concatenate([push[0] * np.eye(2), push[1] * np.eye(2)])
    kron, mean, gathered = np.zeros((16, 16)), np.zeros((4, 4)), np.zeros((4, 4))
    for pair in itertools.product(range(6), repeat=2):
        rows = list(pair)
        held = x[rows].T @ x[rows] + rule.weight_decay * np.eye(2)
        force = x[rows].T @ (x[rows] @ theta - y[rows]) + rule.weight_decay * theta
        one = free + give @ np.concatenate([held, zero], axis=1)
        kron, mean = kron + np.kron(one, one) / 36, mean + one / 36
        gathered += np.outer(give @ force, give @ force) / 36
    # Noise that depends on x has no mean, as batches do not depend on it.
    assert np.abs(np.linalg.eigvals(mean)).max() < 1
    covariance = np.linalg.solve(np.eye(16) - kron, gathered.reshape(16)).reshape(4, 4)[:2, :2]
    exact = 0.5 * float(np.sum(curvature * covariance))
    layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(theta[None]))
    noise = GradientNoise(Network.from_module(layer), torch.from_numpy(x), torch.from_numpy(y[:, None]), Loss().values)
    spectrum, batches = noise.spectrum(200), Batches(6, 2, REPLACEMENT)
    assert spectrum.additive_floor(rule, batches) == pytest.approx(exact, rel=0.15)
    # The decay counts: without it the same noise keeps up more.
    free_of_it = spectrum.additive_floor(replace(rule, weight_decay=0.0), batches)
    assert free_of_it is not None
    assert free_of_it > 1.3 * exact


@pytest.mark.parametrize(
    "wrong",
    [{"trace": 10**400}, {"trace": math.nan}, {"trace": "1"}, {"batch_size": 0}, {"batch_size": 2**70}, {"steps": True},
     {"steps": None}, {"sampling": []}, {"at": {}}],
)  # fmt: skip
def test_a_damaged_record_is_none(wrong: dict[str, object]) -> None:
    good = {"floor": 0.1, "at": "epochs", "trace": 2.0, "batch_size": 4, "sampling": "reshuffled", "steps": 9}
    assert read_kept(good) == NoiseFloor(0.1, "epochs", 2.0, 4, "reshuffled", 9)
    assert read_kept({**good, "floor": 10**400}) == NoiseFloor(None, "epochs", 2.0, 4, "reshuffled", 9)
    assert read_kept({**good, **wrong}) is None
