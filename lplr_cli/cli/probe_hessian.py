"""``lplr probe-hessian``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import stages_progress
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.analysis import HessianProbe, HessianSeries, NoiseFloor, Source
    from lplr_cli.curvature import Effort, Interval, PerSample
    from lplr_cli.losses import Loss
    from lplr_cli.reporting import Grid


def _work(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="How much work")


@dataclass(frozen=True)
class WorkOptions:
    """How many eigenvalues, products and random vectors."""

    eigenvalues: Annotated[int, _work("Eigenvalues at each end.")] = 5
    products: Annotated[int, _work("Products at most for the extremes of an operator.")] = 200
    tolerance: Annotated[float, _work("Residual of an extreme over the norm; values err by less.")] = 1e-4
    trace_vectors: Annotated[int, _work("Of XTrace; 0: no trace.")] = 10
    density_vectors: Annotated[int, _work("Of the quadrature; 0: no density.")] = 4
    density_steps: Annotated[int, _work("Products for each of them.")] = 40
    parts: Annotated[bool, _work("Gauss-Newton part and the rest apart.", "--parts/--no-parts")] = True

    def effort(self) -> Effort:
        """The options read."""
        from lplr_cli.curvature import Effort

        return Effort(**asdict(self))


@expanded
def probe_hessian(
    *,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory (its last one).")
    ],
    every: Annotated[
        int | None,
        typer.Option(metavar="K", help="A row for every K-th step of a run that has a checkpoint, and for both ends."),
    ] = None,
    size: Annotated[str, typer.Option(help="Samples, the first of the training set, or all.")] = "all",
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|MODULE:FUNCTION",
            help="Of a file that does not tell it: squared, cross-entropy, bce, or values of samples from (f, y).",
        ),
    ] = None,
    loss_scale: Annotated[float, typer.Option(help="s of --loss, e.g. 1/C for torch's MSELoss.")] = 1.0,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise", help="Also the noise floor of a run of mini-batches, which is kept for fit-rate and audit."
        ),
    ] = False,
    work: WorkOptions,
    dtype: Annotated[str, typer.Option(help="float64 or float32, of passes; sums are float64.")] = "float64",
    memory: Annotated[str, typer.Option(help="Bytes for graphs, vectors and work, e.g. 2GiB.")] = "2GiB",
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    said: o.SourceOptions,
    plot: out_.Plot = False,
    figure: out_.FigureFile = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Curvature of the loss: extreme eigenvalues of the Hessian, trace, density, and the step that it allows.

    For any loss that the run tells or --loss names, over all samples.

    [bold]lplr probe-hessian runs/mnist-mlp64-s0[/bold]
    [bold]lplr probe-hessian runs/mnist-mlp64-s0 --every 100 --require 'ratio.max < 1'[/bold]
    """
    sink = out_.Sink(format, output, force, require, figure)
    if every is not None and plot:
        raise InputError("--plot draws the density of one checkpoint", "leave out --every, or give --figure")
    if noise and every is not None:
        raise InputError("--noise is of the last checkpoint", "leave out --every")
    from lplr_cli import analysis

    shared: dict[str, Any] = {
        "size": o.parse_size(size),
        "effort": work.effort(),
        "loss": _loss(loss, loss_scale),
        "dtype": dtype,
        "memory": o.parse_memory(memory),
        "device": device,
        "source": said.source(),
    }
    with stages_progress() as report:
        if every is None:
            probe = analysis.probe_hessian(checkpoint, report=report, **shared)
            floor = _noise_floor(checkpoint, shared["source"], shared["memory"]) if noise else None
            result = _one(probe, floor, plot)
        else:
            series = analysis.hessian_along(checkpoint, every=every, report=report, **shared)
            result = out_.Result(series.to_dict(), series.table, [_series_grid(series)])
    sink.emit(result)
    if figure is not None:
        from lplr_cli.reporting import figures

        drawn = figures.density_figure(probe) if every is None else figures.sharpness_figure(series)
        figures.save(drawn, figure)


def _noise_floor(run: Path, source: Source, memory: int) -> NoiseFloor:
    from lplr_cli.analysis import noise_floor
    from lplr_cli.runs import RunDirectory

    return noise_floor(RunDirectory.open(run), source, memory)


