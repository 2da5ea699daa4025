"""Which parameters the structured form covers: established on a few samples, kept while the module stays the same."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.ntk.network import Network, check_samples_independent, evaluation_mode
from lplr_cli.ntk.structured.capture import Capture
from lplr_cli.ntk.structured.factors import Key, Kind, Part, Use, by_key, term_of

# Bytes that a sample of a chunk takes, in units of what autograd keeps of it and what the rules take out of it: at most
# 1.3 were measured for residual networks, attention and plain convolutions.
_GRAPH_FACTOR = 2


class Plan:
    """Which parameters have rules, and which go to the Jacobian engine, established on a few samples.

    Raises:
        InputError: samples interact, or outputs are not finite.

    Attributes:
        understood: names of the parameters that the structured form covers.
        fallback: names of the others.
        signature: the uses in the order of the forward pass.
        per_sample: bytes that are kept of one sample, by name.
        graph: bytes of the graph of one sample while its factors are collected.
        is_sparing: whether every parameter has a rule, and going over what comes back from all outputs is less work
            than a pass through the network.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        check_samples_independent(network, x)
        few = x[: min(3, len(x))]
        generator = torch.Generator().manual_seed(20250729)
        with evaluation_mode(network.module), torch.enable_grad():
            with Capture(network) as capture:
                f = network.forward(few)
            # What has as many rows as there were samples by chance, positions say, has more than one here.
            with Capture(network) as single:
                saved = network.saved_bytes(lambda: network.forward(few[:1]), few)
            weights = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f)
            uses = [u for u in capture.uses if u.shape[0] == len(few)]
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                (f * weights).sum(),
                [u.edge for u in uses] + list(network.params.values()),
                allow_unused=True,
            )
        longest = max(p.shape[0] if p.dim() else 1 for p in network.params.values())
        u = torch.randn(longest, generator=generator, dtype=torch.float64).to(f)
        self.outputs = f.shape[1]
        self.signature: list[tuple[Key, Kind]] = [(use.key, use.kind) for use in capture.uses]
        truth = dict(zip(network.params, gradients[len(uses) :], strict=True))
        doubtful = _doubtful(capture.uses, len(few)) | _doubtful(single.uses, 1)
        self._sort(network, _parts(uses, gradients, weights), truth, doubtful, u)
        self._measure(network, uses, len(few), saved)

    def _sort(
        self,
        network: Network,
        parts: list[Part],
        truth: dict[str, Tensor | None],
        doubtful: set[str],
        u: Tensor,
    ) -> None:
        """Parameters whose factors give autograd's gradient of the random combination, and others."""
        self.understood: list[str] = []
        self.fallback: list[str] = []
        for name, gradient in truth.items():
            mine = [p for p in parts if p.use.key.name == name]
            if gradient is None and not mine:
                continue  # the output does not depend on it: a zero block of J
            agrees = name not in doubtful and mine and _agrees(network.params[name], mine, gradient, u)
            (self.understood if agrees else self.fallback).append(name)

    def _measure(self, network: Network, uses: Sequence[Use], samples: int, saved: int) -> None:
        """Memory of one sample, of which autograd keeps ``saved`` bytes."""
        itemsize = network.dtype.itemsize
        self.per_sample = dict.fromkeys(self.understood, 0)
        graph, back, work = saved, 0, 0
        seen: set[tuple[int, int]] = set()
        for u in uses:
            if u.key.name not in self.per_sample:
                continue
            left = u.a[0].numel() if u.a is not None else 0
            right = torch.Size(u.shape).numel() // samples
            graph += (left + right) * itemsize
            if u.kind.sums_at_once:
                kept = (self.outputs + 1) * network.params[u.key.name].numel()
            else:
                kept = left + (0 if u.place in seen else self.outputs * right)
                seen.add(u.place)
                back += self.outputs * right
                work += right * (torch.Size(u.parameter[1:]).numel() if u.a is not None else 1)
            self.per_sample[u.key.name] += kept * itemsize
        self.graph = max(1, graph * _GRAPH_FACTOR + sum(self.per_sample.values()))
        self.is_sparing = bool(self.understood) and not self.fallback and back <= work

    def least_memory(self, network: Network) -> int:
        """Bytes below which :func:`~lplr_cli.ntk.structured.gram.gram` cannot go: graph and factors of one sample,
        and what has no rule."""
        rest = sum(network.params[name].numel() for name in self.fallback) * network.dtype.itemsize
        return 8 * self.graph + 4 * self.outputs * rest


