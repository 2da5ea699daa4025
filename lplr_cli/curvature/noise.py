"""The noise of mini-batch gradients, and the loss that it keeps a run from going below (theory.md section 13).

    Σ = (1/n) Σ_i (g_i − ∇L)(g_i − ∇L)ᵀ,  g_i = ∇ℓ_i

Means over disjoint random batches of sizes p_k have Cov(ξ_k, ξ_l) = Σ/(n − 1) (n δ_kl/p_k − 1). On a quadratic with
curvature λ an optimiser of one momentum is the recursion z ← M z + N ξ of z = (x, v), whose stationary covariance is
computed exactly, eigendirection by eigendirection, for the batches that a run draws.

Batches differ in their curvature, too. Drawn anew at every step that is in Σ, taken where the run is; over a reshuffled
epoch, whose gradients cancel, it counts for itself, and epochs of the linearised run are gone through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.batches import REPLACEMENT, Batches
from lplr_cli.curvature.density import Quadrature
from lplr_cli.curvature.products import DEFAULT_MEMORY, LossCurvature, PerSample
from lplr_cli.curvature.stability import StepRule
from lplr_cli.linalg.lanczos import tridiagonalise
from lplr_cli.ntk.network import Network, evaluation_mode

Vector = NDArray[np.float64]

# Where the loss is read: of all data at the ends of epochs or at every step, or of each batch before its own update.
EPOCHS, STEPS, OWN_BATCH = "epochs", "steps", "own-batch"
# Random vectors with covariance Σ, and products with the Hessian for each.
_VECTORS, _PRODUCTS = 10, 8
# Steps that linearised epochs may take together, and the fewest and most of them.
_STEPS, _FEWEST, _MOST = 400, 4, 10
# Samples in one pass, which bounds the memory.
_MICRO_BATCH = 1024


def excess(
    curvature: Vector, rule: StepRule, batches: Batches, *, at: str = EPOCHS, steps: float = math.inf
) -> Vector | None:
    """E[L − L*] of a quadratic for noise of one unit of variance in each eigendirection, (k,).

    Multiplied by the eigendirection's part of Σ and summed, the floor of the loss. Directions that do not curve
    upwards add nothing, as no run waits for them; one beyond the threshold of stability has an infinite floor. Coupled
    weight decay w holds a direction with λ + w; L* is then the loss of the run's limit without noise, and where
    λ < 0 < λ + w the noise lowers L.

    Args:
        curvature: λ (k,).
        rule: of plain or momentum descent, with or without coupled weight decay.
        batches: how they are drawn.
        at: where the loss is read.
        steps: that the noise has had to gather; of epochs, whole ones.

    Returns:
        None for a rule that is not linear in the gradient with a fixed matrix: Adam, or decay apart from the gradient.
    """
    return _by_direction(_excess, curvature, rule, batches, at, steps)


Formula = Callable[[Vector, StepRule, Batches, str, float], Vector]


def _by_direction(
    formula: Formula, curvature: Vector, rule: StepRule, batches: Batches, at: str, steps: float
) -> Vector | None:
    """A formula where it holds, 0 where nothing holds a direction, infinity beyond the threshold of stability."""
    threshold = rule.threshold
    if rule.adaptive or (rule.decoupled and rule.weight_decay) or threshold is None:
        return None
    used = (curvature + rule.weight_decay > 0) & (curvature < threshold)
    values = formula(curvature[used], rule, batches, at, steps)
    found = np.zeros((len(curvature), *values.shape[1:]))
    found[curvature >= threshold] = math.inf
    found[used] = values
    return found


def _excess(curvature: Vector, rule: StepRule, batches: Batches, at: str, steps: float) -> Vector:
    if not batches.variance:
        return np.zeros(len(curvature))
    move, push = _recursion(curvature, rule)
    gathered = _epoch(move, push, batches)[1]
    ends = (gathered * _lasting(curvature, rule, batches, at, steps)).sum(axis=(1, 2))
    return np.asarray(np.where(ends * curvature > 0, ends, 0.0) + _within(curvature, rule, batches, at))


def _recursion(curvature: Vector, rule: StepRule) -> tuple[Vector, Vector]:
    """M (k, 2, 2) and N (2,) of z ← M z + N ξ, z = (x, v), in torch's convention; coupled decay adds to λ."""
    stiffness = curvature + rule.weight_decay
    beta, kept = rule.momentum, 1 - rule.dampening
    # v ← β v + kept g; x ← x − η d, with d = v, or for Nesterov d = g + β v.
    of_gradient = 1 + beta * kept if rule.nesterov else kept
    of_velocity = beta * beta if rule.nesterov else beta
    move = np.empty((len(curvature), 2, 2))
    move[:, 0, 0] = 1 - rule.lr * of_gradient * stiffness
    move[:, 0, 1] = -rule.lr * of_velocity
    move[:, 1, 0] = kept * stiffness
    move[:, 1, 1] = beta
    return move, np.array([-rule.lr * of_gradient, kept])


