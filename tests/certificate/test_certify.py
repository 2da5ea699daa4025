"""The bounds against closed forms, sampled and searched pairs, and runs that they certify."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lplr_cli.certificate import (
    BallBounds,
    NoCertificateError,
    SmoothMLP,
    Trajectory,
    certify,
    check_run,
    sampled_constants,
)
from lplr_cli.certificate.norms import kernel_norm_upper, largest_eigenvalue_upper, norm_upper
from lplr_cli.certificate.proved import pays
from lplr_cli.errors import InputError
from lplr_cli.models import MLP, ModelSpec, build_model
from tests.cases import dense_jacobian

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Net:
    """A small network with inputs; ``names`` are the trained parameters, None for all."""

    module: MLP
    x: Tensor
    names: list[str] | None

    @property
    def theta(self) -> Parameters:
        return {k: p.detach() for k, p in self.module.named_parameters() if self.names is None or k in self.names}

    def jacobian(self, theta: Parameters) -> Tensor:
        """J̃, (nC, P), by torch.func: independent of the kernel engines."""
        rows = torch.func.jacrev(lambda p: functional_call(self.module, p, (self.x,)).flatten())(theta)
        return torch.cat([r.flatten(1) for r in rows.values()], dim=1).detach() / math.sqrt(len(self.x))

    def moved(self, direction: Parameters, length: float) -> Parameters:
        size = math.sqrt(sum(float(d.square().sum()) for d in direction.values()))
        return {k: v + length / size * direction[k] for k, v in self.theta.items()}


def net(
    activation: str = "softplus",
    outputs: int = 1,
    depth: int = 3,
    parametrization: str = "standard",
    names: list[str] | None = None,
    beta: float = 1.0,
) -> Net:
    spec = ModelSpec(width=6, depth=depth, activation=activation, beta=beta, parametrization=parametrization)
    module = build_model(spec, (5,), outputs, seed=2)
    assert isinstance(module, MLP)
    x = torch.randn((4, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Net(module, x, names)


def linear(module: MLP, index: int) -> nn.Linear:
    layer = module.layers[index]
    assert isinstance(layer, nn.Linear)
    return layer


def linears(module: MLP) -> list[nn.Linear]:
    return [linear(module, k) for k in range(len(module.layers))]


NETS: dict[str, Callable[[], Net]] = {
    "softplus": net,
    "sharp": lambda: net(beta=4.0),
    "tanh-2": lambda: net("tanh", outputs=2),
    "gelu-ntk": lambda: net("gelu", parametrization="ntk"),
    "silu-deep": lambda: net("silu", depth=4),
    "two-layer": lambda: net("tanh", depth=1),
    "first-only": lambda: net(names=["layers.0.weight"]),
    "two-layer-first": lambda: net("tanh", depth=1, outputs=2, names=["layers.0.weight", "layers.0.bias"]),
    "no-first": lambda: net("gelu", names=["layers.1.weight", "layers.2.bias", "layers.3.weight"]),
}
METHODS = ("tight", "fast")


def random_direction(theta: Parameters, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    # Every other direction lives in one parameter alone: single blocks are where bounds are tried hardest.
    chosen = list(theta)[seed // 2 % len(theta)] if seed % 2 else None
    return {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype) * (1.0 if chosen in (None, k) else 0.0)
        for k, v in theta.items()
    }


@pytest.mark.parametrize("radius", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_no_sampled_pair_violates_the_bounds(name: str, method: str, radius: float) -> None:
    """Pairs inside the ball: centre to boundary, boundary to boundary, and close pairs at the boundary."""
    case = NETS[name]()
    l_j = BallBounds(SmoothMLP.from_module(case.module, case.names), case.x, method=method).l_j(radius)
    start = case.jacobian(case.theta)
    top = float(torch.linalg.matrix_norm(start, 2)) + l_j * radius
    for seed in range(60):
        direction = random_direction(case.theta, seed)
        one = case.moved(direction, radius)
        jacobian = case.jacobian(one)
        others = [(case.theta, radius), (case.moved(random_direction(case.theta, seed + 1000), radius), None)]
        near = case.moved(
            {
                k: d + 1e-3 * r
                for (k, d), r in zip(direction.items(), random_direction(case.theta, 7).values(), strict=True)
            },
            radius,
        )
        for other, distance in [*others, (near, None)]:
            gap = distance or math.sqrt(sum(float((one[k] - other[k]).square().sum()) for k in one))
            there = case.jacobian(other)
            change = float(torch.linalg.matrix_norm(jacobian - there, 2))
            assert change <= l_j * gap * (1 + 1e-7) + 1e-12
            kernel_change = float(torch.linalg.matrix_norm(jacobian @ jacobian.T - there @ there.T, 2))
            assert kernel_change <= 2 * top * l_j * gap * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize("radius", [1e-2, 1.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_forward_and_backward_bounds_hold(name: str, method: str, radius: float) -> None:
    """|z_l - ẑ_l|, ||Dz_l|| and ||∂f/∂z_l|| at points of the ball, from torch.func."""
    case = NETS[name]()
    bounds = BallBounds(SmoothMLP.from_module(case.module, case.names), case.x, method=method)
    over = bounds.over(radius)
    hidden = len(over.reach)

    def preactivations(theta: Parameters, shifts: list[Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
        whole = {k: p.detach() for k, p in case.module.named_parameters()} | theta
        a, found = case.x, []
        for k, scale in enumerate(case.module.scales):
            z = (a * scale) @ whole[f"layers.{k}.weight"].T + whole[f"layers.{k}.bias"]
            z = z if shifts is None else z + shifts[k]
            found.append(z)
            a = z if k == hidden else case.module.activation(z)
        return found[:-1], found[-1]

    start, _ = preactivations(case.theta)
    zeros = [torch.zeros(len(case.x), layer.weight.shape[0]).double() for layer in linears(case.module)]
    for seed in range(12):
        theta = case.moved(random_direction(case.theta, seed), radius)
        z, _ = preactivations(theta)
        jacobians = torch.func.jacrev(lambda t: preactivations(t)[0])(theta)
        gradients = torch.func.jacrev(lambda s, at=theta: preactivations(at, s)[1].sum(dim=0))(zeros)
        for k in range(hidden):
            assert bool(((z[k] - start[k]).abs() <= over.reach[k] + 1e-12).all())
            rows = torch.cat([j.flatten(2) for j in jacobians[k].values()], dim=2).detach()
            norms = torch.linalg.matrix_norm(rows, 2)
            assert bool((norms <= over.forward[k] * (1 + 1e-9) + 1e-12).all())
            back = torch.linalg.vector_norm(gradients[k], dim=2).T.detach()
            assert bool((back <= over.backward[k] * (1 + 1e-9) + 1e-12).all())
        jacobian = case.jacobian(theta).view(len(case.x), -1, case.jacobian(theta).shape[1]) * math.sqrt(len(case.x))
        assert bool((torch.linalg.vector_norm(jacobian, dim=2) <= over.gradients * (1 + 1e-9)).all())
        assert bool((torch.linalg.matrix_norm(jacobian, 2) <= over.jacobians * (1 + 1e-9)).all())
        f = functional_call(case.module, theta, (case.x,)).detach()
        assert bool(((f - bounds.f).abs() <= over.f_reach).all())


@pytest.mark.parametrize("name", NETS)
def test_no_searched_point_violates_the_hessian_bound(name: str) -> None:
    """Gradient ascent of ||∇²f v|| over the point in the ball and the direction v."""
    case = NETS[name]()
    for radius in (0.0, 0.2, 2.0):
        bounds = BallBounds(SmoothMLP.from_module(case.module, case.names), case.x, method="tight")
        h = bounds.over(radius).hessians
        for sample in range(2):
            for c in range(h.shape[1]):
                assert searched_hessian_norm(case, sample, c, radius) <= float(h[sample, c]) * (1 + 1e-9)


def searched_hessian_norm(case: Net, sample: int, output: int, radius: float) -> float:
    keys = list(case.theta)
    shapes = [case.theta[k].shape for k in keys]
    centre = torch.cat([case.theta[k].flatten() for k in keys])

    def f(flat: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(torch.split(flat, [s.numel() for s in shapes]), shapes, strict=True)]
        out: Tensor = functional_call(case.module, dict(zip(keys, parts, strict=True)), (case.x[sample : sample + 1],))
        return out[0, output]

    generator = torch.Generator().manual_seed(sample)
    offset = torch.randn(centre.shape, generator=generator, dtype=torch.float64)
    best = 0.0
    for _ in range(12 if radius else 1):
        offset = offset * (radius / float(offset.norm())) if float(offset.norm()) > radius else offset
        point = (centre + offset).requires_grad_()
        hessian = torch.func.hessian(f)(point)
        values, vectors = torch.linalg.eigh(hessian.detach())
        top = int(values.abs().argmax())
        best = max(best, float(values.abs()[top]))
        v = vectors[:, top]
        if radius == 0:
            break
        (slope,) = torch.autograd.grad(v @ hessian @ v * float(values[top].sign()), point)
        offset = offset + 0.5 * radius * slope / max(float(slope.norm()), 1e-300)
    return best


@pytest.mark.parametrize("name", NETS)
def test_bounds_grow_with_the_ball_and_tight_is_tighter(name: str) -> None:
    case = NETS[name]()
    network = SmoothMLP.from_module(case.module, case.names)
    tight, fast = (BallBounds(network, case.x, method=m) for m in METHODS)
    radii = [0.0, 1e-4, 1e-2, 1.0, 10.0]
    values = [tight.l_j(r) for r in radii]
    assert values == sorted(values)
    assert all(v <= fast.l_j(r) * (1 + 1e-6) for v, r in zip(values, radii, strict=True))
    assert math.isfinite(fast.l_j(1e3))


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_linear_model_has_no_curvature(parametrization: str) -> None:
    case = net(depth=0, parametrization=parametrization)
    y = torch.ones(4, 1, dtype=torch.float64)
    found = certify(case.module, case.x, y, radius=5.0)
    assert found.given is not None
    assert found.l_j_start == 0 == found.given.l_k
    assert math.isinf(found.radius_jacobian)
    truth = float(torch.linalg.eigvalsh(case.jacobian(case.theta) @ case.jacobian(case.theta).T)[0])
    assert found.given.mu_jacobian == pytest.approx(2 * truth, rel=0.05)
    assert found.given.mu_jacobian is not None
    assert found.given.mu_jacobian <= 2 * truth
    assert found.containment.holds
    assert found.verdict.startswith("certified: every iterate")


def test_two_layer_closed_form() -> None:
    """f = m^{-1/2} Σ v_j φ(w_j·x), only w trained: ||∇²f|| = max_j |v_j φ''(w_j·x)| ||x||²/√m exactly."""
    module = MLP(5, 1, width=8, depth=1, activation="tanh", parametrization="ntk").double()
    x = torch.randn((3, 5), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        w, v = linear(module, 0).weight, linear(module, 1).weight
        linear(module, 0).bias.zero_()
        z = x @ w.T / math.sqrt(5)
        t = torch.tanh(z)
        truth = (v.abs() * 2 * t.abs() * (1 - t * t)).amax(dim=1) * x.square().sum(dim=1) / 5 / math.sqrt(8)
        ever = float(v.abs().max()) * 4 / (3 * math.sqrt(3)) * x.square().sum(dim=1) / 5 / math.sqrt(8)
    bounds = BallBounds(SmoothMLP.from_module(module, ["layers.0.weight"]), x)
    assert torch.allclose(bounds.over(0.0).hessians[:, 0], truth, rtol=1e-6)
    # A ball so large that every neuron can reach the steepest point: Φ2 is attained.
    assert torch.allclose(bounds.over(1e3).hessians[:, 0], ever, rtol=1e-6)
    # Jointly over samples: max_j |v_j| Φ2 /√m times the square root of λ_max of the mean of ||x||² x xᵀ.
    weighted = x * x.square().sum(dim=1, keepdim=True).sqrt() / 5
    steepest = float(v.detach().abs().max()) * 4 / (3 * math.sqrt(3)) / math.sqrt(8)
    joint = steepest * float(torch.linalg.matrix_norm(weighted, 2)) / math.sqrt(3)
    assert joint < math.sqrt(float(ever.square().mean()))
    assert bounds.l_j(1e3) == pytest.approx(joint, rel=0.03)


@pytest.mark.parametrize("name", NETS)
def test_jacobian_weyl_is_never_weaker(name: str) -> None:
    case = NETS[name]()
    y = torch.zeros(4, linear(case.module, -1).weight.shape[0], dtype=torch.float64)
    found = certify(case.module, case.x, y, names=case.names)
    assert found.radius_jacobian >= found.radius_kernel
    for radius in (0.1 * found.radius_kernel, 0.9 * found.radius_kernel, 0.9 * found.radius_jacobian):
        at = certify(case.module, case.x, y, names=case.names, radius=radius).given
        assert at is not None
        if at.mu_kernel is not None:
            assert at.mu_jacobian is not None
            assert at.mu_jacobian >= at.mu_kernel


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_the_ascent_finds_the_hessian_norm(activation: str) -> None:
    """One sample and a small ball: the largest change of the Jacobian is ||∇²f||, which random directions miss."""
    case = net(activation, depth=2)
    x, names = case.x[:1], list(case.theta)
    sizes = [p.numel() for p in case.theta.values()]

    def f(flat: Tensor) -> Tensor:
        parts = dict(zip(names, torch.split(flat, sizes), strict=True))
        moved = {k: p.view_as(case.theta[k]) for k, p in parts.items()}
        value: Tensor = functional_call(case.module, moved, (x,)).sum()
        return value

    start = torch.cat([p.flatten() for p in case.theta.values()])
    truth = float(torch.linalg.matrix_norm(torch.func.hessian(f)(start), 2))
    found = sampled_constants(case.module, x, 1e-5, directions=2, ascents=12).l_j
    random = sampled_constants(case.module, x, 1e-5, directions=2, ascents=0).l_j
    assert 0.97 * truth <= found <= truth * 1.001
    assert random < 0.7 * truth
    assert found <= BallBounds(SmoothMLP.from_module(case.module), x).l_j(1e-5)


def test_certified_mu_holds_at_sampled_points() -> None:
    case = net("tanh", parametrization="ntk")
    y = torch.zeros(4, 1, dtype=torch.float64)
    found = certify(case.module, case.x, y)
    at = certify(case.module, case.x, y, radius=0.5 * found.radius_jacobian).given
    assert at is not None
    assert at.mu_jacobian is not None
    for seed in range(50):
        jacobian = case.jacobian(case.moved(random_direction(case.theta, seed), at.radius))
        assert 2 * float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[0]) >= at.mu_jacobian
    estimates = sampled_constants(case.module, case.x, at.radius)
    assert 0 < estimates.l_j <= at.l_j
    assert 0 < estimates.l_k <= at.l_k


def test_a_certified_run_obeys_the_rate() -> None:
    """Two layers, wide, NTK parametrisation, doubled units: containment is proved, and the run keeps to it."""
    module, x, y = wide_network(4000)
    found = certify(module, x, y, names=["layers.0.weight"])
    assert found.containment.holds, found.verdict
    lr = 0.02 * found.containment.eta_max
    weight = linear(module, 0).weight
    start = weight.detach().clone()
    losses, drifts = [], []
    for _ in range(400):
        loss = (module(x) - y).square().mean()
        (g,) = torch.autograd.grad(loss, weight)
        losses.append(float(loss.detach()))
        drifts.append(float((weight.detach() - start).norm()))
        with torch.no_grad():
            weight -= lr * g
    checked = check_run(found, Trajectory.of_descent(losses, drifts, lr))
    assert checked.applies
    assert (checked.steps, checked.violations) == (400, 0)
    assert losses[-1] < 1e-3 * losses[0]
    stays = Trajectory.of_descent([losses[0]] * 2, [0.0] * 2, lr)
    assert check_run(found, stays).violations == 1
    assert not check_run(found, replace(stays, eta=2 * found.containment.eta_max)).applies
    assert not check_run(found, replace(stays, eta=None)).applies


def wide_network(width: int) -> tuple[MLP, Tensor, Tensor]:
    """f(θ_0) = 0 by units doubled with opposite signs; three orthogonal inputs."""
    module = MLP(3, 1, width=width, depth=1, activation="softplus", parametrization="ntk").double()
    generator = torch.Generator().manual_seed(0)
    half = torch.randn((width // 2, 3), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        linear(module, 0).weight.copy_(torch.cat([half, half]))
        linear(module, 0).bias.zero_()
        linear(module, 1).bias.zero_()
        sign = torch.ones(1, width // 2, dtype=torch.float64)
        linear(module, 1).weight.copy_(torch.cat([sign, -sign], dim=1))
    return (
        module,
        math.sqrt(3) * torch.eye(3, dtype=torch.float64),
        0.05 * torch.tensor([[1.0], [-1.0], [1.0]]).double(),
    )


def test_rounding_of_the_passes_is_covered() -> None:
    """The kernel engine's J in float64 against J in 60 digits: within the stated error of the passes."""
    module = build_model(ModelSpec(width=3, depth=2, activation="softplus"), (2,), 1, seed=1)
    assert isinstance(module, MLP)
    x = torch.tensor([[0.3, -7.0], [30.0, 4.0]], dtype=torch.float64)
    bounds = BallBounds(SmoothMLP.from_module(module), x)
    from lplr_cli.ntk import Network

    computed = dense_jacobian(Network.from_module(module), x)[:, 0]
    with mpmath.workdps(60):
        wrong = mpmath.mpf(0)
        for i in range(2):
            truth = exact_gradient(module, [mpmath.mpf(float(v)) for v in x[i]])
            wrong += sum((mpmath.mpf(float(a)) - b) ** 2 for a, b in zip(computed[i], truth, strict=True))
        assert mpmath.sqrt(wrong / 2) <= bounds.jacobian_error
    assert bounds.jacobian_error < 1e-9


