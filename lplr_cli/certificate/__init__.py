"""Certificates: bounds over balls, certified radii, μ, containment; and the estimates that are kept apart from them."""

from lplr_cli.certificate.against import (
    RatioCheck,
    RunCheck,
    Trajectory,
    check_ratio,
    check_run,
    data_confirmed,
    own_certificate,
    scaled,
    why_not_of,
)
from lplr_cli.certificate.ball import BallBounds, Over
from lplr_cli.certificate.certify import AtRadius, Certificate, Containment, certify
from lplr_cli.certificate.estimates import Estimates, estimate_constants, sampled_constants
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
    "RatioCheck",
    "RunCheck",
    "SmoothMLP",
    "Trajectory",
    "certify",
    "check_ratio",
    "check_run",
    "data_confirmed",
    "estimate_constants",
    "own_certificate",
    "sampled_constants",
    "scaled",
    "why_not_of",
]
