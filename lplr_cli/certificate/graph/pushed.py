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
from lplr_cli.certificate.graph.core import Core
from lplr_cli.certificate.graph.network import GraphNetwork
from lplr_cli.certificate.graph.nodes import Activation, Node
from lplr_cli.certificate.graph.state import Ahead, Here, Measured, Pushed, Tangent, up
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.norms import operator_norms

# Bytes of tangents that are held at a time.
MEMORY = 256 << 20
# Bytes of the blocks of one sample beyond which they are not formed.
MOST = 512 << 20


@dataclass(frozen=True)
class Tangents:
    """Derivatives along some directions at one place, (n, D, …), and ≥ the Frobenius norm of their rounding, (n,)."""

    moved: Tensor
    error: Tensor


@dataclass(frozen=True)
class Chunk:
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
        self._network, self._x, self.full, self.here = network, x, full, here
        sizes = [t.shape[1:].numel() for t in network.forward(x[:1])]
        self._outputs = sizes[-1]
        self.layers = [
            (k, node) for k, node in enumerate(network.nodes) if isinstance(node, Weighted) and node.block is not None
        ]
        pushed = sum(min(directions, network.values[layer.weight].numel()) for _, layer in self.layers)
        chunk = max(1, MEMORY // (8 * pushed * (sizes[-1] * pushed + 6 * max(sizes))))
        self._chunks = [slice(i, min(i + chunk, len(x))) for i in range(0, len(x), chunk)]
        self._cored = 8 * sizes[-1] * pushed**2 <= MOST
        self.of_block = {layer.block: k for k, layer in self.layers}
        self.leading: dict[int, Tensor] = {}
        self.rests_of: dict[int, Measured] = {}
        for k, layer in self.layers:
            parts = [self._split(layer, network.forward(x[rows])[layer.inputs[0]], directions) for rows in self._chunks]
            self.leading[k] = torch.cat([v for v, _ in parts])
            self.rests_of[k] = {key: torch.cat([rest[key] for _, rest in parts]) for key in parts[0][1]}

    @staticmethod
    def _split(layer: Weighted, x: Tensor, directions: int) -> tuple[Tensor, Measured]:
        v = layer.leading(x, directions)
        return v, layer.rest(x, v)

    def rests(self) -> list[Measured]:
        """What is measured of each node, that of a layer being what its leading directions leave."""
        return [{**here.measured, **self.rests_of.get(k, {})} for k, here in enumerate(self.here)]

    def push(self, rest: list[Ahead]) -> Pushed:
        """Everything.

        Args:
            rest: bounds at radius 0, by norms of layers, of what is not pushed.
        """
        n, blocks, nodes = len(self._x), self._network.blocks, self._network.nodes
        outputs = self._outputs

        def empty(*shape: int) -> Tensor:
            return torch.zeros((n, *shape), dtype=torch.float64)

        def everywhere() -> list[Tensor]:
            return [empty(blocks) for _ in self.full]

        leans = {k: empty(outputs, blocks) for k, node in enumerate(nodes) if isinstance(node, Activation)}
        tangents = [Tangent(empty(blocks), empty(blocks), empty(blocks)) for _ in self.full]
        out = Pushed(everywhere(), everywhere(), leans, tangents, empty(outputs, blocks, blocks))
        for part in self._chunks:
            self._sweep(Chunk(part, *passes(self._network, self._x[part])), rest, out)
        return Pushed(
            [up(t) for t in out.blocks], [up(t) for t in out.rows], {k: up(t) for k, t in leans.items()},
            [Tangent(up(t.size), up(t.frobenius), up(t.rest)) for t in tangents], up(out.core),
        )  # fmt: skip

    def _sweep(self, chunk: Chunk, rest: list[Ahead], out: Pushed) -> None:
        """The derivatives by the parameters of all layers, from the input up."""
        nodes, n = self._network.nodes, len(chunk.places[0])
        core = Core(n, self._outputs, self._network.blocks, len(nodes))
        last = {place: k for k, node in enumerate(nodes) for place in node.inputs}
        held: dict[int, dict[int, Tangents]] = {0: {}}
        for k, node in enumerate(nodes):
            given = [held[place] for place in node.inputs]
            below = [chunk.places[place] for place in node.inputs]
            if self._cored:
                core.add(node, chunk.adjoints[k], [{p: t.moved for p, t in g.items()} for g in given], below)
            if isinstance(node, Activation):
                for p, t in given[0].items():
                    out.leans[k][chunk.rows, :, p] = self.lean(k, node, chunk, t, rest[node.inputs[0]], p)
            arrived = self._arrived(k, node, chunk, given)
            for p, t in arrived.items():
                self.measure(k + 1, p, t, chunk.rows, rest[k + 1], out)
            held[k + 1] = arrived
            for place in set(node.inputs):
                if last[place] == k:
                    del held[place]
        out.core[chunk.rows] = self.stretched(core, chunk.rows) if self._cored else torch.inf

    def _arrived(self, k: int, node: Node, chunk: Chunk, given: list[dict[int, Tangents]]) -> dict[int, Tangents]:
        """What is behind node k of the parameters of each block below it, and of its own."""
        arrived = {p: self.through(k, chunk, [g.get(p) for g in given]) for p in sorted(set().union(*given))}
        if isinstance(node, Weighted) and node.block is not None:
            arrived[node.block] = self.begun(k, node, chunk)
        return arrived

    def stretched(self, core: Core, rows: slice) -> Tensor:
        # V is orthonormal to within its skew, on both sides.
        found = core.norms()
        stretch = torch.ones((len(found), self._network.blocks), dtype=torch.float64)
        for k, layer in self.layers:
            stretch[:, layer.block] += self._skew(k, rows)
        return found * (stretch[:, :, None] * stretch[:, None])[:, None]

    def _skew(self, layer: int, rows: slice) -> Tensor:
        return 2 * self.rests_of[layer]["skew"][rows]

    def measure(self, place: int, p: int, arrived: Tangents, rows: slice, rest: Ahead, out: Pushed) -> None:
        """Norms of what arrives at a place from the parameters of block p, and of what is left of these."""
        full, skew = self.full[place], self._skew(self.of_block[p], rows)
        flat = arrived.moved.flatten(2)
        line = flat.square().sum(dim=1).amax(dim=1).sqrt()
        size = up(operator_norms(flat))
        for found, near, whole, other in (
            (out.blocks[place], size, full.blocks, rest.blocks),
            (out.rows[place], up(line), full.rows, rest.rows),
        ):
            # V is orthonormal to within ``skew``, so both parts are orthogonal to within it.
            near = near + arrived.error
            near = near + skew * (near + whole[rows, p])
            found[rows, p] = torch.minimum(torch.hypot(near, other[rows, p]), whole[rows, p])
        tangent = out.tangents[place]
        tangent.size[rows, p] = (1 + skew) * size
        tangent.frobenius[rows, p] = (1 + skew) * up(flat.square().sum(dim=(1, 2)).sqrt())
        tangent.rest[rows, p] = (1 + skew) * arrived.error + rest.blocks[rows, p]

    def begun(self, start: int, layer: Weighted, chunk: Chunk) -> Tangents:
        """Where the parameters enter."""
        place = layer.inputs[0]
        v = self.leading[start][chunk.rows]
        moved, error = layer.directions(chunk.places[place], v, chunk.places[start + 1].shape[1:])
        met = layer.overlap_root * self.full[place].error[chunk.rows] * moved.shape[1] ** 0.5
        return Tangents(moved, up(error + met))

    def lean(self, k: int, node: Activation, chunk: Chunk, arrived: Tangents, rest: Ahead, p: int) -> Tensor:
        """≥ ||√ŵ ∘ ∂z/∂θ_p|| for each output, (n, C), from the tangents and what they lack."""
        place, flat = node.inputs[0], arrived.moved.flatten(2)
        skew, left = self._skew(self.of_block[p], chunk.rows), rest.blocks[chunk.rows, p]
        error = arrived.error + skew * self.full[place].blocks[chunk.rows, p]
        weights = node.weights(chunk.adjoints[k], chunk.places[place])
        heaviest = weights.amax(dim=2).sqrt()
        columns = []
        for c in range(weights.shape[1]):
            near = up(operator_norms(flat * weights[:, c, None].sqrt())) * (1 + skew) + heaviest[:, c] * error
            columns.append(torch.hypot(near, heaviest[:, c] * left))
        return torch.stack(columns, dim=1)

    def through(self, k: int, chunk: Chunk, given: list[Tangents | None]) -> Tangents:
        """Behind node k."""
        node = self._network.nodes[k]
        known = [g for g in given if g is not None]
        below = tuple(chunk.places[i] for i in node.inputs)
        moved = node.push(self._network.values, tuple(None if g is None else g.moved for g in given), below)
        size = torch.stack([g.moved.flatten(1).norm(dim=1) for g in known]).sum(dim=0)
        error = torch.stack([g.error for g in known]).sum(dim=0)
        here = self.here[k]
        part = Here(0.0, {key: v[chunk.rows] for key, v in here.measured.items()}, here.constants)
        bounds = [_some(self.full[i], chunk.rows) for i in node.inputs]
        return Tangents(moved, node.push_error(part, up(size), error, *bounds))


def _some(at: Ahead, rows: slice) -> Ahead:
    """Of some samples."""
    return Ahead(*(getattr(at, key)[rows] for key in ("size", "error", "blocks", "rows", "second", "drift")))
