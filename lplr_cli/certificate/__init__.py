"""Bounds of μ: for now the estimates from probes; nothing here is certified."""

from lplr_cli.certificate.estimates import Estimates, estimate_constants

__all__ = ["Estimates", "estimate_constants"]
