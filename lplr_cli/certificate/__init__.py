"""Certificates: bounds over balls, certified radii, μ, containment; and the estimates that are kept apart from them."""

from lplr_cli.certificate.ball import BallBounds, Layer, NoCertificateError, SmoothMLP
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

__all__ = [
    "AtRadius",
    "BallBounds",
    "Certificate",
    "Containment",
    "Estimates",
    "Layer",
    "NoCertificateError",
    "RunCheck",
    "SmoothMLP",
    "certify",
    "check_run",
    "estimate_constants",
    "sampled_constants",
]