# Plans of modules that are still alive, by everything that could change what the forward pass does.
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def plan_for(network: Network, x: Tensor) -> Plan:
    """The plan of an earlier call with the same module, state and shapes, else a new one.

    The rules depend on the code of the forward pass and not on θ. A module counts as changed when the type or any
    plain attribute of one of its submodules does, or the number of its hooks, parameters or children.
    """
    plans = _PLANS.setdefault(network.module, {})
    key = (
        tuple((name, p.shape) for name, p in network.params.items()),
        tuple(network.fixed),
        (network.dtype, network.device, x.shape[1:], x.dtype, len(x) < 3),
        tuple(_state(module) for module in network.module.modules()),
    )
    if key not in plans:
        plans[key] = Plan(network, x)
    return plans[key]


def new_plan(network: Network, x: Tensor) -> Plan:
    """A plan made at this θ, in place of all that were kept for the module."""
    _PLANS.pop(network.module, None)
    return plan_for(network, x)


def _state(module: nn.Module) -> tuple[Any, ...]:
    values = [
        v
        if isinstance(v, bool | int | float | str | NoneType)
        else len(v)
        if isinstance(v, dict | list | tuple | set)
        else id(v)
        for k, v in vars(module).items()
        if k != "training"
    ]
    return (type(module), *values)


def _parts(uses: Sequence[Use], gradients: Sequence[Tensor | None], like: Tensor) -> list[Part]:
    """Factors of the few samples; ``gradients`` begins with what comes back to each use."""
    backs = (g if g is not None else like.new_zeros(u.shape) for u, g in zip(uses, gradients, strict=False))
    return [Part(u, u.a, b[:, None, None]) for u, b in zip(uses, backs, strict=True)]


def _doubtful(uses: Sequence[Use], samples: int) -> set[str]:
    """Parameters some use of which does not have the samples first, or whose uses overlap."""
    names = {u.key.name for u in uses if u.shape[0] != samples}
    names |= {u.key.name for u in uses if u.a is not None and len(u.a) != samples}
    return names | _overlapping([u for u in uses if u.shape[0] == samples])


def _overlapping(uses: Sequence[Use]) -> set[str]:
    """Parameters used both whole and by rows, or by rows that overlap: their blocks of J are not disjoint."""
    spans: dict[str, set[tuple[int, int] | None]] = {}
    for use in uses:
        span = None if use.key.start is None else (use.key.start, use.key.stop or 0)
        spans.setdefault(use.key.name, set()).add(span)
    return {name for name, used in spans.items() if _overlap(used)}


def _overlap(spans: set[tuple[int, int] | None]) -> bool:
    """None stands for the whole parameter."""
    rows = sorted(s for s in spans if s is not None)
    return (None in spans and bool(rows)) or any(a[1] > b[0] for a, b in itertools.pairwise(rows))


def _agrees(parameter: Tensor, parts: list[Part], gradient: Tensor | None, u: Tensor) -> bool:
    """Whether the factors reproduce autograd's gradient G of a random combination of outputs.

    Compared are uᵀG and uᵀ(Σ b aᵀ) for a random u over the rows of the parameter, which a wrong rule passes with
    probability zero and which costs one pass over G.
    """
    truth = (torch.zeros_like(parameter) if gradient is None else gradient).detach()
    truth = truth.reshape(parameter.shape[0] if parameter.dim() else 1, -1)
    tolerance = 1e-9 if parameter.dtype == torch.float64 else 2e-3
    errors: list[Tensor] = []
    sizes: list[Tensor] = []
    uncovered = torch.ones(len(truth), dtype=torch.bool, device=truth.device)
    for key, group in by_key(parts).items():
        rows = slice(key.start or 0, key.stop if key.stop is not None else len(truth))
        uncovered[rows] = False
        try:
            claim = term_of(key, group).projected(u[rows])
            groups = claim.shape[0]
            wanted = u[rows].view(groups, 1, -1) @ truth[rows].view(groups, -1, truth.shape[1])
            errors.append((claim - wanted.squeeze(1)).abs().max())
            sizes.append(wanted.abs().max())
        except (RuntimeError, IndexError, ValueError):
            return False  # shapes that do not fit the rule's assumption
    if bool(uncovered.any()) and bool(truth[uncovered].any()):
        return False
    # Relative to the whole parameter: some rows may have no gradient but rounding.
    scale = float(torch.stack(sizes).max())
    return float(torch.stack(errors).max()) <= tolerance * scale + torch.finfo(parameter.dtype).tiny
