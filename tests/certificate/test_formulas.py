"""Every reported constant against its formula in 60-digit arithmetic, from the inputs that the code had."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, SmoothMLP, certify
from lplr_cli.certificate.certify import (
    AtRadius,
    AtStart,
    Containment,
    at_radius,
    contain,
    largest_radius,
    rounded_down,
    rounded_up,
    singular_values,
    sqrt_loss_upper,
    verdict_of,
)
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.linalg import gamma
from lplr_cli.models import MLP, ModelSpec, build_model
from lplr_cli.ntk import Kernel, Network, Spectrum, empirical_ntk, kernel_spectrum, spectrum

DIGITS = 60
CLOSE = 1e-11
mpf = mpmath.mpf


def above(found: float, exact: Any) -> bool:
    """An upper bound that is no further than a few parts in 10¹²."""
    return bool(exact <= mpf(found) <= exact * (1 + CLOSE))


def below(found: float, exact: Any, scale: Any) -> bool:
    return bool(exact - CLOSE * scale <= mpf(found) <= exact)


def draws(seed: int, count: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, generator=generator, dtype=torch.float64) + 0.1).tolist()


@pytest.mark.parametrize("value", [1.5, -1.5, 1e-300, -1e300, 0.0])
def test_outwards_is_up_and_down_for_either_sign(value: float) -> None:
    assert (
        rounded_down(value) < value < rounded_up(value) if value else rounded_down(value) == value == rounded_up(value)
    )
    with mpmath.workdps(DIGITS):
        for found in (rounded_up(value), rounded_down(value)):
            assert abs(mpf(found) - mpf(value)) <= mpf("1.001e-12") * abs(mpf(value))
    assert rounded_down(math.inf) == math.inf
    assert rounded_down(-math.inf) == -math.inf


@pytest.mark.parametrize("seed", range(30))
def test_constants_on_a_ball(seed: int) -> None:
    sigma, norm, root, l_j, r = draws(seed, 5)
    norm, r = 3 * norm, (0.2, 0.9, 1e-3)[seed % 3] * r * sigma / l_j
    found = at_radius(AtStart(1.0, sigma, norm, root), l_j, r)
    with mpmath.workdps(DIGITS):
        s, b, q, lj, radius = (mpf(v) for v in (sigma, norm, root, l_j, r))
        beyond = b + lj * radius
        l_k = 2 * beyond * lj
        assert (found.radius, found.l_j) == (r, l_j)
        assert above(found.l_k, l_k)
        assert above(found.beta, 2 * (beyond**2 + lj * q))
        mu_jacobian = 2 * (s - lj * radius) ** 2 if lj * radius < s else None
        assert (found.mu_jacobian is None) == (mu_jacobian is None)
        if mu_jacobian is not None:
            assert found.mu_jacobian is not None
            assert below(found.mu_jacobian, mu_jacobian, 2 * s * s)
        mu_kernel = 2 * (s**2 - l_k * radius)
        assert (found.mu_kernel is None) == (mu_kernel <= 0)
        if mu_kernel > 0:
            assert found.mu_kernel is not None
            assert below(found.mu_kernel, mu_kernel, 2 * s * s)


@pytest.mark.parametrize("nines", [0, 1, 4, 7, 10, 11, None])
def test_no_rounding_lifts_a_constant_where_its_terms_cancel(nines: int | None) -> None:
    """In rational arithmetic: at radius 0, where only squares are rounded, and closer and closer to μ = 0."""
    positive = 0
    for seed in range(40):
        sigma, norm, root, l_j = draws(seed, 4)
        norm += sigma
        for end in (sigma / l_j, sigma**2 / (4 * norm * l_j)):
            r = 0.0 if nines is None else end * (1 - 10.0**-nines)
            found = at_radius(AtStart(1.0, sigma, norm, root), l_j, r)
            s, b, q, lj, radius = map(Fraction, (sigma, norm, root, l_j, r))
            l_k = 2 * (b + lj * radius) * lj
            assert found.l_k >= l_k
            assert found.beta >= 2 * ((b + lj * radius) ** 2 + lj * q)
            assert found.mu_jacobian is None or 0 < found.mu_jacobian <= 2 * (s - lj * radius) ** 2
            assert found.mu_kernel is None or 0 < found.mu_kernel <= 2 * (s**2 - l_k * radius)
            positive += found.mu_jacobian is not None
    assert positive > 30


@pytest.mark.parametrize("threshold", [3.0, 1.0, 1e-3, 1e-11, 1e-14, 0.0, -1.0])
def test_the_largest_radius_is_one_on_which_it_was_certified(threshold: float) -> None:
    tried: dict[float, bool] = {}

    def certified(radius: float) -> bool:
        return tried.setdefault(radius, radius <= threshold)

    found = largest_radius(certified, 2.0, 2.0)
    assert found == 0 or tried[found]
    assert found == (1.0 if threshold >= 1 else 0.0) or found == pytest.approx(threshold, rel=1.1e-4)
    assert (found == 0) == (threshold < 1e-13)
    assert len(tried) < 70
    assert largest_radius(lambda r: False, 0.0, 1.0) == largest_radius(lambda r: True, -1.0, 0.0) == 0.0
    assert largest_radius(lambda r: True, 1.0, 0.0) == math.inf


@pytest.mark.parametrize("slack", [0.0, -0.25])
def test_no_mu_where_nothing_is_left(slack: float) -> None:
    found = at_radius(AtStart(1.0, 0.5, 1.0, 1.0), 1.0, 0.5 - slack)
    assert found.mu_jacobian is None
    assert found.mu_kernel is None
    assert at_radius(AtStart(1.0, 1e-200, 1.0, 1.0), 0.0, 1.0).mu_jacobian is None
    assert at_radius(AtStart(1.0, 0.0, 1.0, 1.0), 0.0, 1.0).mu_kernel is None


@pytest.mark.parametrize("seed", range(20))
def test_singular_values_of_the_exact_jacobian(seed: int) -> None:
    lower, upper, error = draws(seed, 3)
    error *= (0.0, 1e-3, 0.3)[seed % 3]
    sigma, norm = singular_values(lower, upper, error)
    with mpmath.workdps(DIGITS):
        assert below(sigma, mpmath.sqrt(mpf(lower)) - mpf(error), mpmath.sqrt(mpf(lower)))
        assert above(norm, mpmath.sqrt(mpf(upper)) + mpf(error))
    assert singular_values(-lower, upper, 0.0)[0] == 0
    assert singular_values(lower, upper, 2.0)[0] == 0


@pytest.mark.parametrize("seed", range(10))
def test_loss_with_the_error_of_f(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    f, y = (torch.randn((7, 2), generator=generator, dtype=torch.float64) for _ in range(2))
    error = torch.rand((7, 2), generator=generator, dtype=torch.float64) * (0.0, 1e-3, 1.0)[seed % 3]
    with mpmath.workdps(DIGITS):
        residual = [mpf(a) - mpf(b) for a, b in zip(f.flatten().tolist(), y.flatten().tolist(), strict=True)]
        norms = mpmath.norm(residual) + mpmath.norm([mpf(e) for e in error.flatten().tolist()])
        assert above(sqrt_loss_upper(f, error, y), norms / mpmath.sqrt(7))
        # Every point that the error allows has its loss below the bound: the corner that is worst, too.
        corner = [abs(r) + mpf(e) for r, e in zip(residual, error.flatten().tolist(), strict=True)]
        assert mpmath.norm(corner) / mpmath.sqrt(7) <= sqrt_loss_upper(f, error, y)
    assert sqrt_loss_upper(f, 1e6 * error, y) >= sqrt_loss_upper(f, error, y) + 1e5 * float(error.norm()) / 7


def test_losses_of_every_size() -> None:
    f, none = torch.zeros((2, 1), dtype=torch.float64), torch.zeros((2, 1), dtype=torch.float64)
    for size in (1e-300, 1e-170, 1e170, 1e300):
        assert sqrt_loss_upper(f, none, torch.full((2, 1), size, dtype=torch.float64)) == pytest.approx(size)
    assert sqrt_loss_upper(f, none, f) == 0
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="not finite"):
            sqrt_loss_upper(f, none, torch.tensor([[1.0], [bad]], dtype=torch.float64))
    with pytest.raises(InputError, match="shape"):
        sqrt_loss_upper(f, none, f[:1])


def constant(sigma: float, l_j: float, root: float) -> Callable[[float], AtRadius]:
    """Certificates on balls where L_J does not depend on the radius."""
    return lambda r: at_radius(AtStart(1.0, sigma, 2.0, root), l_j, r)


@pytest.mark.parametrize(
    ("ratio", "holds"), [(0.3, True), (0.999, True), (1.001, True), (1.97, True), (1.995, False), (2.0, False)]
)
def test_containment_is_decided_where_the_theorem_says(ratio: float, holds: bool) -> None:
    """R (σ - L_J R) is at most σ²/(4 L_J): solvable for τ where that reaches 2 √L_0/(2 - τ)."""
    sigma, l_j = 0.8, 0.5
    root = ratio * sigma**2 / (8 * l_j)
    on = constant(sigma, l_j, root)
    found = contain(on, sigma, root, sigma / l_j * (1 - 1e-9))
    assert found.holds == holds
    check_containment(found, sigma, l_j, root)
    if ratio >= 1:
        assert found.reach == pytest.approx(1 / ratio, rel=5e-3)
    else:
        assert found.reach == pytest.approx(1.0, rel=5e-3)
        assert found.step_fraction == pytest.approx(1.0)
        # The smallest such R: a root of R (σ - L_J R) = 2 √L_0.
        least = (sigma - math.sqrt(sigma**2 - 8 * l_j * root)) / (2 * l_j)
        assert found.at.radius == pytest.approx(least, rel=2e-3)


def check_containment(found: Containment, sigma: float, l_j: float, root: float) -> None:
    """What is said is true: R (σ - L_J R) ≥ 2 √L_0/(2 - τ), η ≤ τ/β, all numbers as reported."""
    with mpmath.workdps(DIGITS):
        r = mpf(found.at.radius)
        reach = r * (mpf(sigma) - mpf(found.at.l_j) * r) / (2 * mpf(root))
        assert below(found.reach, reach, abs(reach))
        if not found.holds:
            assert found.step_fraction == found.eta_max == 0
            return
        tau = mpf(found.step_fraction)
        assert 0 < tau <= 1
        assert reach >= 1 / (2 - tau)
        assert below(found.step_fraction, min(mpf(1), 2 - 1 / reach), mpf(10))
        assert below(found.eta_max, tau / mpf(found.at.beta), tau / mpf(found.at.beta))
        assert found.at.l_j == l_j
        assert found.at.mu_jacobian is not None


@pytest.mark.parametrize("seed", range(20))
def test_containment_says_nothing_false(seed: int) -> None:
    sigma, l_j, root = draws(seed, 3)
    root *= sigma**2 / l_j
    found = contain(constant(sigma, l_j, root), sigma, root, sigma / l_j * (1 - 1e-9))
    check_containment(found, sigma, l_j, root)
    assert found.holds == (root < (2 - 0.01) * sigma**2 / (8 * l_j) * (1 + 1e-3)) or found.reach == pytest.approx(0.5)


def test_containment_at_its_ends() -> None:
    nothing = contain(constant(0.0, 1.0, 1.0), 0.0, 1.0, 0.0)
    assert not nothing.holds
    linear = contain(constant(0.5, 0.0, 1.0), 0.5, 1.0, math.inf)
    assert linear.holds
    assert linear.at.radius == pytest.approx(4.0)
    check_containment(linear, 0.5, 0.0, 1.0)
    # Nothing to learn: the run stays where it is.
    assert contain(constant(0.5, 0.1, 0.0), 0.5, 0.0, 4.9).holds


@pytest.mark.parametrize("seed", range(5))
def test_what_is_reached_has_a_margin_where_curvature_lends_none(seed: int) -> None:
    """Of a linear model, in rational arithmetic; β is far below one there, so that a step is far above it."""
    sigma, root = (1e-3 * v for v in draws(seed, 2))
    found = contain(lambda r: at_radius(AtStart(1.0, sigma, 2 * sigma, root), 0.0, r), sigma, root, math.inf)
    exact = Fraction(found.at.radius) * Fraction(sigma) / (2 * Fraction(root))
    assert Fraction(found.reach) <= exact * (1 - Fraction(9, 10**13))
    assert found.holds
    assert Fraction(found.eta_max) <= Fraction(found.step_fraction) / (8 * Fraction(sigma) ** 2)


def test_a_network_that_does_not_move_is_not_contained() -> None:
    still = at_radius(AtStart(0.0, 0.0, 0.0, 1.0), 0.0, 0.0)
    assert still.beta == 0
    assert contain(lambda r: still, 0.0, 1.0, 0.0) == Containment(False, 0.0, still, 0.0, 0.0)


def test_the_verdict_says_what_holds() -> None:
    at = replace(constant(0.5, 0.1, 0.01)(0.1), mu_jacobian=0.25)
    inside = verdict_of(0.5, 0.2, Containment(True, 1.0, at, 1.0, 0.125))
    assert inside.startswith("certified: every iterate stays within R = 0.1, L_t ≤ (1 − ημ)^t L_0 with μ = 0.25")
    assert inside.endswith("for η ≤ 0.125")
    outside = verdict_of(0.5, 0.2, Containment(False, 0.25, at, 0.0, 0.0))
    assert outside.startswith("certified: the ball of radius 0.2 is locally PL; containment is not: ")
    assert verdict_of(0.0, 0.0, Containment(False, 0.0, at, 0.0, 0.0)).startswith("no certificate: ")


# -- the wiring of certify --------------------------------------------------------------------------------------------


def case() -> tuple[MLP, Tensor, Tensor]:
    module = build_model(ModelSpec(width=6, depth=2, activation="tanh"), (5,), 2, seed=2)
    assert isinstance(module, MLP)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn((4, d), generator=generator, dtype=torch.float64) for d in (5, 2))
    return module, x, y


# The package exports a function of the same name.
CERTIFY = sys.modules["lplr_cli.certificate.certify"]


def test_all_constants_of_a_certificate_follow_from_its_parts() -> None:
    module, x, y = case()
    radius = 0.01
    found = certify(module, x, y, radius=radius)
    ball = BallBounds(SmoothMLP.from_module(module), x)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x,)))(dict(module.named_parameters()))
    dense = torch.cat([j.flatten(2) for j in jacobian.values()], dim=2).flatten(0, 1).detach() / 2
    singular = torch.linalg.svdvals(dense)
    assert 0.99 * float(singular[-1]) < found.sigma_0_lower <= float(singular[-1])
    assert float(singular[0]) <= found.norm_upper < 1.2 * float(singular[0])
    assert found.lambda_0 == pytest.approx(float(singular[-1]) ** 2, rel=1e-9)
    assert found.lambda_0_lower == pytest.approx(found.sigma_0_lower**2, rel=1e-11)
    assert found.lambda_0_lower == rounded_down(found.sigma_0_lower * found.sigma_0_lower)
    assert found.sqrt_loss_upper == sqrt_loss_upper(ball.f, ball.f_error, y)
    assert found.jacobian_error == ball.jacobian_error
    assert found.l_j_start == ball.l_j(0.0)
    start = AtStart(found.lambda_0, found.sigma_0_lower, found.norm_upper, found.sqrt_loss_upper)
    assert found.given == at_radius(start, ball.l_j(radius), radius)
    assert (found.n, found.outputs, found.parameters) == (4, 2, sum(p.numel() for p in module.parameters()))
    for r, key in ((found.radius_kernel, "mu_kernel"), (found.radius_jacobian, "mu_jacobian")):
        assert getattr(at_radius(start, ball.l_j(r), r), key) > 0
        beyond = r * 1.001
        assert getattr(at_radius(start, ball.l_j(beyond), beyond), key) is None
    assert found.containment.at == at_radius(start, ball.l_j(found.containment.at.radius), found.containment.at.radius)


def test_the_formation_error_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = case()
    plain = certify(module, x, y)
    error = 0.3 * plain.lambda_0

    def formed(*args: Any, **options: Any) -> Kernel:
        assert options["bound_rounding"]
        return replace(empirical_ntk(*args, **options), formation_error=error)

    monkeypatch.setattr(CERTIFY, "empirical_ntk", formed)
    found = certify(module, x, y)
    assert found.sigma_0_lower**2 <= plain.lambda_0 - error
    assert found.sigma_0_lower**2 == pytest.approx(0.99 * plain.lambda_0 - error, rel=1e-6)
    assert found.norm_upper**2 == pytest.approx(plain.norm_upper**2 + error, rel=1e-9)


@pytest.mark.parametrize(("error", "formation"), [(0.0, 1e-170), (math.inf, math.inf)])
def test_what_underflows_counts_beside_the_formation_error(
    error: float, formation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, y = case()
    passed = []

    def watched(matrix: Tensor, *, formation_error: float) -> Spectrum:
        passed.append(formation_error)
        return spectrum(matrix, formation_error=formation_error)

    monkeypatch.setattr(
        CERTIFY, "empirical_ntk", lambda *a, **o: replace(empirical_ntk(*a, **o), formation_error=error)
    )
    monkeypatch.setattr(CERTIFY, "spectrum", watched)
    found = certify(module, x, y)
    assert passed == [formation]
    # Nothing is proved below an infinite error: no eigenvalue, and so neither radius nor region.
    assert (found.sigma_0_lower == 0) == math.isinf(error)
    assert found.verdict.startswith("no certificate: " if math.isinf(error) else "certified: the ball of radius ")
    if math.isinf(error):
        assert (found.radius_kernel, found.radius_jacobian, found.containment.holds) == (0.0, 0.0, False)


def test_targets_stand_by_samples() -> None:
    module, x, y = case()
    for wrong in (y.reshape(8, 1), y[:3], torch.cat([y, y])):
        with pytest.raises(InputError, match="targets of shape"):
            certify(module, x, wrong)
    assert certify(module, x, y.reshape(4, 1, 2)) == certify(module, x, y, graphs=False)


@pytest.mark.parametrize("size", [1e-3, 0.5, 2.0])
def test_the_error_of_the_jacobian_counts(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = case()
    plain = certify(module, x, y)
    error = size * plain.sigma_0_lower

    class Rounded(BallBounds):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.jacobian_error, self.f_error = error, self.f_error + 1.0

    monkeypatch.setattr(CERTIFY, "BallBounds", Rounded)
    found = certify(module, x, y)
    assert found.jacobian_error == error
    assert found.sigma_0_lower == pytest.approx(max(0.0, plain.sigma_0_lower - error), abs=1e-9)
    assert found.norm_upper == pytest.approx(plain.norm_upper + error, rel=1e-9)
    # ||f - y|| grows by the norm of ones, √8, over √n = 2.
    assert found.sqrt_loss_upper == pytest.approx(plain.sqrt_loss_upper + math.sqrt(2), rel=1e-9)


def test_rounding_of_the_kernel_is_in_its_formation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, _ = case()
    network = Network.from_module(module)
    plain = empirical_ntk(network, x, engine="structured", bound_rounding=True)
    assert plain.formation_error is not None
    trace = float(plain.matrix.trace())
    assert plain.formation_error >= gamma(1, torch.float64) * trace
    monkeypatch.setattr("lplr_cli.ntk.structured.rounding.gamma", lambda k, dtype: 1e6 * gamma(k, dtype))
    for engine in ("structured", "jacobian"):
        inflated = empirical_ntk(network, x, engine=engine, bound_rounding=True)
        assert inflated.formation_error is not None
        assert inflated.formation_error > 0.9e6 * gamma(5, torch.float64) * trace


def test_a_bound_beyond_float64_is_a_numerical_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = case()
    monkeypatch.setattr(BallBounds, "l_j", lambda self, r: math.inf)
    with pytest.raises(NumericalError, match="beyond float64"):
        certify(module, x, y)


# -- magnitudes -------------------------------------------------------------------------------------------------------


def test_depth_zero_in_ntk_parametrisation_counts_the_rounding_of_the_scale() -> None:
    """J = (c x, 1): fl(c x) is not c x."""
    module = build_model(ModelSpec(width=4, depth=0, parametrization="ntk"), (5,), 1, seed=1)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((6, 5), generator=generator, dtype=torch.float64)
    bounds = BallBounds(SmoothMLP.from_module(module), x)
    (c,) = module.scales  # type: ignore[misc]
    with mpmath.workdps(DIGITS):
        for row, error in zip(x.tolist(), bounds.jacobian_error_rows.tolist(), strict=True):
            wrong = mpmath.norm([mpf(float(torch.tensor(v, dtype=torch.float64) * c)) - mpf(c) * mpf(v) for v in row])
            assert 0 < wrong <= error / 2
    standard = build_model(ModelSpec(width=4, depth=0), (5,), 1, seed=1)
    # Multiplication by one is exact, and a linear model's Jacobian is its inputs.
    assert BallBounds(SmoothMLP.from_module(standard), x).jacobian_error == 0


SCALES = [1e-161, 1e-59, 1e59, 1e100, 1e160, math.nan]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("activation", ["softplus", "gelu"])
@pytest.mark.parametrize("which", ["inputs", "weights", "last", "targets"])
def test_extreme_magnitudes_are_certified_truly_or_refused(which: str, activation: str, scale: float) -> None:
    """λ_0 and ||J̃|| against 60 digits where a linear model is certified; refused in one line where not."""
    for depth in (0, 2):
        module = build_model(ModelSpec(width=6, depth=depth, activation=activation), (5,), 1, seed=2)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn((4, 5), generator=generator, dtype=torch.float64)
        y = torch.ones((4, 1), dtype=torch.float64)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if which == "weights" or (which == "last" and name.startswith(f"layers.{depth}.")):
                    p.mul_(scale)
        x = x * scale if which == "inputs" else x
        y = y * scale if which == "targets" else y
        inside = 1e-60 < scale < 1e60
        try:
            found = certify(module, x, y, radius=1e-3, names=["layers.0.weight"] if depth == 0 else None)
        except (InputError, NumericalError) as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert not inside or depth == 2
            assert "\n" not in refusal
            continue
        assert inside or which == "targets"
        if depth == 0:
            with mpmath.workdps(DIGITS):
                rows = mpmath.matrix(x.tolist())
                gram = rows * rows.T / 4
                values = mpmath.eigsy(gram, eigvals_only=True)
                low, high = min(values), max(values)
                assert mpf(found.lambda_0_lower) <= low
                assert mpf(found.norm_upper) ** 2 >= high
                assert mpf(found.norm_upper) ** 2 <= 2 * high
                assert found.lambda_0_lower > 0.9 * low or scale < 1e-50


def test_a_kernel_that_underflows_is_never_certified_too_high() -> None:
    """Inputs of 1e-161: their squares have hardly a digit left."""
    module = build_model(ModelSpec(width=4, depth=0), (5,), 1, seed=1)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-155, 1e-161, 3e-162):
        x = scale * torch.randn((4, 5), generator=generator, dtype=torch.float64)
        network = Network.from_module(module, names=["layers.0.weight"])
        found = kernel_spectrum(network, x, verify=True).spectrum.lambda_min_lower
        with mpmath.workdps(DIGITS):
            rows = mpmath.matrix(x.tolist())
            low = min(mpmath.eigsy(rows * rows.T / 4, eigvals_only=True))
            assert found is None or mpf(found) <= low


@pytest.mark.parametrize(("scale", "gain"), [(3e-162, 1e150), (1e-161, 1e152), (1e-3, 1e5), (1e100, 1e-100)])
@pytest.mark.parametrize("engine", ["structured", "jacobian"])
def test_what_underflows_under_large_gradients_is_subtracted(engine: str, scale: float, gain: float) -> None:
    """f(x) = g Σ_j (W x)_j: products of inputs underflow and are multiplied with gradients of any size."""
    first, last = torch.nn.Linear(2, 3, bias=False).double(), torch.nn.Linear(3, 1, bias=False).double()
    module = torch.nn.Sequential(first, last)
    with torch.no_grad():
        first.weight.fill_(0.5)
        last.weight.fill_(gain)
    network = Network.from_module(module, names=["0.weight"])
    refused = 0
    for angle in range(12):
        turn = 0.3 + 0.4 * angle
        x = scale * torch.tensor([[1.0, 0.0], [math.cos(turn), math.sin(turn)]], dtype=torch.float64)
        found = kernel_spectrum(network, x, engine=engine, verify=True).spectrum.lambda_min_lower
        with mpmath.workdps(DIGITS):
            rows = mpmath.matrix(x.tolist())
            low = min(mpmath.eigsy(rows * rows.T * 3 * mpf(gain) ** 2 / 2, eigvals_only=True))
            assert found is None or mpf(found) <= low
            refused += found is None or found < 0.5 * low
    assert refused == 0 or (engine, scale < 1e-100) == ("structured", True)


@pytest.mark.parametrize("radius", [-1.0, -1e-300, math.inf, math.nan])
def test_a_radius_that_is_none(radius: float) -> None:
    module, x, y = case()
    with pytest.raises(InputError, match="radius"):
        certify(module, x, y, radius=radius)
    with pytest.raises(InputError, match="radius"):
        BallBounds(SmoothMLP.from_module(module), x).over(radius)


def test_radius_zero_is_the_centre() -> None:
    module, x, y = case()
    found = certify(module, x, y, radius=0.0)
    assert found.given is not None
    assert found.given.l_j == found.l_j_start
    assert certify(module, x, y).given is None


def test_nothing_trained_and_no_samples_are_one_line() -> None:
    module, x, y = case()
    for arguments, match in (
        ({"names": []}, "no trainable parameter"),
        ({"names": ["foo"]}, "foo"),
    ):
        with pytest.raises(InputError, match=match):
            certify(module, x, y, **arguments)
    for inputs in (x[:0], x[0]):
        with pytest.raises(InputError, match="no samples"):
            certify(module, inputs, y[: len(inputs)])
    with pytest.raises(InputError, match="refuses inputs of 4 numbers"):
        certify(module, x[:, :4], y)
    with pytest.raises(InputError, match=r"layers of \[5, 6, 6\] inputs that meet \[4, 6, 6\]"):
        BallBounds(SmoothMLP.from_module(module), x[:, :4])
    for p in module.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        certify(module, x, y)
    assert BallBounds(SmoothMLP.from_module(module), x).l_j(1.0) == 0


@pytest.mark.parametrize("beta", [1e-25, 1e25, 1e28, 1e300])
def test_softplus_of_extreme_sharpness_has_no_certificate(beta: float) -> None:
    module = build_model(ModelSpec(width=4, depth=1, beta=beta), (5,), 1, seed=1)
    with pytest.raises(InputError, match="softplus with beta"):
        SmoothMLP.from_module(module)