def exact_gradient(module: MLP, x: list[mpmath.mpf]) -> list[mpmath.mpf]:
    """∂f/∂θ of a softplus MLP with one output, in the order of the parameters."""
    weights = [[[mpmath.mpf(float(v)) for v in row] for row in layer.weight] for layer in linears(module)]
    biases = [[mpmath.mpf(float(v)) for v in layer.bias] for layer in linears(module)]
    a, zs, inputs = x, [], []
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(a)
        z = [mpmath.fsum(p * q for p, q in zip(row, a, strict=True)) + c for row, c in zip(w, b, strict=True)]
        zs.append(z)
        a = z if k == len(weights) - 1 else [mpmath.log(1 + mpmath.e**v) for v in z]
    s = [mpmath.mpf(1)]
    blocks: list[list[mpmath.mpf]] = []
    for k in range(len(weights) - 1, -1, -1):
        blocks = [[p * q for p in s for q in inputs[k]], list(s), *blocks]
        if k:
            back = [mpmath.fsum(s[i] * weights[k][i][j] for i in range(len(s))) for j in range(len(inputs[k]))]
            s = [e / (1 + mpmath.e ** (-z)) for e, z in zip(back, zs[k - 1], strict=True)]
    return [v for block in blocks for v in block]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 9), (60, 60)])
