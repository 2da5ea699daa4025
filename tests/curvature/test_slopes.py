"""Activations that keep their derivatives, against torch's own derivatives of any order that products need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lplr_cli.curvature.slopes import KeptSlopes

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": lambda z: functional.softplus(z, beta=2.0, threshold=3.0),
    "gelu": functional.gelu,
    "gelu-tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": torch.nn.SiLU(),
    "mish": functional.mish,
    "elu": lambda z: functional.elu(z, 0.7),
    "selu": functional.selu,
    "celu": functional.celu,
    "logsigmoid": functional.logsigmoid,
    "tanh": torch.tanh,
    "method": lambda z: z.sigmoid(),
}


def products(activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Value, gradient, and the products of the Hessian with two vectors of a function in which z enters twice."""
    random = torch.Generator().manual_seed(0)
    z = (2 * torch.randn(6, 4, generator=random, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(4, 4, generator=random, dtype=torch.float64)
    vectors = torch.randn(2, 6, 4, generator=random, dtype=torch.float64)
    value = (activation(activation(z) @ weight) * z).square().sum()
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    images = [torch.autograd.grad(gradient, z, v, retain_graph=True)[0] for v in vectors]
    return [value.detach(), gradient.detach(), *images]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_those_of_torch(name: str) -> None:
    activation, taken = ACTIVATIONS[name], []
    with KeptSlopes():
        found = products(activation)
        taken.append(activation(torch.zeros(1, requires_grad=True)))
    for one, other in zip(found, products(activation), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    assert taken[0].grad_fn is not None
    assert taken[0].grad_fn.name() == "_ActivationBackward"


def test_what_it_leaves_alone() -> None:
    z = torch.ones(3, requires_grad=True)
    with KeptSlopes():
        left = [functional.relu(z), functional.elu(z + 1, inplace=True), torch.tanh(z.detach())]
        inside = torch.func.grad(lambda p: torch.tanh(p).sum())(torch.ones(3))
    assert not any("_Activation" in str(t.grad_fn) for t in left)
    torch.testing.assert_close(inside, 1 - torch.tanh(torch.ones(3)) ** 2)


def test_a_third_derivative_is_refused_and_not_wrong() -> None:
    z = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with KeptSlopes():
        (first,) = torch.autograd.grad(torch.tanh(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(second.sum(), z)
