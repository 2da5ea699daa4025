"""Derivatives of the places of a graph at θ_0, pushed through it as they are (docs/theory.md, section 10).

The norm of a product of layers is far below the product of their norms. So the directions of each layer's parameters
that move its output most are sent through all the operations behind it, and the norms are taken of what arrives. What
is left of the layer, and the rounding on the way, is bounded by norms of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.centre import passes
from lplr_cli.certificate.graph.network import GraphNetwork
from lplr_cli.certificate.graph.nodes import Activation
from lplr_cli.certificate.graph.state import Ahead, Here, Measured, Pushed, up
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.norms import largest_eigenvalue_upper
from lplr_cli.linalg import gamma

# Bytes of tangents that are held at a time.
_MEMORY = 256 << 20


@dataclass(frozen=True)
class _Tangents:
    """Derivatives along some directions at one place, (n, D, …), and ≥ the Frobenius norm of their rounding, (n,)."""

    moved: Tensor
    error: Tensor


@dataclass(frozen=True)
class _Chunk:
    """Some samples: which, their places, and the adjoints of these."""

    rows: slice
    places: list[Tensor]
    adjoints: list[Tensor]


class Pusher:
    """Pushes the derivatives of one network at one θ.

    Args:
        network: at θ_0.
        x: (n, …).
        directions: D of each layer, about; at least one for each output.
        full: bounds at radius 0 by norms of layers alone.
        here: what is known of each node at radius 0.
    """

    def __init__(self, network: GraphNetwork, x: Tensor, directions: int, full: list[Ahead], here: list[Here]) -> None:
        self._network, self._x, self._full, self._here = network, x, full, here
        sizes = [t.shape[1:].numel() for t in network.forward(x[:1])]
        chunk = max(1, _MEMORY // (8 * directions * (sum(sizes) + 2 * max(sizes))))
        self._chunks = [slice(i, min(i + chunk, len(x))) for i in range(0, len(x), chunk)]
        self._layers = [
            (k, node) for k, node in enumerate(network.nodes) if isinstance(node, Weighted) and node.block is not None
        ]
        self._leading: dict[int, Tensor] = {}
        self._rests: dict[int, Measured] = {}
        for k, layer in self._layers:
            parts = [self._split(layer, network.forward(x[rows])[layer.inputs[0]], directions) for rows in self._chunks]
            self._leading[k] = torch.cat([v for v, _ in parts])
            self._rests[k] = {key: torch.cat([rest[key] for _, rest in parts]) for key in parts[0][1]}

    @staticmethod
    def _split(layer: Weighted, x: Tensor, directions: int) -> tuple[Tensor, Measured]:
        v = layer.leading(x, directions)
        return v, layer.rest(x, v)

    def rests(self) -> list[Measured]:
        """What is measured of each node, that of a layer being what its leading directions leave."""
        return [{**here.measured, **self._rests.get(k, {})} for k, here in enumerate(self._here)]

    def push(self, rest: list[Ahead]) -> Pushed:
        """Everything.

        Args:
            rest: bounds at radius 0, by norms of layers, of what is not pushed.
        """
        shape = (len(self._x), self._network.blocks)
        d = [torch.zeros(shape, dtype=torch.float64) for _ in self._full]
        rows = [torch.zeros(shape, dtype=torch.float64) for _ in self._full]
        leans = {
            k: torch.zeros((shape[0], self._here[k].measured["weight"].shape[1], shape[1]), dtype=torch.float64)
            for k, node in enumerate(self._network.nodes)
            if isinstance(node, Activation)
        }
        for part in self._chunks:
            chunk = _Chunk(part, *passes(self._network, self._x[part]))
            for k, layer in self._layers:
                self._from(k, layer, chunk, rest, Pushed(d, rows, leans))
        return Pushed([up(t) for t in d], [up(t) for t in rows], {k: up(t) for k, t in leans.items()})

    def _from(self, start: int, layer: Weighted, chunk: _Chunk, rest: list[Ahead], out: Pushed) -> None:
        """The derivatives by one layer's parameters at every place behind it."""
        tangents = {start + 1: self._begun(start, layer, chunk)}
        skew = 2 * self._rests[start]["skew"][chunk.rows]
        block = layer.block
        for place in range(start + 1, len(chunk.places)):
            arrived = tangents.get(place) or self._through(place - 1, chunk, tangents)
            if arrived is None:
                continue
            tangents[place] = arrived
            full, left = self._full[place], rest[place]
            flat = arrived.moved.flatten(2)
            line = flat.square().sum(dim=1).amax(dim=1).sqrt()
            for found, near, whole, other in (
                (out.blocks[place], operator_norm(flat), full.blocks, left.blocks),
                (out.rows[place], line, full.rows, left.rows),
            ):
                whole, other = whole[chunk.rows, block], other[chunk.rows, block]
                # V is orthonormal to within ``skew``, so both parts are orthogonal to within it.
                near = up(near) + arrived.error
                near = near + skew * (near + whole)
                found[chunk.rows, block] = torch.minimum(torch.hypot(near, other), whole)
            for k, node in enumerate(self._network.nodes):
                if isinstance(node, Activation) and node.inputs[0] == place:
                    extra = (
                        arrived.error + skew * full.blocks[chunk.rows, block],
                        skew,
                        left.blocks[chunk.rows, block],
                    )
                    out.leans[k][chunk.rows, :, block] = self._lean(k, node, chunk, flat, extra)

    def _begun(self, start: int, layer: Weighted, chunk: _Chunk) -> _Tangents:
        """Where the parameters enter."""
        place = layer.inputs[0]
        v = self._leading[start][chunk.rows]
        moved, error = layer.directions(chunk.places[place], v, chunk.places[start + 1].shape[1:])
        met = layer.overlap_root * self._full[place].error[chunk.rows] * moved.shape[1] ** 0.5
        return _Tangents(moved, up(error + met))

    @staticmethod
    def _lean(k: int, node: Activation, chunk: _Chunk, flat: Tensor, extra: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """≥ ||√ŵ ∘ ∂z/∂θ_p|| for each output, (n, C), from the tangents and what they lack."""
        error, skew, left = extra
        weights = node.weights(chunk.adjoints[k], chunk.places[node.inputs[0]])
        heaviest = weights.amax(dim=2).sqrt()
        columns = []
        for c in range(weights.shape[1]):
            near = operator_norm(flat * weights[:, c, None].sqrt()) * (1 + skew) + heaviest[:, c] * error
            columns.append(torch.hypot(near, heaviest[:, c] * left))
        return torch.stack(columns, dim=1)

    def _through(self, k: int, chunk: _Chunk, tangents: dict[int, _Tangents]) -> _Tangents | None:
        """Behind node k; None where nothing arrives."""
        node = self._network.nodes[k]
        given = [tangents.get(place) for place in node.inputs]
        known = [g for g in given if g is not None]
        if not known:
            return None
        below = tuple(chunk.places[i] for i in node.inputs)
        moved = node.push(self._network.values, tuple(None if g is None else g.moved for g in given), below)
        size = torch.stack([g.moved.flatten(1).norm(dim=1) for g in known]).sum(dim=0)
        error = torch.stack([g.error for g in known]).sum(dim=0)
        here = self._here[k]
        part = Here(0.0, {key: v[chunk.rows] for key, v in here.measured.items()}, here.constants)
        bounds = [_some(self._full[i], chunk.rows) for i in node.inputs]
        return _Tangents(moved, node.push_error(part, up(size), error, *bounds))


def _some(at: Ahead, rows: slice) -> Ahead:
    """Of some samples."""
    return Ahead(*(getattr(at, key)[rows] for key in ("size", "error", "blocks", "rows", "second", "drift")))


def operator_norm(a: Tensor) -> Tensor:
    """≥ ||A||_op of each of many matrices, (n, D, m) → (n,), from the Gram matrix of the shorter side."""
    short = a if a.shape[1] <= a.shape[2] else a.mT
    square = a.square().sum(dim=(1, 2))
    found = largest_eigenvalue_upper(short @ short.mT) + 1.01 * gamma(short.shape[2] + 8, a.dtype) * square
    return up(torch.minimum(found, square).sqrt())
