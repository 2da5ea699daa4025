"""Certificates: λ_0 verified, L_J and L_K bounded over balls, certified radii and μ, containment (docs/theory.md).

Every number here is one of three kinds. ``verified``: proved for the exact network at θ_0 from floating-point results.
``bound``: proved over a ball. ``estimate``: a lower bound of a constant that the theory needs from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lplr_cli.certificate.ball import BallBounds
from lplr_cli.certificate.graph import GraphBounds
from lplr_cli.certificate.network import NoCertificateError, SmoothMLP, in_double
from lplr_cli.certificate.networks import directions_of, graph_bounds, read_network
from lplr_cli.certificate.norms import frobenius_upper, kernel_norm_upper
from lplr_cli.certificate.proved import check_radius
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.ntk import DEFAULT_MEMORY, Network, empirical_ntk, spectrum

# Scalars are combined in a few dozen operations; each result is moved outwards by far more than their rounding.
_OUTWARDS = 1e-12
_BISECTIONS = 24
# Absolute bound of what products that underflow can change in K, gradients being below 1e60 (section 7): at most 1e6
# rows, 1e9 products an entry, 2⁻¹⁰²² a product, times the squared gradient that a product may be multiplied with.
_UNDERFLOW = 1e-170
# Steps below this fraction of 1/β are called none at all.
_LEAST_STEP = 1e-2


def rounded_up(value: float) -> float:
    return value + abs(value) * _OUTWARDS


def rounded_down(value: float) -> float:
    return value - abs(value) * _OUTWARDS if math.isfinite(value) else value


@dataclass(frozen=True)
class AtRadius:
    """What is proved on the ball of one radius.

    Attributes:
        radius: R.
        l_j: ||J̃(θ) - J̃(θ')|| ≤ L_J ||θ - θ'||.
        l_k: 2 (||J̃(θ_0)|| + L_J R) L_J, the same for K.
        mu_kernel: 2(λ_0 - L_K R), or None where it is not positive.
        mu_jacobian: 2(σ_0 - L_J R)², or None where L_J R ≥ σ_0.
        beta: 2(B² + L_J √L_0), a bound of ||∇²L|| where L does not exceed L_0.
    """

    radius: float
    l_j: float
    l_k: float
    mu_kernel: float | None
    mu_jacobian: float | None
    beta: float


@dataclass(frozen=True)
class Containment:
    """Section 4: gradient descent with η ≤ τ/β proved to stay inside, or by how much the proof fails.

    Attributes:
        holds: whether R (σ_0 - L_J R) ≥ 2 √L_0 / (2 - τ) has a solution for some τ in (0, 1].
        reach: the largest R (σ_0 - L_J R) / (2 √L_0) found; at least 1 for τ = 1, above 1/2 for small steps.
        at: the ball of the smallest such R found, else of the best R.
        step_fraction: τ, at most 1; 0 where it does not hold.
        eta_max: τ/β there.
    """

    holds: bool
    reach: float
    at: AtRadius
    step_fraction: float
    eta_max: float


@dataclass(frozen=True)
class Certificate:
    """All constants of one network at θ_0 on its full training set; normalisation as in docs/theory.md section 1.

    Attributes:
        n: samples. outputs: C. parameters: P, the trained ones.
        lambda_0: λ_min(K(θ_0)) as computed; lambda_0_lower and sigma_0_lower: verified, 0 when positivity is not.
        norm_upper: verified upper bound of ||J̃(θ_0)||_op.
        sqrt_loss_upper: verified upper bound of √L(θ_0).
        jacobian_error: bound of ||Ĵ - J||/√n for the rounding of the forward and backward pass, covered above.
        method: how ||Dz_l|| was bounded.
        l_j_start: L_J at radius 0, the bound of the Hessians at θ_0.
        radius_kernel, radius_jacobian: largest radii found with μ > 0, by each way; infinite for linear models.
        given: on the ball that was asked for, or None.
        containment: section 4.
        verdict: one sentence.
    """

    n: int
    outputs: int
    parameters: int
    lambda_0: float
    lambda_0_lower: float
    sigma_0_lower: float
    norm_upper: float
    sqrt_loss_upper: float
    jacobian_error: float
    method: str
    l_j_start: float
    radius_kernel: float
    radius_jacobian: float
    given: AtRadius | None
    containment: Containment
    verdict: str


def certify(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    names: list[str] | None = None,
    radius: float | None = None,
    method: str = "auto",
    memory: int = DEFAULT_MEMORY,
    graphs: bool = True,
) -> Certificate:
    """Certify a smooth network at its present parameters.

    Args:
        module: an MLP at θ_0, or a network of other operations with bounds (docs/theory.md, section 10).
        inputs: all training inputs (n, …): a subset certifies nothing.
        targets: all training targets (n, C).
        names: the trained parameters; all that require grad by default.
        radius: also report what is proved on this ball.
        method: ``auto``, ``tight`` or ``fast``, see :class:`BallBounds`.
        memory: bytes for the kernel and the work on it.
        graphs: whether to go on where it is no MLP, at a cost that is not known beforehand.

    Raises:
        NoCertificateError: no bound is proved for this network, or magnitudes outside the range of section 7.
        InputError: a radius that is no radius, nothing trained, targets that do not fit, or too little memory.
        NumericalError: a bound beyond float64.
    """
    if radius is not None:
        check_radius(radius)
    chosen = Network.from_module(module, names=names)
    network = read_network(module, inputs.shape[1:], names)
    if not graphs and not isinstance(network, SmoothMLP):
        raise NoCertificateError("not computed for a network that is no MLP", "lplr certify RUN does it")
    if inputs.dim() < 2 or not len(inputs):
        raise InputError(f"inputs of shape {tuple(inputs.shape)} hold no samples", "give the whole training set")
    x = in_double(inputs)
    ball: BallBounds | GraphBounds
    if isinstance(network, SmoothMLP):
        x = x.double().flatten(1)
        network.check(module, x)
        ball = BallBounds(network, x, method=method)
    else:
        ball = graph_bounds(module, network, x, directions_of(method, network, x))
    start = _at_start(ball, chosen, x, targets, memory)

    def on(r: float) -> AtRadius:
        return at_radius(start, ball.l_j(r), r)

    centre = on(0.0)
    if not math.isfinite(centre.l_j):
        raise NumericalError("the bound of L_J at θ_0 is beyond float64", "scale the data or the weights")
    sigma = start.sigma
    r_kernel = largest_radius(lambda r: on(r).mu_kernel is not None, sigma * sigma, centre.l_k)
    r_jacobian = largest_radius(lambda r: on(r).mu_jacobian is not None, sigma, centre.l_j)
    containment = contain(on, sigma, start.root, r_jacobian)
    return Certificate(
        n=ball.n,
        outputs=ball.outputs,
        parameters=chosen.parameter_count,
        lambda_0=start.lambda_0,
        lambda_0_lower=rounded_down(sigma * sigma),
        sigma_0_lower=sigma,
        norm_upper=start.norm,
        sqrt_loss_upper=start.root,
        jacobian_error=ball.jacobian_error,
        method=ball.method,
        l_j_start=centre.l_j,
        radius_kernel=r_kernel,
        radius_jacobian=r_jacobian,
        given=None if radius is None else on(radius),
        containment=containment,
        verdict=verdict_of(sigma, r_jacobian, containment),
    )


@dataclass(frozen=True)
class AtStart:
    """What is proved at θ_0 for the exact network.

    Attributes:
        lambda_0: λ_min(K) as computed.
        sigma: ≤ σ_min(J̃); 0 where positivity is not proved.
        norm: ≥ ||J̃||_op.
        root: ≥ √L.
    """

    lambda_0: float
    sigma: float
    norm: float
    root: float


def _at_start(ball: BallBounds | GraphBounds, network: Network, x: Tensor, targets: Tensor, memory: int) -> AtStart:
    kernel = empirical_ntk(network, x, engine="structured", memory=memory, bound_rounding=True)
    assert kernel.formation_error is not None
    formation = kernel.formation_error + _UNDERFLOW
    values = spectrum(kernel.matrix, formation_error=formation)
    lower = values.lambda_min_lower or 0.0
    sigma, norm = singular_values(lower, kernel_norm_upper(kernel.matrix) + formation, ball.jacobian_error)
    y = targets.double().cpu()
    y = y.reshape(ball.n, -1) if len(y) == ball.n else y
    return AtStart(values.lambda_min, sigma, norm, sqrt_loss_upper(ball.f, ball.f_error, y))


def singular_values(lambda_lower: float, lambda_upper: float, jacobian_error: float) -> tuple[float, float]:
    """A lower bound of σ_min(J̃), not below 0, and an upper one of ||J̃||_op.

    Args:
        lambda_lower: of the eigenvalues of ĴĴᵀ/n with Ĵ as computed.
        lambda_upper: likewise.
        jacobian_error: ≥ ||Ĵ - J||_op/√n, by which Weyl brings singular values from Ĵ to J.
    """
    lowest = rounded_down(math.sqrt(max(0.0, lambda_lower))) - jacobian_error
    return max(0.0, lowest), rounded_up(math.sqrt(lambda_upper) + jacobian_error)


def sqrt_loss_upper(f: Tensor, f_error: Tensor, targets: Tensor) -> float:
    """An upper bound of √L = ||f - y||/√n from f̂, |f̂ - f| ≤ ``f_error`` and y, all (n, C).

    Raises:
        InputError: targets of another shape, or not finite.
    """
    if targets.shape != f.shape or not bool(torch.isfinite(targets).all()):
        raise InputError(
            f"targets of shape {tuple(targets.shape)} for outputs of shape {tuple(f.shape)}"
            if targets.shape != f.shape
            else "the targets are not finite",
            "give a finite number for each output",
        )
    # The rounding of the subtraction, a unit of each entry, is far below the margin.
    return rounded_up((frobenius_upper(f - targets) + frobenius_upper(f_error)) / math.sqrt(len(f)))


def at_radius(start: AtStart, l_j: float, r: float) -> AtRadius:
    """What follows on the ball of radius r from L_J there, every number rounded outwards.

    Products are moved outwards before they are subtracted, as a difference may be far below its terms.
    """
    beyond = start.norm + l_j * r
    l_k = rounded_up(2 * beyond * l_j)
    slack = start.sigma - rounded_up(l_j * r)
    mu_kernel = 2 * (rounded_down(start.sigma * start.sigma) - rounded_up(l_k * r))
    mu_jacobian = rounded_down(2 * slack * slack)
    return AtRadius(
        r,
        l_j,
        l_k,
        mu_kernel if mu_kernel > 0 else None,
        mu_jacobian if slack > 0 and mu_jacobian > 0 else None,
        rounded_up(2 * (beyond * beyond + l_j * start.root)),
    )


def largest_radius(certified: Callable[[float], bool], numerator: float, constant: float) -> float:
    """The largest radius found on which something is certified, starting from numerator / constant at radius 0."""
    if numerator <= 0:
        return 0.0
    if constant == 0:
        return math.inf
    high = numerator / constant
    low = high
    while low > 1e-12 * high and not certified(low):
        low /= 2
    if not certified(low):
        return 0.0
    if low == high:
        return low
    high = 2 * low
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if certified(middle):
            low = middle
        else:
            high = middle
        if high - low < 1e-4 * low:
            break
    return low


def contain(on: Callable[[float], AtRadius], sigma: float, root: float, limit: float) -> Containment:
    """Search R with R (σ_0 - L_J R) ≥ 2 √L_0 below the certified radius, else the R that comes nearest."""

    def reach(at: AtRadius) -> float:
        return at.radius * (sigma - rounded_up(at.l_j * at.radius)) / (2 * root) if root > 0 else math.inf

    def answer(at: AtRadius) -> Containment:
        value = rounded_down(reach(at))
        # Steps of at most τ/β need 2 √L_0 / (2 - τ): solved for τ.
        fraction = min(1.0, 2 - 1 / value) if value > 0.5 else 0.0
        holds = fraction > _LEAST_STEP and at.mu_jacobian is not None
        limit_step = rounded_down(fraction / at.beta) if at.beta > 0 else math.inf
        return Containment(holds, value, at, fraction if holds else 0.0, limit_step if holds else 0.0)

    if limit == 0 or sigma == 0:
        return answer(on(0.0))
    if math.isinf(limit):
        return answer(on(rounded_up(2 * root / sigma) * (1 + 1e-9)))
    # The product is largest near half the certified radius, and unimodal where L_J hardly changes.
    candidates = [on(limit * (0.05 + 0.9 * i / 18)) for i in range(19)]
    best = max(candidates, key=reach)
    if reach(best) < 1:
        return answer(best)
    high, low = best.radius, 2 * root / sigma
    found = best
    for _ in range(_BISECTIONS):
        middle = on(0.5 * (low + high))
        if rounded_down(reach(middle)) >= 1:
            high, found = middle.radius, middle
        else:
            low = middle.radius
        if high - low < 1e-3 * high:
            break
    return answer(found)


def verdict_of(sigma: float, r_jacobian: float, containment: Containment) -> str:
    """One sentence on what is proved."""
    if sigma == 0:
        return "no certificate: λ_min(K) > 0 is not proved on the full training set"
    if containment.holds and containment.at.mu_jacobian is not None:
        return (
            f"certified: every iterate stays within R = {containment.at.radius:.4g}, "
            f"L_t ≤ (1 − ημ)^t L_0 with μ = {containment.at.mu_jacobian:.4g}, "
            f"for η ≤ {containment.eta_max:.4g}"
        )
    return (
        f"certified: the ball of radius {r_jacobian:.3g} is locally PL; "
        f"containment is not: R (σ0 − L_J R) reaches {containment.reach:.3g} of 2√L_0, "
        "it needs more than half"
    )
