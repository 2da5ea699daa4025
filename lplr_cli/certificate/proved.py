"""What is proved on one ball, whatever the network, and when sharp bounds are worth more than cheap ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.errors import InputError

METHODS = ("auto", "tight", "fast")
# ``auto`` tries both on a few samples; sharp bounds are worth their price where cheap ones lose more than a factor.
TRIED, WORTH = 4, 4.0


@dataclass(frozen=True, kw_only=True)
class Proved:
    """Bounds on one ball.

    Attributes:
        radius: R.
        hessians: h_ic ≥ sup ||∇²f_ic||_op, (n, C).
        thirds: Lipschitz constants of ∇²f_ic on the ball, (n, C).
        gradients: ≥ sup ||∇f_ic||, (n, C).
        f_reach: ≥ sup |f − f̂(θ_0)|, (n, C).
        jacobians: ≥ sup ||J_i||_op, (n,), J_i being the Jacobian of sample i.
        l_j: L_J with ||J̃(θ) − J̃(θ')||_op ≤ L_J ||θ − θ'|| on the ball; infinite beyond float64.
    """

    radius: float
    hessians: Tensor
    thirds: Tensor
    gradients: Tensor
    f_reach: Tensor
    jacobians: Tensor
    l_j: float


def check_method(method: str) -> None:
    """Refuse a method that is none.

    Raises:
        InputError: it is unknown.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown", f"choose from {', '.join(METHODS)}")


def check_radius(radius: float) -> None:
    """Refuse what is no radius of a ball.

    Raises:
        InputError: it is negative or not finite.
    """
    if not 0 <= radius < math.inf:
        raise InputError(f"radius {radius} is not finite and non-negative", "give a radius of at least 0")


def pays(cheap: Tensor, sharp: Tensor, *, factor: float = WORTH) -> bool:
    """Whether the cheap bounds of what was tried lose more than a factor anywhere against the sharp ones."""
    return bool((cheap > factor * sharp).any())


def finite(t: Tensor) -> Tensor:
    """The bounds where float64 holds them, infinity where not."""
    return torch.nan_to_num(t, nan=math.inf, posinf=math.inf)
