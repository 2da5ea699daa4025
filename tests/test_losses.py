"""Losses against torch's own, their derivatives against autograd, and their constants against a search."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.losses import LOSSES, Loss


def example(name: str, n: int = 6, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    y = torch.rand(n, c, generator=generator, dtype=torch.float64)
    return f, y / y.sum(dim=1, keepdim=True) if name == "cross-entropy" else y


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_values_and_derivatives(name: str, scale: float) -> None:
    f, y = example(name)
    loss = Loss(name, scale)
    theirs = {
        "squared": lambda: nn.MSELoss()(f, y) * 3,
        "cross-entropy": lambda: nn.CrossEntropyLoss()(f, y),
        "bce": lambda: nn.BCEWithLogitsLoss()(f, y) * 3,
    }[name]()
    assert float(loss.total(f, y, len(f))) == pytest.approx(scale * float(theirs), rel=1e-14)
    assert float(loss.values(f, y).mean()) == pytest.approx(scale * float(theirs), rel=1e-14)
    gradient = torch.func.vmap(torch.func.grad(lambda a, b: loss.values(a[None], b[None])[0]))(f, y)
    torch.testing.assert_close(loss.gradients(f, y), gradient)
    hessian = torch.func.vmap(torch.func.hessian(lambda a, b: loss.values(a[None], b[None])[0]))(f, y)
    v = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(loss.hessian_products(f, v), (hessian @ v[:, :, None])[:, :, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_constants_hold_and_are_near(name: str) -> None:
    loss = Loss(name, 2.0)
    c = 2 if name == "cross-entropy" else 1

    def hessians(f: Tensor) -> Tensor:
        columns = [loss.hessian_products(f, torch.eye(c, dtype=f.dtype)[k].expand_as(f)) for k in range(c)]
        return torch.stack(columns, dim=2)

    f = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    f = torch.cat([f, torch.zeros_like(f)], dim=1)[:, :c]
    norms = torch.linalg.matrix_norm(hessians(f), ord=2)
    assert 0.99 * loss.smoothness <= float(norms.max()) <= loss.smoothness * (1 + 1e-12)
    step = 1e-4
    change = torch.linalg.matrix_norm(hessians(f + torch.tensor([step, 0.0])[:c]) - hessians(f), ord=2) / step
    assert float(change.max()) <= loss.hessian_lipschitz * (1 + 1e-9) + 1e-9
    y = torch.zeros_like(f)
    y[:, -1] = 1.0
    top = float(torch.linalg.vector_norm(loss.gradients(30 * f, y), dim=1).max())
    assert top <= loss.gradient_bound(c)
    assert name == "squared" or top >= 0.99 * loss.gradient_bound(c)


def test_random_directions_never_exceed_the_constants() -> None:
    """Many classes, where the sharpest direction is not that of two."""
    loss = Loss("cross-entropy")
    generator = torch.Generator().manual_seed(1)
    f = 3 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    u, v = (torch.randn(20000, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    u, v = (t / torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (u, v))
    assert float((loss.hessian_products(f, v) * v).sum(dim=1).max()) <= loss.smoothness
    change = (loss.hessian_products(f + 1e-3 * u, v) - loss.hessian_products(f, v)) / 1e-3
    assert float(torch.linalg.vector_norm(change, dim=1).max()) <= loss.hessian_lipschitz


def test_accuracy() -> None:
    f = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert Loss("cross-entropy").accuracy(f, y) == pytest.approx(2 / 3)
    assert Loss("bce").accuracy(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])) == 0.5


def test_refusals() -> None:
    with pytest.raises(InputError, match="unknown"):
        Loss("hinge")
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="scale"):
            Loss("squared", scale)
