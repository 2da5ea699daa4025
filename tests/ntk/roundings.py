"""Counts the roundings behind every entry of every tensor, operation by operation, as the kernel is formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lplr_cli.ntk import Network, jacobian, structured
from lplr_cli.ntk.structured import collect

aten = torch.ops.aten


class RoundingCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Beside each floating-point storage lies one of the same layout that holds the depth of each entry.

    A product of two numbers has the roundings of both and one more. A sum has those of its deepest summand and one
    less than there are summands that are not zero, whatever the order: adding a zero is exact. What moves numbers
    about moves their depths.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.depths: dict[int, tuple[Tensor, Tensor]] = {}
        self.is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Results of what happens inside count as exact."""
        former, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = former

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with results that count as exact."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.paused():
                return function(*args, **kwargs)

        return call

    def depth(self, tensor: Tensor) -> Tensor:
        """Depths of the entries of ``tensor``, a view."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.depths:
            # The tensor is held so that its address is not given to another.
            count = storage.nbytes() // tensor.element_size()
            self.depths[storage.data_ptr()] = (tensor, torch.zeros(count))
        whole = self.depths[storage.data_ptr()][1]
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_paused or func.is_view:
            return func(*args, **kwargs)
        rule = RULES.get(func.overloadpacket)
        if rule is not None:
            before = rule(self, *args, **kwargs) if args[0].is_floating_point() else None
        else:
            before = self._moved(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and before is not None:
            self.depth(result).copy_(before)
        return result

    def _moved(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Depths after an operation that computes nothing; in place where it is."""
        given = [a for a in _leaves((args, kwargs)) if isinstance(a, Tensor) and a.is_floating_point()]
        if func.overloadpacket in FRESH or not given:
            return None
        if func.overloadpacket not in MOVES:
            raise NotImplementedError(f"no count of roundings for {func}")

        def shadow(x: Any) -> Any:
            return self.depth(x) if isinstance(x, Tensor) and x.is_floating_point() else x

        kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "layout", "device", "pin_memory")}
        found = func(*tree_map(shadow, args), **tree_map(shadow, kwargs))
        return found.clone() if isinstance(found, Tensor) else None


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, list | tuple):
        for one in x:
            yield from _leaves(one)
    else:
        yield x


MOVES = {
    aten.clone, aten.cat, aten.copy_, aten.index, aten.index_put_, aten.im2col, aten._to_copy, aten.abs, aten.tril,
    aten.triu, aten.stack, aten.tril_, aten.triu_, aten.select_backward, aten.constant_pad_nd, aten.where,
    aten._unsafe_view, aten.zero_,
}  # fmt: skip
FRESH = {
    aten.empty, aten.zeros, aten.new_zeros, aten.new_empty, aten.new_full, aten.new_ones, aten.ones, aten.full,
    aten.zeros_like, aten.ones_like, aten.empty_like, aten.eq, aten.ne, aten.lt, aten.ge, aten.isfinite, aten.all,
    aten._local_scalar_dense, aten.linalg_vector_norm,
}  # fmt: skip


def product(counter: RoundingCounter, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Of matrices, or of stacks of them."""
    met = (a != 0).double() @ (b != 0).double()
    da = counter.depth(a).masked_fill(a == 0, -torch.inf).unsqueeze(-1)
    db = counter.depth(b).masked_fill(b == 0, -torch.inf).unsqueeze(-3)
    deepest = (da + db).amax(dim=-2) if a.shape[-1] else torch.zeros_like(met)
    return torch.where(met > 0, deepest + met, 0.0)


def addmm(counter: RoundingCounter, c: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return torch.maximum(counter.depth(c), product(counter, a, b)) + (c != 0)


def times(counter: RoundingCounter, a: Any, b: Any, *_: Any, **__: Any) -> Tensor:
    depths = [counter.depth(x) if isinstance(x, Tensor) else torch.zeros(()) for x in (a, b)]
    return depths[0] + depths[1] + 1


def plus(counter: RoundingCounter, a: Tensor, b: Any, **_: Any) -> Tensor:
    if not isinstance(b, Tensor):
        return counter.depth(a) + (a != 0)
    return torch.maximum(counter.depth(a), counter.depth(b)) + ((a != 0) & (b != 0))


def addcmul(counter: RoundingCounter, c: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return torch.maximum(counter.depth(c), times(counter, a, b)) + (c != 0)


def total(counter: RoundingCounter, a: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(a.dim())) if dim is None or dim == [] else dim
    summands = (a != 0).sum(dim=dims, keepdim=keepdim)
    return counter.depth(a).amax(dim=dims, keepdim=keepdim) + (summands - 1).clamp(min=0)


RULES: dict[Any, Callable[..., Tensor]] = {
    aten.mm: product, aten.bmm: product, aten.addmm: addmm, aten.addmm_: addmm, aten.mul: times, aten.mul_: times,
    aten.div: times, aten.div_: times, aten.add: plus, aten.add_: plus, aten.sub: plus, aten.addcmul_: addcmul,
    aten.sum: total,
}  # fmt: skip


def counted(
    network: Network,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    outputs: str | int,
    budget: int,
    inputs: structured.InputProducts | None = None,
) -> tuple[int, int]:
    """(longest chain behind an entry of K, length that the engine states); activations and gradients count as exact."""
    counter = RoundingCounter()
    options: Any = {"outputs": outputs, "budget": budget, "plan": structured.plan_for(network, x), "inputs": inputs}
    with monkeypatch.context() as patch:
        exact = (
            (Network, "forward"),
            (collect, "backward"),
            (jacobian, "jacobian_block"),
            (structured.Rounding, "add"),
        )
        for owner, name in exact:
            patch.setattr(owner, name, counter.pausing(getattr(owner, name)))
        with counter:
            formed = structured.gram(network, x, None, bound_rounding=True, **options)
            formed.matrix.div_(len(x))
        assert formed.rounding is not None
        return int(counter.depth(formed.matrix).max()), formed.rounding.length