def _epoch(move: Vector, push: Vector, batches: Batches) -> tuple[Vector, Vector]:
    """M^m, and the covariance that the noise of an epoch has gathered at its end (k, 2, 2)."""
    if batches.sampling == REPLACEMENT:
        return move, np.broadcast_to(np.outer(push, push) / batches.size, move.shape)
    one, square, total = _sums(move, push, batches.count - 1)
    # The last batch has another size, and acts without having been moved.
    first, first_total = move @ square @ move.transpose(0, 2, 1), (move @ total[..., None])[..., 0] + push
    spread = batches.n * (first / batches.size + np.outer(push, push) / batches.last)
    return move @ one, (spread - first_total[:, :, None] * first_total[:, None, :]) / max(batches.n - 1, 1)


def _sums(move: Vector, push: Vector, count: int) -> tuple[Vector, Vector, Vector]:
    """M^j, Σ_{i<j} M^i N Nᵀ M^iᵀ and Σ_{i<j} M^i N for j = ``count``, by doubling."""
    k = len(move)
    power, square, total = np.broadcast_to(np.eye(2), (k, 2, 2)), np.zeros((k, 2, 2)), np.zeros((k, 2))
    for digit in bin(count)[2:]:
        square = square + power @ square @ power.transpose(0, 2, 1)
        total = total + (power @ total[..., None])[..., 0]
        power = power @ power
        if digit == "1":
            square = np.outer(push, push) + move @ square @ move.transpose(0, 2, 1)
            total = push + (move @ total[..., None])[..., 0]
            power = move @ power
    return power, square, total


