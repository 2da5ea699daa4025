"""A network as a graph of operations at one θ (docs/theory.md, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lplr_cli.certificate.graph.nodes import Node
from lplr_cli.certificate.graph.reader import Reader
from lplr_cli.certificate.network import NoCertificateError
from lplr_cli.ntk import Network, evaluation_mode

_PROBES = (0.0, 0.1, 1.0, 3.0)


@dataclass(frozen=True)
class GraphNetwork:
    """A smooth network of operations with known bounds, in float64.

    Attributes:
        nodes: in an order in which each stands behind what it meets; the last one is f.
        values: parameters by name, all that are used.
        trained: names of those that θ is made of.
        blocks: K, layers with something trained.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Tensor]
    trained: frozenset[str]
    blocks: int

    @classmethod
    def from_module(cls, module: nn.Module, sample: torch.Size, names: list[str] | None = None) -> GraphNetwork:
        """Read a module by tracing its forward pass.

        Args:
            module: the network at θ_0.
            sample: shape of one input.
            names: trained parameters; all that require grad by default.

        Raises:
            NoCertificateError: an operation without a bound, or a module that computes something else than its parts.
        """
        own = dict(module.named_parameters())
        trained = {k for k, p in own.items() if p.requires_grad} if names is None else set(names)
        probe = token_input(module, sample)
        probe = probe_input(sample) if probe is None else probe
        reader = Reader(module, trained, probe)
        values = {k: own[k].detach().cpu().double() for k in reader.used}
        network = cls(tuple(reader.nodes), values, frozenset(trained), reader.blocks)
        with evaluation_mode(module), torch.no_grad():
            outputs = Network.from_module(module, names=list(own)).forward(probe)
        found = network.forward(probe)[-1]
        if found.dim() != 2 or outputs.shape != found.shape or not alike(outputs, found):
            raise NoCertificateError(
                f"no certificate for this {type(module).__name__}: its outputs are not those of its operations",
                "bounds are proved for modules whose forward pass depends on parameters and input alone",
            )
        return network

    def with_trained(self, values: Mapping[str, Tensor]) -> GraphNetwork:
        """The same network at another θ, given by name."""
        return replace(self, values={k: values[k].double() if k in values else v for k, v in self.values.items()})

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and the output of every node, (n, …)."""
        found = [x]
        for node in self.nodes:
            found.append(node.value(self.values, *(found[i] for i in node.inputs)))
        return found


def probe_input(sample: torch.Size) -> Tensor:
    """Inputs of several sizes; their number is that of no dimension that a reshape is likely to name."""
    generator = torch.Generator().manual_seed(20250729)
    draws = torch.randn((7, *sample), generator=generator, dtype=torch.float64)
    sizes = torch.tensor([*_PROBES, 1.0, 1.0, 1.0], dtype=torch.float64)
    return draws * sizes.reshape(-1, *[1] * len(sample))


def token_input(module: nn.Module, sample: torch.Size) -> Tensor | None:
    """Whole numbers that every table of a module has a row for; None where it has no table."""
    tables = [part.num_embeddings for part in module.modules() if type(part) is nn.Embedding]
    if not tables:
        return None
    generator = torch.Generator().manual_seed(20250729)
    return torch.randint(min(tables), (7, *sample), generator=generator)


def alike(a: Tensor, b: Tensor) -> bool:
    """The same but for rounding; the data are compared within proved bounds, at every centre."""
    scale = 1 + torch.maximum(a.abs(), b.abs()).amax()
    return bool(torch.isfinite(scale)) and bool(((a - b).abs() <= 1e-9 * scale).all())
