"""Products with J from factors that are kept: no pass through the network, a matrix product a layer each way.

For a linear map used at positions t, ∂f_c/∂W = Σ_t b_ct a_tᵀ, so that

    Jᵀv:  Σ_i Σ_t (Σ_c v_ic b_ict) a_itᵀ        J u:  Σ_t b_ct · (U a_t)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lplr_cli.ntk.network import Network
from lplr_cli.ntk.structured.accumulate import tiles
from lplr_cli.ntk.structured.collect import collect
from lplr_cli.ntk.structured.factors import Key
from lplr_cli.ntk.structured.plan import Plan

# The share of a budget that factors may take; an eighth each is for the graph of a chunk while they are collected, and
# for the work on them.
_KEPT, _SHARE = 0.6, 8
# At least so many samples are differentiated, and multiplied, together: else the passes take longer than they save.
_FEWEST = 32


class FactoredJacobian:
    """v → Jᵀv and u → J u for the parameters of a plan that have rules.

    A row of J is one of the q rows of K that a sample has; where outputs are summed in it (the trace), it holds the
    gradients of all s of them.

    Args:
        network: f and θ.
        x: inputs (n, …).
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes for factors and work; see :meth:`fits`.
        plan: of the network.

    Raises:
        FlowChangedError: the forward pass does something else than the plan says.
        InputError: outputs are not finite.
    """

    def __init__(self, network: Network, x: Tensor, outputs: str | int, budget: int, plan: Plan) -> None:
        chunk = max(1, min(4096, budget // (_SHARE * plan.graph)))
        found = collect(network, x, set(plan.understood), outputs, chunk, plan, False)
        self._parts = [part.use.kind.condensed(part) for part in found]
        self._shapes = {name: p.shape for name, p in network.params.items()}
        widest = max((part.b[0].numel() for part in self._parts), default=1) * network.dtype.itemsize
        self._rows = tiles(len(x), max(1, budget // (_SHARE * widest)))

    @staticmethod
    def fits(plan: Plan, samples: int, budget: int) -> bool:
        """Whether the factors fit into ``budget`` bytes and are worth it.

        They are where going over what comes back from each output is less work than running the network again.
        """
        factors = samples * sum(plan.per_sample.values())
        passes = min(samples, _FEWEST) * _SHARE * plan.graph
        return plan.is_sparing and factors <= _KEPT * budget and passes <= budget

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        """Jᵀv for v (n, q): by name (s, …) with the parameter's shape at the end."""
        total: dict[str, Tensor] = {}
        for part in self._parts:
            key = part.use.key
            for rows in self._rows:
                addition = part.use.kind.pull(part.at(rows), v[rows])
                if key.start is None and key.name not in total:
                    total[key.name] = addition
                    continue
                if key.name not in total:
                    total[key.name] = addition.new_zeros((len(addition), *self._shapes[key.name]))
                _of(total[key.name], key).add_(addition)
        return total

    def push(self, u: Mapping[str, Tensor]) -> Tensor:
        """J u for u by name as of :meth:`pull`, (n, q)."""
        image: Tensor | None = None
        for part in self._parts:
            direction = _of(u[part.use.key.name], part.use.key)
            found = [part.use.kind.push(part.at(rows), direction) for rows in self._rows]
            addition = torch.cat(found) if len(found) > 1 else found[0]
            image = addition if image is None else image.add_(addition)
        assert image is not None  # a plan that is sparing has parameters
        return image


def _of(values: Tensor, key: Key) -> Tensor:
    """The rows that are meant of (s, …)."""
    return values if key.start is None else values[:, key.start : key.stop]
