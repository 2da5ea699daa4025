"""Bounds of ∇²f, of its change and of rounding over balls, for graphs of operations (docs/theory.md, section 10)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lplr_cli.certificate.graph.builder import refuse
from lplr_cli.certificate.graph.centre import measure
from lplr_cli.certificate.graph.network import GraphNetwork
from lplr_cli.certificate.graph.pushed import Pusher
from lplr_cli.certificate.graph.state import EPS, Ahead, Behind, Here, Pushed, up
from lplr_cli.certificate.graph.weighted import Weighted
from lplr_cli.certificate.network import MARGIN, euclidean, in_double
from lplr_cli.certificate.norms import frobenius_upper
from lplr_cli.certificate.proved import TRIED, Proved, check_radius, finite, pays
from lplr_cli.ntk import Network, evaluation_mode

# Directions to choose from, and those of them that ``auto`` tries.
PUSHED = (64, 256, 2048)
_AUTO = PUSHED[:2]
# Bytes of the tangents of one sample at its largest place.
_MEMORY = 512 << 20
# The factor that pushing more of them is worth.
_MORE = 8.0
# Steps of the power iteration behind the bound of a non-negative matrix, and its shift.
_STEPS, _SHIFT = 24, 0.05


@dataclass(frozen=True, kw_only=True)
class GraphOver(Proved):
    """What is proved on one ball of a graph, of its places too.

    Attributes:
        ahead: of each place.
        behind: of each place but the input.
        gathered: rounding of the sum of λ̂ of several users of a place but the input, (n, C) each.
    """

    ahead: list[Ahead]
    behind: list[Behind]
    gathered: list[Tensor]


class GraphBounds:
    """Bounds over closed balls around θ_0; θ_0 itself is looked at once.

    Args:
        network: at θ_0.
        inputs: (n, …), all training samples.
        directions: of each layer's parameters that are pushed through the network at θ_0 as they are, at the price of
            a forward pass each; 0 multiplies norms of layers alone.

    Attributes:
        f: f̂(θ_0), (n, C). f_error: ≥ |f̂ − f|, (n, C).
        jacobian_error: ≥ ||Ĵ − J||_F/√n of a Jacobian as computed, in any order of summation.
        method: ``fast`` where nothing is pushed, else ``tight``.

    Raises:
        NoCertificateError: magnitudes outside the range of docs/theory.md, section 7.
    """

    def __init__(self, network: GraphNetwork, inputs: Tensor, *, directions: int = PUSHED[0]) -> None:
        x = in_double(inputs)
        self.network, self.centre = network, measure(network, x)
        self.f = self.centre.f
        self.n, self.outputs = self.f.shape
        self.method = "tight" if directions else "fast"
        self.pushed: Pushed | None = None
        if directions and network.blocks:
            self.pushed = self._push(x, directions)
        start = self.ahead(0.0)
        behind = self._behind(0.0, start)[0]
        self.f_error = start[-1].error[:, None].expand_as(self.f)
        wrong = torch.zeros_like(self.f)
        for k, node in enumerate(network.nodes):
            here, below = self.here(k, 0.0), self._below(start, k)
            for error in node.gradient_error(here, behind[k].size, behind[k].error, 1, *below):
                wrong = wrong + error.square()
        self.jacobian_errors = up(wrong.sqrt())
        self.jacobian_error = frobenius_upper(self.jacobian_errors) / math.sqrt(self.n) * (1 + MARGIN)

    def over(self, radius: float) -> GraphOver:
        """All bounds on the closed ball of this radius.

        Raises:
            InputError: a radius that is negative or not finite.
        """
        check_radius(radius)
        ahead = self.ahead(radius)
        behind, gathered = self._behind(radius, ahead)
        hessians, thirds = self._second(radius, ahead, behind)
        squares = torch.zeros_like(hessians)
        for k, node in enumerate(self.network.nodes):
            own = node.gradient(self.here(k, radius), behind[k], *self._below(ahead, k))
            squares = squares if own is None else squares + own.square()
        near = self.centre.gradient + self.jacobian_errors + radius * hessians
        gradients = finite(up(torch.minimum(finite(squares.sqrt()), finite(near))))
        return GraphOver(
            radius=radius,
            hessians=hessians,
            thirds=thirds,
            gradients=gradients,
            f_reach=up(radius * gradients + self.f_error),
            jacobians=up(torch.minimum(finite(ahead[-1].norm), euclidean(gradients))),
            l_j=frobenius_upper(hessians) / math.sqrt(self.n) * (1 + MARGIN),
            ahead=ahead,
            behind=behind,
            gathered=gathered,
        )

    def l_j(self, radius: float) -> float:
        """L_J alone, see :meth:`over`."""
        return self.over(radius).l_j

    def check(self, module: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> None:
        """Compare f̂ with what ``module`` computes at the same θ on x (n, …).

        Raises:
            NoCertificateError: they differ by more than the rounding of both.
        """
        with torch.no_grad(), evaluation_mode(module):
            outputs = Network.from_module(module, values=values).forward(x)
        if outputs.shape != self.f.shape or not bool(((outputs - self.f).abs() <= 2 * self.f_error).all()):
            raise refuse(
                f"this {type(module).__name__}: its outputs are not those of its operations",
                "bounds are proved for modules whose forward pass depends on parameters and input alone",
            )

    def forward_error(self, over: GraphOver) -> Tensor:
        """≥ ||f̂ − f|| at every θ of the ball, for any order of summation, (n,)."""
        return over.ahead[-1].error

    def gradient_error(self, over: GraphOver, size: Tensor, error: Tensor) -> float:
        """≥ ||∇L̂ − ∇L|| at every θ of the ball, for any order of summation.

        Args:
            over: of the ball.
            size: ≥ ||q_i||, the gradient of each sample's loss, (n,).
            error: ≥ ||q̂_i − q_i||, (n,).
        """
        errors = [torch.zeros((self.n, 1), dtype=torch.float64) for _ in over.ahead]
        errors[-1] = error[:, None]
        sizes = [(size * euclidean(b.size))[:, None] for b in over.behind]
        wrong = 0.0
        for k in range(len(self.network.nodes) - 1, -1, -1):
            node, here, below = self.network.nodes[k], self.here(k, over.radius), self._below(over.ahead, k)
            mine = errors[k + 1] = up(errors[k + 1] + (size * euclidean(over.gathered[k]))[:, None])
            for part in node.gradient_error(here, sizes[k], mine, self.n, *below):
                wrong += float(part.mean()) ** 2
            for place, handed in zip(node.inputs, node.errors(here, sizes[k], mine, *below), strict=True):
                errors[place] = errors[place] + handed
        return math.sqrt(wrong) * (1 + MARGIN)

    # -- the two passes ----------------------------------------------------------------------------------------------

    def _push(self, x: Tensor, directions: int) -> Pushed:
        """Derivatives at θ_0, what is not pushed of each layer being bounded by norms as everything is elsewhere."""
        full = self.ahead(0.0)
        here = [self.here(k, 0.0) for k in range(len(self.network.nodes))]
        pusher = Pusher(self.network, x, directions, full, here)
        kept, self.centre = self.centre, replace(self.centre, measured=pusher.rests())
        rest = self.ahead(0.0)
        self.centre = kept
        return pusher.push(rest)

    def here(self, k: int, radius: float) -> Here:
        lean = None
        if self.pushed is not None and k in self.pushed.leans:
            lean = self.pushed.leans[k], self.pushed.blocks[self.network.nodes[k].inputs[0]]
        return Here(radius, self.centre.measured[k], self.centre.constants[k], lean)

    def _below(self, ahead: list[Ahead], k: int) -> list[Ahead]:
        return [ahead[i] for i in self.network.nodes[k].inputs]

    def ahead(self, radius: float) -> list[Ahead]:
        """From the input up."""
        none = torch.zeros(self.n, dtype=torch.float64)
        blocks = torch.zeros((self.n, self.network.blocks), dtype=torch.float64)
        found = [Ahead(self.centre.sizes[0], none, blocks, blocks, none, blocks)]
        for k, node in enumerate(self.network.nodes):
            at = node.ahead(self.here(k, radius), *self._below(found, k))
            if self.pushed is not None:
                own = up(self.pushed.blocks[k + 1] + at.drift), up(self.pushed.rows[k + 1] + at.drift)
                at = replace(at, blocks=torch.minimum(at.blocks, own[0]), rows=torch.minimum(at.rows, own[1]))
            near = up(self.centre.sizes[k + 1] + at.reach(radius))
            found.append(replace(at, size=torch.minimum(at.size, near)))
        return found

    def _behind(self, radius: float, ahead: list[Ahead]) -> tuple[list[Behind], list[Tensor]]:
        """From the output down, the contributions of all users of a place added up."""
        ones, places = torch.ones_like(self.f), len(ahead)
        sizes, errors = [torch.zeros_like(ones)] * places, [torch.zeros_like(ones)] * places
        blocks = [torch.zeros((*ones.shape, self.network.blocks), dtype=torch.float64)] * places
        users, sizes[-1] = [0] * places, ones
        found: list[Behind] = []
        gathered: list[Tensor] = []
        for k in range(places - 2, -1, -1):
            summed = EPS * users[k + 1] * sizes[k + 1] if users[k + 1] > 1 else torch.zeros_like(ones)
            at = Behind(sizes[k + 1], up(errors[k + 1] + summed), blocks[k + 1])
            near = up(self.centre.adjoints[k] + at.reach(radius))
            at = replace(at, size=torch.minimum(at.size, near))
            found.insert(0, at)
            gathered.insert(0, up(summed))
            node, here, below = self.network.nodes[k], self.here(k, radius), self._below(ahead, k)
            wrong = node.errors(here, at.size, at.error, *below)
            for place, (size, turn), error in zip(node.inputs, node.behind(here, at, *below), wrong, strict=True):
                sizes[place], blocks[place] = sizes[place] + size, blocks[place] + turn
                errors[place], users[place] = errors[place] + error, users[place] + 1
        return found, gathered

    def _second(self, radius: float, ahead: list[Ahead], behind: list[Behind]) -> tuple[Tensor, Tensor]:
        """Bounds of ||∇²f_ic|| and of ||D³f_ic||, (n, C), from what each node adds."""
        k = self.network.blocks
        matrix = torch.zeros((*self.f.shape, k, k), dtype=torch.float64)
        third = torch.zeros_like(self.f)
        for place, node in enumerate(self.network.nodes):
            form = node.form(self.here(place, radius), behind[place], *self._below(ahead, place))
            if form is not None:
                matrix, third = matrix + form.matrix, third + form.third
        if self.pushed is not None:
            matrix = torch.minimum(finite(matrix), finite(self.near(radius, ahead, behind, self.pushed)))
        return finite(up(nonnegative_norm(matrix))), finite(up(third))

    def near(self, radius: float, ahead: list[Ahead], behind: list[Behind], pushed: Pushed) -> Tensor:
        """≥ the norm of each block of ∇²f_ic, (n, C, K, K), from θ_0 and how far all can be from it."""
        matrix, tangents = pushed.core, [t.over(at) for t, at in zip(pushed.tangents, ahead, strict=True)]
        for k, node in enumerate(self.network.nodes):
            given = [tangents[place] for place in node.inputs]
            away = node.spread(self.here(k, radius), behind[k], self._below(ahead, k), given)
            if away is not None:
                matrix = matrix + away
        return matrix


def worthwhile(network: GraphNetwork, inputs: Tensor) -> int:
    """How many directions of each layer to push, from what they change on a few samples: 0, 64 or 256.

    Args:
        network: at some θ.
        inputs: (n, …), of which the first few are tried.
    """
    few = inputs[:TRIED]

    def bound(directions: int) -> Tensor:
        return GraphBounds(network, few, directions=directions).over(0.0).hessians

    none, some, many = (bound(directions) for directions in (0, *_AUTO))
    if not pays(none, some) and not pays(none, many):
        return 0
    return _AUTO[int(pays(some, many, factor=_MORE))]


def affordable(network: GraphNetwork, inputs: Tensor) -> int:
    """The most of :data:`PUSHED` whose tangents of one sample stay within half a gigabyte; its second at least."""
    largest = max(t.numel() for t in network.forward(in_double(inputs[:1])))
    weights = [
        network.values[node.weight].numel()
        for node in network.nodes
        if isinstance(node, Weighted) and node.block is not None
    ]
    fitting = [d for d in PUSHED if 8 * largest * sum(min(d, w) for w in weights) <= _MEMORY]
    return max([*_AUTO, *fitting])


def nonnegative_norm(matrix: Tensor) -> Tensor:
    """An upper bound of the norm of symmetric non-negative matrices, (…, K, K) → (…).

    max_i (M v)_i / v_i bounds λ_max for every positive v (Collatz 1942, Wielandt 1950); v comes of a power iteration.
    """
    if matrix.shape[-1] == 0:
        return torch.zeros(matrix.shape[:-2], dtype=matrix.dtype)
    best = matrix.sum(dim=-1).amax(dim=-1)
    shift = _SHIFT * best + torch.finfo(matrix.dtype).tiny
    v = torch.ones_like(matrix[..., 0])
    for _ in range(_STEPS):
        image = (matrix @ v[..., None])[..., 0] + shift[..., None] * v
        ratio = (image / v).amax(dim=-1)
        best = torch.fmin(best, ratio * (1 + MARGIN) - shift)
        v = image / image.amax(dim=-1, keepdim=True)
    return best