def test_norms_are_upper_bounds(shape: tuple[int, int]) -> None:
    for seed in range(5):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        truth = float(torch.linalg.matrix_norm(w, 2))
        assert truth <= norm_upper(w) * (1 + 1e-15)
        assert norm_upper(w) <= 1.2 * truth
        gram = w @ w.T
        upper = float(largest_eigenvalue_upper(gram[None])[0])
        assert truth**2 * (1 - 1e-14) <= upper <= 1.4 * truth**2
        assert truth**2 * (1 - 1e-14) <= kernel_norm_upper(gram)
    assert float(largest_eigenvalue_upper(torch.zeros(1, 4, 4).double())[0]) >= 0
    # The start vector of the estimate is orthogonal to the top eigenvector: the proof must not trust it.
    trap = torch.diag(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    v = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    assert float(largest_eigenvalue_upper((trap + 9 * torch.outer(v, v))[None])[0]) >= 10


@pytest.mark.parametrize(("worth", "method"), [(100.0, "fast"), (1.0, "tight")])
def test_auto_is_fast_where_that_is_good_enough(worth: float, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few samples decide, by how much the fast bounds lose on them."""
    monkeypatch.setattr("lplr_cli.certificate.ball.TIGHT_FLOPS", 0.0)
    monkeypatch.setattr("lplr_cli.certificate.ball.pays", partial(pays, factor=worth))
    case = net("gelu")
    network = SmoothMLP.from_module(case.module)
    chosen, tight, fast = (BallBounds(network, case.x, method=m) for m in ("auto", "tight", "fast"))
    assert chosen.method == method
    assert chosen.l_j(0.01) == (tight if method == "tight" else fast).l_j(0.01)
    assert tight.l_j(0.01) < fast.l_j(0.01)


def test_no_certificate_is_never_a_number() -> None:
    x, y = torch.randn(3, 5).double(), torch.zeros(3, 1).double()
    relu = build_model(ModelSpec(width=4, activation="relu"), (5,), 1)
    with pytest.raises(NoCertificateError, match="relu"):
        certify(relu, x, y)
    with pytest.raises(NoCertificateError, match="Conv1d"):
        certify(torch.nn.Conv1d(5, 1, 1), x, y)
    case = net()
    with pytest.raises(InputError, match="radius"):
        certify(case.module, case.x, torch.zeros(4, 1), radius=-1.0)
    with pytest.raises(InputError, match="method"):
        BallBounds(SmoothMLP.from_module(case.module), case.x, method="magic")
    # Two equal samples: λ_min = 0, and nothing is certified.
    double = certify(case.module, case.x[[0, 0, 1]], torch.zeros(3, 1))
    assert double.sigma_0_lower == 0
    assert double.radius_jacobian == 0
    assert not double.containment.holds
    assert double.verdict.startswith("no certificate")