def _loss(name: str | None, scale: float) -> Loss | PerSample | None:
    """The loss that the user names."""
    from lplr_cli.factories import import_factory, is_factory_reference
    from lplr_cli.losses import Loss

    if name is None:
        return None
    if is_factory_reference(name):
        return import_factory(name)
    return Loss(name, scale)


def _one(probe: HessianProbe, floor: NoiseFloor | None, plot: bool) -> out_.Result:
    charts = []
    if plot and len(probe.density):
        from lplr_cli.reporting import terminal_chart

        curve = probe.density.where(probe.density > 1e-6 * probe.density["density"].max())
        curve["eigenvalue"] = probe.density["eigenvalue"]
        charts = [
            terminal_chart(
                "density of the Hessian's eigenvalues",
                curve["eigenvalue"],
                [("density", curve["density"]), ("95 % from", curve["low"]), ("to", curve["high"])],
                label="eigenvalue",
            )
        ]
    record = {**probe.to_dict(), "noise_floor": None if floor is None else floor.to_dict()}
    return out_.Result(record, probe.to_frame(), _grids(probe, floor), charts)


def _span(found: Interval) -> str:
    from lplr_cli.reporting import known

    if found.low is None:
        return "one vector: no interval"
    return f"between {known(found.low, 3)} and {known(found.high, 3)}"


def _end(probe: HessianProbe, name: str, value: float, residual: float, meaning: str) -> list[str]:
    """Of a spectrum."""
    from lplr_cli.reporting import known

    within = max(residual, probe.survey.resolution)
    return [name, known(float(value), 6), "estimate", f"{meaning}; an eigenvalue within {within:.2g}"]


def _random(name: str, value: float, error: float | None, meaning: str) -> list[str]:
    """From random vectors."""
    from lplr_cli.reporting import known

    said = "no sampling error left" if not error else f"standard error {known(error, 3)}"
    return [name, known(value, 5), "estimate", f"{meaning}; {said}"]


def _whole_rows(probe: HessianProbe) -> list[list[str]]:
    ends, trace = probe.survey.extremes, probe.survey.trace
    rows = [
        _end(probe, "λ_max(H), sharpness", ends.high[-1], ends.high_residuals[-1], "from below"),
        _end(probe, "λ_min(H)", ends.low[0], ends.low_residuals[0], "from above"),
    ]
    if trace is not None:
        rows += [
            _random("trace(H)", trace.trace, trace.trace_error, "sum of all eigenvalues"),
            _random("‖H‖_F", trace.frobenius, trace.frobenius_error, "root of the sum of squares"),
        ]
    return rows


def _part_rows(probe: HessianProbe) -> list[list[str]]:
    """Of G and of H − G."""
    from lplr_cli.reporting import known

    parts, kernel, bound = probe.survey.parts, probe.kernel, probe.lower_bound_full
    if parts is None:
        return []
    inner, rest, trace = parts.gauss_newton, parts.rest, parts.gauss_newton_trace
    rows = [_end(probe, "λ_max(G)", inner.high[-1], inner.high_residuals[-1], "Gauss-Newton part")]
    if kernel is not None:
        agree = f"from the kernel; λ_max(G) differs by {kernel.relative_difference:.1g}"
        rows.append(["2s·λ_max(K)", known(kernel.lambda_max, 6), "estimate", agree])
    if probe.subset and bound is not None:
        adds = "as every sample only adds to G; there is no such for H"
        rows.append(["λ_max(G) of all ≥", known(bound, 6), "estimate", adds])
    if trace is not None:
        rows.append(_random("trace(G)", trace.trace, trace.trace_error, "sum of its eigenvalues"))
    residual = "residuals times curvature of the network"
    rows.append(_end(probe, "λ_max(H − G)", rest.high[-1], rest.high_residuals[-1], residual))
    rows.append(_end(probe, "λ_min(H − G)", rest.low[0], rest.low_residuals[0], "the same"))
    return rows


def _negative_rows(probe: HessianProbe) -> list[list[str]]:
    from lplr_cli.reporting import known

    found = probe.negative
    if found is None:
        return []
    weight, share = found.weight, found.share
    below = f"share below {known(found.threshold, 2)}"
    return [
        ["negative weight", known(weight.value, 3), "estimate", f"negative part of Σ|λ|, {_span(weight)}"],
        [below, known(share.value, 3), "estimate", f"of the eigenvalues by number, {_span(share)}"],
    ]


