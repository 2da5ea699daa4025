"""Rounding at θ_0 and over balls: exact where rational arithmetic reaches, and every error term must show."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from lplr_cli.certificate import BallBounds, NoCertificateError, SmoothMLP, centre, network, shared
from lplr_cli.certificate.centre import Centre
from lplr_cli.certificate.shared import LayerAt, shared_curvature
from lplr_cli.linalg import gamma
from lplr_cli.models import MLP, ModelSpec, build_model
from tests.exact import Matrix, product, rational, square_sum, transpose

MILLION = 1e6


def smooth(
    activation: str = "tanh", depth: int = 3, parametrization: str = "standard", outputs: int = 2
) -> tuple[MLP, Tensor]:
    spec = ModelSpec(width=5, depth=depth, activation=activation, parametrization=parametrization)
    module = build_model(spec, (4,), outputs, seed=2)
    assert isinstance(module, MLP)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module, torch.randn((3, 4), generator=generator, dtype=torch.float64)


def at(module: MLP, x: Tensor, names: list[str] | None = None) -> Centre:
    return Centre(SmoothMLP.from_module(module, names), x)


def inflate(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    for module in modules:
        monkeypatch.setattr(module, "gamma", lambda k, dtype: MILLION * gamma(k, dtype))


# -- forward and backward ---------------------------------------------------------------------------------------------


def exact_passes(module: MLP, x: list[float]) -> tuple[list[Any], list[list[Any]]]:
    """z of the last layer, and the rows of J, of a tanh network in mpmath, in the order of the parameters."""
    weights = [mpmath.matrix(p.tolist()) for n, p in module.named_parameters() if n.endswith("weight")]
    biases = [mpmath.matrix(p.tolist()) for n, p in module.named_parameters() if n.endswith("bias")]
    scales = [mpmath.mpf(c) for c in module.scales]
    a, inputs = mpmath.matrix(x), []
    slopes: list[Any] = []
    for k, (w, b, c) in enumerate(zip(weights, biases, scales, strict=True)):
        inputs.append(c * a)
        z = c * (w * a) + b
        a = z if k == len(weights) - 1 else z.apply(mpmath.tanh)
        slopes.append(None if k == len(weights) - 1 else a.apply(lambda t: 1 - t * t))
    rows = []
    for output in range(len(a)):
        s = mpmath.matrix([1 if i == output else 0 for i in range(len(a))])
        blocks: list[Any] = []
        for k in range(len(weights) - 1, -1, -1):
            blocks = [*(p * q for p in s for q in inputs[k]), *s, *blocks]
            if k:
                e = scales[k] * (weights[k].T * s)
                s = mpmath.matrix([u * v for u, v in zip(e, slopes[k - 1], strict=True)])
        rows.append(blocks)
    return list(a), rows


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_forward_and_jacobian_are_within_their_errors(depth: int, parametrization: str) -> None:
    module, x = smooth(depth=depth, parametrization=parametrization)
    # Sums that cancel: the rounding is far above that of the result.
    x = torch.cat([x, 1e6 * x, 1e-6 * x])
    bounds = BallBounds(SmoothMLP.from_module(module), x)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x,)))(dict(module.named_parameters()))
    dense = torch.cat([j.flatten(2) for j in jacobian.values()], dim=2).detach()
    with mpmath.workdps(50):
        for i, row in enumerate(x.tolist()):
            f, gradients = exact_passes(module, row)
            wrong = mpmath.mpf(0)
            for c in range(2):
                assert abs(mpmath.mpf(float(bounds.f[i, c])) - f[c]) <= float(bounds.f_error[i, c])
                wrong += mpmath.fsum(
                    (mpmath.mpf(v) - t) ** 2 for v, t in zip(dense[i, c].tolist(), gradients[c], strict=True)
                )
                size = mpmath.norm(gradients[c])
                assert size <= float(bounds.over(0.0).gradients[i, c])
                assert float(bounds.over(0.0).gradients[i, c]) <= size * (1 + 1e-2)
            # Half of the bound is for one of the two Jacobians, of which this is one.
            assert mpmath.sqrt(wrong) <= float(bounds.jacobian_error_rows[i]) / 2 * (1 + 1e-12)


def test_the_errors_of_two_jacobians_are_counted() -> None:
    """That of these passes, and that of the engine, which sums in another order."""
    module, x = smooth()
    bounds, once = BallBounds(SmoothMLP.from_module(module), x), at(module, x).jacobian_error
    assert torch.equal(bounds.jacobian_error_rows, 2 * once)
    total = float(torch.linalg.vector_norm(bounds.jacobian_error_rows)) / math.sqrt(3)
    assert total <= bounds.jacobian_error <= total * (1 + 1e-7)


@pytest.mark.parametrize("names", [["layers.1.weight"], ["layers.1.bias"], ["layers.0.weight"], ["layers.3.weight"]])
def test_errors_of_the_passes_show(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sums forward, of sums backward, of elementary functions: each alone reaches the Jacobian's error."""
    module, x = smooth()
    plain = at(module, x, names)
    last = names == ["layers.3.weight"]
    for inflated, forward in (((network,), True), ((centre,), False)):
        with monkeypatch.context() as patch:
            inflate(patch, *inflated)
            found = at(module, x, names)
        if forward:
            assert bool((found.passes[-1].z_error > 1e5 * plain.passes[-1].z_error / 40).all())
            assert bool((found.passes[-1].a_error > 10 * plain.passes[-1].a_error).all())
        # Nothing is summed backwards on the way to the last layer.
        if forward or not last:
            assert bool((found.jacobian_error > 3 * plain.jacobian_error).all())
    for where, name in ((network, "network"), (centre, "centre")):
        with monkeypatch.context() as patch:
            patch.setattr(where, "ELEMENTARY_ULPS", MILLION * 32)
            found = at(module, x, names)
        if name == "network":
            assert bool((found.passes[-1].a_error > 1e4 * plain.passes[-1].a_error).all())
        if name == "network" or not last:
            assert bool((found.jacobian_error > 1e4 * plain.jacobian_error).all())


