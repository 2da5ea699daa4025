"""The empirical neural tangent kernel: engines, spectrum, operator."""

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
from lplr_cli.ntk.lazy import Linearised, Modes, laziness_error
from lplr_cli.ntk.network import Network, evaluation_mode
from lplr_cli.ntk.operator import NTKOperator
from lplr_cli.ntk.spectrum import Spectrum, operator_norm, spectrum

__all__ = [
    "DEFAULT_MEMORY",
    "ENGINES",
    "Kernel",
    "KernelSpectrum",
    "Linearised",
    "Modes",
    "NTKOperator",
    "Network",
    "Spectrum",
    "cross_ntk",
    "empirical_ntk",
    "evaluation_mode",
    "jacobian_change_gram",
    "kernel_spectrum",
    "laziness_error",
    "memory_needed",
    "ntk_operator",
    "operator_norm",
    "output_count",
    "parse_outputs",
    "spectrum",
]
