"""A module as the network whose bounds are the sharpest: an MLP, or a graph of operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lplr_cli.certificate.graph import GraphBounds, GraphNetwork, affordable, worthwhile
from lplr_cli.certificate.network import NoCertificateError, SmoothMLP
from lplr_cli.certificate.proved import check_method
from lplr_cli.models import MLP


def read_network(module: nn.Module, sample: torch.Size, names: list[str] | None = None) -> SmoothMLP | GraphNetwork:
    """As an MLP where it is one, else as a graph.

    Args:
        module: the network at θ_0.
        sample: shape of one input.
        names: trained parameters; all that require grad by default.

    Raises:
        NoCertificateError: neither.
    """
    try:
        return SmoothMLP.from_module(module, names)
    except NoCertificateError:
        if type(module) is MLP:
            raise
    return GraphNetwork.from_module(module, sample, names)


def directions_of(method: str, network: GraphNetwork, x: Tensor) -> int:
    """How many directions of each layer a method pushes.

    None for ``fast``, what pays on a few samples for ``auto``, as many as memory holds for ``tight``.

    Raises:
        InputError: an unknown method.
    """
    check_method(method)
    if method == "fast":
        return 0
    return worthwhile(network, x) if method == "auto" else affordable(network, x)


def graph_bounds(module: nn.Module, network: GraphNetwork, x: Tensor, directions: int) -> GraphBounds:
    """Bounds around θ_0, after a comparison of the graph's outputs with the module's on x (n, …).

    Raises:
        NoCertificateError: outputs that differ, or magnitudes outside the range of docs/theory.md, section 7.
    """
    found = GraphBounds(network, x, directions=directions)
    found.check(module, dict(network.values), x)
    return found
