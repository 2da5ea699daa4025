"""Products with the Hessian of any loss of any model, and with its Gauss-Newton part.

    L(θ) = (1/n) Σ_i ℓ(f_i, y_i),   f_i = f(θ, x_i),   q_i = ∇_f ℓ,   Λ_i = ∇²_f ℓ
    H = ∇²L = G + M,   G = (1/n) Σ_i J_iᵀ Λ_i J_i,   M = (1/n) Σ_i Σ_c q_ic ∇²f_ic

For the squared loss of scale s the eigenvalues of G other than zero are 2s times those of K = J Jᵀ/n (theory.md
sections 1 and 9). Every product is exact to rounding; there are three ways to one, of equal value:

- the gradient's graph is kept, and a product is one backward pass through it: the least work, where the graph fits;
- forward over reverse, the tangent of the gradient, over micro-batches: where it does not fit;
- double backward over micro-batches: for models with an operation that has no forward mode, or refuses torch.func.

Products with G need no pass through the network where the factors of J fit (:mod:`lplr_cli.ntk.structured.products`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jvp

from lplr_cli.curvature.slopes import KeptSlopes
from lplr_cli.errors import InputError, first_line
from lplr_cli.ntk import structured
from lplr_cli.ntk.network import Network, check_finite, evaluation_mode

Vector = NDArray[np.float64]
PerSample = Callable[[Tensor, Tensor], Tensor]

DEFAULT_MEMORY = 2 << 30
# Of what a graph keeps for a sample: the graph, the gradients that flow through it, and room for both of one layer.
_KEPT_COPIES = 2
# Forward over reverse holds values and tangents of the graph, and of what flows.
_DUAL_COPIES = 4
# Vectors of θ's size that are alive during a product: parts and sum in two precisions, tangents.
_VECTORS = 6
_RESERVE = 64 << 20


class LossCurvature:
    """v → H v and v → G v at one θ, over all the given samples.

    Args:
        network: f and θ; its dtype is that of the passes. Parts of micro-batches are summed in float64.
        inputs: (n, …), n ≥ 1.
        targets: (n, …), whatever ``loss`` takes.
        loss: (f (m, C), y (m, …)) → values of the samples (m,), twice differentiable in f; e.g.
            :meth:`lplr_cli.losses.Loss.values`. A sample's value must depend on that sample alone.
        memory: bytes for graphs and work, beside the model and the data.
        batch: samples of a micro-batch, instead of what ``memory`` allows; no graph is kept then.

    Attributes:
        size: P.
        products: spent so far.

    Raises:
        InputError: no samples, outputs that are not finite, a loss that does not give a value a sample, or a single
            sample that needs more than ``memory``.
    """

    def __init__(
        self,
        network: Network,
        inputs: Tensor,
        targets: Tensor,
        loss: PerSample,
        *,
        memory: int = DEFAULT_MEMORY,
        batch: int | None = None,
    ) -> None:
        if not len(inputs) or len(inputs) != len(targets):
            raise InputError(f"{len(inputs)} inputs and {len(targets)} targets", "give as many of both, at least one")
        self.network, self._loss = network, loss
        self._x = network.cast(inputs)
        self._y = targets.to(network.device, network.dtype if targets.is_floating_point() else targets.dtype)
        self._leaves = list(network.params.values())
        self._shapes = [p.shape for p in self._leaves]
        self._counts = [p.numel() for p in self._leaves]
        self.size = sum(self._counts)
        self.products = 0
        self.forward_mode = True
        self._direction: Tensor | None = None
        self._graph: Sequence[Tensor] | None = None
        self._factors: structured.FactoredJacobian | None = None
        self._room: int | None = None
        with self._derivatives():
            keep, most = self._plan(memory)
            keep, size = (keep, most) if batch is None else (False, batch)
            self._parts = [slice(i, i + size) for i in range(0, len(self._x), size)]
            if batch is None:
                self._room = self._left(memory, keep, size)
            if keep:
                with KeptSlopes():
                    self._graph = self._gradient(self._parts[0])

    @property
    def method(self) -> str:
        """How products with H are made: ``kept graph``, ``forward over reverse`` or ``double backward``."""
        if self._graph is not None:
            return "kept graph"
        return "forward over reverse" if self.forward_mode else "double backward"

    @property
    def batch(self) -> int:
        """Samples of a micro-batch."""
        return min(len(self._x), self._parts[0].stop)

    def value(self) -> float:
        """L."""
        with torch.no_grad(), evaluation_mode(self.network.module):
            return sum(float(self._mean(part, {}).double()) for part in self._parts)

    def gradient(self) -> Vector:
        """∇L, (P,)."""
        return self._summed(
            lambda part: torch.autograd.grad(self._mean(part, {}), self._leaves, materialize_grads=True)
        )

    def hessian(self, v: Vector) -> Vector:
        """H v for v (P,)."""
        self.products += 1
        direction = self._split(v)
        if self._graph is not None:
            return self._joined(self._pull(self._graph, direction, keep=True))
        return self._summed(lambda part: self._hessian_part(part, direction))

    def gauss_newton(self, v: Vector) -> Vector:
        """G v for v (P,)."""
        self.products += 1
        direction = self._split(v)
        self._collect()
        if self._factors is None:
            return self._summed(lambda part: self._gauss_newton_part(part, direction))
        return self._vector([self._gauss_newton_factored(self._factors, direction)])

    def _plan(self, memory: int) -> tuple[bool, int]:
        """Whether the gradient's graph over all samples is kept, and the samples of a micro-batch."""
        fixed, one = self._fixed, self._one = self._graph_bytes()
        room = memory - _RESERVE - _VECTORS * 8 * self.size - fixed
        if room >= _KEPT_COPIES * one * len(self._x):
            return True, len(self._x)
        batch = room // (_DUAL_COPIES * one)
        if batch < 1:
            needed = (memory - room + _DUAL_COPIES * one) >> 20
            raise InputError(
                f"a product needs {needed + 1} MiB for one sample, and {memory >> 20} MiB are left for it",
                "give more memory",
            )
        return False, int(min(batch, len(self._x)))

    def _left(self, memory: int, keep: bool, batch: int) -> int:
        """Bytes that products with H leave to the factors of J."""
        passes = self._fixed + (_KEPT_COPIES if keep else _DUAL_COPIES) * self._one * batch
        return memory - _RESERVE - _VECTORS * 8 * self.size - passes

    def _collect(self) -> None:
        """Keep the factors of J, at the first product with G, where they fit."""
        room, self._room = self._room, None
        if room is None or room <= 0:
            return
        plan = structured.plan_for(self.network, self._x)
        if structured.FactoredJacobian.fits(plan, len(self._x), room):
            with contextlib.suppress(structured.FlowChangedError):
                self._factors = structured.FactoredJacobian(self.network, self._x, "full", room, plan)
                with torch.no_grad(), evaluation_mode(self.network.module):
                    self._values = torch.cat([self.network.forward(self._x[part]) for part in self._parts])

    def _graph_bytes(self) -> tuple[int, int]:
        """Bytes that the gradient's graph keeps whatever the samples, and for each of them."""

        def kept(count: int) -> int:
            with KeptSlopes():
                return self.network.saved_bytes(lambda: self._gradient(slice(0, count)), self._x, self._y)

        with torch.no_grad():
            outputs = self.network.forward(self._x[:2])
            check_finite(outputs)
            values = self._loss(outputs, self._y[:2])
        if values.shape != outputs.shape[:1]:
            raise InputError(
                f"the loss gives values of shape {tuple(values.shape)} for {len(outputs)} samples",
                "give one value a sample (reduction='none', summed over outputs)",
            )
        first = kept(1)
        one = max(kept(2) - first, 1) if len(self._x) > 1 else first
        return max(first - one, 0), one

    @contextmanager
    def _derivatives(self) -> Iterator[None]:
        """Evaluation mode, with gradients on."""
        with evaluation_mode(self.network.module), torch.enable_grad():
            yield

    def _mean(self, part: slice, params: dict[str, Tensor]) -> Tensor:
        """The share of some samples in L."""
        return self._loss(self.network.forward(self._x[part], params), self._y[part]).sum() / len(self._x)

    def _gradient(self, part: slice) -> Sequence[Tensor]:
        return torch.autograd.grad(self._mean(part, {}), self._leaves, create_graph=True, materialize_grads=True)

    def _point(self) -> dict[str, Tensor]:
        return {k: p.detach() for k, p in self.network.params.items()}

    def _tangent(self, direction: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.network.params, direction, strict=True))

    def _split(self, v: Vector) -> list[Tensor]:
        # One buffer for all products: a fresh one costs more than the copy.
        if self._direction is None:
            self._direction = torch.empty(self.size, dtype=self.network.dtype, device=self.network.device)
        self._direction.copy_(torch.as_tensor(np.ascontiguousarray(v).reshape(-1)))
        parts = torch.split(self._direction, self._counts)
        return [p.view(shape) for p, shape in zip(parts, self._shapes, strict=True)]

    def _summed(self, term: Callable[[slice], Sequence[Tensor]]) -> Vector:
        """The sum of a term over the micro-batches, in float64."""
        with self._derivatives():
            return self._vector(term(part) for part in self._parts)

    def _vector(self, terms: Iterable[Sequence[Tensor]]) -> Vector:
        """The sum of terms of the parameters' shapes as one vector (P,)."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.network.device)
        places = torch.split(total, self._counts)
        for term in terms:
            for place, t in zip(places, term, strict=True):
                place += t.detach().reshape(-1)
        result: Vector = total.cpu().numpy()
        return result

    def _joined(self, parts: Sequence[Tensor]) -> Vector:
        """Tensors of the parameters' shapes as one vector (P,)."""
        whole = torch.empty(self.size, dtype=torch.float64, device=self.network.device)
        for place, t in zip(torch.split(whole, self._counts), parts, strict=True):
            # Weights' parts come transposed, which torch turns fast only within one type.
            place.copy_(t.detach().reshape(-1))
        result: Vector = whole.cpu().numpy()
        return result

    def _hessian_part(self, part: slice, direction: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.forward_mode:
            found = self._tangent_of_gradient(part, direction)
            if found is not None:
                return found
        return self._pull(self._gradient(part), direction, keep=False)

    def _tangent_of_gradient(self, part: slice, direction: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Forward over reverse; None, now and ever after, where the model refuses."""
        gradient: Callable[[dict[str, Tensor]], dict[str, Tensor]] = grad(lambda p: self._mean(part, p))
        with torch.no_grad():
            found = self._forward(gradient, self._point(), self._tangent(direction))
        return None if found is None else list(found.values())

    def _forward(self, function: Callable[[Any], Any], point: Any, tangent: Any) -> Any:
        """The tangent of a function, or None where some operation has none."""
        try:
            return jvp(function, (point,), (tangent,))[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):  # of torch, or of a function that the user wrote
            self.forward_mode = False
            return None

    def _pull(self, gradients: Sequence[Tensor], direction: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor]:
        """One backward pass through the gradient's graph: ∇⟨∇L, v⟩."""
        used = [(g, v) for g, v in zip(gradients, direction, strict=True) if g.requires_grad]
        if not used:
            return [torch.zeros_like(p) for p in self._leaves]
        try:
            return torch.autograd.grad(
                [g for g, _ in used], self._leaves, [v for _, v in used], retain_graph=keep, materialize_grads=True
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"the model has no second derivatives ({first_line(error)})", "an operation in it must be replaced"
            ) from error

    def _gauss_newton_part(self, part: slice, direction: Sequence[Tensor]) -> Sequence[Tensor]:
        f = self.network.forward(self._x[part])
        image = self._loss_product(f.detach(), self._y[part], self._output_tangent(part, f, direction))
        return torch.autograd.grad(f, self._leaves, image / len(self._x), materialize_grads=True)

    def _gauss_newton_factored(
        self, jacobian: structured.FactoredJacobian, direction: Sequence[Tensor]
    ) -> list[Tensor]:
        """JᵀΛJ v/n over all samples; parameters on which f does not depend have none."""
        tangent = jacobian.push({k: d.unsqueeze(0) for k, d in self._tangent(direction).items()})
        with self._derivatives():
            image = self._loss_product(self._values.clone(), self._y, tangent)
        found = jacobian.pull(image / len(self._x))
        return [found[k][0] if k in found else torch.zeros_like(p) for k, p in self.network.params.items()]

    def _output_tangent(self, part: slice, f: Tensor, direction: Sequence[Tensor]) -> Tensor:
        """J v, (m, C)."""
        if self.forward_mode:
            with torch.no_grad():
                found = self._forward(
                    lambda p: self.network.forward(self._x[part], p), self._point(), self._tangent(direction)
                )
            if found is not None:
                tangent: Tensor = found
                return tangent
        # Jᵀw is linear in w, and its derivative along v is J v.
        w = torch.zeros_like(f, requires_grad=True)
        rows = torch.autograd.grad(f, self._leaves, w, create_graph=True, materialize_grads=True)
        used = [(r, v) for r, v in zip(rows, direction, strict=True) if r.requires_grad]
        (image,) = torch.autograd.grad([r for r, _ in used], w, [v for _, v in used], materialize_grads=True)
        return image.detach()

    def _loss_product(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Λ u for every sample, (m, C)."""
        leaf = f.requires_grad_()
        (q,) = torch.autograd.grad(self._loss(leaf, y).sum(), leaf, create_graph=True, materialize_grads=True)
        if not q.requires_grad:
            return torch.zeros_like(u)
        (image,) = torch.autograd.grad(q, leaf, u, materialize_grads=True)
        return image
