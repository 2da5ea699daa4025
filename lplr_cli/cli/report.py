"""``lplr report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.logs import Columns, RunName, WindowOption, open_log
from lplr_cli.cli.progress import counting_progress
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.reporting.report import RunReport


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
    _check_target(out, kinds, force)
    source = said.source()
    from lplr_cli.diagnostics import parse_window
    from lplr_cli.reporting.report import gather

    names, bounds = _expanded(runs), parse_window(window) if window else None
    reports: list[RunReport] = []
    with counting_progress("runs") as progress:
        for done, name in enumerate(names, start=1):
            log = open_log(name, column, run_name)
            reports.append(gather(log, source, window=bounds, certificate=certificate))
            if progress is not None:
                progress(done, len(names))
    page = out.suffix == ".html"
    written = _write_page(reports, out, title) if page else _write_figures(reports, out, kinds, force)
    sink.emit(_result(reports, out, written))


def _check_target(out: Path, kinds: list[str], force: bool) -> None:
    """Whether ``out`` can become a page, or a folder of figures of these kinds, before anything is computed."""
    if out.suffix == ".html":
        if out.exists() and not force:
            raise InputError(f"{out} exists", "choose another name or pass --force")
        if not out.parent.is_dir():
            raise InputError(f"no directory {out.parent}", "create it first")
    elif out.suffix or (out.exists() and not out.is_dir()):
        raise InputError(f"-o {out} is neither a page nor a folder", "end it in .html, or name a folder")
    if not set(kinds) <= {"png", "svg", "pdf"}:
        raise InputError(f"--formats {','.join(kinds)!r} is unknown", "choose from png, svg, pdf")


def _write_page(reports: list[RunReport], out: Path, title: str | None) -> list[str]:
    from lplr_cli.reporting.page import html_report
    from lplr_cli.runs.atomic import write_text

    write_text(out, html_report(reports, title or "lplr report"))
    return [str(out)]


def _write_figures(reports: list[RunReport], out: Path, kinds: list[str], force: bool) -> list[str]:
    from lplr_cli.reporting.figures import save
    from lplr_cli.reporting.report import all_figures
    from lplr_cli.runs.atomic import output_errors

    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    targets = [
        (out / f"{Path(r.name).name}-{figure}.{kind}", drawn)
        for r in reports
        for figure, drawn in all_figures(r).items()
        for kind in kinds
    ]
    taken = [path for path, _ in targets if path.exists()]
    if taken and not force:
        raise InputError(f"{taken[0]} exists", "choose another folder or pass --force")
    for path, drawn in targets:
        save(drawn, path)
    return [str(path) for path, _ in targets]


def _result(reports: list[RunReport], out: Path, written: list[str]) -> out_.Result:
    from lplr_cli.reporting import Grid
    from lplr_cli.runs import SCHEMA_VERSION, frame_of, plain

    verdicts = {r.name: r.audit.verdict for r in reports}
    record: dict[str, Any] = plain(
        {"command": "report", "schema_version": SCHEMA_VERSION, "written": written, "verdicts": verdicts}
    )
    frame = frame_of({"run": name, "verdict": verdict} for name, verdict in verdicts.items())
    rows = [[r.name, r.audit.verdict, r.audit.explanation] for r in reports]
    grid = Grid(f"Report {out}", ("run", "local PL", "why"), rows, (), tuple(f"Wrote {w}." for w in written))
    return out_.Result(record, frame, [grid])


def _expanded(names: list[str]) -> list[str]:
    """Runs of sweep directories in the place of the sweeps."""
    found: list[str] = []
    for name in names:
        path = Path(name)
        if (path / "sweep.json").is_file():
            inside = sorted(str(p.parent) for p in path.glob("*/run.json"))
            if not inside:
                raise InputError(f"{name} has no runs", "run the sweep first")
            found += inside
        else:
            found.append(name)
    if len(set(found)) < len(found):
        raise InputError("a run is named twice", "name each once")
    return found
