"""The largest curvature at which an optimiser is stable on a quadratic, and the curvature that it sees (theory.md
section 13; Cohen et al. 2021, 2022).

    gradient descent                  2/η
    heavy ball                        (2 + 2β)/η
    heavy ball, dampening τ           (2 + 2β)/((1 − τ)η)
    Nesterov                          (2 + 2β)/((1 + 2β)η)
    Adam (momentum averaged: τ = β₁)  (2 + 2β₁)/((1 − β₁)η), of the preconditioned Hessian
    decoupled weight decay w          (2 − ηw)(1 + β)/((1 − τ)η)
    coupled weight decay w            w less, as it adds to the curvature

For Adam the curvature is that of P^(−½) H P^(−½), P = √v̂ + ε: exact for a frozen P, an indicator for a moving one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class StepRule:
    """One step of an optimiser, in torch's conventions.

    Attributes:
        lr: η.
        momentum: β; of Adam β₁.
        dampening: τ; of Adam β₁, as its momentum is an average.
        nesterov: whether the momentum is Nesterov's.
        adaptive: whether the step is divided by √v̂ + ε.
        weight_decay: w.
        decoupled: whether the decay acts on the parameters (AdamW) and not through the gradient.

    Raises:
        InputError: a step size that is not positive, or a momentum outside [0, 1).
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    adaptive: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        """Refuse what no optimiser takes."""
        if not 0 < self.lr < float("inf"):
            raise InputError(f"step size {self.lr} is none", "give a positive number")
        if not 0 <= self.momentum < 1 or not 0 <= self.dampening < 1:
            raise InputError(f"momentum {self.momentum}, dampening {self.dampening}", "give numbers from 0 to below 1")

    @property
    def threshold(self) -> float | None:
        """The curvature above which a quadratic diverges; None for a rule that has no formula here.

        That is Nesterov's momentum with dampening or decoupled decay.
        """
        decay = self.weight_decay if self.decoupled else 0.0
        if self.nesterov:
            if self.dampening or decay:
                return None
            largest = (2 + 2 * self.momentum) / ((1 + 2 * self.momentum) * self.lr)
        else:
            largest = (2 - self.lr * decay) * (1 + self.momentum) / ((1 - self.dampening) * self.lr)
        return largest - (0.0 if self.decoupled else self.weight_decay)


def preconditioned(
    product: Callable[[Vector], Vector], second_moments: Vector, epsilon: float
) -> Callable[[Vector], Vector]:
    """v → P^(−½) H P^(−½) v with P = √v̂ + ε.

    Args:
        product: v → H v.
        second_moments: v̂ (P,), corrected for its start at zero: exp_avg_sq/(1 − β₂^t).
        epsilon: ε > 0, or zero where all moments are positive.

    Raises:
        InputError: negative moments, or a P that is not positive.
    """
    if (second_moments < 0).any() or not np.isfinite(second_moments).all():
        raise InputError("second moments that are negative or not finite", "they belong to another optimiser")
    scale = np.sqrt(second_moments) + epsilon
    if not (scale > 0).all():
        raise InputError("second moments of zero without an epsilon", "give the optimiser's epsilon")
    root = 1 / np.sqrt(scale)
    return lambda v: root * product(root * v)
