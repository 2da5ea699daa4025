"""``lplr fit-rate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import output as out_
from lplr_cli.cli.logs import Columns, RunName, Sources, WindowOption, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lplr_cli.diagnostics import Convergence, LossSeries, RateFit
    from lplr_cli.reporting import Grid

Smoothing = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=0.9999,
        help="Factor F of a moving average S = F S + (1 − F) L that the log went through: undone; else recognised.",
        show_default=False,
        rich_help_panel="Input",
    ),
]


def fit_rate(
    run: Sources,
    column: Columns = None,
    run_name: RunName = None,
    window: WindowOption = None,
    smoothing: Smoothing = None,
    plot: out_.Plot = False,
    figure: out_.FigureFile = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Is the convergence linear? Which rate, how sure?

    Where no law holds, it says none and what the curve looks like.

    Several logs give a row each, with mean and spread. CSV and Parquet hold the fitted series of one log, or the
    table of several.

    [bold]lplr fit-rate runs/mnist-mlp64-s0 --format json[/bold]
    [bold]lplr fit-rate seed*/metrics.csv --column loss=train_loss --require 'rate.mean <= 0.999'[/bold]
    """
    sink = out_.Sink(format, output, force, require, figure)
    from lplr_cli.diagnostics import analyse_rate, parse_window
    from lplr_cli.errors import InputError

    if len(set(run)) < len(run):
        raise InputError("a log is named twice", "name each once")
    bounds = parse_window(window) if window else None
    results: list[tuple[str, LossSeries, Convergence]] = []
    for name in run:
        source = open_log(name, column, run_name)
        series = source.series()
        try:
            result = analyse_rate(series, window=bounds, facts=source.facts(), smoothing=smoothing)
            results.append((source.name, series, result))
        except InputError as error:
            raise InputError(f"{source.name}: {error.what}", error.remedy) from error
    charts = _charts(*results[0][::2]) if plot and len(results) == 1 else []
    sink.emit(_one(*results[0], charts) if len(results) == 1 else _several(results))
    if figure is not None:
        from lplr_cli.reporting.figures import rate_figure, save

        save(rate_figure([(name, result) for name, _, result in results], "Convergence"), figure)


def _record(name: str, series: LossSeries, result: Convergence) -> dict[str, Any]:
    from lplr_cli.runs import plain

    record: dict[str, Any] = plain(
        {
            "source": name,
            "rows": len(series.loss),
            "dropped_rows": series.dropped,
            "no_loss_from": series.lost_from,
            "reordered_rows": series.reordered,
            **result.to_dict(),
        }
    )
    return record


def _header() -> dict[str, Any]:
    from lplr_cli.runs import SCHEMA_VERSION

    return {"command": "fit-rate", "schema_version": SCHEMA_VERSION}


def _one(name: str, series: LossSeries, result: Convergence, charts: list[str]) -> out_.Result:
    record = {**_header(), **_record(name, series, result)}
    grids = [_grid(name, series, result), *_segments(result)]
    return out_.Result(record, result.to_frame(), grids, charts)


def _charts(name: str, result: Convergence) -> list[str]:
    from lplr_cli.reporting import terminal_chart

    table, effective = result.table, result.effective
    gap = "L" if result.fit.l_inf is None else "L − L_∞"
    lines = [(gap, table["suboptimality"]), ("fit", table["fitted"] - (result.fit.l_inf or 0.0))]
    charts = [terminal_chart(f"suboptimality of {name}", table["step"], lines, label="step")]
    if len(effective):
        low, high = effective["effective_rate_low"], effective["effective_rate_high"]
        series = [("ρ(t)", effective["effective_rate"]), ("low", low), ("high", high)]
        charts.append(terminal_chart(f"effective rate of {name}", effective["step"], series, label="step"))
    return charts


def _segments(result: Convergence) -> list[Grid]:
    """Piecewise rates."""
    from lplr_cli.reporting import Grid, number

    if not result.segments:
        return []
    rows = [
        [
            f"{one.start:g} to {one.stop:g}",
            one.trend,
            "too few rows" if one.verdict is None else one.verdict.replace("_", " "),
            number(one.rate, 7),
            _span(one.rate_low, one.rate_high) if one.rate is not None else "",
            number(one.lr),
            number(one.decay_per_lr_step),
            _span(one.decay_per_lr_step_low, one.decay_per_lr_step_high, 4)
            if one.decay_per_lr_step is not None
            else "",
        ]
        for one in result.segments
    ]
    headings = ("steps", "loss", "law", "rate ρ", "95 % interval", "step size", "decay per lr·step", "its interval")
    return [Grid("Segments", headings, rows, (3, 5, 6))]


def _span(low: Any, high: Any, digits: int = 7) -> str:
    from lplr_cli.reporting import number

    return f"{number(low, digits)} to {number(high, digits)}"


def _grid(name: str, series: LossSeries, result: Convergence) -> Grid:
    from lplr_cli.reporting import Grid

    rows = [*_law(result), *_theory(result)]
    notes = _notes(series, result)
    return Grid(f"Convergence of {name}", ("quantity", "value", "95 % interval", "meaning"), rows, (1,), notes)


