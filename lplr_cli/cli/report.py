"""``lplr report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.logs import Columns, RunName, WindowOption, open_log
from lplr_cli.cli.progress import counting_progress


@expanded
def report(
    *,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|SWEEP|LOG|-...", help="Run and sweep directories, logs, or - for stdin.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="report.html, or a folder for the figures alone.")] = Path(
        "report.html"
    ),
    formats: Annotated[str, typer.Option(help="Of figures in a folder: png, svg, pdf.")] = "png,svg",
    column: Columns = None,
    run_name: RunName = None,
    window: WindowOption = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    certificate: Annotated[
        bool, typer.Option("--certificate/--no-certificate", help="Prove what can be proved.")
    ] = True,
    said: o.SourceOptions,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.", rich_help_panel="Output")] = False,
    require: out_.Require = None,
) -> None:
    """Figures and a self-contained HTML report: verdicts first, tables behind every figure.

    [bold]lplr report runs/mnist-mlp64-s0 -o report.html[/bold]
    [bold]lplr report runs/paper-width -o figures/ --formats pdf[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    kinds = o.parse_list(formats, "formats", str)
    from lplr_cli.reporting.files import check_target, expanded_runs, write_report

    check_target(out, kinds, force)
    source = said.source()
    from lplr_cli.diagnostics import parse_window
    from lplr_cli.reporting import Grid
    from lplr_cli.reporting.report import gather
    from lplr_cli.runs import frame_of

    names, bounds = expanded_runs(runs), parse_window(window) if window else None
    reports = []
    with counting_progress("runs") as progress:
        for done, name in enumerate(names, start=1):
            log = open_log(name, column, run_name)
            reports.append(gather(log, source, window=bounds, certificate=certificate))
            if progress is not None:
                progress(done, len(names))
    written = write_report(reports, out, kinds=kinds, title=title, force=force)
    frame = frame_of({"run": name, "verdict": verdict} for name, verdict in written.verdicts.items())
    rows = [[r.name, r.audit.verdict, r.audit.explanation] for r in reports]
    notes = tuple(f"Wrote {path}." for path in written.paths)
    sink.emit(
        out_.Result(written.to_dict(), frame, [Grid(f"Report {out}", ("run", "local PL", "why"), rows, (), notes)])
    )
