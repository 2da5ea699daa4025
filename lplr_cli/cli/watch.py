"""``lplr watch``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, in progress or not.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Live view of a run in progress: loss, drift, λ_min, PL ratio, time left.

    [bold]lplr watch runs/mnist-mlp64-s0[/bold]
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from lplr_cli.reporting.look import view
    from lplr_cli.runs import RunDirectory

    directory = RunDirectory.open(run)
    if once or not sys.stdout.isatty():
        sys.stdout.write(view(directory))
        return
    with Live(Text(view(directory)), console=Console(), auto_refresh=False) as live:
        while directory.manifest().status == "running":
            time.sleep(every)
            live.update(Text(view(directory)), refresh=True)
        live.update(Text(view(directory)), refresh=True)
