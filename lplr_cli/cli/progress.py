"""Progress on stderr, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import TaskID

    from lplr_cli.training import Progress


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None] | None]:
    """A callback for :func:`lplr_cli.training.train`; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  drift {task.fields[drift]}  λ_min {task.fields[low]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        task = bars.add_task("training", total=None, loss="–", drift="–", low="–")
        shown = {"loss": "–"}

        def update(progress: Progress) -> None:
            if progress.loss is not None:
                shown["loss"] = f"{progress.loss:.4g}"
            bars.update(
                task,
                completed=progress.step,
                total=progress.total,
                loss=shown["loss"],
                drift=f"{progress.drift:.3g}",
                low="–" if progress.lambda_min is None else f"{progress.lambda_min:.3g}",
            )

        yield update


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A callback (done, total) that draws a bar named ``what``; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def sweep_progress(wanted: bool = True) -> Iterator[Callable[[pd.DataFrame], None] | None]:
    """A callback that shows the table of a sweep as its runs end, live; None where stderr is no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    from lplr_cli.reporting import Grid, number

    with Live(console=Console(stderr=True), transient=True) as live:

        def update(frame: pd.DataFrame) -> None:
            columns = ("run", "status", "regime", "loss_final", "drift", "lr_over_stable")
            values = frame[list(columns)].astype(object).where(frame[list(columns)].notna(), None)
            rows = [[number(v) for v in row] for row in values.itertuples(index=False)]
            live.update(Grid("Runs that have ended", columns, rows, (3, 4, 5)).to_rich())

        yield update


@contextmanager
def stages_progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (what, done, total) that draws a bar for each stage; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update