def _law(result: Convergence) -> Iterator[list[str]]:
    """A row for the law and for each of its numbers that is known."""
    from lplr_cli.reporting import number

    fit = result.fit
    yield ["law", fit.law, "", fit.about]
    if fit.rate is not None:
        yield ["rate ρ a step", number(fit.rate, 8), _span(fit.rate_low, fit.rate_high, 8), "L − L_∞ shrinks by ρ"]
        yield ["half-life", number(fit.half_life), _span(fit.half_life_low, fit.half_life_high, 4), "steps"]
    if fit.rate is not None and result.decay_per_lr_step is not None:
        low, high = result.decay_per_lr_step_low, result.decay_per_lr_step_high
        meaning = "−log ρ per unit of summed step sizes, comparable with μ"
        yield ["decay per lr·step", number(result.decay_per_lr_step), _span(low, high, 4), meaning]
    if fit.alpha is not None:
        yield ["exponent α", number(fit.alpha), _span(fit.alpha_low, fit.alpha_high, 4), "L − L_∞ ~ t^−α"]
    if fit.l_inf is not None:
        yield ["floor L_∞", number(fit.l_inf), "", "estimated, not the last value"]
    if fit.r_squared is not None:
        yield ["R²", number(fit.r_squared, 6), "", f"of log(L − L_∞); {fit.points:,} rows"]
    if fit.verdict != "none":
        yield ["noise of log L", number(fit.sigma, 3), "", _noise(fit)]


def _theory(result: Convergence) -> Iterator[list[str]]:
    """The rates that the theory promises, where its constants are known."""
    from lplr_cli.reporting import number

    theory = result.theory
    along = f"1 − ημ along the path, at every step from {theory.path_from_step} on"
    measured = "1 − ημ with the smallest PL ratio measured on the stable window"
    for name, rate, meaning in (
        ("rate proved", theory.rate_path, along),
        ("rate proved", theory.rate_certified, "1 − ημ, μ certified on the ball around the start"),
        ("theory's rate", theory.rate_estimated, "1 − ημ, μ estimated"),
        ("theory's rate", theory.rate_from_pl_ratio, measured),
    ):
        if rate is not None:
            yield [name, number(rate, 8), "", meaning]


def _notes(series: LossSeries, result: Convergence) -> tuple[str, ...]:
    fit = result.fit
    notes = [f"Window: {result.window.explanation}."]
    if fit.rate is not None or fit.alpha is not None:
        notes.append(f"The interval is conditional on {fit.conditional_on}.")
    notes += [f"Note: {text}." for text in result.notes]
    if fit.spikes:
        notes.append(
            f"Isolated faults and losses below the normal range of floats, left out of the fit: {fit.spikes:,} rows."
        )
    if series.counts():
        notes.append(series.counts())
    return tuple(notes)


def _noise(fit: RateFit) -> str:
    moving = f", moving average {fit.noise.theta:.2f}" if fit.noise.theta else ""
    period = f"; a pattern of {fit.noise.period} rows taken off" if fit.noise.period else ""
    return f"autocorrelation {fit.autocorrelation:.2f} from row to row{moving}{period}"


def _several(results: list[tuple[str, LossSeries, Convergence]]) -> out_.Result:
    from lplr_cli.diagnostics import VERDICTS
    from lplr_cli.reporting import Grid, number
    from lplr_cli.runs import frame_of

    fits = [_record(*item) for item in results]
    columns = (
        "verdict",
        "rate",
        "rate_low",
        "rate_high",
        "half_life",
        "alpha",
        "l_inf",
        "r_squared",
        "sigma",
        "points",
    )
    frame = frame_of([{"source": f["source"], **{c: f[c] for c in columns}} for f in fits])
    spreads = {c: _spread(frame[c]) for c in ("rate", "half_life", "alpha", "l_inf")}
    counts = {v: int((frame["verdict"] == v).sum()) for v in VERDICTS}
    record = {**_header(), "count": len(fits), "verdicts": counts, **spreads, "fits": fits}
    rows = [
        [
            f["source"],
            says,
            number(f["rate"], 8),
            _span(f["rate_low"], f["rate_high"]),
            number(f["half_life"]),
            number(f["alpha"]),
            number(f["l_inf"]),
            number(f["r_squared"], 5),
        ]
        for f, says in zip(fits, (result.fit.says for _, _, result in results), strict=True)
    ]
    for label in ("mean", "sd"):
        values = [spreads[c][label] for c in ("rate", "half_life", "alpha", "l_inf")]
        shown = [number(values[0], 8 if label == "mean" else 3), "", *(number(v) for v in values[1:]), ""]
        rows.append([label, "", *shown])
    headings = ("log", "law", "rate ρ", "95 % interval", "half-life", "α", "L_∞", "R²")
    notes = tuple(f"{f['source']}: {text}." for f in fits for text in f["notes"])
    grid = Grid(f"Convergence of {len(fits)} logs", headings, rows, (2, 4, 5, 6, 7), notes)
    return out_.Result(record, frame, [grid])


def _spread(values: Any) -> dict[str, float | None]:
    known = values.dropna().astype(float)
    if known.empty:
        return {"mean": None, "sd": None, "min": None, "max": None}
    sd = float(known.std(ddof=1)) if len(known) > 1 else None
    return {"mean": float(known.mean()), "sd": sd, "min": float(known.min()), "max": float(known.max())}
