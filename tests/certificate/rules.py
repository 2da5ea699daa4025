"""How a rule of a graph is held against its formula: random bounds that come in, and every method of a node.

Roundings are so large that each of them shows, with the count that it has: γ(k) is 1e-4 k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.certificate.graph import attention, nodes, norms, tables, times, weighted
from lplr_cli.certificate.graph.nodes import Node
from lplr_cli.certificate.graph.state import Ahead, Behind, Here, Tangent

Vector = NDArray[np.float64]
EPS, ELEMENTARY = 1e-3, 2e-3
SAMPLES, OUTPUTS, BLOCKS = 4, 2, 3
RADII = [0.0, 0.02, 3.0]


def gamma(count: int) -> float:
    """In the place of γ."""
    return 1e-4 * count


def enlarge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roundings of all operations."""
    for module in (nodes, attention, times, weighted, tables, norms):
        for name, value in (("EPS", EPS), ("ELEMENTARY", ELEMENTARY), ("gamma", lambda count, dtype: gamma(count))):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(norms, "ROUNDED", 1e9)


class Draws:
    """Random numbers between 0.1 and 1.1."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=torch.float64) + 0.1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def ahead(self) -> Ahead:
        n, k = SAMPLES, BLOCKS
        return Ahead(self(n), 0.1 * self(n), self(n, k), self(n, k), self(n), self(n, k))

    def behind(self) -> Behind:
        n, c, k = SAMPLES, OUTPUTS, BLOCKS
        return Behind(self(n, c), 0.1 * self(n, c), self(n, c, k))

    def tangent(self) -> Tangent:
        return Tangent(*(self(SAMPLES, BLOCKS) for _ in range(3)))

    def here(self, radius: float, of_input: Sequence[str] = (), of_both: Sequence[str] = ()) -> Here:
        measured = {key: self(SAMPLES) for key in of_input} | {key: self(SAMPLES, OUTPUTS) for key in of_both}
        return Here(radius, measured, {})


@dataclass
class At:
    """One sample of what comes in: d_p, r_p, s, e, and what follows from them on a ball."""

    size: float
    e: float
    d: Vector
    r: Vector
    s: float
    drift: Vector
    radius: float

    @property
    def all_d(self) -> float:
        return math.sqrt((self.d**2).sum())

    @property
    def all_r(self) -> float:
        return math.sqrt((self.r**2).sum())

    @property
    def reach(self) -> float:
        return self.radius * self.all_d + self.e

    @property
    def entry(self) -> float:
        return self.radius * self.all_r + self.e


@dataclass
class Adjoint:
    """One sample and output of λ."""

    size: float
    e: float
    ell: Vector
    radius: float

    @property
    def norm(self) -> float:
        return math.sqrt((self.ell**2).sum())

    @property
    def delta(self) -> float:
        return self.radius * self.norm + self.e


def sample(ahead: Ahead, i: int, radius: float) -> At:
    return At(
        float(ahead.size[i]), float(ahead.error[i]), ahead.blocks[i].numpy(), ahead.rows[i].numpy(),
        float(ahead.second[i]), ahead.drift[i].numpy(), radius,
    )  # fmt: skip


def adjoint(behind: Behind, i: int, c: int, radius: float) -> Adjoint:
    return Adjoint(float(behind.size[i, c]), float(behind.error[i, c]), behind.blocks[i, c].numpy(), radius)


def close(found: Any, exact: Any) -> bool:
    """Not below, and above by the margins of 1e-8 of a few steps."""
    a, b = np.asarray(found, dtype=float), np.asarray(exact, dtype=float)
    return a.shape == b.shape and bool((a >= b * (1 - 1e-13)).all()) and bool((a <= b * (1 + 3e-7) + 1e-130).all())


def between(
    norm: float, moved: float, rounding: float, a: tuple[At, Tangent], b: tuple[At, Tangent], i: int
) -> NDArray[np.float64]:
    """What the block of two tangents can differ by, in the mean with its transpose."""
    x_size, x_frobenius, x_rest = (t[i].numpy() for t in (a[1].size, a[1].frobenius, a[1].rest))
    y_size, y_frobenius, y_rest = (t[i].numpy() for t in (b[1].size, b[1].frobenius, b[1].rest))
    found = np.zeros((BLOCKS, BLOCKS))
    for p in range(BLOCKS):
        for q in range(BLOCKS):
            whole = min(b[0].d[q], y_size[q] + y_rest[q])
            found[p, q] = norm * (x_rest[p] * whole + x_size[p] * y_rest[q])
            found[p, q] += moved * x_size[p] * y_size[q] + rounding * x_frobenius[p] * y_frobenius[q]
    return (found + found.T) / 2


@dataclass
class Rule:
    """What a rule should give for one sample: functions of it, of λ and of what else is handed in."""

    ahead: Callable[[int, list[At]], tuple[float, float, Vector, Vector, float, Vector]]
    behind: Callable[[int, int, Adjoint, list[At]], list[tuple[float, Vector]]]
    errors: Callable[[int, int, float, float, list[At]], list[float]]
    push_error: Callable[[int, float, float, list[At]], float] | None
    form: Callable[[int, int, Adjoint, list[At]], tuple[NDArray[np.float64], float]] | None = None
    spread: Callable[[int, int, Adjoint, list[At], list[Tangent]], NDArray[np.float64]] | None = None


def check(node: Node, here: Here, rule: Rule, below: list[Ahead], draws: Draws) -> None:
    """Every method of a node against its rule, for every sample and output."""
    above, tangents = draws.behind(), [draws.tangent() for _ in below]
    size, error = draws(SAMPLES, OUTPUTS), 0.1 * draws(SAMPLES, OUTPUTS)
    up, down = node.ahead(here, *below), node.behind(here, above, *below)
    errors = node.errors(here, size, error, *below)
    form, spread = node.form(here, above, *below), node.spread(here, above, below, tangents)
    assert (form is None) == (rule.form is None)
    assert (spread is None) == (rule.spread is None)
    pushed = None if rule.push_error is None else node.push_error(here, size[:, 0], error[:, 0], *below)
    for i in range(SAMPLES):
        t = [sample(b, i, here.radius) for b in below]
        given = (up.size[i], up.error[i], up.blocks[i], up.rows[i], up.second[i], up.drift[i])
        for name, found, exact in zip(Ahead.__dataclass_fields__, given, rule.ahead(i, t), strict=True):
            assert close(found, exact), name
        if pushed is not None and rule.push_error is not None:
            assert close(pushed[i], rule.push_error(i, float(size[i, 0]), float(error[i, 0]), t)), "push_error"
        for c in range(OUTPUTS):
            at = adjoint(above, i, c, here.radius)
            for (lam, turn), (exact_lam, exact_turn) in zip(down, rule.behind(i, c, at, t), strict=True):
                assert close(lam[i, c], exact_lam), "adjoint"
                assert close(turn[i, c], exact_turn), "turn"
            wrong = rule.errors(i, c, float(size[i, c]), float(error[i, c]), t)
            assert all(close(e[i, c], exact) for e, exact in zip(errors, wrong, strict=True)), "errors"
            if form is not None and rule.form is not None:
                matrix, third = rule.form(i, c, at, t)
                assert close(form.matrix[i, c], matrix), "form"
                assert close(form.third[i, c], third), "third"
            if spread is not None and rule.spread is not None:
                assert close(spread[i, c], rule.spread(i, c, at, t, tangents)), "spread"


def rule_of(r: Any) -> Rule:
    """The methods of an operation that is written once more."""
    return Rule(r.ahead, r.behind, r.errors, r.push_error, r.form, r.spread)


def outer(a: Vector, b: Vector) -> NDArray[np.float64]:
    return np.outer(a, b) + np.outer(b, a)
