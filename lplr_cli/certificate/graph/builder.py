"""A graph while it is put together, one operation after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.certificate.graph.nodes import Activation, Average, Node
from lplr_cli.certificate.graph.norms import Normalise, Scaled
from lplr_cli.certificate.graph.tables import Constant, Embedding
from lplr_cli.certificate.graph.weighted import Convolution, Weighted
from lplr_cli.certificate.network import NoCertificateError
from lplr_cli.certificate.smooth import smooth_activation

_REMEDY = (
    "bounds are proved for linear layers, convolutions, embeddings, group and layer normalisation, attention, sums, "
    "products, means, changes of shape, and softplus, tanh, GELU or SiLU"
)


def refuse(what: str, remedy: str = _REMEDY) -> NoCertificateError:
    """The error to raise."""
    return NoCertificateError(f"no certificate for {what}", remedy)


class Place:
    """A tensor of the graph."""

    def __init__(self, index: int, shape: torch.Size) -> None:
        self.index, self.shape = index, shape

    @staticmethod
    def of(values: Any) -> list[Place]:
        """Those among some values."""
        return [v for v in values if isinstance(v, Place)]


@dataclass(frozen=True)
class Learnt:
    """A parameter outside of a layer, by name."""

    name: str
    shape: torch.Size


class Builder:
    """Nodes, and the places where their outputs are.

    Args:
        module: whose parameters are met by name.
        trained: names of the parameters that θ is made of.
        probe: inputs (n, …), whose shapes decide.

    Attributes:
        nodes: of the graph; node k has its output at place k + 1.
        used: names of parameters.
        blocks: K.
    """

    def __init__(self, module: nn.Module, trained: set[str], probe: Tensor) -> None:
        self._trained = trained
        self._double = {k: p.detach().cpu().double() for k, p in module.named_parameters()}
        self.nodes: list[Node] = []
        self.used: list[str] = []
        self.blocks = 0
        self._places: list[Tensor] = [probe]

    def add(self, node: Node) -> Place:
        """Put a node at the end.

        Raises:
            NoCertificateError: shapes that do not fit.
        """
        try:
            value = node.value(self._double, *(self._places[i] for i in node.inputs))
        except (RuntimeError, IndexError) as error:
            shape = tuple(self._places[0].shape[1:])
            raise refuse(f"this module, which does not take samples of shape {shape}") from error
        self.nodes.append(node)
        self._places.append(value)
        return Place(len(self._places) - 1, value.shape)

    def average(self, x: Place, label: str, apply: Callable[[Tensor], Tensor], count: int, overlap: int = 1) -> Place:
        """Means, or a change of shape where ``count`` is 1.

        Raises:
            NoCertificateError: one that mixes samples.
        """
        place = self.add(Average((x.index,), label, apply, count, overlap))
        if not len(place.shape) or place.shape[0] != x.shape[0]:
            raise refuse(f"{label}, which mixes samples")
        return place

    def constant(self, tensor: Tensor, label: str) -> Place:
        """The same tensor for every sample."""
        return self.add(Constant((0,), label, tensor))

    def learnt(self, what: Learnt, like: torch.Size) -> Place:
        """A parameter spread out to the shape of an activation, whose last dimensions are its own.

        Raises:
            NoCertificateError: one of another shape.
        """
        own = list(what.shape)
        while len(own) > 1 and own[0] == 1:
            own.pop(0)
        if not own or list(like[1:])[-len(own) :] != own:
            raise refuse(f"a parameter {what.name} that is spread out otherwise than over the first dimensions")
        ones = self.constant(torch.ones(like[1:], dtype=torch.float64), f"{what.name} of ones")
        block, trained, count = self.block(what.name, None), what.name in self._trained, math.prod(own)
        positions = math.prod(like[1:]) // count
        return self.add(
            Scaled((ones.index,), what.name, what.name, None, block, trained, False, positions, 1, None, count, True)
        )

    def embedding(self, x: Place, target: str) -> Place:
        """Rows of a table, at whole numbers."""
        weight = f"{target}.weight"
        rows, width = self._double[weight].shape
        block, trained = self.block(weight, None), weight in self._trained
        positions = math.prod(x.shape[1:])
        return self.add(
            Embedding((x.index,), target, weight, None, block, trained, False, positions, width, None, rows)
        )

    def activation(self, x: Place, name: str, beta: float = 1.0) -> Place:
        """φ by name.

        Raises:
            NoCertificateError: one that is not smooth, or not known.
        """
        smooth = smooth_activation(name, beta)
        if smooth is None:
            raise refuse(name, "use softplus, tanh, gelu or silu, whose derivatives are bounded")
        return self.add(Activation((x.index,), name, smooth, math.prod(x.shape[1:])))

    def block(self, weight: str, bias: str | None) -> int | None:
        """The index of a new block of parameters; None where nothing of it is trained.

        Raises:
            NoCertificateError: parameters that were met before.
        """
        names = [weight, *([] if bias is None else [bias])]
        if set(names) & set(self.used):
            raise refuse("shared weights", "bounds are proved for layers of their own")
        self.used += names
        if not set(names) & self._trained:
            return None
        self.blocks += 1
        return self.blocks - 1

    def weighted(self, x: Place, target: str, part: nn.Module, geometry: Convolution | None, positions: int) -> Place:
        """A layer with weights."""
        bias = None if part._parameters["bias"] is None else f"{target}.bias"
        return self.layer(x, target, f"{target}.weight", bias, geometry, positions)

    def layer(
        self, x: Place, target: str, weight: str, bias: str | None, geometry: Convolution | None, positions: int
    ) -> Place:
        """The same with parameters of any names."""
        block = self.block(weight, bias)
        trained = weight in self._trained, bias in self._trained
        outputs = len(self._double[weight]) // (1 if geometry is None else geometry.groups)
        return self.add(Weighted((x.index,), target, weight, bias, block, *trained, positions, outputs, geometry))

    def normalised(self, x: Place, target: str, part: nn.Module, sets: int, channels: int, last: bool) -> Place:
        """Normalisation over ``sets`` of entries of a sample, and its scale and shift where it has them.

        Raises:
            NoCertificateError: no ε.
        """
        epsilon = float(getattr(part, "eps", 0.0))
        if not epsilon > 0:
            raise refuse("a normalisation without eps", "give it a positive eps")
        whole = math.prod(x.shape[1:])
        y = self.add(Normalise((x.index,), target, sets, whole // sets, epsilon))
        if part._parameters["weight"] is None:
            return y
        weight, bias = f"{target}.weight", None if part._parameters["bias"] is None else f"{target}.bias"
        block = self.block(weight, bias)
        trained = weight in self._trained, bias in self._trained
        return self.add(
            Scaled((y.index,), target, weight, bias, block, *trained, whole // channels, 1, None, channels, last)
        )
