"""Networks as graphs of smooth operations, and bounds that are composed node by node (docs/theory.md, section 10)."""

from lplr_cli.certificate.graph.bounds import PUSHED, GraphBounds, GraphOver, affordable, worthwhile
from lplr_cli.certificate.graph.network import GraphNetwork

__all__ = ["PUSHED", "GraphBounds", "GraphNetwork", "GraphOver", "affordable", "worthwhile"]
