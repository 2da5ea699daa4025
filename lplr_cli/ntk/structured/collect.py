"""Factors of all samples: forward passes watched, backward passes an output at a time, in chunks of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lplr_cli.errors import InputError
from lplr_cli.ntk.network import Network, check_finite, evaluation_mode
from lplr_cli.ntk.structured.capture import Capture
from lplr_cli.ntk.structured.factors import Part, Use
from lplr_cli.ntk.structured.plan import Plan


class FlowChangedError(InputError):
    """The forward pass used other parameters, or used them otherwise, than the plan says."""


def collect(
    network: Network, x: Tensor, names: set[str], outputs: str | int, chunk: int, plan: Plan, measure: bool
) -> list[Part]:
    """Factors of the uses of ``names`` for all of x.

    Args:
        network: f and θ.
        x: inputs (n, …), at least one.
        names: parameters.
        outputs: ``full``, ``trace`` or the index of one output.
        chunk: samples differentiated together.
        plan: what the forward pass is known to do.
        measure: also take what bounds the rounding of parts that are summed at once.

    Raises:
        FlowChangedError: it does something else.
        InputError: outputs are not finite.
    """
    store: _Store | None = None
    with evaluation_mode(network.module), torch.enable_grad():
        for start in range(0, len(x), chunk):
            rows = slice(start, min(len(x), start + chunk))
            with Capture(network) as capture:
                f = network.forward(x[rows])
            if [(u.key, u.kind) for u in capture.uses] != plan.signature:
                raise FlowChangedError("the model's control flow depends on the data", "use --engine jacobian")
            check_finite(f.detach())
            uses = [u for u in capture.uses if u.key.name in names]
            wanted = range(f.shape[1]) if isinstance(outputs, str) else (outputs,)
            if store is None:
                store = _Store(len(x), len(wanted), outputs == "trace", uses, measure)
            store.put_inputs(rows, uses)
            edges = store.edges(uses)
            for position, c in enumerate(wanted):
                found = backward(f, c, edges, is_last=position == len(wanted) - 1)
                store.put_gradients(rows, position, found, uses, f.detach())
            del f, capture, uses, edges
    assert store is not None  # there is at least one sample
    return store.parts()


def backward(f: Tensor, c: int, edges: list[GradientEdge], *, is_last: bool) -> Sequence[Tensor | None]:
    """∂f_c/∂z of every sample at each edge; None where f_c does not depend on it."""
    return torch.autograd.grad(f[:, c].sum(), edges, retain_graph=not is_last, allow_unused=True)


class _Store:
    """Factors in their final place: each is written once, chunk by chunk of samples and output by output.

    Gradients lie as (n, q, s, …), the outputs along q, or along s where they are summed. Kinds that sum at once
    are reduced to their per-sample gradients.
    """

    def __init__(self, count: int, outputs: int, summed: bool, uses: list[Use], measure: bool) -> None:
        self.count, self.lead = count, (1, outputs) if summed else (outputs, 1)
        places: dict[tuple[int, int], int] = {}
        self.indices = [places.setdefault(u.place, len(places)) for u in uses]
        self.uses, self.measure = uses, measure
        self.a: list[Tensor | None] = [None] * len(uses)
        self.b: dict[int, Tensor] = {}
        self.rows: dict[int, Tensor] = {}
        self.magnitude: dict[int, Tensor] = {}

    def edges(self, uses: list[Use]) -> list[GradientEdge]:
        """Where gradients arrive, each place once."""
        return [uses[self.indices.index(i)].edge for i in range(max(self.indices) + 1)]

    def _write(self, rows: slice, position: int, old: Tensor | None, values: Tensor) -> Tensor:
        """``values`` (m, …) of one output into their place in (n, q, s, …)."""
        if len(values) == self.count and self.lead == (1, 1):
            return values[:, None, None]
        if old is None:
            old = values.new_empty((self.count, *self.lead, *values.shape[1:]))
        old[rows, position if self.lead[0] > 1 else 0, position if self.lead[1] > 1 else 0] = values
        return old

    def put_inputs(self, rows: slice, uses: list[Use]) -> None:
        """What the parameters meet, for one chunk."""
        for i, u in enumerate(uses):
            if u.a is None or u.kind.sums_at_once:
                continue
            if len(u.a) == self.count:
                self.a[i] = u.a
                continue
            whole = self.a[i]
            if whole is None:
                whole = self.a[i] = u.a.new_empty((self.count, *u.a.shape[1:]))
            whole[rows] = u.a

    def put_gradients(
        self, rows: slice, position: int, found: Sequence[Tensor | None], uses: list[Use], like: Tensor
    ) -> None:
        """∂f_c/∂z of one output, for one chunk; zeros, in the dtype of ``like``, where it does not depend on z."""
        written: set[int] = set()
        for i, (u, place) in enumerate(zip(uses, self.indices, strict=True)):
            if place in written and not u.kind.sums_at_once:
                continue
            got = found[place]
            b = got if got is not None else like.new_zeros(u.shape)
            if u.kind.sums_at_once:
                self._put_sum(rows, position, i, Part(u, u.a, b[:, None, None]))
            else:
                self.b[place] = self._write(rows, position, self.b.get(place), b)
                written.add(place)

    def _put_sum(self, rows: slice, position: int, i: int, part: Part) -> None:
        kind = part.use.kind
        self.rows[i] = self._write(rows, position, self.rows.get(i), kind.summed(part)[:, 0, 0])
        if self.measure:
            size = kind.absolute(part)[:, 0, 0]
            self.magnitude[i] = self._write(rows, position, self.magnitude.get(i), size)

    def parts(self) -> list[Part]:
        """One part a use."""
        return [
            Part(u, None, self.rows[i], True, self.magnitude.get(i))
            if u.kind.sums_at_once
            else Part(u, self.a[i], self.b[place])
            for i, (u, place) in enumerate(zip(self.uses, self.indices, strict=True))
        ]


def difference(now: list[Part], then: list[Part]) -> list[Part]:
    """Parts of J_now - J_then; parts that share b go on sharing it."""
    parts: list[Part] = []
    shared: dict[int, Tensor] = {}
    for p, p0 in zip(now, then, strict=True):
        if id(p.b) not in shared:
            shared[id(p.b)] = p.b - p0.b
        parts += p.use.kind.change(p, p0, shared[id(p.b)])
    return parts
