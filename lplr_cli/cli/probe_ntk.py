"""``lplr probe-ntk``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.executors import check_executor, tasks_of
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import counting_progress
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lplr_cli.analysis import KernelProbe, LazyPrediction
    from lplr_cli.reporting import Grid


@expanded
def probe_ntk(
    *,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory (its last one).")
    ],
    engine: Annotated[str, typer.Option(help="auto, structured, jacobian or operator (matrix-free).")] = "auto",
    size: Annotated[str, typer.Option(help="Samples, the first of the training set, or all.")] = "all",
    outputs: Annotated[str, typer.Option(help="full (nC × nC), trace, or the index of one output.")] = "full",
    eigenvalues: Annotated[int, typer.Option(help="Eigenvalues to print at each end.")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="Prove a lower bound of λ_min.")] = False,
    dtype: Annotated[str, typer.Option(help="float64, or float32 (λ_min then has few digits or none).")] = "float64",
    memory: Annotated[str, typer.Option(help="Bytes for the kernel and all work on it, e.g. 2GiB.")] = "2GiB",
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A kernel above --memory lies in a file here, on disk and not in memory."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    executor: Annotated[
        str, typer.Option(help="local, or ray: K in tiles by tasks of one core, each within --memory.")
    ] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of a Ray cluster; starts Ray here by default.")] = None,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Predict a run's loss from its kernels: is it lazy? CSV holds both curves."),
    ] = False,
    pieces: Annotated[int, typer.Option(help="Checkpoints to predict from, at most.")] = 5,
    figure: out_.FigureFile = None,
    said: o.SourceOptions,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """NTK spectrum of a checkpoint.

    [bold]lplr probe-ntk runs/mnist-mlp64-s0/checkpoints/step-000500.pt --verify[/bold]
    [bold]lplr probe-ntk runs/mnist-mlp64-s0 --predict --require 'prediction.laziness_error < 0.1'[/bold]
    """
    sink = out_.Sink(format, output, force, require, figure)
    budget = o.parse_memory(memory)
    source = said.source()
    _check_prediction(predict, checkpoint, size, outputs, figure)
    count = o.parse_size(size)
    if scratch is not None and not scratch.is_dir():
        raise InputError(f"no directory {scratch}", "create it first")
    if eigenvalues < 1:
        raise InputError(f"--eigenvalues {eigenvalues} is too small", "give at least 1")
    _check_executor(executor, ray_address, engine, scratch)
    from lplr_cli.analysis import predict_run, probe_checkpoint

    with tasks_of(executor, ray_address) as tasks, counting_progress("products with K") as progress:
        probe = probe_checkpoint(
            checkpoint,
            size=count,
            engine=engine,
            outputs=outputs,
            eigenvalues=eigenvalues,
            verify=verify,
            dtype=dtype,
            memory=budget,
            device=device,
            scratch=scratch,
            source=source,
            progress=progress,
            tasks=tasks,
        )
    spectrum = probe.spectrum
    if spectrum.method == "lanczos":
        out_.note(
            "matrix-free: the smallest values are Ritz values, estimates from above; "
            f"some eigenvalue lies within {spectrum.residual:.2g} of λ_min"
        )
    if dtype == "float32":
        out_.note(
            f"float32: λ_min can have about {spectrum.digits:.1f} decimal digits here; "
            "float64 is the default for a reason"
        )
    result = out_.Result(probe.to_dict(), probe.to_frame(), _grids(probe))
    if predict:
        with counting_progress("kernels") as progress:
            prediction = predict_run(checkpoint, source=source, pieces=pieces, memory=budget, progress=progress)
        record = {**result.record, "prediction": prediction.to_dict()}
        result = out_.Result(record, prediction.to_frame(), [*result.grids, *_prediction_grids(prediction)])
    sink.emit(result)
    if predict and figure is not None:
        from lplr_cli.reporting.figures import prediction_figure, save

        save(prediction_figure(prediction), figure)


def _check_executor(executor: str, address: str | None, engine: str, scratch: Path | None) -> None:
    """Refuse at once what tasks cannot serve."""
    check_executor(executor, address)
    if executor == "ray" and (engine not in ("auto", "structured") or scratch is not None):
        raise InputError("tiles are of the structured engine, and Ray spills them", "leave out --engine and --scratch")


def _check_prediction(predict: bool, checkpoint: Path, size: str, outputs: str, figure: Path | None) -> None:
    """Refuse at once what no prediction can be made of."""
    if figure is not None and not predict:
        raise InputError("--figure draws a prediction", "add --predict")
    if predict and not checkpoint.is_dir():
        raise InputError(f"{checkpoint} is no run", "give --predict the run directory")
    if predict and (size != "all" or outputs != "full"):
        raise InputError("a part of the kernel predicts no loss", "leave out --size and --outputs")


def _prediction_grids(prediction: LazyPrediction) -> list[Grid]:
    from lplr_cli.reporting import Grid, known

    pieces = [[known(v) for v in (p.step, p.until, p.error, p.error_to_end)] for p in prediction.pieces]
    held = [
        [known(d.rank), known(d.eigenvalue), _percent(d.share), _percent(d.cumulative), known(d.rate, 6),
         known(d.half_life, 3)]
        for d in prediction.directions().itertuples()
    ]  # fmt: skip
    return [
        Grid("Prediction by the kernel", ("quantity", "value", "kind", "meaning"), _predicted(prediction), right=(1,)),
        Grid(
            "Predicted from the kernel at",
            ("step", "until", "error", "error to the end"),
            pieces,
            right=(0, 1, 2, 3),
        ),
        Grid(
            "Residual at the start by eigendirection",
            ("rank", "eigenvalue", "share of ‖r‖²", "together", "rate a step", "half-life"),
            held,
            right=(0, 1, 2, 3, 4, 5),
        ),
    ]


def _predicted(prediction: LazyPrediction) -> list[list[str]]:
    from lplr_cli.analysis.lazy import LAZY, PART
    from lplr_cli.reporting import known

    last = f"step {prediction.parameters_step:,}"
    within = f"every predicted loss within {100 * (math.exp(LAZY) - 1):.0f} %"
    measured = f"predicted from K_0; measured {known(prediction.descent.loss[-1])}"
    rows = [
        ["lazy", {True: "yes", False: "no", None: "unknown"}[prediction.lazy], "estimate", within],
        ["laziness error", known(prediction.error), "estimate", "largest |log L predicted − log L| over the run"],
        ["last loss", known(prediction.pieces[0].predicted[-1]), "estimate", measured],
        ["kernel change", _percent(prediction.kernel_change), "measured", f"‖K_t − K_0‖/‖K_0‖ at {last}"],
    ]
    for name, at in (("start", prediction.start), (last, prediction.end)):
        most = known(at.directions(PART))
        rows += [
            [f"alignment, {name}", known(at.alignment), "computed", "r'Kr/(‖K‖_F ‖r‖²)"],
            [f"participation, {name}", known(at.participation), "computed", "(tr K)²/‖K‖_F², directions of K"],
            [f"90 % of ‖r‖², {name}", most, "computed", "fewest eigendirections that hold it"],
        ]
    return rows


def _percent(value: Any) -> str:
    from lplr_cli.reporting import known

    return "–" if value is None else f"{known(100 * value, 3)} %"


_KERNELS = {"full": "K = J Jᵀ/n", "trace": "K = Σ_c J_c J_cᵀ/n, the trace over the outputs,"}
# Whence a bound of λ_min of the full kernel.
_BOUNDS = {
    "full": "by interlacing, from this subset",
    "trace": "a trace over C outputs has C times λ_min at least",
}


def _grids(probe: KernelProbe) -> list[Grid]:
    from lplr_cli.reporting import Grid

    kernel, rows = probe.kernel, probe.spectrum.size
    where = "a subset: λ_min bounds the full one from above" if probe.subset else "all samples"
    which = _KERNELS.get(str(kernel.outputs), f"K = J_c J_cᵀ/n of output c = {kernel.outputs}")
    title = (
        f"NTK of {probe.checkpoint}: {kernel.n:,} of {probe.samples:,} samples ({where}), "
        f"{which} is {rows:,} × {rows:,}, engine {kernel.engine}"
    )
    head = ("quantity", "value", "kind", "meaning")
    summary = Grid(title, head, _figures(probe), right=(1,), note=tuple(_notes(probe)))
    return [summary, _extremal(probe.eigenvalues, probe.shown)]


def _figures(probe: KernelProbe) -> list[list[str]]:
    from lplr_cli.reporting import number

    found, outputs = probe.spectrum, str(probe.kernel.outputs)
    ritz, whole = found.method == "lanczos", outputs == "full"
    digits = f"about {found.digits:.1f} decimal digits in {probe.dtype}"
    above = f"Ritz value, from above; residual {number(found.residual, 3)}"
    stable = "gradient descent on L is stable to about η = 1/λ_max (lazy)" if whole else "of this part of the kernel"
    rows = [
        ["λ_min", number(found.lambda_min, 6), "estimate" if ritz else "computed", above if ritz else digits],
        ["λ_max", number(found.lambda_max, 6), "computed", stable],
        ["trace", number(found.trace, 6), "computed", "sum of the eigenvalues"],
        ["effective rank", number(found.effective_rank, 6), "computed", "trace/λ_max"],
        ["condition number", number(found.condition_number, 4), "computed", "λ_max/λ_min"],
    ]
    if found.lambda_min_lower is not None or probe.verified:
        meaning = "covers the rounding of forming K and of the factorisation"
        rows.insert(1, ["λ_min ≥", number(found.lambda_min_lower, 6), "verified", meaning])
    if probe.subset or not whole:
        meaning = _BOUNDS.get(outputs, "by interlacing, from this output")
        rows.append(["full λ_min ≤", number(probe.upper_bound_full, 6), "computed", meaning])
    return rows


def _notes(probe: KernelProbe) -> list[str]:
    rows, fallback = probe.spectrum.size, probe.kernel.fallback
    notes = [f"Assumed: {'; '.join(probe.assumptions)}."] if probe.assumptions else []
    if probe.duplicate_inputs:
        one, two = probe.duplicate_inputs
        notes.append(f"Samples {one} and {two} have equal inputs: λ_min is exactly 0, and no PL region is certified.")
    if probe.rank_at_most < rows:
        notes.append(
            f"K has {rows:,} rows and a rank of at most {probe.rank_at_most:,}, the parameters of the network: it "
            "is singular, λ_min is exactly 0, and no PL region is certified."
        )
    if fallback:
        notes.append(f"No structured rule for {', '.join(fallback)}: Jacobian used for these parameters.")
    return notes


def _extremal(values: NDArray[np.float64], shown: int) -> Grid:
    from lplr_cli.reporting import Grid, number

    ends = zip(values[:shown], values[::-1], strict=False)
    pairs = [[str(i), number(float(low), 6), number(float(high), 6)] for i, (low, high) in enumerate(ends, start=1)]
    return Grid("Extremal eigenvalues", ("rank", "smallest", "largest"), pairs, right=(0, 1, 2))
