"""``lplr fit-rate``."""

from __future__ import annotations

from typing import Any

from lplr_cli.cli import output as out_
from lplr_cli.cli.logs import Source, read_log


def fit_rate(
    run: Source,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Linear convergence rate of a run: a log-linear fit on the stable window.

    [bold]lplr fit-rate runs/mnist-mlp64-s0 --format json[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    source = read_log(run)
    from lplr_cli import diagnostics
    from lplr_cli.reporting import Grid, number
    from lplr_cli.runs import SCHEMA_VERSION, plain

    series = diagnostics.clean_series(source.log)
    window = diagnostics.stable_window(series.steps, series.loss)
    fit = None
    if window is not None:
        fit = diagnostics.fit_linear(series.steps[window.rows], series.loss[window.rows], window.floor)
    record: dict[str, Any] = plain(
        {
            "command": "fit-rate",
            "schema_version": SCHEMA_VERSION,
            "source": source.name,
            "model": "log(L_t - L_inf) = a + t log(rate), least squares on the window; L_inf estimated",
            "rows": len(series.loss),
            "dropped_rows": series.dropped,
            "window": window.to_dict() if window else None,
            "rate": fit.rate if fit else None,
            "rate_low": fit.rate_low if fit else None,
            "rate_high": fit.rate_high if fit else None,
            "half_life": fit.half_life if fit else None,
            "r_squared": fit.r_squared if fit else None,
            "l_inf": fit.l_star if fit else None,
            "points": fit.points if fit else 0,
        }
    )
    rows = [
        ["rate ρ a step", number(record["rate"], 8), "L_t − L_∞ shrinks by this factor"],
        [
            "95 % interval",
            f"{number(record['rate_low'], 8)} to {number(record['rate_high'], 8)}",
            "Newey-West errors",
        ],
        ["half-life", number(record["half_life"]), "steps"],
        ["floor L_∞", number(record["l_inf"]), "estimated, not the last value"],
        ["R²", number(record["r_squared"], 6), f"of log(L − L_∞) on {record['points']} rows"],
    ]
    note = (f"Window: {window.explanation}." if window else "No stable window, so no fit.",)
    grid = Grid(f"Convergence rate of {source.name}", ("quantity", "value", "meaning"), rows, (1,), note)
    sink.emit(out_.Result(record, out_.key_value_frame(record), [grid]))
