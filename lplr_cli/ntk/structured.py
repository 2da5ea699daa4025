"""The structured engine: K layer by layer from activations and back-propagated output gradients, without J.

For a linear map used at positions t, ∂f_c/∂W = Σ_t b_ct a_tᵀ, so two samples meet as

    ⟨∂f_c(x)/∂W, ∂f_d(x')/∂W⟩ = Σ_{t,t'} (a_t·a'_t') (b_ct·b'_dt')        pairwise form
                              = ⟨G_c, G'_d⟩,  G_c = Σ_t b_ct a_tᵀ            explicit form

With one position the pairwise form is (A Aᵀ + 1) ∘ (B Bᵀ), the 1 from the bias. Each parameter takes the form
that needs fewer floating-point operations. Parameters whose uses are not understood go to the Jacobian engine; that
they are understood is checked, not assumed, by comparing a weighted sum of the factors with autograd's gradient.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.linalg import scratch
from lplr_cli.linalg.cholesky import mirror
from lplr_cli.ntk import jacobian
from lplr_cli.ntk.capture import Capture, Key, Use
from lplr_cli.ntk.network import Network, check_finite, check_samples_independent, evaluation_mode

# A panel of K is at most this high and wide: its two buffers stay in the last-level cache.
PANEL = (512, 1024)
# Bytes of per-sample work space in units of the stored factors: the autograd graph of one chunk.
_GRAPH_FACTOR = 6
# Part of the budget for the graph of a chunk, and for products; the factors take a third. The allocator keeps some of
# what is freed, so the parts do not add up to the whole.
_SHARE = 8


@dataclass
class Part:
    """Factors of one use for n samples: a (n, …) as in :class:`Use`, b (n, q, s, …) with z's shape at the end.

    q counts the rows of K a sample has (its outputs, or 1), s the outputs summed within a row (for the trace).
    """

    use: Use
    a: Tensor | None
    b: Tensor
    # A scale or bias once reduced: b is then (n, q, s, channels).
    is_reduced: bool = False
    # Σ_t ||a_t|| ||b_t|| of a reduced part, (n, q, s, 1), where the rounding is bounded.
    magnitude: Tensor | None = None

    @property
    def groups(self) -> int:
        """Groups of a convolution, else 1."""
        return self.use.conv.groups if self.use.conv is not None else 1

    def right(self, rows: slice) -> Tensor:
        """b as (m, q, s, g, T, o)."""
        b = self.b[rows]
        m, q, s = b.shape[:3]
        if self.use.conv is not None:
            return b.reshape(m, q, s, self.groups, b.shape[3] // self.groups, -1).transpose(4, 5)
        return b.reshape(m, q, s, 1, -1, b.shape[-1])

    def left(self, rows: slice) -> Tensor:
        """a as (m, g, T, d); ones for a bias."""
        if self.a is None:
            b = self.b[rows]
            positions = b[0, 0, 0].numel() // b.shape[3 if self.use.conv is not None else -1]
            return b.new_ones((len(b), self.groups, positions, 1))
        a = self.a[rows]
        if self.use.conv is not None:
            return self.use.conv.positions(a)
        return a.reshape(len(a), 1, -1, a.shape[-1])

    def tokens(self, rows: slice) -> Tensor:
        """Indices of a lookup as (m, T)."""
        assert self.a is not None
        return self.a[rows].reshape(self.a[rows].shape[0], -1)

    def reduced(self) -> Tensor:
        """Per-sample gradient of a scale or bias, (n, q, s, channels): positions summed."""
        if self.is_reduced:
            return self.b
        axis = 3 if self.use.conv is not None else 2 + (self.use.channel_axis % len(self.use.shape))
        product = self.b if self.a is None else self.b * self.a[:, None, None]
        rest = [d for d in range(3, product.dim()) if d != axis]
        return product.sum(dim=rest) if rest else product


@dataclass
class Term:
    """All uses of one parameter (with its bias fused in where both are used alike)."""

    key: Key
    parts: list[Part]
    bias: Key | None = None
    origin: list[Part] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``linear``, ``lookup``, ``scale`` (also biases on their own), or ``mixed``."""
        kinds = {"scale" if p.use.ones else p.use.kind for p in self.parts}
        if len(kinds) > 1:
            return "mixed"
        kind = kinds.pop()
        same = len({(p.groups, p.use.conv is not None) for p in self.parts}) == 1
        return kind if same or kind != "linear" else "mixed"

    def weight_left(self, rows: slice) -> Tensor:
        """What the weight meets, (m, g, T, d); several uses stand one after another in T."""
        return torch.cat([p.left(rows) for p in self.parts], dim=2) if len(self.parts) > 1 else self.parts[0].left(rows)

    def left(self, rows: slice) -> Tensor:
        """(m, g, T, d), with a column of ones for the fused bias."""
        a = self.weight_left(rows)
        if self.bias is not None:
            # The bias of a use that only stands for a difference meets 1 - 1 = 0.
            ones = [p.left(rows)[..., :1] for p in self.origin]
            a = torch.cat([a, torch.cat(ones, dim=2) if len(ones) > 1 else ones[0]], dim=3)
        return a

    def left_norms(self, rows: slice) -> Tensor:
        """||a_t||, (m, g, T), the fused bias counted as an input of 1."""
        norms = torch.cat([torch.linalg.vector_norm(p.left(rows), dim=3) for p in self.parts], dim=2)
        return norms if self.bias is None else torch.hypot(norms, torch.ones_like(norms))

    def right(self, rows: slice) -> Tensor:
        """(m, q, s, g, T, o)."""
        if len(self.parts) == 1:
            return self.parts[0].right(rows)
        return torch.cat([p.right(rows) for p in self.parts], dim=4)

    def gradient(self, rows: slice, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the parameter's per-sample gradient, (m, q, s, columns)."""
        total: Tensor | None = None
        if self.kind == "linear":
            a, b = self.left(rows), self.right(rows)
            groups, width = b.shape[3], b.shape[5]
            if groups == 1:
                g = torch.einsum("mtd,mqsto->mqsod", a[:, 0], b[:, :, :, 0, :, first:last])
            else:
                units = slice(first // width, last // width)
                g = torch.einsum("mgtd,mqsgto->mqsgod", a[:, units], b[:, :, :, units])
            return g.flatten(3)
        for part in self.parts:
            if part.use.kind == "lookup":
                tokens, b = part.tokens(rows), part.right(rows)[:, :, :, 0]
                m, q, s, _, o = b.shape
                g = b.new_zeros((m, q, s, last - first, o))
                for position in range(tokens.shape[1]):
                    token = tokens[:, position]
                    inside = ((token >= first) & (token < last)).nonzero()[:, 0]
                    g[inside, :, :, token[inside] - first] += b[inside, :, :, position]
            else:
                single = Term(self.key, [part])
                g = single.gradient(rows, first, last)
            total = g.flatten(3) if total is None else total + g.flatten(3)
        assert total is not None
        return total

    def projected_gradient(self, network: Network, u: Tensor) -> Tensor:
        """uᵀG, G the gradient summed over samples and outputs, u one number a row; (groups, columns)."""
        everything = slice(None)
        if self.kind == "linear":
            b = self.right(everything)
            groups = b.shape[3]
            b = (b.sum(dim=(1, 2)) @ u.view(groups, -1, 1)).transpose(0, 1)  # (g, m, T, 1)
            a = self.left(everything).transpose(0, 1)
            return (b.reshape(groups, 1, -1) @ a.reshape(groups, -1, a.shape[3])).squeeze(1)
        if self.kind == "scale":
            rows = sum(p.reduced().sum(dim=(0, 1, 2)) for p in self.parts)
            assert isinstance(rows, Tensor)
            return (u @ rows).reshape(1, 1)
        count, _ = self.rows(network)
        g = self.gradient(everything, 0, count).sum(dim=(0, 1, 2))
        return (u @ g.reshape(count, -1)).unsqueeze(0)

    def rows(self, network: Network) -> tuple[int, int]:
        """(number of rows of the parameter, smallest number of them that ``gradient`` can give)."""
        parameter = network.params[self.key.name]
        count = parameter.shape[0] if self.key.start is None else (self.key.stop or 0) - self.key.start
        groups = self.parts[0].groups if self.kind == "linear" else 1
        return count, count // groups if groups > 1 else 1

    def size(self) -> tuple[int, int, int, int, int, int]:
        """(q, s, g, T, d, o) for the cost model."""
        one = slice(0, 1)
        b = self.right(one)
        d = 1 if self.kind == "lookup" else self.left(one).shape[3]
        return b.shape[1], b.shape[2], b.shape[3], b.shape[4], d, b.shape[5]

    def prefers_pairwise(self, network: Network, samples: int) -> bool:
        """Whether the pairwise form takes fewer floating-point operations for ``samples`` samples."""
        if self.kind not in ("linear", "lookup"):
            return False
        q, s, g, t, d, o = self.size()
        pairwise = samples * t * t * g * (d + q * q * (s * o + 2))
        if self.kind == "lookup":
            columns = network.params[self.key.name].numel()
            return pairwise < samples * q * q * s * columns + q * s * (columns + t * o)
        return pairwise < samples * q * q * s * g * d * o + 2 * q * s * g * t * d * o


def _terms(parts: list[Part]) -> list[Term]:
    """Parts grouped by parameter; a bias joins the weight that is used in the same places."""
    by_key: dict[Key, list[Part]] = {}
    for part in parts:
        by_key.setdefault(part.use.key, []).append(part)
    terms = {key: Term(key, found) for key, found in by_key.items()}
    places = {key: tuple(id(p.b) for p in term.parts) for key, term in terms.items()}
    weights = {places[key]: key for key, term in terms.items() if term.kind == "linear"}
    for key in list(terms):
        home = weights.get(places[key])
        if terms[key].kind == "scale" and all(p.use.kind == "linear" for p in terms[key].parts) and home is not None:
            terms[home].bias, terms[home].origin = key, terms[key].parts
            del terms[key]
    return list(terms.values())


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
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        check_samples_independent(network, x)
        few = x[: min(3, len(x))]
        generator = torch.Generator().manual_seed(20250729)
        with evaluation_mode(network.module), torch.enable_grad():
            with Capture(network) as capture:
                f = network.forward(few)
            self.outputs = f.shape[1]
            weights = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f)
            names = list(network.params)
            uses = [u for u in capture.uses if u.shape[0] == len(few)]
            found = torch.autograd.grad(
                (f * weights).sum(),
                [u.edge for u in uses] + list(network.params.values()),
                allow_unused=True,
            )
        parts = [Part(u, u.a, _or_zero(g, u, weights)[:, None, None]) for u, g in zip(uses, found, strict=False)]
        truth = dict(zip(names, found[len(uses) :], strict=True))
        doubtful = {u.key.name for u in capture.uses if u.shape[0] != len(few)}
        doubtful |= {u.key.name for u in uses if u.a is not None and len(u.a) != len(few)}
        doubtful |= _overlapping(uses)
        longest = max(p.shape[0] if p.dim() else 1 for p in network.params.values())
        u = torch.randn(longest, generator=generator, dtype=torch.float64).to(f)
        self.signature = [(u.key, u.kind) for u in capture.uses]
        self.understood: list[str] = []
        self.fallback: list[str] = []
        for name, gradient in truth.items():
            mine = [p for p in parts if p.use.key.name == name]
            if gradient is None and not mine:
                continue  # the output does not depend on it: a zero block of J
            if name not in doubtful and mine and _agrees(network, name, mine, gradient, u):
                self.understood.append(name)
            else:
                self.fallback.append(name)
        itemsize = network.dtype.itemsize
        self.per_sample = dict.fromkeys(self.understood, 0)
        graph = 0
        seen: set[tuple[int, int]] = set()
        for u in uses:
            if u.key.name not in self.per_sample:
                continue
            size = u.a[0].numel() if u.a is not None else 0
            graph += (size + torch.Size(u.shape).numel() // len(few)) * itemsize
            if u.kind == "scale":
                self.per_sample[u.key.name] += (self.outputs + 1) * network.params[u.key.name].numel() * itemsize
                continue
            place = (id(u.edge.node), u.edge.output_nr)
            if place not in seen:
                size += self.outputs * (torch.Size(u.shape).numel() // len(few))
                seen.add(place)
            self.per_sample[u.key.name] += size * itemsize
        self.graph = max(1, graph * _GRAPH_FACTOR + sum(self.per_sample.values()))

    def least_memory(self, network: Network) -> int:
        """Bytes below which :func:`gram` cannot go: graph and factors of one sample, and what has no rule."""
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


def _or_zero(gradient: Tensor | None, use: Use, like: Tensor) -> Tensor:
    return gradient if gradient is not None else like.new_zeros(use.shape)


def _overlapping(uses: list[Use]) -> set[str]:
    """Parameters used both whole and by rows, or by rows that overlap: their blocks of J are not disjoint."""
    spans: dict[str, set[tuple[int, int] | None]] = {}
    for use in uses:
        span = None if use.key.start is None else (use.key.start, use.key.stop or 0)
        spans.setdefault(use.key.name, set()).add(span)
    overlapping = set()
    for name, found in spans.items():
        ranges = sorted(s for s in found if s is not None)
        crossing = any(a[1] > b[0] for a, b in itertools.pairwise(ranges))
        if crossing or (None in found and ranges):
            overlapping.add(name)
    return overlapping


def _agrees(network: Network, name: str, parts: list[Part], gradient: Tensor | None, u: Tensor) -> bool:
    """Whether the factors reproduce autograd's gradient G of a random combination of outputs.

    Compared are uᵀG and uᵀ(Σ b aᵀ) for a random u over the rows of the parameter, which a wrong rule passes with
    probability zero and which costs one pass over G.
    """
    parameter = network.params[name]
    truth = (torch.zeros_like(parameter) if gradient is None else gradient).detach()
    truth = truth.reshape(parameter.shape[0] if parameter.dim() else 1, -1)
    tolerance = 1e-9 if network.dtype == torch.float64 else 2e-3
    errors: list[Tensor] = []
    sizes: list[Tensor] = []
    uncovered = torch.ones(len(truth), dtype=torch.bool, device=truth.device)
    for key, group in _by_key(parts).items():
        rows = slice(key.start or 0, key.stop if key.stop is not None else len(truth))
        uncovered[rows] = False
        try:
            term = Term(key, group)
            claim = term.projected_gradient(network, u[rows])
            groups = claim.shape[0]
            wanted = u[rows].view(groups, 1, -1) @ truth[rows].view(groups, -1, truth.shape[1])
            errors.append((claim - wanted.squeeze(1)).abs().max())
            sizes.append(wanted.abs().max())
        except (RuntimeError, IndexError):
            return False  # shapes that do not fit the rule's assumption
    if bool(uncovered.any()) and bool(truth[uncovered].any()):
        return False
    # Relative to the whole parameter: some rows may have no gradient but rounding.
    scale = float(torch.stack(sizes).max())
    return float(torch.stack(errors).max()) <= tolerance * scale + torch.finfo(network.dtype).tiny


def _by_key(parts: list[Part]) -> dict[Key, list[Part]]:
    grouped: dict[Key, list[Part]] = {}
    for part in parts:
        grouped.setdefault(part.use.key, []).append(part)
    return grouped


def _collect(
    network: Network, x: Tensor, names: set[str], outputs: str | int, chunk: int, plan: Plan, measure: bool
) -> list[Part]:
    """Factors of the uses of ``names`` for all of x; ``measure`` also takes what bounds their rounding."""
    store: _Store | None = None
    with evaluation_mode(network.module), torch.enable_grad():
        for start in range(0, len(x), chunk):
            rows = slice(start, min(len(x), start + chunk))
            with Capture(network) as capture:
                f = network.forward(x[rows])
            uses = [u for u in capture.uses if u.key.name in names]
            if [(u.key, u.kind) for u in capture.uses] != plan.signature:
                raise _FlowChangedError("the model's control flow depends on the data", "use --engine jacobian")
            places: dict[tuple[int, int], int] = {}
            # The node's identity is stable while the graph lives.
            indices = [places.setdefault((id(u.edge.node), u.edge.output_nr), len(places)) for u in uses]
            edges = [uses[indices.index(i)].edge for i in range(len(places))]
            x_like = f.detach()
            check_finite(x_like)
            wanted = list(range(f.shape[1])) if isinstance(outputs, str) else [outputs]
            if store is None:
                store = _Store(len(x), len(wanted), outputs == "trace", uses, indices, measure)
            store.put_inputs(rows, uses)
            for position, c in enumerate(wanted):
                last = position == len(wanted) - 1
                found = torch.autograd.grad(f[:, c].sum(), edges, retain_graph=not last, allow_unused=True)
                store.put_gradients(rows, position, found, uses, x_like)
            del f, capture, uses, edges
    assert store is not None  # there is at least one sample
    return store.parts()


class _FlowChangedError(InputError):
    """The forward pass used other parameters, or used them otherwise, than the plan says."""


class _Store:
    """Factors in their final place: each is written once, chunk by chunk of samples and output by output.

    Gradients lie as (n, q, s, …), the outputs along q, or along s where they are summed. Normalisations' scales and
    biases are reduced at once to their per-sample gradients, which are far smaller than their factors.
    """

    def __init__(
        self, count: int, outputs: int, summed: bool, uses: list[Use], indices: list[int], measure: bool
    ) -> None:
        self.count, self.lead = count, (1, outputs) if summed else (outputs, 1)
        self.uses, self.indices, self.measure = uses, indices, measure
        self.a: list[Tensor | None] = [None] * len(uses)
        self.b: dict[int, Tensor] = {}
        self.rows: dict[int, Tensor] = {}
        self.magnitude: dict[int, Tensor] = {}

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
            if u.a is None or u.kind == "scale":
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
        """∂f_c/∂z of one output, for one chunk."""
        written: set[int] = set()
        for i, (u, place) in enumerate(zip(uses, self.indices, strict=True)):
            g = _or_zero(found[place], u, like)
            if u.kind != "scale":
                if place not in written:
                    self.b[place] = self._write(rows, position, self.b.get(place), g)
                    written.add(place)
                continue
            part = Part(u, u.a, g[:, None, None])
            self.rows[i] = self._write(rows, position, self.rows.get(i), part.reduced()[:, 0, 0])
            if self.measure:
                size = _absolute(part, slice(None))[:, 0, 0]
                self.magnitude[i] = self._write(rows, position, self.magnitude.get(i), size)

    def parts(self) -> list[Part]:
        """One part a use."""
        return [
            Part(u, None, self.rows[i], True, self.magnitude.get(i))
            if u.kind == "scale"
            else Part(u, self.a[i], self.b[place])
            for i, (u, place) in enumerate(zip(self.uses, self.indices, strict=True))
        ]


def _difference(now: list[Part], then: list[Part]) -> list[Part]:
    """Parts of J_now - J_then: b⊗a - b₀⊗a₀ = (b - b₀)⊗a + b₀⊗(a - a₀), two positions instead of one."""
    parts: list[Part] = []
    shared: dict[int, Tensor] = {}
    for p, p0 in zip(now, then, strict=True):
        if id(p.b) not in shared:
            shared[id(p.b)] = p.b - p0.b
        change = shared[id(p.b)]
        if p.use.ones or p.use.kind in ("lookup", "scale"):
            parts.append(Part(p.use, p.a, change, p.is_reduced))
        else:
            assert p.a is not None
            assert p0.a is not None
            parts += [Part(p.use, p.a, change), Part(p.use, p.a - p0.a, p0.b)]
    return parts


@dataclass
class Rounding:
    """What bounds the rounding made in forming K from the factors (see :class:`lplr_cli.ntk.kernel.Kernel`).

    Attributes:
        length: longest chain of operations behind an entry of K.
        magnitude: Σ over rows i and terms of (Σ_t ||a_it|| ||b_it||)², which bounds the norm of what K would be
            with absolute values in all its sums; trace(K) (unnormalised) where each sample has one position.
    """

    length: int = 0
    magnitude: float = 0.0

    def add(self, term: Term, pairwise: bool) -> None:
        """Account for one term on all its samples."""
        b = term.parts[0].b
        for rows in _tiles(len(b), 256):
            if term.kind in ("linear", "lookup"):
                sums = torch.linalg.vector_norm(term.right(rows), dim=5)
                if term.kind == "linear":
                    sums = sums * term.left_norms(rows)[:, None, None]
                sums = sums.sum(dim=4)
            else:
                sums = torch.stack([_absolute(p, rows) for p in term.parts]).sum(dim=0)
            self.magnitude += float(sums.double().square().sum())
        shapes = [p.right(slice(0, 1)).shape for p in term.parts]
        # What was reduced already has summed over its positions.
        reduced = sum(math.prod(p.use.shape[1:]) // p.b.shape[3] for p in term.parts if p.is_reduced)
        positions, columns = reduced + sum(s[4] for s in shapes), max(s[2] * s[5] for s in shapes)
        depth = 1 + max(p.left(slice(0, 1)).shape[3] if p.use.kind == "linear" else 1 for p in term.parts)
        if pairwise:
            self.length = max(self.length, depth + columns + positions**2 + 4)
        else:
            self.length = max(self.length, positions + columns * depth * shapes[0][3] + 4)


def _absolute(part: Part, rows: slice) -> Tensor:
    """Σ_t ||a_t|| ||b_t|| of a scale, bias or mixed use, (m, q, s, 1)."""
    if part.magnitude is not None:
        return part.magnitude[rows]
    some = Part(part.use, None if part.a is None else part.a[rows], part.b[rows])
    if part.use.kind == "scale" or part.use.ones:
        size = Part(part.use, None if some.a is None else some.a.abs(), some.b.abs()).reduced()
        whole: Tensor = torch.linalg.vector_norm(size, dim=3, keepdim=True)
        return whole
    sums: Tensor = torch.linalg.vector_norm(some.right(slice(None)), dim=5)
    if part.use.kind == "linear":
        sums = sums * torch.linalg.vector_norm(some.left(slice(None)), dim=3)[:, None, None]
    return sums.sum(dim=(3, 4)).unsqueeze(3)


def _tiles(count: int, step: int, first: int = 0) -> list[slice]:
    return [slice(i, min(count, i + step)) for i in range(first, count, step)]


class _Accumulator:
    """Adds terms to a block of K; in the symmetric case only to tiles on and above the diagonal."""

    def __init__(self, kernel: Tensor, q: int, symmetric: bool, budget: int) -> None:
        self.kernel, self.q, self.symmetric, self.budget = kernel, q, symmetric, budget

    def panels(self, height: int, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Panels of samples (rows, columns) with the part of K they address, (m·q, m'·q).

        In the symmetric case a panel begins at the diagonal; what lies below it inside the panel is left to
        :func:`lplr_cli.linalg.cholesky.mirror`.
        """
        rows, columns = self.kernel.shape[0] // self.q, self.kernel.shape[1] // self.q
        for i in _tiles(rows, height):
            for j in _tiles(columns, width, i.start if self.symmetric else 0):
                tile = self.kernel[i.start * self.q : i.stop * self.q, j.start * self.q : j.stop * self.q]
                yield i, j, tile
                scratch.release(tile)

    def add_products(self, left: list[Term], right: list[Term]) -> None:
        """Terms with one position: Σ (A A'ᵀ) ∘ (B B'ᵀ), every product of a tile while it is in the cache."""
        q = self.q
        whole = slice(None)
        factors = []
        for one, two in zip(left, right, strict=True):
            a, b = one.weight_left(whole)[:, 0, 0], one.right(whole)[:, :, :, 0, 0]
            b = b.flatten(2).flatten(0, 1)
            # A fused bias meets 1 · 1 at the one position.
            start = self.kernel.new_full((), 0.0 if one.bias is None else 1.0)
            if one is two:
                factors.append((a, b, a, b, start))
            else:
                b2 = two.right(whole)[:, :, :, 0, 0].flatten(2).flatten(0, 1)
                factors.append((a, b, two.weight_left(whole)[:, 0, 0], b2, start))
        samples = self.kernel.shape[0] // q
        # Low panels waste little below the diagonal, high ones make better matrix products.
        height, width = max(1, min(PANEL[0], max(128, samples // 8)) // q), max(1, PANEL[1] // q)
        size = min(height, samples) * min(width, self.kernel.shape[1] // q)
        buffers = torch.empty(size * (1 + q * q), dtype=self.kernel.dtype, device=self.kernel.device)
        for i, j, tile in self.panels(height, width):
            m, k = i.stop - i.start, j.stop - j.start
            ab = buffers[: m * k].view(m, k)
            bb = buffers[m * k : m * k * (1 + q * q)].view(m * q, k * q)
            for a, b, a2, b2, start in factors:
                torch.addmm(start, a[i], a2[j].T, out=ab)
                torch.mm(b[i.start * q : i.stop * q], b2[j.start * q : j.stop * q].T, out=bb)
                if q == 1:
                    tile.addcmul_(ab, bb)
                else:
                    bb.view(m, q, k, q).mul_(ab[:, None, :, None])
                    tile.add_(bb)

    def add_pairwise(self, one: Term, two: Term) -> None:
        """A term with several positions: Σ_{t,t'} (a_t·a'_t')(b_t·b'_t')."""
        positions = one.size()[3]
        step = max(1, PANEL[0] // positions)
        for i, j, tile in self.panels(step, step):
            b, b2 = one.right(i), two.right(j)
            if one.kind == "lookup":
                t, t2 = (torch.cat([p.tokens(r) for p in term.parts], dim=1) for term, r in ((one, i), (two, j)))
                meet = (t[:, :, None, None] == t2[None, None]).to(b.dtype)[None]
            else:
                a, a2 = one.left(i), two.left(j)
                meet = torch.einsum("mgtd,kgud->gmtku", a, a2)
            q = self.q
            target = tile.view(b.shape[0], q, b2.shape[0], q)
            for c in range(q):
                for d in range(q):
                    back = torch.einsum("msgto,ksguo->gmtku", b[:, c], b2[:, d])
                    target[:, c, :, d] += (meet * back).sum(dim=(0, 2, 4))

    def add_gram(self, left: Tensor, right: Tensor) -> None:
        """Explicit rows: left · rightᵀ, by panels so that symmetry saves half."""
        rows, width = self.kernel.shape
        step = max(128, -(-rows // 8)) if self.symmetric else rows
        if scratch.is_mapped(self.kernel):
            step = min(step, max(1, scratch.RESIDENT // 4 // (width * self.kernel.element_size())))
        for i in _tiles(rows, step):
            j = slice(i.start if self.symmetric else 0, None)
            self.kernel[i, j].addmm_(left[i], right[j].T)
            scratch.release(self.kernel[i, j])

    def add_explicit(self, one: Term, two: Term, network: Network) -> None:
        """A term by explicit per-sample gradients, over slices of the parameter's rows."""
        count, unit = one.rows(network)
        samples = self.kernel.shape[0] // self.q + (0 if one is two else self.kernel.shape[1] // self.q)
        q, s = one.parts[0].b.shape[1:3]
        # One more column a row for a fused bias; too many by a row's share for the others.
        columns = network.params[one.key.name].numel() + count
        per_row = samples * q * s * -(-columns // count) * self.kernel.dtype.itemsize
        step = max(unit, self.budget // max(1, 2 * per_row) // unit * unit)
        for first in range(0, count, step):
            last = min(count, first + step)
            rows = [_explicit_rows(term, first, last, self.budget) for term in ((one,) if one is two else (one, two))]
            self.add_gram(rows[0], rows[-1])


def _explicit_rows(term: Term, first: int, last: int, budget: int) -> Tensor:
    """Per-sample gradients (n·q, s·columns), a chunk of samples at a time because of the patches."""
    n, q = len(term.parts[0].b), term.parts[0].b.shape[1]
    if term.kind != "linear":
        return term.gradient(slice(None), first, last).flatten(2).flatten(0, 1)
    per_sample = term.left(slice(0, 1)).numel() * term.parts[0].b.element_size()
    whole: Tensor | None = None
    for rows in _tiles(n, int(min(n, max(1, budget // (8 * max(1, per_sample)))))):
        piece = term.gradient(rows, first, last).flatten(2).flatten(0, 1)
        if len(piece) == n * q:
            return piece
        if whole is None:
            whole = piece.new_empty((n * q, piece.shape[1]))
        whole[rows.start * q : rows.stop * q] = piece
    assert whole is not None
    return whole


def _accumulate(
    kernel: Tensor,
    network: Network,
    left: list[Part],
    right: list[Part],
    *,
    symmetric: bool,
    q: int,
    budget: int,
    rounding: Rounding | None = None,
) -> None:
    """Add the contribution of all parts to one block of K."""
    one = _terms(left)
    two = one if right is left else _terms(right)
    target = _Accumulator(kernel, q, symmetric, budget)
    samples = kernel.shape[0] // q
    single: list[tuple[Term, Term]] = []
    reduced: list[tuple[Tensor, Tensor]] = []
    for a, b in zip(one, two, strict=True):
        if rounding is not None:
            rounding.add(a, a.prefers_pairwise(network, samples))
        if a.kind == "scale":
            rows = [sum(p.reduced() for p in term.parts) for term in ((a,) if a is b else (a, b))]
            flat = [r.flatten(2).flatten(0, 1) for r in rows if isinstance(r, Tensor)]
            reduced.append((flat[0], flat[-1]))
        elif a.prefers_pairwise(network, samples):
            _, _, groups, positions, _, _ = a.size()
            if positions == 1 and groups == 1 and a.kind == "linear":
                single.append((a, b))
            else:
                target.add_pairwise(a, b)
        else:
            target.add_explicit(a, b, network)
    if single:
        target.add_products([a for a, _ in single], [b for _, b in single])
    if reduced:
        rows_left = torch.cat([a for a, _ in reduced], dim=1)
        rows_right = rows_left if symmetric else torch.cat([b for _, b in reduced], dim=1)
        target.add_gram(rows_left, rows_right)


def _groups(plan: Plan, samples: int, budget: int) -> Iterator[set[str]]:
    """Names whose factors are held together; a fresh pass serves each group."""
    group: set[str] = set()
    used = 0
    for name in plan.understood:
        size = plan.per_sample[name] * samples
        if group and used + size > budget:
            yield group
            group, used = set(), 0
        group.add(name)
        used += size
    if group:
        yield group


def _restricted(network: Network, names: list[str]) -> Network:
    """The same network with only ``names`` differentiated."""
    params = {k: p for k, p in network.params.items() if k in names}
    rest = {k: p.detach() for k, p in network.params.items() if k not in names}
    return Network(network.module, params, {**network.fixed, **rest})


def gram(
    network: Network,
    x: Tensor,
    other: Tensor | None,
    *,
    outputs: str | int = "full",
    budget: int = 1 << 30,
    reference: Network | None = None,
    plan: Plan | None = None,
    rounding: Rounding | None = None,
    folder: Path | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """J Jᵀ (or J(x) J(other)ᵀ, or (J - J_ref)(J - J_ref)ᵀ), unnormalised, and the parameters without a rule.

    Args:
        network: f and θ.
        x: inputs (n, …).
        other: further inputs, or None for the symmetric case.
        outputs: ``full``, ``trace`` or the index of one output.
        budget: bytes for factors and work space, K itself not counted.
        reference: the network at another θ whose Jacobian is subtracted (symmetric case only).
        plan: from an earlier call with the same module, to save the check.
        rounding: filled with what bounds the rounding of the result (symmetric case only).
        folder: where the matrix lies in a file; in memory by default.
    """
    arguments = (network, x, other, outputs, budget, reference)
    try:
        return _gram(*arguments, plan or plan_for(network, x), rounding, folder)
    except _FlowChangedError:
        # The plan was made at another θ: once more with one of this θ.
        _PLANS.pop(network.module, None)
        return _gram(*arguments, plan_for(network, x), rounding, folder)


def _gram(
    network: Network,
    x: Tensor,
    other: Tensor | None,
    outputs: str | int,
    budget: int,
    reference: Network | None,
    plan: Plan,
    rounding: Rounding | None,
    folder: Path | None,
) -> tuple[Tensor, tuple[str, ...]]:
    q = plan.outputs if outputs == "full" else 1
    symmetric = other is None
    right_inputs = x if other is None else other
    shape = (len(x) * q, len(right_inputs) * q)
    if folder is None:
        kernel = torch.zeros(shape, dtype=network.dtype, device=network.device)
    else:
        kernel = scratch.matrix_in_file(shape[0], network.dtype, folder)
    copies = (2 if reference is not None else 1) * (1 if symmetric else 2)
    chunk = int(max(1, min(4096, budget // (_SHARE * plan.graph))))

    def factors(inputs: Tensor, names: set[str]) -> list[Part]:
        now = _collect(network, inputs, names, outputs, chunk, plan, rounding is not None)
        if reference is None:
            return now
        return _difference(now, _collect(reference, inputs, names, outputs, chunk, plan, False))

    for names in _groups(plan, copies * max(len(x), len(right_inputs)), budget // 3):
        per_sample = max(1, sum(plan.per_sample[name] for name in names))
        step = int(max(1, budget // (3 * copies * per_sample)))
        for i in _tiles(len(x), step):
            left = factors(x[i], names)
            for j in _tiles(len(right_inputs), step):
                if symmetric and j.start < i.start:
                    continue
                diagonal = symmetric and i == j
                right = left if diagonal else factors(right_inputs[j], names)
                block = kernel[i.start * q : i.stop * q, j.start * q : j.stop * q]
                _accumulate(
                    block,
                    network,
                    left,
                    right,
                    symmetric=diagonal,
                    q=q,
                    budget=budget // _SHARE,
                    rounding=rounding if diagonal else None,
                )
                del right
            del left
    if symmetric:
        mirror(kernel)
    if plan.fallback:
        rest = _restricted(network, plan.fallback)
        if reference is not None:
            then = _restricted(reference, plan.fallback)
            kernel += jacobian.change_gram(rest, then, x, outputs=outputs, budget=budget)
        else:
            addition = jacobian.gram(rest, x, other, outputs=outputs, budget=budget)
            if rounding is not None:
                rounding.length = max(rounding.length, rest.parameter_count + 4)
                rounding.magnitude += float(addition.diagonal().double().sum())
            kernel += addition
    if rounding is not None:
        # The terms are added up, each a rounding more, and the sum is divided by n.
        rounding.length += len(network.params) + 4
    return kernel, tuple(plan.fallback)


def trace(network: Network, x: Tensor, *, outputs: str | int = "full", budget: int = 1 << 30) -> float:
    """trace(J Jᵀ), unnormalised, without K: from its diagonal tiles."""
    plan = plan_for(network, x)
    rows = plan.outputs if outputs == "full" else 1
    # Tiles whose factors fit together, so that one pass serves each.
    factors = max(1, sum(plan.per_sample.values()))
    step = max(1, min(256 // rows, budget // (_SHARE * factors)))
    tiles = (gram(network, x[i], None, outputs=outputs, budget=budget, plan=plan)[0] for i in _tiles(len(x), step))
    return math.fsum(float(tile.diagonal().double().sum()) for tile in tiles)
