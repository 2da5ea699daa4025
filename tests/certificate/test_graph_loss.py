"""Losses of convolutional and residual networks over balls and along paths, and their rounding against 50 digits."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lplr_cli.certificate import CERTIFIED, CertifiedCurvature, NoCertificateError, Walk, certify
from lplr_cli.certificate.graph import GraphBounds, GraphNetwork
from lplr_cli.certificate.network import in_double
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.ntk import evaluation_mode
from lplr_cli.training.objective import Objective
from tests.certificate.graph_cases import CASES, Residual
from tests.certificate.path_case import LOSSES


class Trained:
    """A small residual network with data and a loss."""

    def __init__(self, loss: Loss, name: str = "resnet-softplus", n: int = 4) -> None:
        self.module, self.x = CASES[name].make(n=n)
        copy, _ = CASES[name].make(n=n)
        self.outputs = self.module(self.x).shape[1]
        y = torch.randn(n, self.outputs, dtype=torch.float64)
        if loss.name == "cross-entropy":
            y = F.one_hot(y.argmax(dim=1), self.outputs).double()
        self.y = (y > 0).double() if loss.name == "bce" else y
        self.objective = Objective(copy, self.x, self.y, loss)
        self.curvature = CertifiedCurvature(self.module, self.x, self.y, loss)
        self.theta = self.objective.flat.theta.clone()

    def outputs_at(self, theta: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(self.module, self.curvature.values(theta), (self.x,))
        return out

    def hessian(self, theta: Tensor) -> Tensor:
        def loss(t: Tensor) -> Tensor:
            return self.objective.loss.total(self.outputs_at(t), self.y, len(self.x))

        found: Tensor = torch.func.hessian(loss)(theta)
        return found.detach()

    def gauss_newton(self, theta: Tensor) -> Tensor:
        jacobian, f = torch.func.jacrev(self.outputs_at)(theta).detach(), self.outputs_at(theta).detach()
        eye = torch.eye(self.outputs, dtype=torch.float64)
        columns = [self.objective.loss.hessian_products(f, row.expand_as(f)) for row in eye]
        found: Tensor = torch.einsum("icp,icd,idq->pq", jacobian, torch.stack(columns, dim=2), jacobian) / len(f)
        return found


@pytest.mark.parametrize(
    "loss",
    [pytest.param(v, marks=[] if v.name == "cross-entropy" else pytest.mark.slow) for v in LOSSES],
    ids=lambda v: f"{v.name}-{v.scale}",
)
def test_constants_of_the_loss_hold_at_points_of_the_ball(loss: Loss) -> None:
    """β, α and both Lipschitz constants against dense Hessians."""
    case = Trained(loss)
    generator = torch.Generator().manual_seed(2)
    for radius in (1e-3, 0.1):
        bound = case.curvature.ball(case.theta).at(radius)
        away = torch.randn(len(case.theta), generator=generator, dtype=torch.float64)
        points = [case.theta, case.theta + radius * away / away.norm(), case.theta - radius * away / away.norm()]
        hessians, parts = [case.hessian(p) for p in points], [case.gauss_newton(p) for p in points]
        for h, g in zip(hessians, parts, strict=True):
            values = torch.linalg.eigvalsh(h)
            assert -bound.alpha <= float(values[0]) <= float(values[-1]) <= bound.beta
            assert float(torch.linalg.matrix_norm(h - g, ord=2)) <= bound.alpha
        for (p, h, g), (q, i, j) in pairwise(zip(points, hessians, parts, strict=True)):
            apart = float((p - q).norm())
            assert float(torch.linalg.matrix_norm(g - j, ord=2)) <= bound.gauss_newton * apart
            assert float(torch.linalg.matrix_norm((h - g) - (i - j), ord=2)) <= bound.rest * apart


def test_a_path_of_a_residual_network_is_certified() -> None:
    """Gradient descent whose every step is proved to lie in a region, with the rate; at random points of it, too."""
    case = Trained(Loss(), "residual")
    walk = Walk(case.curvature, case.objective)
    theta, lr, nodes = case.theta.clone(), 0.02, []
    for step in range(6):
        loss, gradient = case.objective(theta)
        nodes.append(theta.clone())
        walk.add(step, theta, loss, gradient, lr)
        theta = theta - lr * gradient
    region = walk.region()
    assert region.kind == CERTIFIED
    assert region.certified_share == 1.0
    assert region.rate is not None
    assert region.mu is not None
    assert region.radius is not None
    assert region.l_star_lower is not None
    generator = torch.Generator().manual_seed(5)
    for a, b in pairwise(nodes):
        away = torch.randn(len(a), generator=generator, dtype=torch.float64)
        point = torch.lerp(a, b, 0.4) + region.radius * away / away.norm()
        loss, gradient = case.objective(point)
        assert float(gradient.square().sum()) / 2 >= region.mu * (loss - region.l_star_lower)
        assert loss >= region.l_star_lower


def exact(x: Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(float(v)) for v in x.reshape(-1)]


class Exactly:
    """A residual block, a mean and a head: forward and backward in 50 digits, by the indices of patches."""

    def __init__(self, module: nn.Module, sample: Tensor) -> None:
        self.p = {k: exact(v.detach()) for k, v in module.named_parameters()}
        self.channels, (_, self.h, self.w) = 2, sample.shape
        places = torch.arange(1, 2 * self.h * self.w + 1, dtype=torch.float64).reshape(1, 2, self.h, self.w)
        self.patches = F.unfold(places, 3, padding=1)[0].long()  # 0 outside the image
        self.x = exact(sample)

    def conv(self, name: str, x: list[mpmath.mpf]) -> list[mpmath.mpf]:
        w, (k, t) = self.p[f"{name}.weight"], self.patches.shape
        padded = [mpmath.mpf(0), *x]
        bias = self.p.get(f"{name}.bias", [mpmath.mpf(0)] * 2)
        return [
            bias[o] + mpmath.fsum(w[o * k + j] * padded[int(self.patches[j, s])] for j in range(k))
            for o in range(2)
            for s in range(t)
        ]

    def back(
        self, name: str, x: list[mpmath.mpf], s: list[mpmath.mpf]
    ) -> tuple[list[mpmath.mpf], dict[str, list[mpmath.mpf]]]:
        w, (k, t) = self.p[f"{name}.weight"], self.patches.shape
        padded, down = [mpmath.mpf(0), *x], [mpmath.mpf(0)] * (len(x) + 1)
        grad = []
        for o in range(2):
            for j in range(k):
                grad.append(mpmath.fsum(s[o * t + q] * padded[int(self.patches[j, q])] for q in range(t)))
                for q in range(t):
                    down[int(self.patches[j, q])] += w[o * k + j] * s[o * t + q]
        found = {f"{name}.weight": grad}
        if f"{name}.bias" in self.p:
            found[f"{name}.bias"] = [mpmath.fsum(s[o * t : (o + 1) * t]) for o in range(2)]
        return down[1:], found

    def loss(self, y: float) -> tuple[mpmath.mpf, dict[str, list[mpmath.mpf]]]:
        """(f − y)² and its gradient."""
        t = self.h * self.w
        one = self.conv("0.one", self.x)
        a = [mpmath.tanh(v) for v in one]
        two = [u + v for u, v in zip(self.conv("0.two", a), self.x, strict=True)]
        b = [mpmath.tanh(v) for v in two]
        head, means = self.p["3.weight"], [mpmath.fsum(b[c * t : (c + 1) * t]) / t for c in range(2)]
        r = head[0] * means[0] + head[1] * means[1] + self.p["3.bias"][0] - mpmath.mpf(y)
        s = [2 * r * head[k // t] / t * (1 - v * v) for k, v in enumerate(b)]
        down, grads = self.back("0.two", a, s)
        _, first = self.back("0.one", self.x, [d * (1 - v * v) for d, v in zip(down, a, strict=True)])
        return r * r, {**grads, **first, "3.weight": [2 * r * m for m in means], "3.bias": [2 * r]}


def test_rounding_of_loss_and_gradient_is_covered() -> None:
    """Against 50 digits, at the centre and at the rim of the ball; the claim within 1e6 times of the error."""
    torch.manual_seed(3)

    def build() -> nn.Module:
        torch.manual_seed(4)
        block = Residual(2, 2, 1, nn.Tanh())
        return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)).double()

    x, y = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.tensor([[0.7]], dtype=torch.float64)
    module, objective = build(), Objective(build(), x, y, Loss())
    curvature, theta = CertifiedCurvature(module, x, y, Loss()), objective.flat.theta.clone()
    radius = 1e-2
    bound = curvature.ball(theta).at(radius)
    away = torch.randn(len(theta), dtype=torch.float64)
    for point in (theta, theta + radius * away / away.norm()):
        loss, gradient = objective(point)
        with mpmath.workdps(50):
            exactly = Exactly(objective.module, x[0])
            value, grads = exactly.loss(0.7)
            true = [v for k, _ in module.named_parameters() for v in grads[k]]
            off = mpmath.sqrt(mpmath.fsum((mpmath.mpf(float(g)) - v) ** 2 for g, v in zip(gradient, true, strict=True)))
            wrong, missed = float(off), float(abs(mpmath.mpf(loss) - value))
        assert 0 < wrong <= bound.gradient_error <= 1e6 * wrong
        assert missed <= bound.loss_error <= 1e-9
        assert math.isfinite(bound.beta)


def test_the_ball_of_a_residual_network_is_certified() -> None:
    """λ_min proved with the rounding of the passes, and μ on a ball, against dense Jacobians there."""
    module, x = CASES["residual"].make(n=3)
    y = torch.randn(3, 1, dtype=torch.float64)
    found = certify(module, x, y)
    assert 0 < found.lambda_0_lower <= found.lambda_0 <= 1.02 * found.lambda_0_lower
    assert found.radius_jacobian > 1e-3
    radius = found.radius_jacobian / 2
    at = certify(module, x, y, radius=radius, method="tight").given
    assert at is not None
    assert at.mu_jacobian is not None
    case = Trained(Loss(), "residual", n=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        away = torch.randn(len(case.theta), generator=generator, dtype=torch.float64)
        jacobian = torch.func.jacrev(case.outputs_at)(case.theta + radius * away / away.norm()).detach()[:, 0]
        assert 2 * float(torch.linalg.svdvals(jacobian)[-1]) ** 2 / 3 >= at.mu_jacobian
    with pytest.raises(NoCertificateError, match="no MLP"):
        certify(module, x, y, graphs=False)
    with pytest.raises(InputError, match="method 'both' is unknown"):
        certify(module, x, y, method="both")
    with pytest.raises(NoCertificateError, match="magnitude"):
        certify(module, 1e200 * x, y)


def test_the_ball_of_a_small_language_model_is_certified() -> None:
    """Tokens and positions embedded, causal attention of torch, a gated hidden layer."""
    module, x = CASES["transformer-tokens"].make(n=3)
    found = certify(module, x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -1.0]], dtype=torch.float64))
    kernel = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x,)))(dict(module.named_parameters()))
    jacobian = torch.cat([j.detach().reshape(6, -1) for j in kernel.values()], dim=1) / math.sqrt(3)
    assert 0.99 * found.sigma_0_lower <= float(torch.linalg.svdvals(jacobian)[-1])
    assert found.sigma_0_lower >= 0.99 * float(torch.linalg.svdvals(jacobian)[-1])
    assert found.radius_jacobian > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_rounding_of_every_operation_is_covered(name: str) -> None:
    """Roundings of float32 are 2²⁹ times as large, and so are their bounds: against the same numbers in float64."""
    module, x = CASES[name].make(n=3)
    module, x = module.float(), 3 * x.float() if x.is_floating_point() else x
    exact, exactly = copy.deepcopy(module).double(), in_double(x)
    bounds = GraphBounds(GraphNetwork.from_module(exact, x.shape[1:]), exactly)
    over = bounds.over(0.0)
    q = torch.randn(bounds.f.shape)
    found = []
    for net, inputs in ((module, x), (exact, exactly)):
        with evaluation_mode(net):
            f = net(inputs)
        trained = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad((f * q).sum() / len(x), trained, materialize_grads=True)
        found.append((f.detach().double(), torch.cat([g.reshape(-1) for g in grads]).double()))
    (f, g), (true_f, true_g) = found
    wrong = (f - true_f).norm(dim=1)
    assert bool((wrong <= 2**29 * bounds.forward_error(over)).all())
    claimed = 2**29 * bounds.gradient_error(over, q.double().norm(dim=1), torch.zeros(3, dtype=torch.float64))
    assert 0 < float((g - true_g).norm()) <= claimed
    with evaluation_mode(module), evaluation_mode(exact):
        jacobian, exact_jacobian = (
            torch.func.jacrev(lambda p, net=net, inputs=inputs: torch.func.functional_call(net, p, (inputs,)))(
                dict(net.named_parameters())
            )
            for net, inputs in ((module, x), (exact, exactly))
        )
    names = [k for k, p in module.named_parameters() if p.requires_grad]
    apart = torch.stack([(jacobian[k].double() - exact_jacobian[k]).detach().square().sum() for k in names])
    assert float(apart.sum().sqrt()) / math.sqrt(3) <= 2**29 * bounds.jacobian_error
