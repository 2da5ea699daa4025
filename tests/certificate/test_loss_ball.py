"""β, α, Lipschitz constants and rounding of a loss over balls, against dense Hessians and 50 digits."""

from __future__ import annotations

from itertools import pairwise

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, SmoothMLP
from lplr_cli.losses import Loss
from tests.certificate.path_case import LOSSES, Case


@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: f"{v.name}-{v.scale}")
def test_constants_hold_at_points_of_the_ball(loss: Loss, activation: str) -> None:
    """β, α and both Lipschitz constants against dense Hessians, at random points and along the worst direction."""
    case = Case(loss, width=4, n=4, activation=activation)
    for radius in (1e-3, 0.1):
        bound = case.curvature.ball(case.start).at(radius)
        generator = torch.Generator().manual_seed(2)
        points = [case.start]
        for _ in range(6):
            away = torch.randn(len(case.start), generator=generator, dtype=torch.float64)
            points.append(case.start + radius * away / away.norm())
        hessians = [case.hessian(p) for p in points]
        parts = [gauss_newton(case, p) for p in points]
        for h, g in zip(hessians, parts, strict=True):
            values = torch.linalg.eigvalsh(h)
            assert float(values[-1]) <= bound.beta
            assert float(values[0]) >= -bound.alpha
            assert float(torch.linalg.matrix_norm(h - g, ord=2)) <= bound.alpha
        for (p, h, g), (q, i, j) in pairwise(zip(points, hessians, parts, strict=True)):
            apart = float((p - q).norm())
            assert float(torch.linalg.matrix_norm(g - j, ord=2)) <= bound.gauss_newton * apart
            assert float(torch.linalg.matrix_norm((h - g) - (i - j), ord=2)) <= bound.rest * apart


def gauss_newton(case: Case, theta: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(case.outputs_at)(theta)
    f, loss = case.outputs_at(theta), case.objective.loss
    n, c = f.shape
    eye = torch.eye(c, dtype=torch.float64)
    inner = torch.stack([loss.hessian_products(f, eye[k].expand(n, c)) for k in range(c)], dim=2)
    found: Tensor = torch.einsum("icp,icd,idq->pq", jacobian, inner, jacobian) / n
    return found


@pytest.mark.parametrize("activation", ["softplus", "tanh", "gelu", "silu"])
def test_lipschitz_constants_of_the_hessians_of_single_outputs(activation: str) -> None:
    """The derivative of ∇²f_ic along many directions stays below its bound, which is of use: within 3,000 times."""
    case = Case(Loss(), depth=3, width=4, n=3, activation=activation)
    over = BallBounds(SmoothMLP.from_module(case.module), case.x, method="tight").over(1e-3)
    largest = torch.zeros(3, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        u = torch.randn(len(case.start), generator=generator, dtype=torch.float64)
        u = 1e-3 * u / u.norm()
        for i, c in ((0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1)):
            there, here = (output_hessian(case, case.start + s * u, i, c) for s in (1.0, -1.0))
            found = float(torch.linalg.matrix_norm(there - here, ord=2)) / 2e-3
            largest[i, c] = max(float(largest[i, c]), found)
    assert bool((largest <= over.thirds).all())
    assert bool((over.thirds <= 3000 * largest).all())


def output_hessian(case: Case, theta: Tensor, i: int, c: int) -> Tensor:
    found: Tensor = torch.func.hessian(lambda t: case.outputs_at(t)[i, c])(theta)
    return found


def exactly(case: Case, theta: Tensor) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """L and ∇L of a softplus net and the squared loss in 50 digits."""
    with mpmath.workdps(50):
        layers, offset = [], 0
        shapes = [p.shape for p in case.module.parameters()]
        for shape in shapes:
            flat = [mpmath.mpf(float(v)) for v in theta[offset : offset + shape.numel()]]
            layers.append(mpmath.matrix(shape[0], shape[1] if len(shape) > 1 else 1))
            for i, v in enumerate(flat):
                layers[-1][i // layers[-1].cols, i % layers[-1].cols] = v
            offset += shape.numel()
        weights, biases = layers[0::2], layers[1::2]
        grads = [mpmath.matrix(m.rows, m.cols) for m in layers]
        total, n = mpmath.mpf(0), len(case.x)
        for row, target in zip(case.x, case.y, strict=True):
            a = [mpmath.matrix([mpmath.mpf(float(v)) for v in row])]
            z = []
            for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
                z.append(w * a[-1] + b)
                a.append(z[-1] if k == len(weights) - 1 else z[-1].apply(lambda v: mpmath.log1p(mpmath.exp(v))))
            r = a[-1] - mpmath.matrix([mpmath.mpf(float(v)) for v in target])
            total += sum(v**2 for v in r) / n
            s = 2 * r / n
            for k in range(len(weights) - 1, -1, -1):
                grads[2 * k] += s * a[k].T
                grads[2 * k + 1] += s
                if k:
                    e = weights[k].T * s
                    s = mpmath.matrix([e[i] / (1 + mpmath.exp(-z[k - 1][i])) for i in range(e.rows)])
        return total, [v for g in grads for v in g]


def test_rounding_of_loss_and_gradient_is_covered() -> None:
    """Against 50 digits, at the centre and at the rim of the ball; the claim within 1e6 times of the error."""
    case = Case(Loss(), width=4, n=4)
    radius = 1e-2
    bound = case.curvature.ball(case.start).at(radius)
    away = torch.randn(len(case.start), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for theta in (case.start, case.start + radius * away / away.norm()):
        loss, gradient = case.objective(theta)
        true, slopes = exactly(case, theta)
        with mpmath.workdps(50):
            wrong = float(
                mpmath.sqrt(sum((mpmath.mpf(float(g)) - s) ** 2 for g, s in zip(gradient, slopes, strict=True)))
            )
            off = float(abs(mpmath.mpf(loss) - true))
        assert 0 < wrong <= bound.gradient_error <= 1e6 * wrong
        assert off <= bound.loss_error <= 1e-10
