"""What watches a run: log, probes, checkpoints, divergence, progress and signals, one small class each."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from lplr_cli.runs import SAMPLE_NOISE, Appender, Clock, RunDirectory
from lplr_cli.training.probes import Prober
from lplr_cli.training.trainer import End, Point, Trainer

# A loss this many times the initial one has left every regime of interest; waiting for overflow tells nothing more.
BLOW_UP = 1e12


@dataclass(frozen=True)
class Progress:
    """What a progress display is told after each logged step."""

    step: int
    total: int
    loss: float | None
    drift: float
    lambda_min: float | None


class Log:
    """A row a point."""

    def __init__(self, rows: Appender, clock: Clock) -> None:
        self._rows, self._clock = rows, clock

    def __call__(self, point: Point) -> None:
        """Write it."""
        self._rows.append(
            {
                "step": point.step,
                "epoch": point.epoch,
                "loss": point.loss,
                "grad_norm_sq": point.grad_norm_sq,
                "drift": point.drift,
                "lr": point.lr,
                "seconds": self._clock(),
                # Columns only where the run has them.
                "accuracy": point.accuracy,
                SAMPLE_NOISE: point.noise_trace,
            }
        )


class Probes:
    """A probe every so many steps and at the last point; with 0 at the first and last.

    Attributes:
        last: the row of the latest probe of this call; empty before.
    """

    def __init__(self, rows: Appender, prober: Prober, trainer: Trainer) -> None:
        self._rows, self._prober, self._trainer = rows, prober, trainer
        self.last: dict[str, Any] = {}

    def __call__(self, point: Point) -> None:
        """Measure and write where it is time."""
        every = self._trainer.config.probe_every
        if point.is_last or (point.step % every == 0 if every else point.step == 0):
            self.last = self._prober.measure(point.step, self._trainer.flat.state())
            self._rows.append(self.last)


class Checkpoints:
    """A checkpoint every so many steps, and of the last point; that of step 0 is kept from the start."""

    def __init__(self, run: RunDirectory, trainer: Trainer, first: int) -> None:
        self._run, self._trainer, self._first = run, trainer, first

    def __call__(self, point: Point) -> None:
        """Save where it is time."""
        every = self._trainer.config.checkpoint_every
        if point.is_last or (every and point.step % every == 0 and point.step > self._first):
            self._run.save(self._trainer.checkpoint(point.step))


class Divergence:
    """Ends a run whose parameters are not finite, or whose loss is not, or has left its start far behind.

    Args:
        trainer: of the run.
        probes: of the run, for the step size that would have been stable.
        first_loss: of step 0, where the run goes on from a later one.
    """

    def __init__(self, trainer: Trainer, probes: Probes, first_loss: float | None) -> None:
        self._trainer, self._probes = trainer, probes
        self._limit = math.inf if first_loss is None else BLOW_UP * max(first_loss, 1.0)

    def __call__(self, point: Point) -> End | None:
        """Whether it has happened."""
        if point.step == 0 and point.loss is not None:
            self._limit = BLOW_UP * max(point.loss, 1.0)
        if math.isfinite(point.drift) and (point.loss is None or point.loss <= self._limit):
            return None
        return End("diverged", self._message(point))

    def _message(self, point: Point) -> str:
        message = f"the loss is not finite, or beyond {BLOW_UP:g} times its start, at step {point.step}"
        sharp, lr = self._probes.last.get("sharpness"), self._trainer.config.lr
        if sharp and lr is not None and lr > 2.0 / sharp:
            at = self._probes.last["step"]
            message += f": the step size {lr:.3g} exceeds 2/sharpness = {2.0 / sharp:.3g} (probe of step {at})"
        return message


class Reporter:
    """Tells a progress display."""

    def __init__(self, tell: Callable[[Progress], None], probes: Probes, total: int) -> None:
        self._tell, self._probes, self._total = tell, probes, total

    def __call__(self, point: Point) -> None:
        """Of this point and the latest probe."""
        lambda_min = self._probes.last.get("lambda_min")
        self._tell(Progress(point.step, self._total, point.loss, point.drift, lambda_min))


class Signals:
    """Ends a run after the step in which SIGINT or SIGTERM came, with a checkpoint."""

    def __init__(self, run: RunDirectory, trainer: Trainer) -> None:
        self._run, self._trainer = run, trainer
        self._caught: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Signals wait for the step to end while inside; the former handlers come back. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught = number

    def __call__(self, point: Point) -> End | None:
        """Whether one came; after the last point it no longer matters."""
        if self._caught is None or point.is_last:
            return None
        self._run.save(self._trainer.checkpoint(point.step))
        return End("interrupted", f"stopped by {signal.Signals(self._caught).name} at step {point.step}")
