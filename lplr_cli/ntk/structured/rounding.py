"""What bounds the rounding made in forming K from the factors (see :class:`lplr_cli.ntk.kernel.Kernel`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lplr_cli.linalg.verified import gamma
from lplr_cli.ntk.structured.factors import Form, Key, Part, Term

# Samples whose magnitudes are taken together.
_TILE = 256


@dataclass
class Rounding:
    """Length of the chains of operations behind K, and the size of what they work on.

    A chain counts a rounding for each product and each addition that an entry passes; whatever the order in which
    n products are added up, none of them passes more than n. K takes its terms one after another, and is divided by n
    at the end.

    Attributes:
        magnitude: Σ over rows i and terms of (Σ_t ||a_it|| ||b_it||)², which bounds the norm of what K would be
            with absolute values in all its sums; trace(K) (unnormalised) where each sample has one position.
        reach: at least every number that a product behind K may be multiplied with once it has underflowed: inner
            products of what parameters meet, of what comes back to them, and of gradients. Infinite beyond float64.
    """

    magnitude: float = 0.0
    reach: float = 1.0
    # The longest chain behind what each term adds to K.
    chains: dict[Key | Form | None, int] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Roundings behind an entry of K: the longest chain, an addition for each term, the division."""
        return max(self.chains.values(), default=0) + len(self.chains) + 1

    @property
    def products(self) -> int:
        """At least the number of products behind an entry of K.

        A sum of y products, each of them of two sums of at most x products, has a chain of at least x + y, and
        (x + y)² ≥ y (x + 1).
        """
        return sum(chain**2 for chain in self.chains.values())

    def add(self, terms: Mapping[Form, list[Term]]) -> None:
        """Account for all terms of some parameters on some samples, each sample once."""
        for form, chosen in terms.items():
            self.magnitude += sum(_magnitude(term) for term in chosen)
            self.reach = max([self.reach, *(reach_of(part) for term in chosen for part in term.parts)])
            if form is Form.ROWS and chosen:
                # One product for all of them: its sum runs over the columns of each.
                chain = 2 * max(term.depth for term in chosen) + sum(term.columns for term in chosen)
                self.note(form, chain)
                continue
            for term in chosen:
                explicit = form is Form.EXPLICIT
                self.note(term.key, 2 * term.depth + term.columns if explicit else term.pair_length(form))

    def add_jacobian(self, diagonal: Tensor, parameters: int) -> None:
        """Account for J Jᵀ of so many parameters, formed from J itself, with the diagonal that it has.

        However J is cut into blocks, a product passes at most one addition more than there are columns.
        """
        self.magnitude += float(diagonal.double().sum())
        self.note(None, parameters)

    def join(self, other: Rounding) -> None:
        """Take in what was accounted for on other samples."""
        self.magnitude += other.magnitude
        self.reach = max(self.reach, other.reach)
        for what, chain in other.chains.items():
            self.note(what, chain)

    def formation_error(self, rows: int, dtype: torch.dtype, samples: int) -> float:
        """Bound of the rounding of K = J Jᵀ/``samples`` (rows, rows) in operator norm, what underflows included.

        Each of the products that underflow loses at most the smallest normal number, times what it is multiplied with.
        """
        # The magnitude is itself computed in floating point: with fewer roundings than two chains have, and sums in
        # float64 besides, which are far better than a part in a thousand.
        lost = gamma(2 * self.length + 64, dtype)
        if lost >= 1:
            return math.inf
        bound = gamma(self.length, dtype) * self.magnitude / (1 - lost) / samples * 1.001
        return bound + rows * max(1, self.products) * (torch.finfo(dtype).smallest_normal * self.reach)

    def note(self, what: Key | Form | None, chain: int) -> None:
        self.chains[what] = max(chain, self.chains.get(what, 0))


def reach_of(part: Part) -> float:
    """1 + max_i ||a_i||² + max_i ||b_i||², from the largest entries, whose squares are exact enough at any size.

    By Cauchy's inequality no a·a' (to which a fused bias adds one), no b·b' and no entry of a gradient is above it.
    """
    total = 1.0
    for factor in (part.a, part.b):
        if factor is not None and factor.numel():
            largest = float(factor.abs().max())
            total += largest * largest * (factor.numel() / len(factor))
    return total * (1 + 2**-20) if not math.isnan(total) else math.inf


def _magnitude(term: Term) -> float:
    n = len(term.parts[0].b)
    tiles = (term.absolute(slice(i, min(n, i + _TILE))) for i in range(0, n, _TILE))
    return sum(float(sums.double().square().sum()) for sums in tiles)
