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
    from lplr_cli.analysis import HessianProbe, HessianSeries, Source
    from lplr_cli.curvature import Effort, PerSample
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
            found = _noise_floor(checkpoint, shared["source"], shared["memory"]) if noise else None
            probe.record["noise_floor"] = found
            result = _one(probe, plot)
        else:
            series = analysis.hessian_along(checkpoint, every=every, report=report, **shared)
            result = out_.Result(series.record, series.table, [_series_grid(series)])
    sink.emit(result)
    if figure is not None:
        from lplr_cli.reporting import figures

        drawn = figures.density_figure(probe) if every is None else figures.sharpness_figure(series)
        figures.save(drawn, figure)


def _noise_floor(run: Path, source: Source, memory: int) -> dict[str, Any]:
    from lplr_cli.analysis import noise_floor
    from lplr_cli.runs import RunDirectory

    return noise_floor(RunDirectory.open(run), source, memory).to_dict()


def _loss(name: str | None, scale: float) -> Loss | PerSample | None:
    """The loss that the user names."""
    from lplr_cli.factories import import_factory, is_factory_reference
    from lplr_cli.losses import Loss

    if name is None:
        return None
    if is_factory_reference(name):
        return import_factory(name)
    return Loss(name, scale)


def _one(probe: HessianProbe, plot: bool) -> out_.Result:
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
    return out_.Result(probe.record, probe.to_frame(), _grids(probe.record), charts)


def _span(found: dict[str, Any]) -> str:
    from lplr_cli.reporting import number

    if found["low"] is None:
        return "one vector: no interval"
    return f"between {number(found['low'], 3)} and {number(found['high'], 3)}"


def _rows(r: dict[str, Any]) -> list[list[str]]:
    """Quantity, value, kind, meaning."""
    from lplr_cli.reporting import number

    def end(name: str, found: dict[str, float], meaning: str) -> list[str]:
        within = max(found["residual"], r["resolution"])
        return [name, number(found["value"], 6), "estimate", f"{meaning}; an eigenvalue within {within:.2g}"]

    def random(name: str, found: dict[str, Any] | None, meaning: str) -> list[list[str]]:
        if found is None:
            return []
        error = found["standard_error"]
        said = "no sampling error left" if not error else f"standard error {number(error, 3)}"
        return [[name, number(found["value"], 5), "estimate", f"{meaning}; {said}"]]

    rows = [
        end("λ_max(H), sharpness", r["lambda_max"], "from below"),
        end("λ_min(H)", r["lambda_min"], "from above"),
        *random("trace(H)", r["trace"], "sum of all eigenvalues"),
        *random("‖H‖_F", r["frobenius"], "root of the sum of squares"),
    ]
    inner, rest, negative = r["gauss_newton"], r["rest"], r["negative"]
    if inner is not None:
        rows.append(end("λ_max(G)", inner["lambda_max"], "Gauss-Newton part"))
        if inner["kernel"] is not None:
            agree = f"from the kernel; λ_max(G) differs by {inner['kernel']['relative_difference']:.1g}"
            rows.append(["2s·λ_max(K)", number(inner["kernel"]["lambda_max"], 6), "estimate", agree])
        if r["subset"] and inner["lower_bound_full"] is not None:
            low = number(inner["lower_bound_full"], 6)
            rows.append(
                ["λ_max(G) of all ≥", low, "estimate", "as every sample only adds to G; there is no such for H"]
            )
        rows += random("trace(G)", inner["trace"], "sum of its eigenvalues")
        rows.append(end("λ_max(H − G)", rest["lambda_max"], "residuals times curvature of the network"))
        rows.append(end("λ_min(H − G)", rest["lambda_min"], "the same"))
    if negative is not None:
        rows += [
            ["negative weight", number(negative["weight"]["value"], 3), "estimate",
             f"negative part of Σ|λ|, {_span(negative['weight'])}"],
            [f"share below {number(negative['threshold'], 2)}", number(negative["share"]["value"], 3), "estimate",
             f"of the eigenvalues by number, {_span(negative['share'])}"],
        ]  # fmt: skip
    if r["preconditioned"] is not None:
        p = r["preconditioned"]
        rows.append(end("λ_max(P^−½ H P^−½)", p["lambda_max"], "as Adam sees it, P = √v̂ + ε frozen"))
        if p["ratio"] is not None:
            meaning = f"Adam is stable up to {number(p['threshold'], 4)} = {p['rule']}; an indicator, as P moves"
            rows.append(["the same / stable", number(p["ratio"], 4), "estimate", meaning])
    return [*rows, *_stability_rows(r["stability"]), *_noise_rows(r.get("noise_floor"))]