def _lasting(curvature: Vector, rule: StepRule, batches: Batches, at: str, steps: float) -> Vector:
    """Ψ (k, 2, 2): what covariance Q of (x, v), added at the end of every epoch, keeps up in E[L − L*] is tr QΨ.

    With A = M^m and ½λ the loss of a unit of x, Ψ = AᵀΨA + ½λ e eᵀ, e = (1, 0); for losses at every step with the mean
    over an epoch's steps in place of ½λ e eᵀ. After few epochs E it is Ψ − A^EᵀΨA^E.
    """
    move, _ = _recursion(curvature, rule)
    loss = np.zeros_like(move)
    loss[:, 0, 0] = 0.5 * curvature
    epoch = np.linalg.matrix_power(move, batches.count)
    if at != EPOCHS and batches.count > 1:
        loss = _mean_along(move, loss, batches.count)
    k = len(move)
    kron = np.einsum("kba,kdc->kacbd", epoch, epoch).reshape(k, 4, 4)
    lasting = np.linalg.solve(np.eye(4) - kron, loss.reshape(k, 4)[..., None]).reshape(k, 2, 2)
    if math.isfinite(steps):
        rest = np.linalg.matrix_power(epoch, max(int(steps) // batches.count, 1))
        lasting = lasting - rest.transpose(0, 2, 1) @ lasting @ rest
    return np.asarray(lasting)


def _mean_along(move: Vector, loss: Vector, count: int) -> Vector:
    """(1/m) Σ_{j<m} M^jᵀ loss M^j."""
    total, moved = np.zeros_like(loss), loss
    for _ in range(count):
        total = total + moved
        moved = move.transpose(0, 2, 1) @ moved @ move
    return np.asarray(total / count)


def _within(curvature: Vector, rule: StepRule, batches: Batches, at: str) -> Vector:
    """What the noise of an epoch adds to the mean loss of its own steps, for one unit of variance, (k,)."""
    if at == EPOCHS or batches.count == 1:
        # A fresh batch knows nothing of x: its own loss is that of all data in the mean.
        return np.zeros(len(curvature))
    move, push = _recursion(curvature, rule)
    k, n = len(move), batches.n
    square, total, noise = np.zeros((k, 2, 2)), np.zeros((k, 2)), np.outer(push, push)
    mean, together = np.zeros(k), np.zeros(k)
    for _ in range(batches.count):
        mean += (n / batches.size * square[:, 0, 0] - total[:, 0] ** 2) / (n - 1)
        together -= total[:, 0] / (n - 1)
        square = noise + move @ square @ move.transpose(0, 2, 1)
        total = push + (move @ total[..., None])[..., 0]
    own = together if at == OWN_BATCH else 0.0
    return np.asarray((0.5 * curvature * mean + own) / batches.count)


@dataclass(frozen=True)
class NoiseSpectrum:
    """Σ in the eigenbasis of the Hessian, as some random vectors z of covariance Σ see it.

    Attributes:
        samples: for each z its squared length and its spectral quadrature.
    """

    samples: tuple[tuple[float, Quadrature], ...]

    @property
    def trace(self) -> float:
        """tr Σ, an estimate."""
        return float(np.mean([square for square, _ in self.samples]))

    def mean(self, each: Callable[[Vector], Vector]) -> float:
        """E zᵀ φ(H) z = tr Σ φ(H)."""
        return float(np.mean([_quadratic(square, q, each) for square, q in self.samples]))

    def additive_floor(
        self, rule: StepRule, batches: Batches, *, at: str = EPOCHS, steps: float = math.inf
    ) -> float | None:
        """E[L − L*] by :func:`excess`, as if all batches had one curvature; None where no formula is known."""
        if excess(np.ones(1), rule, batches, at=at) is None:
            return None
        return self.mean(lambda nodes: _known(excess(nodes, rule, batches, at=at, steps=steps)))


def _known(values: Vector | None) -> Vector:
    assert values is not None
    return values


def _quadratic(square: float, quadrature: Quadrature, each: Callable[[Vector], Vector]) -> float:
    """vᵀ φ(H) v. A node of no weight beyond the threshold is rounding."""
    seen = quadrature.weights > 1e-12
    return square * float(quadrature.weights[seen] @ each(quadrature.nodes)[seen])


class GradientNoise:
    """The noise of mini-batches at one θ: its size, and the floor that it gives to a run that stays near θ.

    Args:
        network: f and θ.
        inputs: (n, …), n ≥ 2.
        targets: (n, C), or what ``loss`` takes.
        loss: values of the samples, as for :class:`lplr_cli.curvature.LossCurvature`.
        products: with the Hessian for each random vector.
        memory: bytes for graphs.
        seed: of the vectors.

    Raises:
        InputError: as :class:`lplr_cli.curvature.LossCurvature`.
    """

    def __init__(
        self,
        network: Network,
        inputs: Tensor,
        targets: Tensor,
        loss: PerSample,
        *,
        products: int = _PRODUCTS,
        memory: int = DEFAULT_MEMORY,
        seed: int = 0,
    ) -> None:
        self._network, self._loss, self._products = network, loss, products
        self._leaves = list(network.params.values())
        self._x = network.cast(inputs)
        self._y = targets.to(network.device, network.dtype if targets.is_floating_point() else targets.dtype)
        self._curvature = LossCurvature(network, inputs, targets, loss, memory=memory)
        self._random = np.random.default_rng(seed)

    def spectrum(self, vectors: int = _VECTORS) -> NoiseSpectrum:
        """Σ as the Hessian sees it."""
        return NoiseSpectrum(tuple(self._seen(self._draw()) for _ in range(vectors)))

    def trace(self, vectors: int = _VECTORS) -> float:
        """tr Σ, an estimate, for a gradient each."""
        return float(np.mean([float(z @ z) for z in (self._draw() for _ in range(vectors))]))

    def _draw(self) -> Vector:
        """z = n^(−½) Σ_i (ε_i − ε̄) g_i with random signs ε, for which E z zᵀ = Σ."""
        signs = self._random.choice([-1.0, 1.0], size=len(self._x))
        return self._weighted((signs - signs.mean()) / math.sqrt(len(signs)))

    def floor(
        self, rule: StepRule, batches: Batches, *, at: str = EPOCHS, steps: float = math.inf, epochs: int | None = None
    ) -> float | None:
        """E[L − L*] that the noise keeps up; an estimate. None where no formula is known.

        Args:
            rule: of plain or momentum descent.
            batches: how they are drawn.
            at: where the loss is read.
            steps: that the noise has had to gather.
            epochs: linearised ones to go through, where batches are reshuffled; without weight decay, with which the
                loss has a slope where the run ends, and the mean that the order of an epoch moves counts as well.
        """
        if excess(np.ones(1), rule, batches, at=at) is None:
            return None
        if rule.weight_decay and batches.sampling != REPLACEMENT:
            return None
        if batches.sampling == REPLACEMENT or batches.count == 1:
            return self.spectrum().additive_floor(rule, batches, at=at, steps=steps)
        count = epochs or min(max(_STEPS // batches.count, _FEWEST), _MOST)
        ends = float(
            np.mean([self._kept_up(self._epoch(rule, batches), rule, batches, at, steps) for _ in range(count)])
        )
        if at == EPOCHS:
            return ends
        return ends + self.spectrum().mean(
            lambda nodes: _known(_by_direction(_step_part, nodes, rule, batches, at, steps))
        )

    def _kept_up(self, end: tuple[Vector, Vector], rule: StepRule, batches: Batches, at: str, steps: float) -> float:
        """tr QΨ for the Q of one epoch's end (x, v): by polarisation, as quadratures are of single vectors."""
        x, v = end

        def form(vector: Vector, a: int, b: int) -> float:
            square, quadrature = self._seen(vector)
            lasting = lambda nodes: _known(_by_direction(_lasting, nodes, rule, batches, at, steps))[:, a, b]  # noqa: E731
            return _quadratic(square, quadrature, lasting) if square > 0 else 0.0

        if not rule.momentum:
            return form(x, 0, 0)
        scale = np.linalg.norm(v) / max(float(np.linalg.norm(x)), 1e-300)
        mixed = (form(scale * x + v, 0, 1) - form(scale * x - v, 0, 1)) / (4 * scale)
        return float(form(x, 0, 0) + 2 * mixed + form(v, 1, 1))

    def _epoch(self, rule: StepRule, batches: Batches) -> tuple[Vector, Vector]:
        """(x, v) at the end of an epoch of the linearised run that begins in (0, 0)."""
        order = self._random.permutation(len(self._x))
        full = self._weighted(np.full(len(self._x), 1 / len(self._x)))
        x, v = np.zeros_like(full), np.zeros_like(full)
        (of_x, of_v), beta = _recursion(np.zeros(1), rule)[1], rule.momentum
        of_velocity = _recursion(np.zeros(1), rule)[0][0, 0, 1]
        for i in range(0, len(order), batches.size):
            gradient, product = self._batch(torch.as_tensor(order[i : i + batches.size]), x)
            force = gradient - full + product
            x, v = x + of_velocity * v + of_x * force, beta * v + of_v * force
        return x, v

    def _batch(self, chosen: Tensor, direction: Vector) -> tuple[Vector, Vector]:
        """Mean gradient over some samples, and their Hessian times a vector."""
        chosen = chosen.to(self._x.device)
        with evaluation_mode(self._network.module), torch.enable_grad():
            value = self._loss(self._network.forward(self._x[chosen]), self._y[chosen]).mean()
            parts = torch.autograd.grad(value, self._leaves, create_graph=True, materialize_grads=True)
            gradient = torch.cat([g.reshape(-1) for g in parts])
            along = torch.as_tensor(direction).to(gradient)
            if not gradient.requires_grad:
                return _numbers([gradient]), np.zeros_like(direction)
            products = torch.autograd.grad(gradient, self._leaves, along, materialize_grads=True)
        return _numbers([gradient]), _numbers(products)

    def _seen(self, z: Vector) -> tuple[float, Quadrature]:
        """||z||² and the spectral measure of z."""
        square = float(z @ z)
        if not square > 0:
            return 0.0, Quadrature(np.zeros(1), np.ones(1))
        return square, Quadrature.of(*tridiagonalise(self._curvature.hessian, z, self._products))

    def _weighted(self, weights: Vector) -> Vector:
        """Σ_i w_i g_i (P,)."""
        total = np.zeros(self._curvature.size)
        w = torch.as_tensor(weights).to(self._network.device, self._network.dtype)
        with evaluation_mode(self._network.module), torch.enable_grad():
            # What a product with the Hessian has room for, a gradient has.
            step = min(_MICRO_BATCH, self._curvature.batch)
            for i in range(0, len(self._x), step):
                part = slice(i, i + step)
                value = (w[part] * self._loss(self._network.forward(self._x[part]), self._y[part])).sum()
                total += _numbers(torch.autograd.grad(value, self._leaves, materialize_grads=True))
        return total


def _step_part(curvature: Vector, rule: StepRule, batches: Batches, at: str, steps: float) -> Vector:
    return _within(curvature, rule, batches, at)


def _numbers(parts: Sequence[Tensor]) -> Vector:
    """Tensors as one vector of float64."""
    flat: Vector = torch.cat([g.detach().reshape(-1).double() for g in parts]).cpu().numpy()
    return flat
