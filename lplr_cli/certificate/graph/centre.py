"""Norms of a graph at θ_0, measured once: what the rules of its nodes need of the forward and backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.graph.network import GraphNetwork
from lplr_cli.certificate.graph.state import Measured, up
from lplr_cli.certificate.network import check_magnitude

# Bytes of activations and of their adjoints that are held at a time.
MEMORY = 256 << 20


@dataclass(frozen=True)
class Centre:
    """The forward and backward pass at θ_0 as computed.

    Attributes:
        f: f̂, (n, C).
        sizes: ≥ ||t̂|| of each place, (n,).
        adjoints: ≥ ||λ̂|| of each place but the input, (n, C).
        measured: of each node.
        constants: of each node.
        gradient: ≥ ||∂f_c/∂θ|| as computed, without its rounding, (n, C).
    """

    f: Tensor
    sizes: list[Tensor]
    adjoints: list[Tensor]
    measured: list[Measured]
    constants: list[dict[str, float]]
    gradient: Tensor


def measure(network: GraphNetwork, x: Tensor) -> Centre:
    """Measure everything, a few samples at a time.

    Args:
        network: at θ_0.
        x: (n, …), float64, or whole numbers.

    Raises:
        NoCertificateError: magnitudes outside the range of docs/theory.md, section 7.
    """
    if x.is_floating_point():
        check_magnitude(x.flatten(1), "inputs")
    for value in network.values.values():
        check_magnitude(value.reshape(1, -1), "parameters", smallest=0.0)
    with torch.no_grad():
        shapes = [t.shape[1:] for t in network.forward(x[:1])]
        constants = [n.constants(network.values, *(shapes[i] for i in n.inputs)) for n in network.nodes]
    chunk = samples_at_a_time(shapes)
    return _together([_part(network, x[i : i + chunk]) for i in range(0, len(x), chunk)], constants)


def samples_at_a_time(shapes: Sequence[torch.Size]) -> int:
    """How many samples, of places of these shapes, are measured within the memory."""
    outputs = shapes[-1].numel()
    entries = sum(s.numel() for s in shapes) * (outputs + 2) + max(s.numel() for s in shapes) * 9 * (outputs + 2)
    return max(1, MEMORY // (8 * entries))


@dataclass(frozen=True)
class _Part:
    f: Tensor
    sizes: list[Tensor]
    adjoints: list[Tensor]
    measured: list[Measured]


def _together(parts: Sequence[_Part], constants: list[dict[str, float]]) -> Centre:
    """All samples, from parts of them."""
    f = torch.cat([p.f for p in parts])
    measured = [_joined([p.measured[k] for p in parts]) for k in range(len(constants))]
    squares = sum((m["gradient"].square() for m in measured if "gradient" in m), torch.zeros_like(f))
    return Centre(
        f=f,
        sizes=_joined_each([p.sizes for p in parts]),
        adjoints=_joined_each([p.adjoints for p in parts]),
        measured=measured,
        constants=constants,
        gradient=up(squares.sqrt()),
    )


def passes(network: GraphNetwork, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every place (n, …), and λ̂ of every place but the input (n, C, …)."""
    with torch.enable_grad():
        places = [x.detach()]
        for node in network.nodes:
            t = node.value(network.values, *(places[i] for i in node.inputs))
            places.append(t if t.requires_grad else t.detach().requires_grad_())
        f = places[-1]
        columns = [
            torch.autograd.grad(f[:, c].sum(), places[1:], retain_graph=True, materialize_grads=True)
            for c in range(f.shape[1])
        ]
    places = [t.detach() for t in places]
    return places, [torch.stack([column[k] for column in columns], dim=1) for k in range(len(network.nodes))]


def _part(network: GraphNetwork, x: Tensor) -> _Part:
    """Of some samples."""
    places, adjoints = passes(network, x)
    places[0] = places[0].double()
    for t in places:
        check_magnitude(t.flatten(1), "activations", smallest=0.0)
    for t in adjoints:
        check_magnitude(t.flatten(1), "gradients", smallest=0.0)
    measured = []
    for k, node in enumerate(network.nodes):
        below = [places[i] for i in node.inputs]
        measured.append({**node.measure(*below), **node.weigh(adjoints[k], *below)})
    return _Part(
        places[-1],
        [up(_norm(t, 1)) for t in places],
        [up(_norm(t, 2)) for t in adjoints],
        measured,
    )


def _norm(t: Tensor, first: int) -> Tensor:
    """Over all but the first dimensions."""
    result: Tensor = torch.linalg.vector_norm(t.reshape(*t.shape[:first], -1), dim=first)
    return result


def _joined(parts: Sequence[Measured]) -> Measured:
    return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}


def _joined_each(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Lists of as many tensors, of some samples each, as one of all."""
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
