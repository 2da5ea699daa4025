"""How the rules of single operations become bounds of a graph: every pass and sum from its formula, once more."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.certificate import NoCertificateError
from lplr_cli.certificate.graph import GraphBounds, GraphNetwork, bounds, centre, core, network, pushed
from lplr_cli.certificate.graph.attention import Product
from lplr_cli.certificate.graph.bounds import nonnegative_norm
from lplr_cli.certificate.graph.centre import measure, passes
from lplr_cli.certificate.graph.core import Core
from lplr_cli.certificate.graph.network import alike
from lplr_cli.certificate.graph.nodes import Activation, Average
from lplr_cli.certificate.graph.pushed import Pusher, Tangents
from lplr_cli.certificate.graph.state import Ahead, Behind, Here, Tangent, up, up_float
from lplr_cli.certificate.graph.times import Times
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.errors import InputError
from lplr_cli.ntk import Network
from tests.certificate.graph_cases import CASES, Point
from tests.certificate.rules import Draws, close, enlarge

# A place that three operations meet; a sum beside a strided layer; a layer with nothing trained; products.
NAMES = ["branches", "residual", "conv-frozen-head", "times-alone"]


def norm(t: Tensor) -> Tensor:
    return t.square().sum(dim=-1).sqrt()


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roundings of operations show, and those of sums of adjoints."""
    enlarge(monkeypatch)
    monkeypatch.setattr(bounds, "EPS", 0.01)


def heres(found: GraphBounds, radius: float) -> list[Here]:
    c, p = found.centre, found.pushed
    given = []
    for k, node in enumerate(found.network.nodes):
        leans = p is not None and isinstance(node, Activation)
        lean = (p.leans[k], p.blocks[node.inputs[0]]) if p is not None and leans else None
        given.append(Here(radius, c.measured[k], c.constants[k], lean))
    return given


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize("directions", [0, 64])
@pytest.mark.parametrize("name", NAMES)
def test_all_passes(name: str, directions: int, radius: float) -> None:
    point = Point(*CASES[name].make(n=3), directions)
    found = point.bounds
    check_up(found, radius)
    check_down(found, radius)
    check_second(found, radius)
    check_outputs(found, radius)
    check_gradient_error(found, radius)


def check_up(found: GraphBounds, radius: float) -> None:
    over, c, p = found.over(radius), found.centre, found.pushed
    first, here = over.ahead[0], heres(found, radius)
    assert torch.equal(first.size, c.sizes[0])
    assert not any(bool(t.any()) for t in (first.error, first.blocks, first.rows, first.second, first.drift))
    for k, node in enumerate(found.network.nodes):
        at, given = node.ahead(here[k], *(over.ahead[i] for i in node.inputs)), over.ahead[k + 1]
        blocks, rows = at.blocks, at.rows
        if p is not None:
            blocks = torch.minimum(blocks, p.blocks[k + 1] + at.drift)
            rows = torch.minimum(rows, p.rows[k + 1] + at.drift)
        assert close(given.blocks, blocks)
        assert close(given.rows, rows)
        assert all(torch.equal(getattr(given, key), getattr(at, key)) for key in ("error", "second", "drift"))
        assert close(given.size, torch.minimum(at.size, c.sizes[k + 1] + radius * norm(given.blocks) + at.error))


def check_down(found: GraphBounds, radius: float) -> None:
    over, here, c = found.over(radius), heres(found, radius), found.centre
    nodes, k_blocks = found.network.nodes, found.network.blocks
    for place in range(1, len(nodes) + 1):
        size, error = torch.zeros_like(found.f), torch.zeros_like(found.f)
        turn, users = torch.zeros((*found.f.shape, k_blocks), dtype=torch.float64), 0
        if place == len(nodes):
            size = torch.ones_like(found.f)
        for k, node in enumerate(nodes):
            below = [over.ahead[i] for i in node.inputs]
            above = over.behind[k]
            parts = node.behind(here[k], above, *below)
            wrong = node.errors(here[k], above.size, above.error, *below)
            for i, (s, t), e in zip(node.inputs, parts, wrong, strict=True):
                if i == place:
                    size, error, turn, users = size + s, error + e, turn + t, users + 1
        summed = 0.01 * users * size if users > 1 else 0 * size
        at = over.behind[place - 1]
        assert close(over.gathered[place - 1], summed)
        assert close(at.error, error + summed)
        assert torch.allclose(at.blocks, turn, rtol=1e-14, atol=0)
        reach = radius * norm(at.blocks) + at.error
        assert close(at.size, torch.minimum(size, c.adjoints[place - 1] + reach))


