"""The operator engine: K v = J(Jᵀ v)/n, nothing of size N × N or N × P.

Prefer it when K does not fit into memory, or when a few products are all that is needed. There are two ways to a
product, of equal value:

- from the factors of J (:class:`lplr_cli.ntk.structured.FactoredJacobian`), collected at the first product: a matrix
  product a layer each way, where they fit and every parameter has a rule;
- by reverse and forward mode over micro-batches: it asks of the model that autograd can differentiate it, twice where
  an operation has no forward-mode derivative.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import jvp

from lplr_cli.ntk import structured
from lplr_cli.ntk.network import Network, check_finite, evaluation_mode

# Working copies of the activations of one sample: the graph, its gradients, and the tangents of forward mode.
_COPIES = 4


class NTKOperator(LinearOperator):
    """v → K v with K = J Jᵀ/n, shape (N, N), N = n·C for ``full`` outputs, else n.

    Args:
        network: f and θ.
        inputs: (n, …).
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes of work space; decides whether factors are kept, and else the micro-batch.
    """

    def __init__(self, network: Network, inputs: Tensor, *, outputs: str | int = "full", budget: int = 1 << 30) -> None:
        self.network, self.inputs, self.outputs = network, network.cast(inputs), outputs
        with evaluation_mode(network.module):
            per_sample, count = activation_bytes(network, self.inputs)
        self.count = count
        self.batch = int(max(1, min(len(inputs), 4096, budget // max(1, _COPIES * per_sample))))
        self.products = 0
        self._budget = budget
        self._forward_mode = True
        self._factors: structured.FactoredJacobian | None = None
        rows = len(inputs) * (count if outputs == "full" else 1)
        super().__init__(np.dtype(np.float64), (rows, rows))  # type: ignore[call-arg]

    def _matvec(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        n = len(self.inputs)
        vector = torch.as_tensor(np.asarray(v).reshape(n, -1), dtype=self.network.dtype, device=self.network.device)
        if not self.products:
            self._collect()
        self.products += 1
        image = self._passes(vector) if self._factors is None else self._factors.push(self._factors.pull(vector))
        result: NDArray[np.float64] = (image.reshape(-1) / n).double().cpu().numpy()
        return result

    def _adjoint(self) -> NTKOperator:
        return self

    @property
    def method(self) -> str:
        """How products are made, from the first one on: ``factors`` or ``passes``."""
        return "passes" if self._factors is None else "factors"

    def _collect(self) -> None:
        """Keep the factors of J where they fit."""
        plan = structured.plan_for(self.network, self.inputs)
        if structured.FactoredJacobian.fits(plan, len(self.inputs), self._budget):
            with contextlib.suppress(structured.FlowChangedError):
                self._factors = structured.FactoredJacobian(self.network, self.inputs, self.outputs, self._budget, plan)

    def _passes(self, vector: Tensor) -> Tensor:
        """n K v without factors, for v (n, 1) or (n, C)."""
        if self.outputs == "full":
            return self._apply(vector)
        chosen = range(self.count) if self.outputs == "trace" else [int(self.outputs)]
        image = torch.zeros_like(vector)
        for c in chosen:
            spread = vector.new_zeros((len(vector), self.count))
            spread[:, c] = vector[:, 0]
            image += self._apply(spread)[:, c : c + 1]
        return image

    def _apply(self, v: Tensor) -> Tensor:
        """J(Jᵀ v) for v (n, C)."""
        network = self.network
        leaves = list(network.params.values())
        direction = [torch.zeros_like(p) for p in leaves]
        batches = torch.split(self.inputs, self.batch)
        with evaluation_mode(network.module), torch.enable_grad():
            for x, part in zip(batches, torch.split(v, self.batch), strict=True):
                for total, g in zip(
                    direction,
                    torch.autograd.grad(network.forward(x), leaves, part, materialize_grads=True),
                    strict=True,
                ):
                    total += g
            return torch.cat([self._forward_product(x, direction) for x in batches])

    def _forward_product(self, x: Tensor, direction: list[Tensor]) -> Tensor:
        """J u on a micro-batch, (m, C)."""
        params = self.network.params
        if self._forward_mode:
            point = {k: p.detach() for k, p in params.items()}
            tangent = dict(zip(params, direction, strict=True))
            try:
                with torch.no_grad():
                    image: Tensor = jvp(lambda p: self.network.forward(x, p), (point,), (tangent,))[1]
                return image
            except RuntimeError:  # no derivative of that kind, in torch's own or in the user's operations
                self._forward_mode = False
        # Without forward mode: Jᵀw is linear in w, and its derivative along u is J u.
        f = self.network.forward(x)
        w = torch.zeros_like(f, requires_grad=True)
        gradients = torch.autograd.grad(f, list(params.values()), w, create_graph=True, materialize_grads=True)
        pairs = [(g, u) for g, u in zip(gradients, direction, strict=True) if g.requires_grad]
        (image,) = torch.autograd.grad([g for g, _ in pairs], w, [u for _, u in pairs], materialize_grads=True)
        return image.detach()


def activation_bytes(network: Network, x: Tensor) -> tuple[int, int]:
    """(bytes that autograd keeps for one sample, C), from a forward pass.

    Raises:
        InputError: its outputs are not finite.
    """
    one, outputs = x[:1], []
    with torch.enable_grad():
        kept = network.saved_bytes(lambda: outputs.append(network.forward(one)), one)
    check_finite(outputs[0])
    return kept + one.numel() * one.element_size(), outputs[0].shape[1]
