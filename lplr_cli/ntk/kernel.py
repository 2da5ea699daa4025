"""The empirical NTK: one interface over the engines.

Which engine ``auto`` takes follows from what they cost, in floating-point operations for n samples, C outputs and P
parameters:

- jacobian: n·C backward passes and N²·P for the product;
- structured: C backward passes over the batch and, for each parameter, the cheaper of the pairwise and the explicit
  form, which is the Jacobian's product for that parameter; parameters without a rule cost what they cost there. It is
  never dearer, so ``auto`` takes it whenever K fits into the memory;
- operator: three passes over the data for each product K v. N products give K, so it pays only where K does not fit
  and a few eigenvalues are wanted: there :func:`kernel_spectrum` takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from lplr_cli.errors import InputError
from lplr_cli.linalg import scratch
from lplr_cli.linalg.lanczos import Ritz, lanczos
from lplr_cli.linalg.precision import full_precision
from lplr_cli.linalg.rayleigh import lowest
from lplr_cli.linalg.tasks import Tasks
from lplr_cli.linalg.verified import unit_roundoff
from lplr_cli.ntk import jacobian, structured
from lplr_cli.ntk.network import Network, check_samples_independent, evaluation_mode
from lplr_cli.ntk.operator import NTKOperator
from lplr_cli.ntk.spectrum import FULL_LIMIT, Spectrum, spectrum, start_vector
from lplr_cli.ntk.tiled import tiled_kernel

ENGINES = ("auto", "structured", "jacobian", "operator")
DEFAULT_MEMORY = 2 << 30
# Buffers of the linear algebra libraries and of the allocator, which no tile size governs.
_RESERVE = 64 << 20


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
            position (fully connected layers) the sum is trace(K). What underflows is counted as well (docs/theory.md,
            section 7). Rounding inside the forward and backward pass
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


def format_bytes(count: float) -> str:
    """A size that ``--memory`` understands, rounded up."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{math.ceil(10 * count / size) / 10:g}{unit}"
    return "1MiB"


@dataclass(frozen=True)
class Task:
    """A kernel to form, with everything checked.

    ``needed`` is the least memory: K, the engine's least work space, a reserve.
    """

    network: Network
    x: Tensor
    count: int
    outputs: str | int
    engine: str
    plan: structured.Plan | None
    folder: Path | None = None

    @property
    def rows(self) -> int:
        return len(self.x) * (self.count if self.outputs == "full" else 1)

    @property
    def kernel_bytes(self) -> int:
        return self.rows**2 * self.network.dtype.itemsize

    @property
    def needed(self) -> int:
        least = (
            jacobian.least_memory(self.network, self.rows)
            if self.plan is None
            else self.plan.least_memory(self.network)
        )
        return self.resident + least + _RESERVE

    @property
    def resident(self) -> int:
        """Bytes of K in memory."""
        if self.folder is None:
            return self.kernel_bytes
        # A strip in memory, another that is worked on, and a few vectors of Lanczos.
        return 2 * scratch.RESIDENT + 64 * 8 * self.rows


def _task(network: Network, inputs: Tensor, engine: str, outputs: str | int) -> Task:
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown", f"choose from {', '.join(ENGINES)}")
    x = network.cast(inputs)
    # A plan holds the check that samples do not interact, and is kept from call to call.
    plan = structured.plan_for(network, x) if engine in ("auto", "structured") else None
    count = check_samples_independent(network, x) if plan is None else plan.outputs
    return Task(network, x, count, parse_outputs(outputs, count), engine, plan)


def memory_needed(network: Network, inputs: Tensor, *, engine: str = "auto", outputs: str | int = "full") -> int:
    """Bytes without which :func:`empirical_ntk` refuses to form K over ``inputs``."""
    return _task(network, inputs, engine, outputs).needed


def empirical_ntk(
    network: Network,
    inputs: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
    bound_rounding: bool = False,
    products: structured.InputProducts | None = None,
) -> Kernel:
    """K(θ) = J Jᵀ / n over all of ``inputs``.

    Args:
        network: f and θ; its dtype is that of the arithmetic.
        inputs: (n, …).
        engine: ``auto``, ``structured``, ``jacobian`` or ``operator``; all give the same matrix to rounding.
        outputs: ``full``, ``trace`` or the index of one output.
        memory: bytes for K and the work space together.
        bound_rounding: also bound the rounding of K (``formation_error``), for a verified λ_min; not with
            ``operator``.
        products: of ``inputs``, kept from one θ to the next; the structured engine uses them where it can.

    Raises:
        InputError: unknown engine or outputs, a model whose samples interact, or too little memory, with how much is
            needed.
    """
    return _form(_task(network, inputs, engine, outputs), memory, bound_rounding, products)


