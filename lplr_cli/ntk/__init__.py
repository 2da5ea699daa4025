"""The empirical neural tangent kernel: engines, spectrum, verified bounds, sharpness."""

from lplr_cli.ntk.kernel import (
    DEFAULT_MEMORY,
    ENGINES,
    Kernel,
    cross_ntk,
    empirical_ntk,
    jacobian_change_gram,
    output_count,
    parse_outputs,
)
from lplr_cli.ntk.network import Network, evaluation_mode
from lplr_cli.ntk.sharpness import Sharpness, sharpness, squared_loss
from lplr_cli.ntk.spectrum import Spectrum, operator_norm, spectrum
from lplr_cli.ntk.verified import LowerBound, lambda_min_lower

__all__ = [
    "DEFAULT_MEMORY",
    "ENGINES",
    "Kernel",
    "LowerBound",
    "Network",
    "Sharpness",
    "Spectrum",
    "cross_ntk",
    "empirical_ntk",
    "evaluation_mode",
    "jacobian_change_gram",
    "lambda_min_lower",
    "operator_norm",
    "output_count",
    "parse_outputs",
    "sharpness",
    "spectrum",
    "squared_loss",
]
