"""Progress on stderr, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
