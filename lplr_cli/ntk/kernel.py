"""The empirical NTK: one interface over the engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.errors import InputError
from lplr_cli.ntk import jacobian, structured
from lplr_cli.ntk.network import Network, check_samples_independent, evaluation_mode
from lplr_cli.ntk.verified import gamma

ENGINES = ("auto", "structured", "jacobian")
DEFAULT_MEMORY = 2 << 30


@dataclass(frozen=True)
class Kernel:
    """The normalised empirical NTK K = J Jᵀ / n on n samples (theory.md section 1).

    Attributes:
        matrix: (N, N), N = n·C for ``full`` outputs, else n. Row i·C + c is output c of sample i.
        n: samples.
        outputs_per_sample: C of the network.
        outputs: ``full``, ``trace`` (K summed over outputs) or the index of one output.
        engine: which engine computed it.
        fallback: parameters for which the structured engine has no rule and used their Jacobian.
        formation_error: bound of the rounding made in forming K from its factors, in operator norm; None when it was
            not asked for. With any order of summation an entry's error is at most
            γ_k Σ_terms Σ_{t,t'} ||a_it|| ||a_jt'|| ||b_it|| ||b_jt'||, a sum of matrices of rank one, so the error of K
            is at most γ_k Σ_i Σ_terms (Σ_t ||a_it|| ||b_it||)² / n, k being the longest chain of operations. With one
            position (fully connected layers) the sum is trace(K). Rounding inside the forward and backward pass
            is not part of it: the bound speaks of the kernel of activations and gradients as computed.
    """

    matrix: Tensor
    n: int
    outputs_per_sample: int
    outputs: str | int
    engine: str
    fallback: tuple[str, ...]
    formation_error: float | None


def parse_outputs(text: str | int, available: int) -> str | int:
    """``full``, ``trace``, or the index of one output, checked against the number of outputs."""
    if text in ("full", "trace"):
        return text
    try:
        index = int(text)
    except ValueError:
        index = -1
    if not 0 <= index < available:
        raise InputError(f"outputs {text!r} are unknown", f"choose full, trace or an index below {available}")
    return index


def output_count(network: Network, x: Tensor) -> int:
    """C, from one forward pass."""
    with torch.no_grad(), evaluation_mode(network.module):
        return network.forward(x[:1]).shape[1]


def _chosen_engine(engine: str) -> str:
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown", f"choose from {', '.join(ENGINES)}")
    # The structured engine never costs more than the Jacobian one: it falls back to it parameter by parameter.
    return "structured" if engine == "auto" else engine


def empirical_ntk(
    network: Network,
    inputs: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
    bound_rounding: bool = False,
) -> Kernel:
    """K(θ) = J Jᵀ / n over all of ``inputs``.

    Args:
        network: f and θ; its dtype is that of the arithmetic.
        inputs: (n, …).
        engine: ``auto``, ``structured`` or ``jacobian``; all give the same matrix to rounding.
        outputs: ``full``, ``trace`` or the index of one output.
        memory: bytes for work space beside K itself.
        bound_rounding: also bound the rounding of K (``formation_error``), for a verified λ_min.

    Raises:
        InputError: unknown engine or outputs, or a model whose samples interact.
    """
    x = network.cast(inputs)
    count = check_samples_independent(network, x)
    outputs = parse_outputs(outputs, count)
    chosen = _chosen_engine(engine)
    fallback: tuple[str, ...] = ()
    rounding = structured.Rounding()
    if chosen == "structured":
        matrix, fallback = structured.gram(
            network, x, None, outputs=outputs, budget=memory, rounding=rounding if bound_rounding else None
        )
    else:
        matrix = jacobian.gram(network, x, None, outputs=outputs, budget=memory)
        rounding = structured.Rounding(network.parameter_count + 4, float(matrix.diagonal().double().sum()))
    matrix /= len(x)
    error: float | None = None
    if bound_rounding:
        # The magnitude is itself computed in floating point, to far better than a part in a thousand.
        error = gamma(rounding.length, matrix.dtype) * rounding.magnitude / len(x) * 1.001
    return Kernel(matrix, len(x), count, outputs, chosen, fallback, error)


def cross_ntk(
    network: Network,
    inputs: Tensor,
    others: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """J(inputs) J(others)ᵀ, not normalised, shape (rows of inputs, rows of others)."""
    x, y = network.cast(inputs), network.cast(others)
    outputs = parse_outputs(outputs, check_samples_independent(network, x))
    if _chosen_engine(engine) == "structured":
        return structured.gram(network, x, y, outputs=outputs, budget=memory)[0]
    return jacobian.gram(network, x, y, outputs=outputs, budget=memory)


def jacobian_change_gram(
    network: Network,
    reference: Network,
    inputs: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """(J - J_ref)(J - J_ref)ᵀ / n; the square root of its largest eigenvalue is ||J̃ - J̃_ref||_op.

    The difference of the Jacobians is formed before it is squared, so that a small change keeps its digits.
    """
    x = network.cast(inputs)
    outputs = parse_outputs(outputs, output_count(network, x))
    if _chosen_engine(engine) == "structured":
        matrix, _ = structured.gram(network, x, None, outputs=outputs, budget=memory, reference=reference)
    else:
        matrix = jacobian.change_gram(network, reference, x, outputs=outputs, budget=memory)
    return matrix / len(x)
