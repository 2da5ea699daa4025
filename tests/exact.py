"""Rational arithmetic for tests of proofs: floating-point numbers are rational, and so is every claim about them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

Matrix = list[list[Fraction]]


def rational(matrix: Tensor) -> Matrix:
    """The numbers of a matrix as they are."""
    return [[Fraction(float(v)) for v in row] for row in matrix]


def product(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in a]


def transpose(a: Matrix) -> Matrix:
    return [list(row) for row in zip(*a, strict=True)]


def shifted(a: Matrix, shift: Fraction, sign: int = 1) -> Matrix:
    """``sign`` · A - shift · I."""
    return [[sign * v - (shift if i == j else 0) for j, v in enumerate(row)] for i, row in enumerate(a)]


def is_semidefinite(a: Matrix) -> bool:
    """Whether a symmetric matrix has no negative eigenvalue, by elimination without rounding."""
    a = [row[:] for row in a]
    for k, row in enumerate(a):
        pivot = row[k]
        if pivot < 0 or (pivot == 0 and any(row[k:])):
            return False
        if pivot == 0:
            continue
        for lower in a[k + 1 :]:
            factor = lower[k] / pivot
            for j in range(k, len(a)):
                lower[j] -= factor * row[j]
    return True


def square_sum(values: Sequence[Fraction]) -> Fraction:
    return sum((v * v for v in values), Fraction(0))
