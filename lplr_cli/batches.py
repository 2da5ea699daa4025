"""How mini-batches are drawn: what run.json says of a run, and what the theory of their noise needs (section 13)."""

from __future__ import annotations

from dataclasses import dataclass

from lplr_cli.errors import InputError

# Epochs of a new order each, or every sample of every batch drawn anew.
RESHUFFLED, REPLACEMENT = "reshuffled", "replacement"
SAMPLINGS = (RESHUFFLED, REPLACEMENT)


@dataclass(frozen=True)
class Batches:
    """Mini-batches of a training set.

    Attributes:
        n: samples.
        size: b, of a batch; the last one of an epoch has what is left.
        sampling: one of :data:`SAMPLINGS`.

    Raises:
        InputError: no such sampling, or sizes that do not fit.
    """

    n: int
    size: int
    sampling: str = RESHUFFLED

    def __post_init__(self) -> None:
        """Refuse what draws no batches."""
        if self.sampling not in SAMPLINGS:
            raise InputError(f"sampling {self.sampling!r} is unknown", f"choose from {', '.join(SAMPLINGS)}")
        if min(self.size, self.n) < 1:
            raise InputError(f"batches of {self.size} of {self.n} samples", "give at least one of each")

    @property
    def count(self) -> int:
        """m, batches of an epoch; 1 where each is drawn by itself."""
        return 1 if self.sampling == REPLACEMENT else -(-self.n // self.size)

    @property
    def variance(self) -> float:
        """The covariance of the gradient of a whole batch in multiples of Σ."""
        if self.sampling == REPLACEMENT:
            return 1 / self.size
        return 0.0 if self.size >= self.n else (self.n / self.size - 1) / (self.n - 1)

    @property
    def neighbour_share(self) -> float:
        """The variance of a batch's gradient over half the mean square distance of two batches in a row.

        Disjoint batches of one epoch differ by more than independent ones: by Σ n/(b (n − 1)) each.
        """
        return 1.0 if self.sampling == REPLACEMENT else max(1 - self.size / self.n, 0.0)

    @property
    def last(self) -> int:
        """Samples of an epoch's last batch."""
        return self.n - (self.count - 1) * self.size