def test_the_error_of_each_layer_is_its_formula() -> None:
    """z from exact products of the given floating-point a; then the part that came from below is checked alone."""
    module, x = smooth(depth=1)
    net = SmoothMLP.from_module(module)
    first, last = net.passes(x)
    u = Fraction(1, 2**53)
    w, b = rational(net.layers[0].weight), [Fraction(v) for v in net.layers[0].bias.tolist()]
    grown = Fraction(gamma(8, torch.float64))
    for i, row in enumerate(rational(x)):
        for j, weights in enumerate(w):
            spread = sum((abs(p * q) for p, q in zip(weights, row, strict=True)), Fraction(0)) + abs(b[j])
            exact = sum((p * q for p, q in zip(weights, row, strict=True)), Fraction(0)) + b[j]
            error = Fraction(float(first.z_error[i, j]))
            assert grown * spread <= error <= grown * spread * (1 + Fraction(2, 10**8))
            assert abs(Fraction(float(first.z[i, j])) - exact) <= 6 * u * spread
    # |â - a| ≤ sup|φ'| |ẑ - z| + 32 ulp (1 + |z| + |φ|), then through |W|.
    a = torch.tanh(first.z)
    sup = net.activation.sup_first(first.z - first.z_error, first.z + first.z_error)
    own = 32 * 2**-52 * (1 + first.z.abs() + a.abs())
    error_a = sup * first.z_error + own
    assert torch.allclose(last.a_error, torch.linalg.vector_norm(error_a, dim=1), rtol=1e-7)
    size = net.layers[1].weight.abs()
    expected = error_a @ size.T + gamma(9, torch.float64) * ((a.abs() + error_a) @ size.T + net.layers[1].bias.abs())
    assert bool((last.z_error >= expected).all())
    assert torch.allclose(last.z_error, expected, rtol=1e-7)
    assert torch.allclose(last.a_norm, torch.linalg.vector_norm(a, dim=1))


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_the_error_of_the_backward_pass_is_its_formula(parametrization: str) -> None:
    """ê, ŝ and the blocks of J, layer by layer, from the numbers that they are made of."""
    module, x = smooth("silu", depth=2, parametrization=parametrization)
    found = at(module, x)
    layers, phi, eps = found.network.layers, found.network.activation, 2.0**-52
    last = layers[2]
    assert torch.equal(found.backs[1].e[0], last.scale * last.weight)
    assert torch.equal(found.backs[1].e_error, eps * found.backs[1].e.abs())
    wrong = torch.zeros((3, 2), dtype=torch.float64)
    squares = torch.zeros((3, 2), dtype=torch.float64)

    def block(level: int, s: Tensor, s_error: Tensor) -> None:
        """Errors of s ⊗ fl(c a) and of s, and the squared norm of both."""
        here, c = found.passes[level], layers[level].scale
        error = here.a_error + (eps * here.a_norm if parametrization == "ntk" else 0.0)
        size, size_error = s.norm(dim=2), s_error.norm(dim=2)
        weight = c * (size_error * (here.a_norm + error)[:, None] + size * error[:, None])
        wrong.add_(weight.square() + size_error.square())
        squares.add_(((c * here.a_norm).square() + 1)[:, None] * size.square())

    ones = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    block(2, ones, torch.zeros_like(ones))
    for level in (1, 0):
        here, e, e_error = found.passes[level], found.backs[level].e, found.backs[level].e_error
        slope = phi.first(here.z)
        bend = phi.sup_second(here.z - here.z_error, here.z + here.z_error)
        slope_error = bend * here.z_error + 32 * eps * (1 + here.z.abs())
        s = slope[:, None] * e
        s_error = slope_error[:, None] * (e.abs() + e_error) + slope.abs()[:, None] * e_error + 2 * eps * s.abs()
        given, given_error = found.through(level, e, e_error)
        assert torch.equal(given, s)
        assert bool((given_error >= s_error).all())
        assert torch.allclose(given_error, s_error, rtol=2e-8, atol=0)
        block(level, s, s_error)
        if level:
            w, c = layers[level].weight, layers[level].scale
            below = c * ((s_error + gamma(9, torch.float64) * (s.abs() + s_error)) @ w.abs())
            assert torch.equal(found.backs[0].e, c * (s @ w))
            assert bool((found.backs[0].e_error >= below).all())
            assert torch.allclose(found.backs[0].e_error, below, rtol=4e-8, atol=0)
    exact = wrong.sum(dim=1).sqrt()
    assert bool((found.jacobian_error >= exact).all())
    assert torch.allclose(found.jacobian_error, exact, rtol=1e-7, atol=0)
    gradients = squares.sqrt() + wrong.sqrt()
    assert bool((found.gradients >= gradients).all())
    assert torch.allclose(found.gradients, gradients, rtol=1e-7, atol=0)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_only_trained_blocks_have_errors(trained: str) -> None:
    module, x = smooth("silu", depth=1, parametrization="ntk")
    found = at(module, x, [f"layers.0.{trained}"])
    s, s_error = found.through(0, found.backs[0].e, found.backs[0].e_error)
    size, size_error, here, c = s.norm(dim=2), s_error.norm(dim=2), found.passes[0], found.network.layers[0].scale
    error = 2.0**-52 * here.a_norm[:, None]
    weight = c * (size_error * (here.a_norm[:, None] + error) + size * error)
    expected = weight if trained == "weight" else size_error
    assert torch.allclose(found.jacobian_error, expected.norm(dim=1), rtol=1e-7, atol=0)
    own = (c * here.a_norm).square() if trained == "weight" else torch.ones(3).double()
    assert torch.allclose(found.own(0, here.a_norm), own)
    assert not found.own(1, here.a_norm).any()


