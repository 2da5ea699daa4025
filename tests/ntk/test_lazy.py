from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import nn

from lplr_cli.errors import InputError, NumericalError
from lplr_cli.ntk import Linearised, Modes, Network, cross_ntk, empirical_ntk, laziness_error
from tests.cases import make

STEPS = {
    "constant": np.full(60, 0.05),
    "cosine": 0.08 * 0.5 * (1 + np.cos(np.pi * np.arange(60) / 60)),
    "jumps": np.where(np.arange(60) % 7 == 0, 0.1, 0.02),
}


def planted(seed: int = 0, n: int = 12) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, 5)) * np.logspace(0, -3, 5)
    return factor @ factor.T / n, rng.standard_normal(n)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("schedule", STEPS)
def test_the_eigenbasis_equals_the_explicit_recursion(schedule: str, scale: float, momentum: float) -> None:
    kernel, r = planted()
    modes = Modes.of(kernel, r, 6)
    begun = np.random.default_rng(1).standard_normal(12)
    found = Linearised(modes, scale, momentum, modes.vectors.T @ begun).losses(STEPS[schedule])
    tilde, u = r / math.sqrt(6), begun.copy()
    truth = [scale * tilde @ tilde]
    for eta in STEPS[schedule]:
        u = momentum * u + 2 * scale * kernel @ tilde
        tilde = tilde - eta * u
        truth.append(scale * tilde @ tilde)
    np.testing.assert_allclose(found, truth, rtol=1e-11)


def test_small_steps_follow_the_gradient_flow() -> None:
    """Against scipy's exponential and a solver of the differential equation, as no kernel library is at hand."""
    kernel, r = planted()
    modes, time, count = Modes.of(kernel, r, 12), 3.0, 40_000
    flow = expm(-2 * kernel * time) @ r
    solved = solve_ivp(lambda _, z: -2 * kernel @ z, (0, time), r, rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(solved, flow, rtol=1e-8, atol=1e-10)
    descended = Linearised(modes).residual(np.full(count, time / count))
    np.testing.assert_allclose(descended, flow, rtol=3e-3, atol=3e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_linear_model_is_predicted_exactly_here_and_on_other_inputs(momentum: float, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    x, y, others = torch.randn(7, 4).double(), torch.randn(7, 2).double(), torch.randn(5, 4).double()
    network = Network.from_module(model)
    modes = Modes.of(empirical_ntk(network, x).matrix, (model(x) - y).detach().reshape(-1), 7)
    predicted = Linearised(modes, scale, momentum)
    cross, before = cross_ntk(network, others, x), model(others).detach().reshape(-1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    losses, steps = [], 0.05 * (1 + np.arange(40) % 3)
    for eta in steps:
        optimizer.param_groups[0]["lr"] = float(eta)
        optimizer.zero_grad()
        loss = scale * (model(x) - y).square().sum() / 7
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    losses.append(float((scale * (model(x) - y).square().sum() / 7).detach()))
    np.testing.assert_allclose(predicted.losses(steps), losses, rtol=1e-10)
    assert laziness_error(losses, predicted.losses(steps)) == pytest.approx(0.0, abs=1e-9)
    after = model(others).detach().reshape(-1).numpy()
    np.testing.assert_allclose(predicted.outputs(steps, cross.numpy(), before.numpy()), after, atol=1e-11)
    residual = (model(x) - y).detach().reshape(-1).numpy()
    np.testing.assert_allclose(predicted.residual(steps), residual, atol=1e-11)


def test_a_wide_network_is_nearly_linear() -> None:
    """In the first steps the error of the prediction falls with the square of the step, as the kernel's change does."""
    network, x = make("mlp-ntk-gelu-3")
    y = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    modes = Modes.of(empirical_ntk(network, x).matrix.numpy(), (network.forward(x) - y).detach().reshape(-1), len(x))
    errors = []
    for eta in (1e-2, 1e-3):
        loss = (network.forward(x) - y).square().sum() / len(x)
        grads = torch.autograd.grad(loss, list(network.params.values()))
        moved = {k: p.detach() - eta * g for (k, p), g in zip(network.params.items(), grads, strict=True)}
        after = float((network.forward(x, moved) - y).square().sum() / len(x))
        errors.append(abs(after - Linearised(modes).losses([eta])[-1]))
    assert errors[1] < 0.015 * errors[0]


def test_alignment_participation_and_shares() -> None:
    kernel, r = planted()
    modes = Modes.of(kernel, r, 12)
    assert modes.alignment == pytest.approx(r @ kernel @ r / (np.linalg.norm(kernel) * (r @ r)))
    assert modes.participation == pytest.approx(np.trace(kernel) ** 2 / np.linalg.norm(kernel) ** 2)
    assert modes.share.sum() == pytest.approx(1.0)
    assert modes.energy == pytest.approx(r @ r / 12)
    held = np.sort(modes.share)[::-1].cumsum()
    assert held[modes.directions(0.9) - 1] >= 0.9 > held[modes.directions(0.9) - 2]
    along = Modes.of(np.diag([3.0, 2.0, 1.0]), [0.0, 5.0, 0.0], 3)
    assert along.directions() == 1
    assert along.alignment == pytest.approx(2 / math.sqrt(14))
    nothing = Modes.of(np.zeros((2, 2)), np.zeros(2), 2)
    assert nothing.alignment is None
    assert nothing.participation is None
    assert nothing.share.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_factors_are_the_rates_of_the_directions(momentum: float) -> None:
    kernel = np.diag([4.0, 1.0, 0.2])
    for j in range(3):
        run = Linearised(Modes.of(kernel, np.eye(3)[j], 3), 0.5, momentum)
        losses = run.losses(np.full(2000, 0.3))
        span = 1000 if momentum else 100
        measured = (losses[20 + span] / losses[20]) ** (1 / span)
        assert measured == pytest.approx(run.factors(0.3)[j], rel=0.02)


def test_divergence_and_the_edges_of_the_error() -> None:
    run = Linearised(Modes.of(np.eye(2), np.ones(2), 2))
    predicted = run.losses(np.full(3000, 5.0))
    assert np.isinf(predicted[-1])
    assert (run.factors(5.0) > 1).all()
    assert laziness_error(np.ones(3001), predicted) == math.inf
    assert laziness_error([1.0, 0.5, math.nan], [1.0, 0.4, 0.1]) == pytest.approx(math.log(1.25))
    assert laziness_error([1.0, 1e-30], [1.0, 1e-28]) == 0.0
    assert laziness_error([1.0, 1e-3], [1.0, 0.0]) == pytest.approx(math.log(1e21))
    assert laziness_error([math.nan], [1.0]) is None
    with pytest.raises(InputError, match="shape"):
        Modes.of(np.eye(2), np.ones(3), 3)
    with pytest.raises(NumericalError, match="not finite"):
        Modes.of(np.eye(2) * np.nan, np.ones(2), 2)
    with pytest.raises(InputError, match="momentum"):
        Linearised(Modes.of(np.eye(2), np.ones(2), 2), 1.0, 0.5, np.ones(2)).outputs([0.1], np.eye(2), np.ones(2))