def _noise_rows(found: dict[str, Any] | None) -> list[list[str]]:
    from lplr_cli.analysis import NoiseFloor
    from lplr_cli.reporting import number
    from lplr_cli.reporting.noise import floor_meaning

    if found is None:
        return []
    floor = NoiseFloor(**found)
    return [
        ["tr Σ", number(floor.trace), "estimate", "covariance of single samples' gradients"],
        ["noise floor above L*", number(floor.floor), "estimate", floor_meaning(floor)],
    ]


def _stability_rows(s: dict[str, Any]) -> list[list[str]]:
    from lplr_cli.reporting import number

    if s["ratio"] is None:
        return [["λ_max / stable", "–", "unknown", s["rule"].removeprefix("unknown: ")]]
    meaning = f"stable up to {number(s['threshold'], 4)} = {s['rule']}; above 1: the edge of stability"
    return [["λ_max / stable", number(s["ratio"], 4), "estimate", meaning]]


def _grids(r: dict[str, Any]) -> list[Grid]:
    from lplr_cli.reporting import Grid, number

    where = "a subset, whose mean loss this is: no bound for all" if r["subset"] else "all samples"
    title = (
        f"Hessian of {r['checkpoint']}: {r['n']:,} of {r['samples']:,} samples ({where}), "
        f"{r['parameters']:,} parameters, loss {number(r['loss']['value'], 6)}"
    )
    notes = [
        f"{r['loss']['formula']}. {r['products']} products ({r['method']}, micro-batches of {r['micro_batch']:,})."
    ]
    if not r["converged"]:
        notes.append("Not every extreme reached the tolerance: give more --products.")
    if r["assumptions"]:
        notes.append(f"Assumed: {'; '.join(r['assumptions'])}.")
    pairs = [
        [
            str(i),
            number(low["value"], 6),
            number(low["residual"], 2),
            number(high["value"], 6),
            number(high["residual"], 2),
        ]
        for i, (low, high) in enumerate(zip(r["smallest"], r["largest"], strict=True), start=1)
    ]
    return [
        Grid(title, ("quantity", "value", "kind", "meaning"), _rows(r), right=(1,), note=tuple(notes)),
        Grid(
            "Extreme eigenvalues", ("rank", "smallest", "residual", "largest", "residual"), pairs, right=(0, 1, 2, 3, 4)
        ),
    ]


def _series_grid(series: HessianSeries) -> Grid:
    from lplr_cli.reporting import Grid, number

    r = series.record
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
    rows = [[number(row[key], 5) for key in columns] for row in r["rows"]]
    growth = f"λ_max grows by a factor of {number(r['sharpness']['growth'], 3)} from first to last"
    notes = [f"{r['loss']['formula']}. Stable up to {r['rule'].removeprefix('unknown: ')}. {growth}."]
    if r["subset"]:
        notes.append(f"{r['n']:,} of {r['samples']:,} samples: the mean loss of a subset.")
    title = f"Curvature along {r['run']}, {r['parameters']:,} parameters"
    return Grid(title, tuple(columns.values()), rows, right=tuple(range(len(columns))), note=tuple(notes))