@pytest.mark.parametrize(("scale", "refused"), [(1e-50, False), (1e-40, True), (1e40, True)])
def test_gradients_outside_the_range_are_refused(scale: float, refused: bool) -> None:
    """Of one hidden layer inside, of two outside: each layer multiplies by its weights."""
    module, x = smooth(depth=2 if refused else 1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.mul_(scale if name.endswith("weight") and "layers.0" not in name else 0 if "layers.0" not in name else 1)
    if not refused:
        assert math.isfinite(BallBounds(SmoothMLP.from_module(module), x).l_j(1e-3))
        return
    with pytest.raises(NoCertificateError, match="of magnitude"):
        BallBounds(SmoothMLP.from_module(module), x)


def test_derivatives_outside_the_range_are_refused() -> None:
    module, x = smooth(depth=2)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.mul_(1e-40 if "layers.1" in name else 1e-30 if name == "layers.0.weight" else 1)
    with pytest.raises(NoCertificateError, match="derivatives of magnitude"):
        BallBounds(SmoothMLP.from_module(module, ["layers.0.weight"]), 1e-25 * x)


# -- norms at θ_0 -----------------------------------------------------------------------------------------------------


def exact_grams(found: Centre, sample: int) -> list[Matrix]:
    """G_l of one sample from the floating-point slopes, weights and own blocks, without any rounding."""
    grams: list[Matrix] = []
    for level in range(found.hidden):
        layer = found.network.layers[level]
        own = Fraction(float(found.own(level, found.passes[level].a_norm)[sample]))
        size = len(layer.weight)
        g = [[own if i == j else Fraction(0) for j in range(size)] for i in range(size)]
        if grams:
            c, slope = Fraction(layer.scale), [Fraction(v) for v in found.slopes[level - 1][sample].tolist()]
            m = [[c * v * s for v, s in zip(row, slope, strict=True)] for row in rational(layer.weight)]
            inner = product(product(m, grams[-1]), transpose(m))
            g = [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(g, inner, strict=True)]
        grams.append(g)
    return grams


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_gram_matrices_are_within_their_errors(parametrization: str) -> None:
    module, x = smooth("silu", parametrization=parametrization)
    found = at(module, x)
    rows = slice(0, 3)
    gram = None
    exact = [exact_grams(found, i) for i in range(3)]
    for level in range(found.hidden):
        gram = found.gram(level, rows, gram)
        if gram.matrix is None:
            assert level == 0
            continue
        for i in range(3):
            wrong = [
                a - b
                for p, q in zip(rational(gram.matrix[i]), exact[i][level], strict=True)
                for a, b in zip(p, q, strict=True)
            ]
            assert 0 < square_sum(wrong) <= Fraction(float(gram.error[i])) ** 2


def test_the_error_of_gram_matrices_is_its_formula() -> None:
    """||M||² E_below + γ (||M||² (||G_below||_F + E_below) + κ), at the second and the third layer."""
    module, x = smooth("silu", parametrization="ntk")
    found = at(module, x)
    rows = slice(1, 3)
    below = None
    for level in range(3):
        gram = found.gram(level, rows, below)
        if below is not None:
            layer, own = found.network.layers[level], found.own(level, found.passes[level].a_norm)[rows]
            m = layer.scale * layer.weight * found.slopes[level - 1][rows][:, None]
            size = m.square().sum(dim=(1, 2))
            frobenius = (
                math.sqrt(5) * below.scalar
                if below.matrix is None
                else torch.linalg.vector_norm(below.matrix.flatten(1), dim=1)
            )
            expected = size * below.error + gamma(27, torch.float64) * (size * (frobenius + below.error) + own)
            assert bool((gram.error >= expected).all())
            assert torch.allclose(gram.error, expected, rtol=0.011)
        below = gram


@pytest.mark.parametrize(("method", "module"), [("tight", centre), ("fast", shared)])
def test_rounding_of_the_products_of_layers_shows(method: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every norm and at every layer above the first."""
    found = at(*smooth("silu"))
    plain = found.norms(method)
    inflate(monkeypatch, module)
    inflated = found.norms(method)
    assert torch.equal(inflated[0].dz, plain[0].dz)
    for before, after in zip(plain[1:], inflated[1:], strict=True):
        for key in ("dz", "da", "dz_rows", "weighted"):
            grown = getattr(after, key) / getattr(before, key) - 1
            if method == "fast" and key == "dz_rows" and before is plain[1]:
                # Rows of the second layer meet the first, where nothing is a product.
                continue
            assert bool((grown > 1e-10).all()), key


@pytest.mark.parametrize("method", ["tight", "fast"])
def test_norms_dominate_the_exact_gram_matrices(method: str) -> None:
    module, x = smooth("silu")
    found = at(module, x)
    norms = found.norms(method)
    for i in range(3):
        for level, g in enumerate(exact_grams(found, i)):
            dense = torch.tensor([[float(v) for v in row] for row in g], dtype=torch.float64)
            slope = torch.diag(found.slopes[level][i])
            top = [float(torch.linalg.eigvalsh(m)[-1]) for m in (dense, slope @ dense @ slope)]
            assert top[0] ** 0.5 <= float(norms[level].dz[i]) <= (6 if method == "fast" else 1.02) * top[0] ** 0.5
            assert top[1] ** 0.5 <= float(norms[level].da[i]) <= (6 if method == "fast" else 1.02) * top[1] ** 0.5
            assert bool((dense.diagonal().sqrt() <= norms[level].dz_rows[i]).all())
            for c in range(2):
                root = torch.diag(found.bend(level, slice(i, i + 1))[0, c].sqrt())
                weighted = float(torch.linalg.eigvalsh(root @ dense @ root)[-1])
                assert (
                    weighted <= float(norms[level].weighted[i, c]) <= (math.inf if method == "fast" else 1.1) * weighted
                )


def test_chunks_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = smooth("silu")
    found = at(module, x)
    whole = found.norms("tight")
    rows = [found.exact_chunk(slice(i, i + 1)) for i in range(3)]
    for level, norms in enumerate(whole):
        for key in ("dz", "da", "dz_rows", "weighted"):
            assert torch.equal(getattr(norms, key), torch.cat([getattr(r[level], key) for r in rows]))


# -- shared norms -----------------------------------------------------------------------------------------------------


def layers_at(widths: list[int], n: int, seed: int, spread: float) -> list[LayerAt]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    found = []
    for below, m in zip([3, *widths], widths, strict=False):
        slope = 0.5 + 0.3 * draw(m) + spread * draw(n, m)
        found.append(LayerAt(draw(m, below), slope, draw(n).square() + 0.1, draw(n, 2, m).abs()))
    return found


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_chains_are_within_their_distance(spread: float) -> None:
    """P of every sample against the middle of its group, without rounding; with equal slopes rounding is all."""
    found = layers_at([4, 3, 4], 2, 0, spread)
    groups = torch.zeros(2, dtype=torch.long)
    chains: list[Any] = []
    for level in range(1, 3):
        chains = shared.lengthened(chains, level, found[level - 1], found[level], groups, 1)
        for chain in chains:
            middle = rational(chain.middle.matrix[0])
            gram = product(middle, transpose(middle))
            computed = rational(chain.middle.gram[0])
            wrong = [a - b for p, q in zip(computed, gram, strict=True) for a, b in zip(p, q, strict=True)]
            assert square_sum(wrong) <= Fraction(float(chain.middle.error[0])) ** 2
            for i in range(2):
                p = exact_chain(found, chain.source, level, i)
                away = torch.tensor(
                    [[float(a - b) for a, b in zip(r, s, strict=True)] for r, s in zip(p, middle, strict=True)]
                )
                distance = float(torch.linalg.matrix_norm(away.double(), 2))
                if spread == 0.0:
                    assert 0 < distance <= float(chain.away[0])
                elif chain.source < level - 1:
                    # The innermost slopes are taken at their largest, which no distance measures.
                    assert distance <= float(chain.away[0]) + innermost(found, chain, i)


def exact_chain(found: list[LayerAt], source: int, level: int, sample: int) -> Matrix:
    """W_l D_{l-1} … W_{source+1} D_source."""
    p: Matrix | None = None
    for k in range(source + 1, level + 1):
        slope = [abs(Fraction(v)) if k == source + 1 else Fraction(v) for v in found[k - 1].slope[sample].tolist()]
        m = [[v * s for v, s in zip(row, slope, strict=True)] for row in rational(found[k].weight)]
        p = m if p is None else product(m, p)
    assert p is not None
    return p


def innermost(found: list[LayerAt], chain: Any, sample: int) -> float:
    """How far the product moves when its innermost slopes become the largest of the group."""
    level = chain.source + 1
    steep = found[chain.source].slope.abs().amax(dim=0)
    change = steep - found[chain.source].slope[sample].abs()
    outer = torch.linalg.matrix_norm(found[level].weight * change, 2)
    for k in range(level + 1, len(found)):
        outer = outer * torch.linalg.matrix_norm(found[k].weight * found[k - 1].slope[sample], 2)
    return float(outer)


def test_distances_of_products_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gamma reaches ``away`` of the longer chains, and the slopes' range reaches the norms."""
    found = layers_at([4, 3, 4], 2, 0, 0.0)
    groups = torch.zeros(2, dtype=torch.long)

    def third() -> Any:
        chains: list[Any] = []
        for level in (1, 2):
            chains = shared.lengthened(chains, level, found[level - 1], found[level], groups, 1)
        return chains[0]

    before = third()
    inflate(monkeypatch, shared)
    after = third()
    assert float(after.away[0]) > 1e4 * float(before.away[0])
    assert float(after.middle.error[0]) > 0.9e6 * float(before.middle.error[0])


def test_bounds_of_groups_are_those_of_their_samples() -> None:
    """Alone in its group a sample has the bounds that it has without others."""
    found = layers_at([4, 3, 4], 3, 1, 0.2)
    together = shared_curvature(found, torch.arange(3))
    for i in range(3):
        alone = [LayerAt(h.weight, h.slope[i : i + 1], h.own[i : i + 1], h.bend[i : i + 1]) for h in found]
        for one, all_ in zip(shared_curvature(alone, torch.zeros(1, dtype=torch.long)), together, strict=True):
            for a, b in zip(one, all_, strict=True):
                assert torch.allclose(a[0], b[i], rtol=1e-12)
