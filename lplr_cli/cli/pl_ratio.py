"""``lplr pl-ratio``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.logs import Columns, RunName, Source, WindowOption, open_log

if TYPE_CHECKING:
    from lplr_cli.analysis import LogInput
    from lplr_cli.diagnostics import LossSeries, PLRatio, RunFacts
    from lplr_cli.reporting import Grid


@expanded
def pl_ratio(
    *,
    run: Source,
    column: Columns = None,
    run_name: RunName = None,
    l_star: Annotated[
        str, typer.Option(help="L*: min, terminal, zero, fit (L_∞ of the best curve) or a number.", show_default=True)
    ] = "min",
    window: WindowOption = None,
    rolling: Annotated[
        int | None, typer.Option(min=2, help="Rows of the rolling envelope; default a fiftieth of the log.")
    ] = None,
    said: o.SourceOptions,
    plot: out_.Plot = False,
    figure: out_.FigureFile = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """PL ratio of a run and its lower envelope on the stable window.

    CSV and Parquet hold the series, JSON and the table its envelope.

    [bold]lplr pl-ratio runs/mnist-mlp64-s0 --require 'pl_ratio.min >= 0.05'[/bold]
    [bold]lplr pl-ratio log.jsonl --column loss=train/loss --column grad_norm=grads/norm[/bold]
    """
    sink = out_.Sink(format, output, force, require, figure)
    source = open_log(run, column, run_name)
    from lplr_cli.diagnostics import analyse_pl_ratio, parse_window
    from lplr_cli.runs import SCHEMA_VERSION, plain

    bounds = parse_window(window) if window else None
    series, facts = _with_gradients(source, said)
    result = analyse_pl_ratio(series, l_star=l_star, window=bounds, rolling=rolling, facts=facts)
    record: dict[str, Any] = plain(
        {
            "command": "pl-ratio",
            "schema_version": SCHEMA_VERSION,
            "source": source.name,
            "normalisation": {
                "pl": "0.5 ||grad L||^2 >= mu (L - L*)",
                "loss": facts.loss_name,
                "loss_scale": facts.loss_scale,
                "exact": facts.exact,
            },
            "rows": len(series.loss),
            "dropped_rows": series.dropped,
            "no_loss_from": series.lost_from,
            "reordered_rows": series.reordered,
            **result.to_dict(),
        }
    )
    charts = []
    if plot:
        charts = [_suboptimality_chart(result), _ratio_chart(result)]
    sink.emit(out_.Result(record, result.to_frame(), [_grid(source.name, series, result)], charts))
    if figure is not None:
        from lplr_cli.reporting.figures import pl_ratio_figure, save

        save(pl_ratio_figure(result, source.name), figure)


def _with_gradients(source: LogInput, said: o.SourceOptions) -> tuple[LossSeries, RunFacts]:
    """The series of the log, or of the checkpoints where the log has no gradient norms; and what is known of it."""
    series, facts = source.series(), source.facts()
    if series.has_gradients or source.run is None or not source.run.checkpoint_steps():
        return series, facts
    from lplr_cli.analysis import recompute_gradients
    from lplr_cli.cli.progress import counting_progress
    from lplr_cli.diagnostics import clean_series

    out_.note(f"{source.name} logs no gradient norms: computing them at its checkpoints")
    with counting_progress("gradients") as progress:
        again = recompute_gradients(source.run, progress, source=said.source())
    return clean_series(again), replace(facts, exact=True)


def _suboptimality_chart(result: PLRatio) -> str:
    from lplr_cli.reporting import terminal_chart

    table = result.table
    return terminal_chart("suboptimality L − L*", table["step"], [("L − L*", table["suboptimality"])], label="step")


def _ratio_chart(result: PLRatio) -> str:
    from lplr_cli.reporting import terminal_chart

    table = result.table
    lines = [("½‖∇L‖²/(L − L*)", table["pl_ratio"]), ("½‖∇L‖²/L", table["pl_ratio_star"])]
    return terminal_chart("PL ratio", table["step"], lines, label="step")


def _grid(name: str, series: LossSeries, result: PLRatio) -> Grid:
    from lplr_cli.reporting import Grid, number

    facts = result.facts
    given = result.window is not None and result.window.rule == "given"
    where = "on the window" if given else "over all rows"
    l_star = f"L* = {number(result.l_star)} ({result.l_star_rule})"
    above = "" if facts.exact is False else ": from above"
    loss = f", {facts.other_loss}" if facts.other_loss else ""
    rows = [_envelope_row("pl_ratio_star", result.pl_ratio_star, f"½‖∇L‖²/L {where}: {facts.bound}")]
    if result.window is not None:
        rows += [
            _envelope_row("pl_ratio", result.pl_ratio, f"½‖∇L‖²/(L − L*) on the window, {l_star}"),
            _envelope_row("pl_ratio_proxy", result.pl_ratio_proxy, f"½‖∇L‖²/(L − min L) on the window{above}"),
        ]
    rows += [*_noise_rows(result), *_mu_rows(result)]
    notes = [f"Window: {result.window.explanation}." if result.window else "No stable window: the rule leaves no rows."]
    relative = result.window_sensitivity
    if relative is not None:
        notes.append(f"Moving an end of the window by 20 % of its length changes the minimum by up to {relative:.1%}.")
    if result.identity_error is not None:
        notes.append(
            f"Identity ‖∇L‖² = q'Kq/n, q = ∂ℓ/∂f, at {result.identity_probes} probes: "
            f"largest relative difference {result.identity_error:.1e}."
        )
    if result.undefined:
        notes.append(f"{result.undefined:,} rows of the window have L ≤ L* and no ratio.")
    if series.counts():
        notes.append(series.counts())
    return Grid(
        f"PL ratio of {name}{loss}", ("quantity", "min", "5 %", "median", "meaning"), rows, (1, 2, 3), tuple(notes)
    )


def _mu_rows(result: PLRatio) -> list[list[str]]:
    """μ beside the ratio; of the ball only where there is one, or could be for this loss."""
    from lplr_cli.reporting import number

    facts, rows = result.facts, []
    for title, mu, factor, meaning in (
        ("μ estimated", facts.mu_estimated, result.over(facts.mu_estimated), "2(λ0 − L_K·R), estimate from probes"),
        (
            "μ certified",
            facts.mu_certified,
            result.over(facts.mu_certified),
            "proved on the ball of the run" if facts.mu_certified is not None else str(facts.mu_certified_reason),
        ),
    ):
        if mu is None and facts.loss_name != "squared":
            continue
        times = f"; the measured minimum is {number(factor)} times that" if factor is not None else ""
        rows.append([title, number(mu), "", "", meaning + times])
    if facts.mu_path_star is not None:
        along = "proved along the path of the run, every step of its region"
        rows.append(["μ certified, L* = 0", number(facts.mu_path_star), "", "", f"{along}, against pl_ratio_star"])
        rows.append(["μ certified, path", number(facts.mu_path), "", "", f"{along}, relative to its own infimum"])
    return rows


def _noise_rows(result: PLRatio) -> list[list[str]]:
    """The ratio with the noise of mini-batches taken off, and that noise."""
    from lplr_cli.reporting import number
    from lplr_cli.reporting.noise import noise_row

    rows = []
    if result.pl_ratio_corrected.count:
        meaning = "½(‖g‖² − its noise)/L over moving windows: estimate, the bias taken off"
        if not result.pl_ratio_corrected.median:
            meaning += "; no signal is resolved in most of them"
        rows.append(_envelope_row("pl_ratio_corrected", result.pl_ratio_corrected, meaning))
    if result.noise is not None:
        name, value, meaning = noise_row(result.noise)
        rows.append([name, number(value), "", "", meaning])
    return rows


def _envelope_row(name: str, envelope: Any, meaning: str) -> list[str]:
    from lplr_cli.reporting import number

    return [name, number(envelope.min), number(envelope.q05), number(envelope.median), meaning]
