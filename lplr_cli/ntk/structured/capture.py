"""Capture of how a forward pass uses its parameters: what goes in, and the gradient that comes back.

A :class:`torch.overrides.TorchFunctionMode` watches the calls of ``torch.nn.functional`` that have a rule. For each
parameter that such a call uses, the per-sample gradient factorises: a linear map z = W a + b has
∂f/∂W = Σ_t (∂f/∂z_t) a_tᵀ with t the positions at which the sample visits it (one for a fully connected layer, the
pixels of a convolution, the tokens of a sequence). Watching functions rather than modules sees weights that are
shared, used several times, or used without their module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from lplr_cli.ntk.network import Network
from lplr_cli.ntk.structured.factors import Key, Kind, Use

Rule = Callable[["Capture", Any, Sequence[Any], dict[str, Any]], Any]
_RULES: dict[Any, Rule] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register what is to be done, and noted, instead of a plain call of ``functions``.

    A rule is called as ``rule(capture, function, args, kwargs)`` and returns what the function would.
    """

    def register(one: Rule) -> Rule:
        for function in functions:
            _RULES[function] = one
        return one

    return register


class Capture(TorchFunctionMode):
    """Records every :class:`Use` of the network's parameters while it is entered."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in network.params.items()}
        self.uses: list[Use] = []

    def tracks(self, parameter: Any) -> bool:
        """Whether ``parameter`` is one of those that are differentiated."""
        return isinstance(parameter, Tensor) and id(parameter) in self.names

    def record(self, parameter: Any, kind: Kind, a: Tensor | None, z: Tensor, rows: slice | None = None) -> None:
        """Note a use of ``parameter`` (nothing when it is not tracked) whose gradient arrives at z.

        Args:
            parameter: what the call was given.
            kind: how its gradient follows from a and ∂f/∂z.
            a: what the parameter meets, first axis the samples; None where it meets ones.
            z: what the call gave, (n, …).
            rows: the rows of the parameter that were used, where not all.
        """
        if not self.tracks(parameter):
            return
        name = self.names[id(parameter)]
        key = Key(name) if rows is None else Key(name, rows.start, rows.stop)
        kept = None if a is None else a.detach()
        used = tuple(parameter.shape) if rows is None else (rows.stop - rows.start, *parameter.shape[1:])
        self.uses.append(Use(key, kind, kept, get_gradient_edge(z), tuple(z.shape), used))

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls with a rule are recorded; everything else goes through untouched."""
        watched = _RULES.get(func)
        if watched is None:
            return func(*args, **(kwargs or {}))
        return watched(self, func, args, kwargs or {})


def arguments(names: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The values of the arguments ``names`` (their order in the signature), None for what was left out."""
    given = dict(zip(names.split(), args, strict=False)) | kwargs
    return (given.get(name) for name in names.split())