@full_precision()
def _form(task: Task, memory: int, bound_rounding: bool, products: structured.InputProducts | None = None) -> Kernel:
    network, x, outputs = task.network, task.x, task.outputs
    if memory < task.needed:
        needed = format_bytes(task.needed)
        raise InputError(
            f"the kernel of {task.rows:,} rows needs {needed}, above --memory {format_bytes(memory)}",
            f"give --memory {needed}, a file (--scratch DIR of probe-ntk), fewer samples, or the operator engine",
        )
    work = memory - task.resident - _RESERVE
    if task.engine == "operator":
        if bound_rounding:
            raise InputError("the operator engine bounds no rounding", "use --engine structured")
        operator = NTKOperator(network, x, outputs=outputs, budget=work)
        columns = [operator.matvec(e) for e in np.eye(operator.shape[0])]
        matrix = torch.from_numpy(np.stack(columns)).to(network.device, network.dtype)
        return Kernel((matrix + matrix.T) / 2, len(x), task.count, outputs, "operator", (), None)
    if task.plan is None:
        matrix = jacobian.gram(network, x, None, outputs=outputs, budget=work)
        rounding = structured.Rounding()
        rounding.add_jacobian(matrix.diagonal(), network.parameter_count)
        formed = structured.Gram(matrix, (), rounding if bound_rounding else None)
    else:
        formed = structured.gram(
            network,
            x,
            None,
            outputs=outputs,
            budget=work,
            plan=task.plan,
            bound_rounding=bound_rounding,
            folder=task.folder,
            inputs=products,
        )
    matrix = formed.matrix
    for strip in scratch.strips(matrix):
        matrix[strip] /= len(x)
    error = None if formed.rounding is None else formed.rounding.formation_error(len(matrix), matrix.dtype, len(x))
    engine = "jacobian" if task.plan is None else "structured"
    return Kernel(matrix, len(x), task.count, outputs, engine, formed.fallback, error)


def ntk_operator(
    network: Network,
    inputs: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
) -> LinearOperator:
    """Products with K as a SciPy linear operator, (N, N): matrix-free where K does not fit, else with K itself."""
    task = _task(network, inputs, engine, outputs)
    if engine == "operator" or (engine == "auto" and memory < task.needed):
        return NTKOperator(network, task.x, outputs=task.outputs, budget=memory)
    return aslinearoperator(_form(task, memory, False).matrix.double().cpu().numpy())


@dataclass(frozen=True)
class KernelSpectrum:
    """Spectrum of K over some inputs, by whichever engine served; the other fields as in :class:`Kernel`."""

    spectrum: Spectrum
    n: int
    outputs_per_sample: int
    outputs: str | int
    engine: str
    fallback: tuple[str, ...]


