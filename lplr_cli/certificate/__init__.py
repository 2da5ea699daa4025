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
from lplr_cli.certificate.estimates import Estimates, Sampled, estimate_constants, sampled_constants
from lplr_cli.certificate.loss_ball import CertifiedCurvature
from lplr_cli.certificate.network import Layer, NoCertificateError, SmoothMLP
from lplr_cli.certificate.path import CERTIFIED, ESTIMATE, Aim, Curvature, Walk
from lplr_cli.certificate.pieces import Smoothness
from lplr_cli.certificate.region import EVIDENCE, INSIDE, Region, StepRow

__all__ = [
    "CERTIFIED",
    "ESTIMATE",
    "EVIDENCE",
    "INSIDE",
    "Aim",
    "AtRadius",
    "BallBounds",
    "Certificate",
    "CertifiedCurvature",
    "Containment",
    "Curvature",
    "Estimates",
    "Layer",
    "NoCertificateError",
    "Over",
    "RatioCheck",
    "Region",
    "RunCheck",
    "Sampled",
    "SmoothMLP",
    "Smoothness",
    "StepRow",
    "Trajectory",
    "Walk",
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
