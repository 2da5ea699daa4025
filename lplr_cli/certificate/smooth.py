"""Derivatives of smooth activations, and their suprema over intervals.

A continuous function on an interval takes its extreme values at the ends or at critical points. φ' has its critical
points at the zeros of φ'', and φ'' at those of φ''', so a handful of evaluations gives both suprema exactly:

    softplus(β)  φ' = σ(βz)                      φ'' = β σ(1 - σ)                    φ''' = 0 at 0
    tanh         φ' = 1 - t²                     φ'' = -2 t (1 - t²)                 φ''' = 0 at ±artanh(1/√3)
    gelu         φ' = Φ + z N                    φ'' = N (2 - z²)                    φ''' = 0 at 0, ±2
    silu         φ' = σ (1 + z (1 - σ))          φ'' = σ(1 - σ)(2 + z (1 - 2σ))      φ''' = 0 at 0, ±3.4358…

with σ the logistic function, t = tanh z, Φ and N the normal distribution and density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.models import SOFTPLUS_THRESHOLD

# Accuracy assumed of elementary functions, in units of u (1 + |z| + |value|); tested against 60-digit arithmetic.
ELEMENTARY_ULPS = 32


@dataclass(frozen=True)
class Smooth:
    """An activation with two bounded derivatives.

    Attributes:
        name: of the activation.
        value: φ.
        first: φ'.
        second: φ''.
        turns_first: critical points of φ'.
        turns_second: critical points of φ''.
        third: an upper bound of sup |φ'''|.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    turns_first: tuple[float, ...]
    turns_second: tuple[float, ...]
    third: float

    def sup_first(self, low: Tensor, high: Tensor) -> Tensor:
        """sup |φ'| over [low, high], entrywise."""
        return _supremum(self.first, self.turns_first, low, high)

    def sup_second(self, low: Tensor, high: Tensor) -> Tensor:
        """sup |φ''| over [low, high], entrywise."""
        return _supremum(self.second, self.turns_second, low, high)


def _supremum(f: Callable[[Tensor], Tensor], turns: tuple[float, ...], low: Tensor, high: Tensor) -> Tensor:
    best = torch.maximum(f(low).abs(), f(high).abs())
    for turn in turns:
        peak = f(low.new_tensor(turn)).abs()
        best = torch.where((low <= turn) & (turn <= high), torch.maximum(best, peak), best)
    # The turn is a rounded number: the value there errs in second order, the function in a few units of rounding.
    slack: Tensor = ELEMENTARY_ULPS * torch.finfo(low.dtype).eps * (1 + best)
    return best + slack


def _softplus(beta: float) -> Smooth:
    def second(z: Tensor) -> Tensor:
        return beta * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)

    return Smooth(
        f"softplus({beta:g})",
        lambda z: torch.nn.functional.softplus(z, beta=beta, threshold=SOFTPLUS_THRESHOLD),
        lambda z: torch.sigmoid(beta * z),
        second,
        (),
        (0.0,),
        # β² sup |σ(1 − σ)(1 − 2σ)| = β² / (6√3).
        0.0962251 * beta * beta,
    )


def _tanh() -> Smooth:
    turn = math.atanh(1 / math.sqrt(3))
    return Smooth(
        "tanh",
        torch.tanh,
        lambda z: 1 / torch.cosh(z).square(),
        lambda z: -2 * torch.tanh(z) / torch.cosh(z).square(),
        (0.0,),
        (-turn, turn),
        # 2 |1 − t²| |1 − 3t²| at t = 0.
        2.0,
    )


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _gelu() -> Smooth:
    root = math.sqrt(2)
    return Smooth(
        "gelu",
        torch.nn.functional.gelu,
        lambda z: 0.5 * torch.erfc(-z / root) + z * _density(z),
        lambda z: _density(z) * (2 - z.square()),
        (-root, root),
        (-2.0, 0.0, 2.0),
        # N |z³ − 4z| at the smaller root of z⁴ − 7z² + 4.
        0.78,
    )


def _silu() -> Smooth:
    def first(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 + z * torch.sigmoid(-z))

    def second(z: Tensor) -> Tensor:
        s, t = torch.sigmoid(z), torch.sigmoid(-z)
        return s * t * (2 + z * (t - s))

    # Zeros of 2 + z (1 - 2σ) and of 3 (1 - 2σ) + z (1 - 6σ(1 - σ)), to all digits of float64.
    first_turn, second_turn = 2.3993572805154676, 3.4358409935351107
    return Smooth(
        "silu",
        torch.nn.functional.silu,
        first,
        second,
        (-first_turn, first_turn),
        (-second_turn, 0.0, second_turn),
        # |3σ'' + zσ'''| ≤ 3/(6√3) + sup|z|σ' with σ''' = σ'(1 − 6σ(1 − σ)).
        0.52,
    )


def smooth_activation(name: str, beta: float = 1.0) -> Smooth | None:
    """The activation ``name`` with its derivatives; None for one that is not smooth (ReLU)."""
    kinds: dict[str, Callable[[], Smooth]] = {
        "softplus": lambda: _softplus(beta),
        "tanh": _tanh,
        "gelu": _gelu,
        "silu": _silu,
    }
    return kinds[name]() if name in kinds else None