def check_second(found: GraphBounds, radius: float) -> None:
    over, here, p, nodes = found.over(radius), heres(found, radius), found.pushed, found.network.nodes
    k_blocks = found.network.blocks
    matrix = torch.zeros((*found.f.shape, k_blocks, k_blocks), dtype=torch.float64)
    near, third = matrix.clone(), torch.zeros_like(found.f)
    if p is not None:
        tangents = [
            Tangent(t.size, t.frobenius, up(t.rest + a.drift)) for t, a in zip(p.tangents, over.ahead, strict=True)
        ]
        near = near + p.core
    for k, node in enumerate(nodes):
        below = [over.ahead[i] for i in node.inputs]
        form = node.form(here[k], over.behind[k], *below)
        if form is not None:
            matrix, third = matrix + form.matrix, third + form.third
        if p is not None:
            away = node.spread(here[k], over.behind[k], below, [tangents[i] for i in node.inputs])
            near = near if away is None else near + away
    matrix = matrix if p is None else torch.minimum(matrix, near)
    exact = torch.linalg.eigvalsh((matrix + matrix.mT) / 2).amax(dim=-1)
    assert bool((over.hessians >= exact * (1 - 1e-12)).all())
    assert bool((over.hessians <= exact * 1.02).all())
    assert close(over.thirds, third)


def check_outputs(found: GraphBounds, radius: float) -> None:
    over, here, c = found.over(radius), heres(found, radius), found.centre
    squares = torch.zeros_like(found.f)
    for k, node in enumerate(found.network.nodes):
        own = node.gradient(here[k], over.behind[k], *(over.ahead[i] for i in node.inputs))
        squares = squares if own is None else squares + own.square()
    gradients = torch.minimum(squares.sqrt(), c.gradient + found.jacobian_errors + radius * over.hessians)
    assert close(over.gradients, gradients)
    assert close(over.f_reach, radius * over.gradients + found.f_error)
    assert close(over.jacobians, torch.minimum(norm(over.ahead[-1].blocks), norm(over.gradients)))
    whole = float(over.hessians.square().sum().sqrt()) / math.sqrt(3)
    assert whole * (1 + 0.9e-8) <= over.l_j <= whole * (1 + 3e-8)
    assert over.radius == radius
    assert found.l_j(radius) == over.l_j
    assert torch.equal(found.forward_error(over), over.ahead[-1].error)
    assert torch.equal(found.f_error, found.over(0.0).ahead[-1].error[:, None].expand_as(found.f))
    assert (found.n, found.outputs) == found.f.shape
    assert found.method == ("fast" if found.pushed is None else "tight")
    start, here, wrong = found.over(0.0), heres(found, 0.0), torch.zeros_like(found.f)
    for k, node in enumerate(found.network.nodes):
        at, below = start.behind[k], [start.ahead[i] for i in node.inputs]
        for error in node.gradient_error(here[k], at.size, at.error, 1, *below):
            wrong = wrong + error.square()
    assert close(found.jacobian_errors, wrong.sqrt())
    whole = float(found.jacobian_errors.square().sum().sqrt()) / math.sqrt(3)
    assert whole * (1 + 0.9e-8) <= found.jacobian_error <= whole * (1 + 3e-8)


def check_gradient_error(found: GraphBounds, radius: float) -> None:
    over, here, nodes, draws = found.over(radius), heres(found, radius), found.network.nodes, Draws(3)
    size, error = draws(3), draws(3)
    given: dict[int, Tensor] = {}
    wrong = 0.0
    for k in range(len(nodes) - 1, -1, -1):
        node, below = nodes[k], [over.ahead[i] for i in nodes[k].inputs]
        mine = error[:, None] if k == len(nodes) - 1 else given[k + 1]
        mine = mine + (size * norm(over.gathered[k]))[:, None]
        sizes = (size * norm(over.behind[k].size))[:, None]
        for part in node.gradient_error(here[k], sizes, mine, 3, *below):
            wrong += float(part.sum() / 3) ** 2
        for i, handed in zip(node.inputs, node.errors(here[k], sizes, mine, *below), strict=True):
            given[i] = given.get(i, torch.zeros_like(handed)) + handed
    exact = math.sqrt(wrong)
    assert exact * (1 + 0.9e-8) <= found.gradient_error(over, size, error) <= exact * (1 + 1e-6)


