"""Curvature of any loss of any model: products, extremal eigenvalues, trace, density, stability, gradient noise."""

from lplr_cli.curvature.density import Interval, Quadrature, SpectralDensity, spectral_density
from lplr_cli.curvature.noise import EPOCHS, OWN_BATCH, STEPS, GradientNoise, NoiseSpectrum, excess
from lplr_cli.curvature.optimizer_state import OptimizerState, optimizer_state, stepping_state, unwrapped_optimizer
from lplr_cli.curvature.products import LossCurvature, PerSample
from lplr_cli.curvature.sharpness import (
    Sharpness,
    basis_size,
    check_symmetric,
    largest,
    per_sample,
    sharpness,
    start_vector,
)
from lplr_cli.curvature.stability import StepRule, preconditioned
from lplr_cli.curvature.survey import Effort, Parts, Survey, norm, survey
from lplr_cli.curvature.trace import TraceEstimate, xtrace

__all__ = [
    "EPOCHS",
    "OWN_BATCH",
    "STEPS",
    "Effort",
    "GradientNoise",
    "Interval",
    "LossCurvature",
    "NoiseSpectrum",
    "OptimizerState",
    "Parts",
    "PerSample",
    "Quadrature",
    "Sharpness",
    "SpectralDensity",
    "StepRule",
    "Survey",
    "TraceEstimate",
    "basis_size",
    "check_symmetric",
    "excess",
    "largest",
    "norm",
    "optimizer_state",
    "per_sample",
    "preconditioned",
    "sharpness",
    "spectral_density",
    "start_vector",
    "stepping_state",
    "survey",
    "unwrapped_optimizer",
    "xtrace",
]