def _stability_rows(probe: HessianProbe) -> list[list[str]]:
    """Beside what the optimiser bears, as Adam sees it too."""
    from lplr_cli.reporting import known

    rows, adam, at = [], probe.preconditioned, probe.stability
    if adam is not None:
        meaning = "as Adam sees it, P = √v̂ + ε frozen"
        rows.append(_end(probe, "λ_max(P^−½ H P^−½)", adam.value, adam.residual, meaning))
    if adam is not None and adam.ratio is not None:
        meaning = f"Adam is stable up to {known(adam.threshold)} = {adam.rule}; an indicator, as P moves"
        rows.append(["the same / stable", known(adam.ratio), "estimate", meaning])
        if at.ratio is None:
            return rows
    if at.ratio is None:
        return [*rows, ["λ_max / stable", "–", "unknown", at.rule.removeprefix("unknown: ")]]
    meaning = f"stable up to {known(at.threshold)} = {at.rule}; above 1: the edge of stability"
    return [*rows, ["λ_max / stable", known(at.ratio), "estimate", meaning]]


def _noise_rows(floor: NoiseFloor | None) -> list[list[str]]:
    from lplr_cli.reporting import known
    from lplr_cli.reporting.noise import floor_meaning

    if floor is None:
        return []
    return [
        ["tr Σ", known(floor.trace), "estimate", "covariance of single samples' gradients"],
        ["noise floor above L*", known(floor.floor), "estimate", floor_meaning(floor)],
    ]


def _grids(probe: HessianProbe, floor: NoiseFloor | None) -> list[Grid]:
    from lplr_cli.reporting import Grid, known

    surveyed, ends = probe.survey, probe.survey.extremes
    where = "a subset, whose mean loss this is: no bound for all" if probe.subset else "all samples"
    title = (
        f"Hessian of {probe.checkpoint}: {surveyed.n:,} of {probe.samples:,} samples ({where}), "
        f"{surveyed.size:,} parameters, loss {known(surveyed.loss, 6)}"
    )
    notes = [
        f"{probe.loss.formula}. {surveyed.products} products ({surveyed.method}, micro-batches of {surveyed.batch:,})."
    ]
    if not ends.converged:
        notes.append("Not every extreme reached the tolerance: give more --products.")
    if probe.assumptions:
        notes.append(f"Assumed: {'; '.join(probe.assumptions)}.")
    columns = (ends.low, ends.low_residuals, ends.high[::-1], ends.high_residuals[::-1])
    pairs = [
        [str(i), known(low, 6), known(below, 2), known(high, 6), known(above, 2)]
        for i, (low, below, high, above) in enumerate(zip(*columns, strict=True), start=1)
    ]
    rows = [*_whole_rows(probe), *_part_rows(probe), *_negative_rows(probe), *_stability_rows(probe)]
    rows += _noise_rows(floor)
    return [
        Grid(title, ("quantity", "value", "kind", "meaning"), rows, right=(1,), note=tuple(notes)),
        Grid(
            "Extreme eigenvalues", ("rank", "smallest", "residual", "largest", "residual"), pairs, right=(0, 1, 2, 3, 4)
        ),
    ]


def _series_grid(series: HessianSeries) -> Grid:
    from lplr_cli.reporting import Grid, known

    columns = {
        "step": "step",
        "loss": "loss",
        "sharpness": "λ_max(H)",
        "lambda_min": "λ_min(H)",
        "gauss_newton": "λ_max(G)",
        "rest": "‖H − G‖",
        "threshold": "stable up to",
        "ratio": "λ_max / stable",
    }
    rows = [[known(row[key], 5) for key in columns] for row in series.table[list(columns)].to_dict("records")]
    growth = f"λ_max changes by a factor of {known(series.growth, 3)} from first to last"
    notes = [f"{series.loss.formula}. Stable up to {series.rule.removeprefix('unknown: ')}. {growth}."]
    if series.subset:
        notes.append(f"{series.n:,} of {series.samples:,} samples: the mean loss of a subset.")
    title = f"Curvature along {series.run}, {series.parameters:,} parameters"
    return Grid(title, tuple(columns.values()), rows, right=tuple(range(len(columns))), note=tuple(notes))