@pytest.mark.parametrize("radius", [-1e-300, -1.0, math.inf, math.nan])
def test_a_radius_that_is_none(radius: float) -> None:
    with pytest.raises(InputError, match="radius"):
        Point(*CASES["table-alone"].make(n=3), 0).bounds.over(radius)


@pytest.mark.parametrize(
    ("change", "refused"),
    [(0.0, False), (0.9, False), (-0.9, False), (1.1, True), (-1.1, True), ("shape", True), ("more", True)],
)
def test_outputs_at_a_centre_are_those_of_the_graph(
    change: float | str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them, within the rounding of both."""
    module = Sized().double()
    x = torch.randn((1, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = GraphNetwork.from_module(module, torch.Size((3,)))
    found = GraphBounds(graph, x)

    def moved(self: Network, x: Tensor) -> Tensor:
        f = found.f.clone()
        if isinstance(change, str):
            return f[0] if change == "shape" else torch.cat([f, f])
        f[0, 1] += change * 2 * found.f_error[0, 1]
        return f

    found.check(module, dict(graph.values), x)
    monkeypatch.setattr(Network, "forward", moved)
    found.f_error = found.f_error * 1e6
    if refused:
        with pytest.raises(NoCertificateError, match="its outputs are not those of its operations"):
            found.check(module, dict(graph.values), x)
    else:
        found.check(module, dict(graph.values), x)


def test_what_is_known_of_places() -> None:
    draws = Draws(1)
    a, b, t = draws.ahead(), draws.behind(), draws.tangent()
    assert torch.allclose(a.norm, norm(a.blocks))
    assert torch.allclose(a.row, norm(a.rows))
    assert torch.allclose(a.reach(0.3), 0.3 * norm(a.blocks) + a.error)
    assert torch.allclose(a.entry_reach(0.3), 0.3 * norm(a.rows) + a.error)
    assert torch.allclose(b.norm, norm(b.blocks))
    assert torch.allclose(b.reach(0.3), 0.3 * norm(b.blocks) + b.error)
    over = t.over(a)
    assert torch.equal(over.size, t.size)
    assert torch.equal(over.frobenius, t.frobenius)
    assert close(over.rest, t.rest + a.drift)
    for value in (0.0, 1.0, 1e-150):
        for found in (up_float(value), float(up(torch.tensor(value, dtype=torch.float64)))):
            assert found >= value * (1 + 0.9e-8) + 0.9e-140
            assert found <= value * (1 + 1.1e-8) + 1.1e-140


@pytest.mark.parametrize("seed", range(4))
def test_norms_of_non_negative_matrices_are_never_below(seed: int) -> None:
    """With zeros, of one row and none, of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    for size in (0, 1, 2, 5):
        draws = torch.rand((40, size, size), generator=generator, dtype=torch.float64) ** (1 + 5 * seed)
        draws = draws * (torch.rand(draws.shape, generator=generator) > 0.2 * seed)
        matrix = (draws + draws.mT) * torch.logspace(-100, 100, 40, dtype=torch.float64)[:, None, None]
        exact = torch.linalg.eigvalsh(matrix).amax(dim=-1) if size else torch.zeros(40).double()
        found = nonnegative_norm(matrix)
        assert bool((found >= exact * (1 - 1e-14)).all())
        assert bool((found <= matrix.sum(dim=-1).amax(dim=-1) * (1 + 1e-7)).all()) if size else not found.any()
        assert seed or size < 2 or bool((found <= exact * 1.001).all())


# -- θ_0 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [256 << 20, 1])
@pytest.mark.parametrize("name", ["branches", "table-alone"])
def test_what_is_measured_at_the_start(name: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all samples together and one at a time."""
    monkeypatch.setattr(centre, "MEMORY", memory)
    point = Point(*CASES[name].make(n=3), 0)
    found, nodes = measure(point.network, point.x), point.network.nodes
    places, adjoints = point.places(point.theta), point.adjoints(point.theta)
    assert torch.allclose(found.f, places[-1], rtol=1e-13, atol=1e-14)
    assert all(close(size, norm(t)) for size, t in zip(found.sizes, places, strict=True))
    assert all(close(size, norm(t) * (1 - 1e-14)) for size, t in zip(found.adjoints, adjoints, strict=True))
    squares = torch.zeros_like(found.f)
    shaped = point.network.forward(point.x)
    for k, node in enumerate(nodes):
        below = [shaped[i].double() for i in node.inputs]
        expected = {**node.measure(*below), **node.weigh(adjoints[k].reshape(3, -1, *shaped[k + 1].shape[1:]), *below)}
        assert set(expected) == set(found.measured[k])
        assert all(torch.allclose(found.measured[k][key], t, rtol=1e-11, atol=1e-14) for key, t in expected.items())
        assert found.constants[k] == node.constants(point.network.values, *(shaped[i].shape[1:] for i in node.inputs))
        if "gradient" in expected:
            squares = squares + expected["gradient"].square()
    assert close(found.gradient, squares.sqrt() * (1 - 1e-12))
    jacobian = torch.func.jacrev(point.outputs)(point.theta).detach()
    assert torch.allclose(found.gradient, norm(jacobian), rtol=1e-6)


def test_memory_holds_places_and_adjoints() -> None:
    """Eight bytes for each number of each place, C + 2 times, and nine times those of the largest for patches."""
    shapes = [torch.Size((4, 5)), torch.Size((30,)), torch.Size((2,))]
    entries = (20 + 30 + 2) * 4 + 30 * 9 * 4
    assert centre.samples_at_a_time(shapes) == (256 << 20) // (8 * entries)
    assert centre.samples_at_a_time([torch.Size((1 << 30,)), torch.Size((1,))]) == 1


@pytest.mark.parametrize(
    ("what", "scale", "match"),
    [("inputs", 1e-70, "inputs"), ("inputs", 1e70, "inputs"), ("0.weight", 1e70, "parameters"),
     ("2.weight", 1e70, "parameters"), ("0.bias", 1e61, "parameters")],
)  # fmt: skip
def test_magnitudes_outside_the_range_are_refused(what: str, scale: float, match: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    graph = GraphNetwork.from_module(module, torch.Size((3,)))
    x = torch.ones(2, 3, dtype=torch.float64) * (scale if what == "inputs" else 1.0)
    values = {k: v * (scale if k == what else 1.0) for k, v in graph.values.items()}
    with pytest.raises(NoCertificateError, match=f"no certificate for {match} of magnitude"):
        measure(replace(graph, values=values), x)
    assert measure(graph, torch.ones(2, 3, dtype=torch.float64)).f.shape == (2, 2)
    # Of one sample alone.
    mixed = torch.ones(2, 3, dtype=torch.float64) * torch.tensor([[1.0], [1e-70]], dtype=torch.float64)
    with pytest.raises(NoCertificateError, match="no certificate for inputs of magnitude"):
        measure(graph, mixed)
    still = {k: 0 * v for k, v in graph.values.items()}
    assert not measure(replace(graph, values=still), torch.ones(2, 3, dtype=torch.float64)).f.any()


@pytest.mark.parametrize(("first", "last", "match"), [(1e40, 1e40, "activations"), (1e-9, 1e58, "gradients")])
def test_products_outside_the_range_are_refused(first: float, last: float, match: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2, False), nn.Linear(2, 2, False), nn.Linear(2, 1, False)).double()
    graph = GraphNetwork.from_module(module, torch.Size((2,)))
    sizes = {"0.weight": first, "1.weight": last if match == "activations" else 1e3, "2.weight": last}
    values = {k: torch.full_like(v, sizes[k]) for k, v in graph.values.items()}
    with pytest.raises(NoCertificateError, match=f"no certificate for {match} of magnitude"):
        measure(replace(graph, values=values), torch.full((1, 2), 1e-30, dtype=torch.float64))


# -- what is pushed ---------------------------------------------------------------------------------------------------


def gamma(count: int) -> float:
    return 1e-4 * count


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "gamma", lambda count, dtype: gamma(count))


@pytest.mark.usefixtures("_counted")
def test_blocks_of_the_hessian_are_summed_before_their_norm() -> None:
    """Σ X̂ᵀ N̂ X̂ of two operations, with the rounding of each; and λ̂ X̂ᵀ of a layer, whose block is another."""
    draws, n, terms = Draws(5), 3, 4
    product, entries = Product((1, 2), "matmul", 2, 3), Times((1, 2), "product")
    shapes = {"a": (3, 2), "b": (2, 3), "c": (3, 3)}
    below = {k: draws.normal(n, *s) for k, s in shapes.items()}
    found = Core(n, 2, 3, terms)
    total = torch.zeros((n, 2, 3, 3, 4, 4), dtype=torch.float64)
    wrong = torch.zeros((n, 2, 3, 3), dtype=torch.float64)
    sizes = {0: 2, 2: 4}
    for node, pair in ((product, ("a", "b")), (entries, ("c", "c"))):
        lam = draws.normal(n, 2, 3, 3)
        # Block 1 has no tangents, and the first input none of block 2.
        given = [{0: draws.normal(n, 2, *shapes[pair[0]])},
                 {p: draws.normal(n, d, *shapes[pair[1]]) for p, d in sizes.items()}]  # fmt: skip
        found.add(node, lam, given, [below[k] for k in pair])
        whole = []
        for g, key in zip(given, pair, strict=True):
            padded = {p: g[p] if p in g else torch.zeros(n, d, *shapes[key]).double() for p, d in sizes.items()}
            whole.append(padded)
        for c in range(2):
            for place in (0, 1):
                other = 1 - place
                for p in sizes:
                    for q in sizes:
                        if node is product:
                            y = whole[other][q].mT
                            image = lam[:, c, None] @ y if place == 0 else y @ lam[:, c, None]
                        else:
                            image = lam[:, c, None] * whole[other][q]
                        x, image = whole[place][p].flatten(2), image.flatten(2)
                        total[:, c, p, q, : sizes[p], : sizes[q]] += x @ image.mT
                        count = gamma(x.shape[2] + 2 * terms + 16)
                        wrong[:, c, p, q] += count * norm(x.flatten(1)) * norm(image.flatten(1))
    layer = Weighted((1,), "layer", "w", None, 1, True, False, 3, 2)
    lam, x = draws.normal(n, 2, 3, 2), draws.normal(n, 4, 3, 5)
    found.add(layer, lam, [{2: x}], [draws.normal(n, 3, 5)])
    cross = torch.zeros_like(wrong)
    met = torch.einsum("ncto,ndtk->ncdok", lam, x).flatten(3)
    cross[:, :, 1, 2] = cross[:, :, 2, 1] = torch.linalg.matrix_norm(met, ord=2)
    # Nothing of a layer that is not trained, nothing where no tangents are.
    found.add(replace(layer, block=None, weight_trained=False), lam, [{2: x}], [draws.normal(n, 3, 5)])
    found.add(replace(layer, weight_trained=False, bias_trained=True), 0.1 * lam, [{2: x}], [draws.normal(n, 3, 5)])
    found.add(product, draws.normal(n, 2, 3, 3), [{}, {}], [below["a"], below["b"]])
    exact = torch.linalg.matrix_norm(total, ord=2)
    least = exact + torch.maximum(wrong, wrong.mT) + cross
    bound = found.norms()
    assert bool((bound >= least * (1 - 1e-12)).all())
    assert bool((bound <= least + 0.05 * (exact + cross) + 1e-6 * least + 1e-130).all())


def pusher(directions: int = 3) -> tuple[Pusher, Point]:
    point = Point(*CASES["residual"].make(n=3), 0)
    full = point.bounds.ahead(0.0)
    return Pusher(point.network, point.x, directions, full, heres(point.bounds, 0.0)), point


def enlarged(at: Ahead, draws: Draws) -> Ahead:
    return replace(at, error=0.1 * draws(3), blocks=10 * draws(*at.blocks.shape), rows=draws(*at.rows.shape))


def test_norms_of_what_arrives() -> None:
    """With what is left, rounding, and a V that is not quite orthonormal."""
    draws, (found, point) = Draws(6), pusher()
    k_blocks, rows = point.network.blocks, slice(1, 3)
    block = next(layer.block for _, layer in found.layers)
    assert block is not None
    layer = found.of_block[block]
    assert found.layers[0][0] == layer
    found.rests_of[layer]["skew"] = skew = 0.1 * draws(3)
    found.full = [enlarged(at, draws) for at in found.full]
    rest = enlarged(found.full[2], draws)
    rest = replace(rest, blocks=0.1 * rest.blocks, rows=0.1 * rest.rows)
    for size in (1.0, 100.0):
        arrived = Tangents(size * draws.normal(2, 4, 2, 3), draws(2))
        out: Any = type("Out", (), {})()
        for key in ("blocks", "rows"):
            setattr(out, key, [torch.zeros(3, k_blocks, dtype=torch.float64) for _ in found.full])
        none = torch.zeros(3, k_blocks, dtype=torch.float64)
        out.tangents = [Tangent(none.clone(), none.clone(), none.clone()) for _ in found.full]
        found.measure(2, block, arrived, rows, rest, out)
        flat, lost, twice = arrived.moved.flatten(2), arrived.error, 2 * skew[rows]
        top = torch.linalg.matrix_norm(flat, ord=2)
        line = flat.square().sum(dim=1).amax(dim=1).sqrt()
        for given, near, whole, left, most in (
            (out.blocks, top, found.full[2].blocks, rest.blocks, 1.03),
            (out.rows, line, found.full[2].rows, rest.rows, 1 + 1e-7),
        ):
            whole, left = whole[rows, block], left[rows, block]
            near = near + lost
            near = near + twice * (near + whole)
            exact = torch.minimum((near**2 + left**2).sqrt(), whole)
            assert bool((given[2][rows, block] >= exact * (1 - 1e-13)).all())
            assert bool((given[2][rows, block] <= exact * most).all())
            assert not given[2][:1].any()
        tangent = out.tangents[2]
        assert bool((tangent.size[rows, block] >= (1 + twice) * top).all())
        assert bool((tangent.size[rows, block] <= 1.03 * (1 + twice) * top).all())
        assert close(tangent.frobenius[rows, block], (1 + twice) * flat.square().sum(dim=(1, 2)).sqrt())
        assert close(tangent.rest[rows, block], (1 + twice) * lost + rest.blocks[rows, block])


def test_what_is_pushed_begins_and_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    enlarge(monkeypatch)
    draws, (found, point) = Draws(7), pusher()
    found.full = [enlarged(at, draws) for at in found.full]
    places, adjoints = passes(point.network, point.x)
    chunk = pushed.Chunk(slice(1, 3), [t[1:3] for t in places], [t[1:3] for t in adjoints])
    for k, layer in found.layers:
        begun = found.begun(k, layer, chunk)
        moved, error = layer.directions(places[layer.inputs[0]][1:3], found.leading[k][1:3], places[k + 1].shape[1:])
        assert torch.equal(begun.moved, moved)
        root = layer.overlap_root * math.sqrt(moved.shape[1])
        assert close(begun.error, error + root * found.full[layer.inputs[0]].error[1:3])
    nodes = point.network.nodes
    two = next(k for k, node in enumerate(nodes) if len(node.inputs) == 2)
    for k in (two, next(k for k, node in enumerate(nodes) if isinstance(node, Activation))):
        node = nodes[k]
        given = [Tangents(draws.normal(2, 4, *places[i].shape[1:]), draws(2)) for i in node.inputs]
        for known in (given, [None, *given[1:]]) if len(given) == 2 else (given,):
            there = [g for g in known if g is not None]
            size = sum((norm(g.moved.flatten(1)) for g in there), torch.zeros(2).double())
            error = sum((g.error for g in there), torch.zeros(2).double())
            arrived = found.through(k, chunk, list(known))
            parts = [Ahead(*(getattr(found.full[i], f)[1:3] for f in Ahead.__dataclass_fields__)) for i in node.inputs]
            here = Here(0.0, {key: v[1:3] for key, v in found.here[k].measured.items()}, found.here[k].constants)
            assert close(arrived.error, node.push_error(here, size, error, *parts))
            below = tuple(t[1:3] for t in (places[i] for i in node.inputs))
            tangents = tuple(None if g is None else g.moved for g in known)
            assert torch.equal(arrived.moved, node.push(point.network.values, tangents, below))


def test_weights_and_derivatives_meet_before_the_norm() -> None:
    draws, (found, point) = Draws(8), pusher()
    found.full = [enlarged(at, draws) for at in found.full]
    places, adjoints = passes(point.network, point.x)
    chunk = pushed.Chunk(slice(1, 3), [t[1:3] for t in places], [t[1:3] for t in adjoints])
    k, node = next((k, n) for k, n in enumerate(point.network.nodes) if isinstance(n, Activation))
    block = found.layers[0][1].block
    assert block is not None
    found.rests_of[found.layers[0][0]]["skew"] = skew = 0.1 * draws(3)
    rest, arrived = enlarged(found.full[1], draws), Tangents(draws.normal(2, 4, *places[k].shape[1:]), draws(2))
    lean = found.lean(k, node, chunk, arrived, rest, block)
    weights, flat = node.weights(adjoints[k][1:3], places[node.inputs[0]][1:3]), arrived.moved.flatten(2)
    for i in range(2):
        twice = 2 * skew[1 + i]
        error = arrived.error[i] + twice * found.full[node.inputs[0]].blocks[1 + i, block]
        for c in range(weights.shape[1]):
            heavy = weights[i, c].max().sqrt()
            near = torch.linalg.matrix_norm(flat[i] * weights[i, c].sqrt(), ord=2)
            for most, bound in ((1.0, "above"), (1.03, "below")):
                exact = torch.hypot(most * near * (1 + twice) + heavy * error, heavy * rest.blocks[1 + i, block])
                assert bool(lean[i, c] >= exact * (1 - 1e-13)) if bound == "above" else bool(lean[i, c] <= exact)


def test_a_core_is_stretched_by_what_is_not_orthonormal() -> None:
    found, point = pusher()
    draws, k_blocks = Draws(9), point.network.blocks
    skews = {}
    for k, layer in found.layers:
        found.rests_of[k]["skew"] = skews[layer.block] = 0.1 * draws(3)
    given: Any = type("Given", (), {})()
    norms = draws(2, point.bounds.outputs, k_blocks, k_blocks)
    given.norms = lambda: norms
    stretched = found.stretched(given, slice(1, 3))
    for p in range(k_blocks):
        for q in range(k_blocks):
            exact = norms[..., p, q] * ((1 + 2 * skews[p][1:3]) * (1 + 2 * skews[q][1:3]))[:, None]
            assert torch.allclose(stretched[..., p, q], exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("directions", [1, 1000])
def test_what_arrives_at_activations_is_weighted_as_it_is(directions: int) -> None:
    """||√ŵ ∘ ∂z/∂θ_p|| against dense Jacobians at θ_0: from above, and near where all directions are pushed."""
    point = Point(*CASES["residual"].make(n=3), directions)
    found, columns = point.bounds.pushed, point.block_columns()
    derivatives, adjoints = torch.func.jacrev(point.places)(point.theta), point.adjoints(point.theta)
    assert found is not None
    places = point.places(point.theta)
    seen = 0
    for k, node in enumerate(point.network.nodes):
        if not isinstance(node, Activation):
            continue
        z, d = places[node.inputs[0]].detach(), derivatives[node.inputs[0]].detach()
        weights = (adjoints[k].detach() * node.smooth.second(z)[:, None]).abs()
        for p, block in enumerate(columns):
            weighted = weights.sqrt()[..., None] * d[:, None, :, block]
            exact = torch.linalg.matrix_norm(weighted, ord=2)
            assert bool((found.leans[k][..., p] >= exact * (1 - 1e-12)).all())
            assert directions == 1 or bool((found.leans[k][..., p] <= 1.1 * exact + 1e-7).all())
            seen += bool(exact.any())
    assert seen >= 3


@pytest.mark.parametrize("directions", [5])
def test_parts_of_the_samples_are_pushed_alike(directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples together, and one at a time; what is left of each layer is measured with what is pushed."""
    point = Point(*CASES["residual"].make(n=3), directions)
    whole = point.bounds.pushed
    monkeypatch.setattr(pushed, "MEMORY", 1)
    alone = GraphBounds(point.network, point.x, directions=directions).pushed
    assert whole is not None
    assert alone is not None
    for key in ("blocks", "rows"):
        for a, b in zip(getattr(whole, key), getattr(alone, key), strict=True):
            assert torch.allclose(a, b, rtol=0.03, atol=1e-12)
    assert all(torch.allclose(whole.leans[k], alone.leans[k], rtol=0.03, atol=1e-12) for k in whole.leans)
    assert torch.allclose(whole.core, alone.core, rtol=0.03, atol=1e-12)
    # Blocks that would not fit are not formed; norms of layers remain.
    monkeypatch.setattr(pushed, "MOST", 0)
    none = GraphBounds(point.network, point.x, directions=directions)
    assert none.pushed is not None
    assert bool(torch.isinf(none.pushed.core).all())
    assert math.isfinite(none.l_j(0.1))
    found, _ = pusher(directions)
    for k, layer in found.layers:
        x = point.network.forward(point.x)[layer.inputs[0]]
        v = layer.leading(x, directions)
        for key, value in layer.rest(x, v).items():
            assert torch.allclose(found.rests()[k][key], value, rtol=1e-6, atol=1e-9)
        assert found.rests()[k]["group"] is found.here[k].measured["group"]


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("away", "same"), [(0.0, True), (0.9e-9, True), (1.1e-9, False), (math.nan, False)])
def test_outputs_that_are_alike(away: float, same: bool) -> None:
    """To 1e-9 of the largest, or of one."""
    for size in (1e-3, 1e3):
        a = torch.tensor([[size, -size], [0.0, 0.0]], dtype=torch.float64)
        b = a.clone()
        b[1, 1] += away * (1 + size)
        assert alike(a, b) == alike(b, a) == same
    assert not alike(torch.full((1, 1), math.inf), torch.full((1, 1), math.inf))
    # Everything is within a part of infinity.
    assert not alike(torch.full((1, 1), math.inf), torch.ones(1, 1))
    assert not alike(torch.ones(1, 1), torch.full((1, 1), -math.inf))


def test_probes_are_of_several_sizes() -> None:
    found = network.probe_input(torch.Size((2, 3)))
    assert found.shape == (7, 2, 3)
    assert found.dtype == torch.float64
    assert not found[0].any()
    sizes = found[1:].flatten(1).norm(dim=1)
    assert float(sizes[0]) < 1 < float(sizes[2])
    module = nn.Sequential(nn.Embedding(4, 2), nn.Embedding(9, 2))
    tokens = network.token_input(module, torch.Size((50,)))
    assert tokens is not None
    assert tokens.shape == (7, 50)
    assert (int(tokens.min()), int(tokens.max())) == (0, 3)
    assert network.token_input(nn.Sequential(nn.Linear(2, 2)), torch.Size((50,))) is None


class Sized(nn.Module):
    """A layer whose output is not what its operations say, in number or in shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_what_is_trained_is_what_is_named() -> None:
    module = Sized().double()
    module.layer.bias.requires_grad_(False)
    sample = torch.Size((3,))
    assert GraphNetwork.from_module(module, sample).trained == {"layer.weight"}
    named = GraphNetwork.from_module(module, sample, ["layer.bias"])
    assert named.trained == {"layer.bias"}
    assert getattr(named.nodes[0], "weight_trained", None) is False


@pytest.mark.parametrize("change", [lambda y: y + 1e-6, lambda y: y[:, :1], lambda y: y[:, None]])
def test_a_network_that_is_not_its_graph_is_refused(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Sized().double()
    assert GraphNetwork.from_module(module, torch.Size((3,))).blocks == 1
    plain = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, x: change(plain(self, x)))
    with pytest.raises(NoCertificateError, match="its outputs are not those of its operations"):
        GraphNetwork.from_module(module, torch.Size((3,)))


def test_an_average_alone_is_a_network() -> None:
    """Nothing trained, and no block: all derivatives by parameters are zero."""
    graph = GraphNetwork((Average((0,), "mean", lambda t: t.mean(dim=2), 2, 1),), {}, frozenset(), 0)
    found = GraphBounds(graph, torch.ones(2, 3, 2, dtype=torch.float64))
    over = found.over(1.0)
    assert over.hessians.shape == (2, 3)
    assert over.l_j <= 1e-100
    assert isinstance(over.behind[0], Behind)
