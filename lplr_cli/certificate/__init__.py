"""Certificates: bounds over balls, certified radii, μ, containment; and the estimates that are kept apart from them."""

from lplr_cli.certificate.ball import BallBounds, Over
from lplr_cli.certificate.certify import (
    AtRadius,
    Certificate,
    Containment,
    RunCheck,
    certify,
    check_run,
    sampled_constants,
)
from lplr_cli.certificate.estimates import Estimates, estimate_constants
from lplr_cli.certificate.network import Layer, NoCertificateError, SmoothMLP

__all__ = [
    "AtRadius",
    "BallBounds",
    "Certificate",
    "Containment",
    "Estimates",
    "Layer",
    "NoCertificateError",
    "Over",
    "RunCheck",
    "SmoothMLP",
    "certify",
    "check_run",
    "estimate_constants",
    "sampled_constants",
]
