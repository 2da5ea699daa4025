"""The empirical neural tangent kernel: engines, spectrum, verified bounds, sharpness."""

from lplr_cli.ntk.kernel import (
    DEFAULT_MEMORY,
    ENGINES,
    Kernel,
    KernelSpectrum,
    cross_ntk,
    empirical_ntk,
    jacobian_change_gram,
    kernel_spectrum,
    memory_needed,
    ntk_operator,
    output_count,
    parse_outputs,
)
from lplr_cli.ntk.lanczos import Ritz, lanczos
from lplr_cli.ntk.network import Network, evaluation_mode
from lplr_cli.ntk.operator import NTKOperator
from lplr_cli.ntk.sharpness import Sharpness, sharpness, squared_loss
from lplr_cli.ntk.spectrum import Spectrum, operator_norm, spectrum
from lplr_cli.ntk.verified import LowerBound, gamma, lambda_min_lower

__all__ = [
    "DEFAULT_MEMORY",
    "ENGINES",
    "Kernel",
    "KernelSpectrum",
    "LowerBound",
    "NTKOperator",
    "Network",
    "Ritz",
    "Sharpness",
    "Spectrum",
    "cross_ntk",
    "empirical_ntk",
    "evaluation_mode",
    "gamma",
    "jacobian_change_gram",
    "kernel_spectrum",
    "lambda_min_lower",
    "lanczos",
    "memory_needed",
    "ntk_operator",
    "operator_norm",
    "output_count",
    "parse_outputs",
    "sharpness",
    "spectrum",
    "squared_loss",
]
