"""What a kernel that stays as it is predicts of a run (theory.md section 11).

For L = (s/n)||f − y||² and a network that is linear in θ, J = J_0, the residual r̃ = (f − y)/√n obeys under gradient
descent with steps η_t and heavy-ball momentum m (torch's: v ← m v + ∇L, θ ← θ − η v)

    u_t = m u_{t−1} + 2s K r̃_t,    r̃_{t+1} = r̃_t − η_t u_t,    u = J̃v

which falls apart along the eigenvectors of K: without momentum L_t = s Σ_j ĉ_j² Π_{i<t} (1 − 2sη_i λ_j)². For a network
it is the lazy approximation; how far the measured loss is from it tells how lazy the run was. All of it estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lplr_cli.errors import InputError, NumericalError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
# A loss below this part of the first is rounding.
_ROUNDING = 1e-24


@dataclass(frozen=True)
class Modes:
    """The eigendecomposition of K and the residual in it.

    Attributes:
        eigenvalues: of K (N,), descending; what rounding made negative is zero.
        vectors: (N, N), a column an eigenvector.
        residual: coordinates ĉ of r̃ (N,).
        samples: n.
    """

    eigenvalues: Vector
    vectors: Matrix
    residual: Vector
    samples: int

    @classmethod
    def of(cls, kernel: ArrayLike, residual: ArrayLike, samples: int) -> Modes:
        """From K = J Jᵀ/n over all outputs (N, N) and the residual f − y (N,), N = nC.

        Raises:
            InputError: shapes that do not fit.
            NumericalError: no convergence, or entries that are not finite.
        """
        matrix, r = np.asarray(kernel, dtype=np.float64), np.asarray(residual, dtype=np.float64).reshape(-1)
        if matrix.shape != (len(r), len(r)):
            raise InputError(f"a kernel of shape {matrix.shape} for {len(r)} residuals", "give both over all outputs")
        if not (np.isfinite(matrix).all() and np.isfinite(r).all()):
            raise NumericalError("the kernel or the residual is not finite", "check the checkpoint and the data")
        try:
            values, vectors = np.linalg.eigh(matrix)
        except np.linalg.LinAlgError as error:
            raise NumericalError(f"eigenvalues did not converge ({error})", "check the kernel") from error
        ordered = np.ascontiguousarray(vectors[:, ::-1])
        return cls(np.maximum(values[::-1], 0.0), ordered, ordered.T @ r / math.sqrt(samples), samples)

    @property
    def energy(self) -> float:
        """||r̃||²."""
        return float(self.residual @ self.residual)

    @property
    def share(self) -> Vector:
        """The share of ||r̃||² along each eigenvector (N,), zero where there is no residual."""
        return self.residual**2 / self.energy if self.energy > 0 else np.zeros_like(self.residual)

    @property
    def alignment(self) -> float | None:
        """Kernel-target alignment r̃ᵀK r̃/(||K||_F ||r̃||²), in [0, 1]; None without residual or kernel."""
        norm = float(np.linalg.norm(self.eigenvalues))
        return float(self.eigenvalues @ self.share) / norm if norm > 0 and self.energy > 0 else None

    @property
    def participation(self) -> float | None:
        """(tr K)²/||K||_F², the number of directions that K spreads over, in [1, N]."""
        square = float(self.eigenvalues @ self.eigenvalues)
        return float(self.eigenvalues.sum()) ** 2 / square if square > 0 else None

    def directions(self, part: float = 0.9) -> int:
        """The fewest eigenvectors that together hold ``part`` of ||r̃||²."""
        held = np.cumsum(np.sort(self.share)[::-1])
        return min(int(np.searchsorted(held, part * held[-1])) + 1, len(held))


@dataclass(frozen=True)
class Linearised:
    """The run that the modes predict.

    Attributes:
        modes: K and the residual at the start.
        scale: s.
        momentum: m.
        velocity: coordinates of u = J̃v of the momentum at the start (N,); zero by default.
    """

    modes: Modes
    scale: float = 1.0
    momentum: float = 0.0
    velocity: Vector | None = None

    def losses(self, steps: ArrayLike) -> Vector:
        """L_0, …, L_T for the step sizes η_0, …, η_{T−1} (T,); infinite where the prediction leaves the numbers."""
        walked = [self.modes.residual, *(c for c, _ in self._walk(steps))]
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.array([self.scale * float(c @ c) for c in walked])
        return np.where(np.isfinite(found), found, np.inf)

    def residual(self, steps: ArrayLike) -> Vector:
        """f − y after the given steps (N,)."""
        last = self.modes.residual
        for coordinates, _ in self._walk(steps):
            last = coordinates
        return math.sqrt(self.modes.samples) * (self.modes.vectors @ last)

    def outputs(self, steps: ArrayLike, cross: ArrayLike, start: ArrayLike) -> Vector:
        """Outputs of the linearised network on other inputs after the given steps (M,).

        Args:
            steps: η_0, …, η_{T−1} (T,).
            cross: J(others) J(inputs)ᵀ (M, N), not normalised, as of :func:`lplr_cli.ntk.cross_ntk`.
            start: outputs on the others at the start (M,).

        Raises:
            InputError: a momentum that has begun: what it does to the others is not known.
        """
        if self.velocity is not None and self.velocity.any():
            raise InputError("the prediction begins with momentum", "begin at the first step")
        moved = np.zeros_like(self.modes.residual)
        for _, displaced in self._walk(steps):
            moved = displaced
        along = np.asarray(cross, dtype=np.float64) @ (self.modes.vectors @ moved)
        before: Vector = np.asarray(start, dtype=np.float64).reshape(-1)
        return before - along / math.sqrt(self.modes.samples)

    def factors(self, step: float) -> Vector:
        """What a step of η leaves of each direction's share of the loss, to (1 − 2sηλ_j)² (N,), or with momentum the
        square of the recursion's spectral radius: above 1 the direction diverges.
        """
        pull = 2 * self.scale * step * self.modes.eigenvalues
        # c_{t+1} = (1 + m − pull) c_t − m c_{t−1}.
        trace, m = 1 + self.momentum - pull, self.momentum
        root = np.sqrt((trace**2 - 4 * m).astype(np.complex128))
        radius: Vector = np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2
        return radius**2

    def _walk(self, steps: ArrayLike) -> Iterator[tuple[Vector, Vector]]:
        """After each step the coordinates of r̃, and Σ_i η_i Σ_{k≤i} m^{i−k} 2s ĉ_k, the way made."""
        coordinates = self.modes.residual
        pull = np.zeros_like(coordinates)
        drive = pull if self.velocity is None else self.velocity
        moved = np.zeros_like(coordinates)
        for eta in np.asarray(steps, dtype=np.float64).reshape(-1):
            with np.errstate(over="ignore", invalid="ignore"):
                slope = 2 * self.scale * coordinates
                pull = self.momentum * pull + slope
                drive = self.momentum * drive + self.modes.eigenvalues * slope
                coordinates, moved = coordinates - eta * drive, moved + eta * pull
            yield coordinates, moved


def laziness_error(measured: ArrayLike, predicted: ArrayLike) -> float | None:
    """The largest |log L_pred − log L| (theory.md section 11), over the steps where both are known and above rounding.

    Args:
        measured: L_t, NaN where it is not known.
        predicted: of the same steps.

    Returns:
        None where nothing can be compared; infinite where the prediction diverges and the run does not.
    """
    one, two = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    known = np.isfinite(one) & (one > 0) & ~np.isnan(two)
    if not known.any():
        return None
    first = one[known][0]
    kept = known & (np.maximum(one, two) > _ROUNDING * first)
    with np.errstate(divide="ignore"):
        away = np.abs(np.log(one[kept]) - np.log(np.maximum(two[kept], _ROUNDING * first)))
    return float(away.max()) if len(away) else None
