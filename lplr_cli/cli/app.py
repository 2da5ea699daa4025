"""The Typer application: every command, one module each."""

from __future__ import annotations

from typing import Annotated

import typer

from lplr_cli.cli.ablate import ablate
from lplr_cli.cli.audit import audit
from lplr_cli.cli.certify import certify
from lplr_cli.cli.fit_rate import fit_rate
from lplr_cli.cli.list_runs import list_runs
from lplr_cli.cli.pl_ratio import pl_ratio
from lplr_cli.cli.probe_hessian import probe_hessian
from lplr_cli.cli.probe_ntk import probe_ntk
from lplr_cli.cli.report import report
from lplr_cli.cli.train import train
from lplr_cli.cli.watch import watch

app = typer.Typer(
    name="lplr",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the line).")] = False,
) -> None:
    """Audit neural-network training runs: NTK spectrum, PL ratio, drift, convergence rate."""


app.command("train")(train)
app.command("ablate")(ablate)
app.command("probe-ntk")(probe_ntk)
app.command("probe-hessian")(probe_hessian)
app.command("certify")(certify)
app.command("pl-ratio")(pl_ratio)
app.command("fit-rate")(fit_rate)
app.command("audit")(audit)
app.command("report")(report)
app.command("list")(list_runs)
app.command("watch")(watch)
