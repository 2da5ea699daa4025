"""The rules of operations without parameters, each bound from its formula in docs/theory.md, section 10, once more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lplr_cli.certificate.graph import attention, norms, times
from lplr_cli.certificate.graph.nodes import Activation, Add, Average
from lplr_cli.certificate.graph.state import Here, Tangent
from lplr_cli.certificate.smooth import smooth_activation
from tests.certificate.rules import (
    BLOCKS,
    ELEMENTARY,
    EPS,
    OUTPUTS,
    RADII,
    SAMPLES,
    Adjoint,
    At,
    Draws,
    Rule,
    between,
    check,
    close,
    enlarge,
    gamma,
    outer,
    rule_of,
)


@pytest.fixture(autouse=True)
def _large_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    enlarge(monkeypatch)


# -- sums, means, multiples, activations -------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", RADII)
def test_sums(radius: float) -> None:
    draws = Draws(1)

    def ahead(i: int, t: list[At]) -> Any:
        a, b = t
        rounded = EPS * (a.size + b.size + a.e + b.e)
        return a.size + b.size, a.e + b.e + rounded, a.d + b.d, a.r + b.r, a.s + b.s, a.drift + b.drift

    rule = Rule(
        ahead,
        lambda i, c, at, t: [(at.size, at.ell)] * 2,
        lambda i, c, size, error, t: [error] * 2,
        lambda i, size, error, t: error + EPS * (size + error),
    )
    check(Add((0, 1), "sum"), draws.here(radius), rule, [draws.ahead(), draws.ahead()], draws)
    x, y = draws(2, 3), draws(2, 3)
    assert torch.equal(Add((0, 1), "sum").value({}, x, y), x + y)
    for tangents, expected in (((x, y), x + y), ((x, None), x), ((None, y), y)):
        assert torch.equal(Add((0, 1), "sum").push({}, tangents, ()), expected)


@pytest.mark.parametrize(("count", "overlap"), [(6, 2), (6, 1), (1, 1)])
def test_means(count: int, overlap: int) -> None:
    draws, gain, fresh = Draws(2), math.sqrt(overlap / count), float(count > 1)

    def ahead(i: int, t: list[At]) -> Any:
        (x,) = t
        error = gain * x.e + fresh * gain * gamma(count + 8) * (x.size + x.e)
        rows = np.minimum(x.r, x.d / math.sqrt(count))
        return gain * x.size, error, gain * x.d, rows, gain * x.s, gain * x.drift

    rule = Rule(
        ahead,
        lambda i, c, at, t: [(gain * at.size, gain * at.ell)],
        lambda i, c, size, error, t: [gain * error + fresh * gain * gamma(overlap + 8) * (size + error)],
        lambda i, size, error, t: gain * error + fresh * gain * gamma(count + 8) * (size + error),
    )
    node = Average((0,), "mean", lambda t: t[:, :2].mean(dim=1, keepdim=True), count, overlap)
    check(node, draws.here(0.5), rule, [draws.ahead()], draws)
    x = draws(2, 4, 3)
    assert torch.equal(node.value({}, x[:, 0]), x[:, 0, :2].mean(dim=1, keepdim=True))
    assert torch.equal(node.push({}, (x,), ()), x[:, :, :2].mean(dim=2, keepdim=True))


@pytest.mark.parametrize("factor", [-3.0, 0.25])
def test_multiples(factor: float) -> None:
    draws, c = Draws(3), abs(factor)

    def ahead(i: int, t: list[At]) -> Any:
        (x,) = t
        return c * x.size, c * x.e + 4 * EPS * c * (x.size + x.e), c * x.d, c * x.r, c * x.s, c * x.drift

    rule = Rule(
        ahead,
        lambda i, k, at, t: [(c * at.size, c * at.ell)],
        lambda i, k, size, error, t: [c * (error + 4 * EPS * (size + error))],
        lambda i, size, error, t: c * (error + 4 * EPS * (size + error)),
    )
    node = attention.Multiple((0,), "multiple", factor)
    check(node, draws.here(0.5), rule, [draws.ahead()], draws)
    x = draws(2, 3, 4)
    assert torch.equal(node.push({}, (x,), ()), factor * x)
    assert torch.equal(node.value({}, x), factor * x)


def leaned(here: Here, draws: Draws) -> Iterator[Here]:
    """Without tangents, and with some that are short and some that are long."""
    yield here
    for size in (1e-3, 1e3):
        yield replace(here, lean=(size * draws(SAMPLES, OUTPUTS, BLOCKS), draws(SAMPLES, BLOCKS)))


class Bent:
    """φ(z), from the suprema of its first three derivatives."""

    def __init__(self, here: Here, entries: int, start: float, most: tuple[float, float, float]) -> None:
        self.here, self.entries, self.start, self.radius = here, entries, start, here.radius
        self.first, self.second, self.third = most
        self.slope, self.bend, self.weights, self.top = (
            here.measured[k].numpy() for k in ("slope", "bend", "weight", "top")
        )

    def over(self, i: int, z: At) -> tuple[float, float]:
        return (
            min(self.slope[i] + self.second * z.entry, self.first),
            min(self.bend[i] + self.third * z.entry, self.second),
        )

    def weight(self, i: int, c: int, z: At) -> float:
        return float(self.weights[i, c] + self.third * z.entry * self.top[i, c])

    def ahead(self, i: int, t: list[At]) -> Any:
        (z,) = t
        slope, bend = self.over(i, z)
        value = self.start * math.sqrt(self.entries) + self.first * z.size
        error = self.first * z.e + ELEMENTARY * (math.sqrt(self.entries) + z.size + z.e + value)
        turned = np.minimum(bend * self.radius * z.all_r * z.d, bend * self.radius * z.all_d * z.r)
        second = bend * z.all_r * z.all_d + slope * z.s
        return value, error, slope * z.d, slope * z.r, second, slope * z.drift + turned

    def behind(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        slope, bend = self.over(i, t[0])
        turn = slope * at.ell + self.weight(i, c, t[0]) * t[0].d + at.delta * bend * t[0].r
        return [(slope * at.size, turn)]

    def errors(self, i: int, c: int, size: float, error: float, t: list[At]) -> list[float]:
        return [self.push_error(i, size, error, t)]

    def push_error(self, i: int, size: float, error: float, t: list[At]) -> float:
        (z,) = t
        slope, away = self.over(i, z)[0], self.second * z.e + ELEMENTARY * (1 + z.size + z.e)
        return (slope + away) * error + away * size + 8 * EPS * (slope + away) * (size + error)

    def form(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        (z,) = t
        (_, bend), w, top = self.over(i, z), self.weight(i, c, z), self.top[i, c]
        lean = math.sqrt(w) * z.d
        if self.here.lean is not None:
            at_start, d_start = self.here.lean[0][i, c].numpy(), self.here.lean[1][i].numpy()
            more = self.third * z.entry * top + 8 * EPS * self.weights[i, c]
            lean = np.minimum(lean, np.sqrt(at_start**2 + more * d_start**2) + math.sqrt(w) * z.drift)
        matrix = np.outer(lean, lean) + at.delta * bend * outer(z.r, z.d) / 2
        cubic = at.norm * bend * z.all_r * z.all_d
        cubic += self.third * z.all_r * z.all_d * (top * z.all_d + at.delta * z.all_r)
        cubic += 2 * (w * z.all_d + at.delta * bend * z.all_r) * z.s
        return matrix, cubic

    def spread(self, i: int, c: int, at: Adjoint, t: list[At], x: list[Tangent]) -> Any:
        (z,) = t
        (_, bend), top = self.over(i, z), self.top[i, c]
        computed = ELEMENTARY * (2 + z.size + z.e + bend) * top
        moved = self.third * z.entry * top + at.delta * bend + computed
        return between(self.weight(i, c, z) + at.delta * bend, moved, computed, (z, x[0]), (z, x[0]), i)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(("name", "start"), [("softplus", math.log(2)), ("gelu", 0.0)])
def test_activations(name: str, start: float, radius: float) -> None:
    draws, smooth = Draws(4), smooth_activation(name)
    assert smooth is not None
    line = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    # φ' and φ'' are largest at √2 and 0 (GELU), at infinity and 0 (softplus).
    first = float(smooth.first(torch.tensor(math.sqrt(2), dtype=torch.float64))) if name == "gelu" else 1.0
    second = float(smooth.second(torch.zeros(1, dtype=torch.float64)))
    assert first >= float(smooth.first(line).max()) - 1e-15
    node = Activation((0,), name, smooth, 5)
    for here in leaned(draws.here(radius, ("slope", "bend"), ("weight", "top")), draws):
        rule = rule_of(Bent(here, 5, start, (first, second, smooth.third)))
        check(node, here, rule, [draws.ahead()], draws)


def test_what_is_measured_of_activations() -> None:
    draws, smooth = Draws(5), smooth_activation("gelu")
    assert smooth is not None
    node, z, lam = Activation((0,), "gelu", smooth, 6), 2 * draws.normal(3, 2, 3), draws.normal(3, 2, 2, 3)
    measured = node.measure(z) | node.weigh(lam, z)
    for i in range(3):
        for key, values in (("slope", smooth.first(z[i])), ("bend", smooth.second(z[i]))):
            exact = (values.abs() + ELEMENTARY * (1 + z[i].abs() + values.abs())).max()
            assert close(measured[key][i], exact)
        bend = smooth.second(z[i]).abs()
        raised = bend + ELEMENTARY * (1 + z[i].abs() + bend)
        for c in range(2):
            assert close(measured["weight"][i, c], (lam[i, c].abs() * raised).max())
            assert close(measured["top"][i, c], lam[i, c].abs().max())
    x = draws(3, 4, 2, 3)
    assert torch.allclose(node.push({}, (x,), (z,)), torch.stack([smooth.first(z) * x[:, k] for k in range(4)], dim=1))


# -- products ----------------------------------------------------------------------------------------------------------


class Entries:
    """a ∘ b."""

    def __init__(self, here: Here) -> None:
        self.radius = here.radius
        self.left, self.right, self.tops = (here.measured[k].numpy() for k in ("left", "right", "top"))

    def over(self, i: int, a: At, b: At) -> tuple[float, float]:
        return self.left[i] + a.entry + a.e, self.right[i] + b.entry + b.e

    def top(self, i: int, c: int, at: Adjoint) -> float:
        return float(min(at.size, self.tops[i, c] + at.delta))

    def met(self, a: At, b: At) -> float:
        return min(a.all_r * b.all_d, a.all_d * b.all_r)

    def ahead(self, i: int, t: list[At]) -> Any:
        a, b = t
        one, two = self.over(i, a, b)
        size = min(one * b.size, two * a.size)
        wrong = two * a.e + one * b.e
        drift = two * a.drift + one * b.drift + self.radius * (b.all_r * a.d + a.all_r * b.d)
        second = two * a.s + one * b.s + 2 * self.met(a, b)
        return size, wrong + EPS * (size + wrong), two * a.d + one * b.d, two * a.r + one * b.r, second, drift

    def behind(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        one, two = self.over(i, *t)
        return [
            (g * at.size, g * at.ell + np.minimum(self.top(i, c, at) * other.d, at.size * other.r))
            for g, other in ((two, t[1]), (one, t[0]))
        ]

    def errors(self, i: int, c: int, size: float, error: float, t: list[At]) -> list[float]:
        one, two = self.over(i, *t)
        return [g * error + (o.e + EPS * g) * (size + error) for g, o in ((two, t[1]), (one, t[0]))]

    def push_error(self, i: int, size: float, error: float, t: list[At]) -> float:
        both = sum(self.over(i, *t))
        return both * error + (t[0].e + t[1].e + 4 * EPS * both) * (size + error)

    def form(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        a, b = t
        w = self.top(i, c, at)
        return w * outer(a.d, b.d), 2 * at.norm * self.met(a, b) + 2 * w * (a.s * b.all_d + a.all_d * b.s)

    def spread(self, i: int, c: int, at: Adjoint, t: list[At], x: list[Tangent]) -> Any:
        w = self.top(i, c, at)
        return 2 * between(w, at.delta, 4 * EPS * (w + at.e), (t[0], x[0]), (t[1], x[1]), i)


@pytest.mark.parametrize("radius", RADII)
def test_products_entry_by_entry(radius: float) -> None:
    draws = Draws(6)
    here = draws.here(radius, ("left", "right"), ("top",))
    node, a, b = times.Times((0, 1), "product"), draws.ahead(), draws.ahead()
    for below in ([a, b], [b, a]):
        check(node, here, rule_of(Entries(here)), below, draws)


def test_what_is_measured_of_products_entry_by_entry() -> None:
    draws, node = Draws(6), times.Times((0, 1), "product")
    a, b, lam = draws.normal(3, 2, 3), draws.normal(3, 2, 3), draws.normal(3, 2, 2, 3)
    measured = node.measure(a, b) | node.weigh(lam, a, b)
    for i in range(3):
        assert (measured["left"][i], measured["right"][i]) == (a[i].abs().max(), b[i].abs().max())
        assert all(measured["top"][i, c] == lam[i, c].abs().max() for c in range(2))
    x, y = draws(3, 4, 2, 3), draws(3, 4, 2, 3)
    for given, exact in (((x, y), x * b[:, None] + y * a[:, None]), ((x, None), x * b[:, None]),
                         ((None, y), y * a[:, None])):  # fmt: skip
        assert torch.equal(node.push({}, given, (a, b)), exact)


class Matrices:
    """AB of heads."""

    def __init__(self, here: Here, inner: int, outside: int) -> None:
        self.inner, self.outside = inner, outside
        self.radius = here.radius
        self.left, self.right, self.heads = (here.measured[k].numpy() for k in ("left", "right", "head"))

    def over(self, i: int, a: At, b: At) -> tuple[float, float]:
        return self.left[i] + a.reach + a.e, self.right[i] + b.reach + b.e

    def head(self, i: int, c: int, at: Adjoint) -> float:
        return float(min(at.size, self.heads[i, c] + at.delta))

    def ahead(self, i: int, t: list[At]) -> Any:
        a, b = t
        one, two = self.over(i, a, b)
        error = two * a.e + one * b.e + gamma(self.inner + 8) * (a.size + a.e) * (b.size + b.e)
        blocks = two * a.d + one * b.d
        drift = two * a.drift + one * b.drift + self.radius * (b.all_d * a.d + a.all_d * b.d)
        second = two * a.s + one * b.s + 2 * a.all_d * b.all_d
        return min(one * b.size, two * a.size), error, blocks, blocks, second, drift

    def behind(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        one, two = self.over(i, *t)
        return [(g * at.size, g * at.ell + self.head(i, c, at) * other.d) for g, other in ((two, t[1]), (one, t[0]))]

    def errors(self, i: int, c: int, size: float, error: float, t: list[At]) -> list[float]:
        one, two, grown = *self.over(i, *t), gamma(self.outside + 8)
        return [
            g * error + (o.e + grown * (o.size + o.e)) * (size + error) for g, o in ((two, t[1]), (one, t[0]))
        ]  # fmt: skip

    def push_error(self, i: int, size: float, error: float, t: list[At]) -> float:
        wrong = t[0].e + t[1].e
        fresh = wrong + gamma(self.inner + 16) * (t[0].size + t[1].size + wrong)
        return sum(self.over(i, *t)) * error + fresh * (size + error)

    def form(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        a, b = t
        w = self.head(i, c, at)
        return w * outer(a.d, b.d), 2 * at.norm * a.all_d * b.all_d + 2 * w * (a.s * b.all_d + a.all_d * b.s)

    def spread(self, i: int, c: int, at: Adjoint, t: list[At], x: list[Tangent]) -> Any:
        rounding = gamma(self.outside + 16) * (at.size + at.e)
        return 2 * between(self.head(i, c, at), at.delta, rounding, (t[0], x[0]), (t[1], x[1]), i)


@pytest.mark.parametrize("radius", RADII)
def test_matrix_products(radius: float) -> None:
    draws = Draws(7)
    here = draws.here(radius, ("left", "right"), ("head",))
    node, a, b = attention.Product((0, 1), "matmul", 3, 4), draws.ahead(), draws.ahead()
    for below in ([a, b], [b, a]):
        check(node, here, rule_of(Matrices(here, 3, 4)), below, draws)


def test_what_is_measured_of_matrix_products() -> None:
    draws, node = Draws(7), attention.Product((0, 1), "matmul", 3, 4)
    # Two heads each.
    a, b, lam = draws.normal(3, 2, 4, 3), draws.normal(3, 2, 3, 2), draws.normal(3, 2, 2, 4, 2)
    measured = node.measure(a, b) | node.weigh(lam, a, b)
    for key, t in (("left", a), ("right", b), ("head", lam)):
        exact = torch.linalg.matrix_norm(t, ord=2).amax(dim=-1)
        assert measured[key].shape == exact.shape
        assert bool((measured[key] >= exact).all())
        assert bool((measured[key] <= 1.05 * exact).all())
    assert torch.equal(node.measure(a[:, 0], b[:, 0])["left"], node.measure(a[:, :1], b[:, :1])["left"])
    x, y = draws(3, 5, 2, 4, 3), draws(3, 5, 2, 3, 2)
    both = torch.einsum("ndhij,nhjk->ndhik", x, b), torch.einsum("nhij,ndhjk->ndhik", a, y)
    for given, product in (((x, y), both[0] + both[1]), ((x, None), both[0]), ((None, y), both[1])):
        assert torch.allclose(node.push({}, given, (a, b)), product, rtol=1e-12, atol=1e-12)


# -- softmax and normalisation -----------------------------------------------------------------------------------------


class Shares:
    """Softmax."""

    def __init__(self, here: Here, entries: int, rows: int) -> None:
        self.entries, self.rows = entries, rows
        self.radius = here.radius
        self.tops, self.sets, self.ranges = (here.measured[k].numpy() for k in ("top", "set", "range"))

    def relative(self, z: At) -> float:
        return 4 * ELEMENTARY * (1 + z.size + z.e) + gamma(self.entries + 8)

    def fresh(self, z: At) -> float:
        return 2 * math.sqrt(self.rows * self.entries) * self.relative(z)

    def slope(self, i: int, z: At) -> float:
        return float(min(0.5, self.tops[i] + (z.reach + z.e) / 2 + self.fresh(z)))

    def largest(self, i: int, c: int, at: Adjoint) -> float:
        return float(min(at.size, self.sets[i, c] + at.delta))

    def bend(self, i: int, c: int, at: Adjoint, z: At) -> float:
        found = min(
            math.sqrt(0.5) * self.largest(i, c, at), (self.ranges[i, c] + math.sqrt(2) * at.delta) * self.slope(i, z)
        )
        return float(found)

    def ahead(self, i: int, t: list[At]) -> Any:
        (z,) = t
        s = self.slope(i, z)
        drift = s * z.drift + math.sqrt(0.5) * self.radius * z.all_d * z.d
        second = math.sqrt(0.5) * z.all_d**2 + s * z.s
        return math.sqrt(self.rows), s * z.e + self.fresh(z), s * z.d, np.minimum(s * z.d, z.r / 2), second, drift

    def behind(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        return [(self.slope(i, t[0]) * at.size, self.slope(i, t[0]) * at.ell + self.bend(i, c, at, t[0]) * t[0].d)]

    def errors(self, i: int, c: int, size: float, error: float, t: list[At]) -> list[float]:
        return [self.push_error(i, size, error, t)]

    def push_error(self, i: int, size: float, error: float, t: list[At]) -> float:
        away = 4 * (t[0].e + self.fresh(t[0])) + 8 * gamma(self.entries + 16)
        return (self.slope(i, t[0]) + away) * error + away * size

    def form(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        (z,) = t
        b, d = self.bend(i, c, at, z), z.all_d
        third = math.sqrt(0.5) * at.norm * d**2 + 1.75 * self.largest(i, c, at) * d**3 + 2 * b * d * z.s
        return b * np.outer(z.d, z.d), third

    def spread(self, i: int, c: int, at: Adjoint, t: list[At], x: list[Tangent]) -> Any:
        (z,) = t
        size = self.largest(i, c, at) + at.e
        computed = 64 * self.entries * (4 * self.relative(z) + gamma(self.entries + 16)) * size
        moved = math.sqrt(0.5) * at.delta + 1.75 * size * z.reach
        return between(self.bend(i, c, at, z), moved, computed, (z, x[0]), (z, x[0]), i)


@pytest.mark.parametrize("low", [0.01, 1.0])
@pytest.mark.parametrize("radius", RADII)
def test_softmax(radius: float, low: float) -> None:
    draws, entries, rows = Draws(8), 4, 2
    here = draws.here(radius, ("top",), ("set", "range"))
    here.measured["top"] *= low
    here.measured["range"] *= low
    node = attention.Softmax((0,), "softmax", entries, rows)
    check(node, here, rule_of(Shares(here, entries, rows)), [draws.ahead()], draws)


def test_what_is_measured_of_softmax() -> None:
    draws = Draws(9)
    kept = torch.tensor([[True, True, False, True], [False, True, True, False]])
    for mask in (None, kept):
        node = attention.Softmax((0,), "softmax", 4, 2, mask)
        z, lam, h = draws.normal(3, 2, 4), draws.normal(3, 2, 2, 4), draws.normal(3, 5, 2, 4)
        e = torch.exp(z) * (1.0 if mask is None else mask)
        y = e / e.sum(dim=-1, keepdim=True)
        assert torch.allclose(node.value({}, z), y, rtol=1e-13, atol=0)
        measured = node.measure(z) | node.weigh(lam, z)
        for i in range(3):
            assert close(measured["top"][i], y[i].max())
            for c in range(2):
                assert close(measured["set"][i, c], max(row.norm() for row in lam[i, c]))
                assert close(measured["range"][i, c], max(row.max() - row.min() for row in lam[i, c]))
        slopes = torch.diag_embed(y) - y[..., :, None] * y[..., None, :]
        exact = torch.einsum("nrij,ndrj->ndri", slopes, h)
        assert torch.allclose(node.push({}, (h,), (z,)), exact, rtol=1e-11, atol=1e-12)


class Normalised:
    """Sets of entries centred and divided by their deviation."""

    def __init__(self, here: Here, sets: int, m: int, epsilon: float) -> None:
        self.sets, self.m, self.epsilon, self.root, self.total = sets, m, epsilon, math.sqrt(m), math.sqrt(sets * m)
        self.radius = here.radius
        self.least, self.tops, self.largest, self.heavy = (
            here.measured[k].numpy() for k in ("least", "tops", "set", "weight")
        )

    def over(self, i: int, x: At) -> tuple[float, float]:
        left = self.least[i] - (x.reach + x.e) / self.root
        return 1 / max(left, math.sqrt(self.epsilon)), (self.least[i] / left) ** 2 if left > 0 else math.inf

    def bend(self, inverse: float) -> float:
        return 2 / math.sqrt(3) * inverse**2 / self.root

    def weight(self, i: int, c: int, at: Adjoint, x: At) -> float:
        inverse, ratio = self.over(i, x)
        start = min(self.largest[i, c] * inverse**2, self.heavy[i, c] * ratio)
        return float(2 / math.sqrt(3) / self.root * start + at.delta * self.bend(inverse))

    def relative(self, x: At, inverse: float) -> float:
        return 8 * gamma(2 * self.m + 32) * (1 + (x.size + x.e) ** 2 / self.m * inverse**2)

    def fresh(self, x: At, inverse: float) -> float:
        return 8 * gamma(self.m + 16) * inverse * (x.size + x.e) + 2 * self.total * self.relative(x, inverse)

    def ahead(self, i: int, t: list[At]) -> Any:
        (x,) = t
        inverse, _ = self.over(i, x)
        top = (self.tops[i] + inverse * x.reach) / self.root
        rows = np.minimum(inverse * x.d, inverse * (2 * x.r + top * x.d))
        drift = inverse * x.drift + self.bend(inverse) * self.radius * x.all_d * x.d
        second = self.bend(inverse) * x.all_d**2 + inverse * x.s
        return self.total, inverse * x.e + self.fresh(x, inverse), inverse * x.d, rows, second, drift

    def behind(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        inverse, _ = self.over(i, t[0])
        return [(inverse * at.size, inverse * at.ell + self.weight(i, c, at, t[0]) * t[0].d)]

    def errors(self, i: int, c: int, size: float, error: float, t: list[At]) -> list[float]:
        return [self.push_error(i, size, error, t)]

    def push_error(self, i: int, size: float, error: float, t: list[At]) -> float:
        inverse, _ = self.over(i, t[0])
        away, new = self.bend(inverse) * t[0].e, 8 * inverse * self.relative(t[0], inverse)
        return (inverse + away) * error + (away + new) * (size + error)

    def form(self, i: int, c: int, at: Adjoint, t: list[At]) -> Any:
        (x,) = t
        inverse, w, d = self.over(i, x)[0], self.weight(i, c, at, x), x.all_d
        third = at.norm * self.bend(inverse) * d**2
        third += 3 / self.m * inverse**3 * min(at.size, self.largest[i, c] + at.delta) * d**3 + 2 * w * d * x.s
        return w * np.outer(x.d, x.d), third

    def spread(self, i: int, c: int, at: Adjoint, t: list[At], v: list[Tangent]) -> Any:
        (x,) = t
        inverse, size = self.over(i, x)[0], min(at.size, self.largest[i, c] + at.delta) + at.e
        moved = self.bend(inverse) * at.delta + 3 / self.m * inverse**3 * x.reach * size
        wrong = self.fresh(x, inverse) + self.root * (2 * self.relative(x, inverse) + gamma(4 * self.m + 64))
        return between(
            self.weight(i, c, at, x), moved, 32 / self.m * inverse**2 * wrong * size, (x, v[0]), (x, v[0]), i
        )


@pytest.mark.parametrize("radius", RADII)
def test_normalisation(radius: float) -> None:
    draws, sets, m, epsilon = Draws(10), 2, 4, 0.04
    here = draws.here(radius, ("least", "tops"), ("set", "weight"))
    node = norms.Normalise((0,), "norm", sets, m, epsilon)
    check(node, here, rule_of(Normalised(here, sets, m, epsilon)), [draws.ahead()], draws)


def test_what_is_measured_of_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, sets, m, epsilon = Draws(11), 2, 4, 0.04
    node = norms.Normalise((0,), "norm", sets, m, epsilon)
    x, lam, h = draws.normal(3, 2, 2, 2), draws.normal(3, 2, 2, 2, 2), draws.normal(3, 5, 2, 2, 2)
    flat = x.reshape(3, sets, m)
    p = flat - flat.sum(dim=2, keepdim=True) / m
    s = ((p**2).sum(dim=2) / m + epsilon).sqrt()
    y = p / s[..., None]
    assert torch.allclose(node.value({}, x), y.reshape(x.shape), rtol=1e-13, atol=1e-14)
    measured = node.measure(x) | node.weigh(lam, x)
    # Below s by its rounding, but not below what ε alone gives.
    slack = 8 * gamma(2 * m + 16) * flat.norm(dim=2) / math.sqrt(m)
    low = (s - slack).clamp_min(math.sqrt(epsilon))
    assert bool((low < s - 1e-3).all())
    size = lam.reshape(3, 2, sets, m).norm(dim=3)
    for i in range(3):
        assert float(low[i].min()) * (1 - 3e-12) <= float(measured["least"][i]) <= float(low[i].min()) * (1 - 1e-13)
        assert close(measured["tops"][i], y[i].abs().max())
        for c in range(2):
            assert close(measured["set"][i, c], size[i, c].max())
            assert close(measured["weight"][i, c], (size[i, c] / low[i] ** 2).max())
    small = node.measure(1e-9 * x)["least"]
    assert bool((small < math.sqrt(epsilon)).all())
    assert bool((small >= math.sqrt(epsilon) * (1 - 1e-11)).all())
    one = torch.eye(m, dtype=torch.float64) - 1 / m
    slopes = (one - y[..., :, None] * y[..., None, :] / m) / s[..., None, None]
    exact = torch.einsum("nsij,ndsj->ndsi", slopes, h.reshape(3, 5, sets, m)).reshape(h.shape)
    assert torch.allclose(node.push({}, (h,), (x,)), exact, rtol=1e-11, atol=1e-12)
    both = node.bent(lam, (h,), (x,))[0]
    alone = [node.bent(lam[i : i + 1], (h[i : i + 1],), (x[i : i + 1],))[0] for i in range(3)]
    assert torch.allclose(both, torch.cat(alone), rtol=1e-12, atol=1e-12)
    # A deviation that rounding can change by a hundredth has no bound.
    at, here = draws.ahead(), draws.here(0.0, ("least", "tops"))
    monkeypatch.setattr(norms, "ROUNDED", 8 * gamma(2 * m + 32))
    assert bool(torch.isinf(node.ahead(here, at).error).all())
    assert bool(torch.isinf(node.errors(here, draws(SAMPLES, 2), draws(SAMPLES, 2), at)[0]).all())