def kernel_spectrum(
    network: Network,
    inputs: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
    extremal: int = 1,
    verify: bool = False,
    folder: Path | None = None,
    steps: int = 300,
    progress: Callable[[int, int], None] | None = None,
    tasks: Tasks | None = None,
) -> KernelSpectrum:
    """Eigenvalues of K within ``memory``.

    Args:
        network: f and θ.
        inputs: (n, …).
        engine: as for :func:`empirical_ntk`; ``auto`` goes matrix-free when K does not fit into ``memory``.
        outputs: ``full``, ``trace`` or the index of one output.
        memory: bytes, all work included.
        extremal: eigenvalues at each end where not all are computed.
        verify: prove a lower bound of λ_min, which needs K.
        folder: where K may lie in a file when it does not fit into ``memory``; the structured engine on a CPU.
        steps: products with K that the matrix-free Lanczos iteration may spend.
        progress: called with (products done, products at most) by the matrix-free iteration.
        tasks: where K is formed and factored in tiles, each task within ``memory``; in this process by default.

    Raises:
        InputError: as :func:`empirical_ntk`.
        NumericalError: no convergence of the dense methods.
    """
    task = _task(network, inputs, engine, outputs)
    if tasks is not None:
        return _spectrum_by_tasks(task, tasks, memory, extremal, verify)
    if folder is not None and memory < task.needed and engine != "operator":
        task = _in_file(task, folder)
    if engine == "operator" or (engine == "auto" and memory < task.needed and not verify):
        if verify:
            raise InputError("a verified bound needs the kernel itself", "leave out --verify or --engine operator")
        values = _matrix_free(task, memory, extremal, steps, progress)
        return KernelSpectrum(values, len(task.x), task.count, task.outputs, "operator", ())
    kernel = _form(task, memory, verify)
    # All eigenvalues take K, a copy, and LAPACK's work space.
    fitting = math.isqrt(max(0, memory - _RESERVE) // (3 * network.dtype.itemsize)) if task.folder is None else 0
    values = spectrum(
        kernel.matrix,
        extremal=extremal,
        full_limit=min(FULL_LIMIT, fitting),
        formation_error=kernel.formation_error,
    )
    return KernelSpectrum(values, kernel.n, kernel.outputs_per_sample, kernel.outputs, kernel.engine, kernel.fallback)


def _spectrum_by_tasks(task: Task, tasks: Tasks, memory: int, extremal: int, verify: bool) -> KernelSpectrum:
    """Both ends of the spectrum of K in tiles.

    Raises:
        InputError: an engine, parameter or device that tasks cannot serve, or too little memory for a tile.
    """
    if task.plan is None or task.plan.fallback:
        who = f"the {task.engine} engine" if task.plan is None else ", ".join(task.plan.fallback)
        raise InputError(f"a kernel in tiles needs a rule for every parameter, not {who}", "use --executor local")
    if task.network.device.type != "cpu":
        raise InputError("tiles lie on the CPU", "use --device cpu")
    formed = tiled_kernel(task.network, task.x, task.plan, tasks, task.outputs, memory - _RESERVE, verify)
    values = spectrum(formed.matrix, extremal=extremal, full_limit=0, formation_error=formed.formation_error)
    return KernelSpectrum(values, len(task.x), task.count, task.outputs, "structured", ())


def _in_file(task: Task, folder: Path) -> Task:
    """The task with K in a file.

    Raises:
        InputError: an engine or device that cannot work there.
    """
    if task.plan is None or task.plan.fallback:
        who = "the jacobian engine" if task.plan is None else ", ".join(task.plan.fallback)
        raise InputError(f"a kernel in a file needs a rule for every parameter, not {who}", "give more --memory")
    if task.network.device.type != "cpu":
        raise InputError("a kernel in a file lies on the CPU", "use --device cpu")
    return replace(task, folder=folder)


def _matrix_free(
    task: Task, memory: int, extremal: int, steps: int, progress: Callable[[int, int], None] | None
) -> Spectrum:
    network, x, rows = task.network, task.x, task.rows
    # Lanczos vectors take up to half of what remains beside θ's gradient, tangent and copies; products all the rest.
    vectors = 4 * network.parameter_count * network.dtype.itemsize
    least = vectors + 32 * rows * (2 * extremal + 2) + _RESERVE
    if memory < least:
        raise InputError(
            f"matrix-free products need {format_bytes(least)}, above --memory {format_bytes(memory)}",
            f"give --memory {format_bytes(least)}",
        )
    room = memory - _RESERVE - vectors
    basis = min(room // 2, 16 * rows * steps)
    products = NTKOperator(network, x, outputs=task.outputs, budget=room - basis)
    ends = _ends(products, basis // (16 * rows), extremal, steps, progress)
    top = float(ends.high[-1])
    return Spectrum(
        rows,
        float(ends.low[0]),
        top,
        structured.trace(network, x, outputs=task.outputs, budget=room - basis) / len(x),
        rows * unit_roundoff(network.dtype) * top,
        np.concatenate([ends.low, ends.high]),
        False,
        float(ends.low_residuals[0]),
        "lanczos",
        str(network.dtype).removeprefix("torch."),
    )


def _ends(
    products: NTKOperator, basis: int, extremal: int, steps: int, progress: Callable[[int, int], None] | None
) -> Ritz:
    """Both ends of the spectrum by Lanczos; where not all steps fit into its basis, λ_min by conjugate gradients."""
    whole = basis >= steps
    ritz = lanczos(
        products.matvec,
        start_vector(products.shape[0]),
        k=extremal,
        steps=min(basis, steps),
        progress=progress,
        top_vectors=None if whole else basis // 3,
    )
    if ritz.vectors is None or ritz.vector_values is None or ritz.converged or steps - ritz.steps < 3:
        return ritz
    found = lowest(
        products.matvec,
        ritz.vectors[0],
        ritz.vectors[1:],
        ritz.vector_values[1:],
        products=steps - ritz.steps,
        progress=None if progress is None else lambda done, most: progress(ritz.steps + done, steps),
    )
    # The Rayleigh quotient falls from that of the Ritz vector with which it begins.
    low, residuals = ritz.low.copy(), ritz.low_residuals.copy()
    low[0], residuals[0] = found.value, found.residual
    return replace(ritz, low=low, low_residuals=residuals)


def cross_ntk(
    network: Network,
    inputs: Tensor,
    others: Tensor,
    *,
    engine: str = "auto",
    outputs: str | int = "full",
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """J(inputs) J(others)ᵀ, not normalised, shape (rows of inputs, rows of others); ``memory`` is the work space."""
    task, y = _task(network, inputs, engine, outputs), network.cast(others)
    if task.plan is None:
        return jacobian.gram(network, task.x, y, outputs=task.outputs, budget=memory)
    return structured.gram(network, task.x, y, outputs=task.outputs, budget=memory, plan=task.plan).matrix


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
    task = _task(network, inputs, engine, outputs)
    x, outputs = task.x, task.outputs
    if task.plan is None:
        matrix = jacobian.change_gram(network, reference, x, outputs=outputs, budget=memory)
    else:
        formed = structured.gram(network, x, None, outputs=outputs, budget=memory, reference=reference, plan=task.plan)
        matrix = formed.matrix
    return matrix.div_(len(x))
