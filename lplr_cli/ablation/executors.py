"""Where the runs of a sweep are executed: in this process, in processes of this machine, or on a Ray cluster.

Every executor takes jobs and yields (name, row) as they end, in any order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lplr_cli.ablation.cell import failed, run_cell, run_task
from lplr_cli.linalg.tasks import connected
from lplr_cli.training import Progress, TrainConfig

Row = dict[str, Any]
_POLL = 0.05
# A cell finds modules where this process does: ``python -m`` would look into the current folder first, whose files
# nobody has named.
_CELL = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from lplr_cli.ablation.cell import main; main(sys.argv[1:])"
)


@dataclass(frozen=True)
class Job:
    """One run to execute."""

    name: str
    config: TrainConfig
    path: Path
    follows: bool = False


class Executor(ABC):
    """Executes jobs.

    Attributes:
        on_start: called with each job that begins.
    """

    on_start: Callable[[Job], None] | None = None

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[str, Row]]:
        """Yield (name, row) as jobs end; a row with status ``interrupted`` ends the sweep."""


@dataclass
class InProcess(Executor):
    """One after another in this process, with all its threads."""

    on_start: Callable[[Job], None] | None = None
    on_progress: Callable[[Progress], None] | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[str, Row]]:
        """See :class:`Executor`."""
        for job in jobs:
            if self.on_start is not None:
                self.on_start(job)
            row = run_cell(job.config, job.path, self.on_progress, job.follows)
            yield job.name, row
            if row["status"] == "interrupted":
                return


@dataclass
class LocalProcesses(Executor):
    """``jobs`` processes at a time, the cores shared out between them; one that dies is tried again from its last
    checkpoint.

    Attributes:
        jobs: processes at a time.
        threads: torch threads of each; the cores divided by ``jobs`` by default.
        retries: after a process that died.
        on_start: called with each job.
    """

    jobs: int = 2
    threads: int | None = None
    retries: int = 1
    on_start: Callable[[Job], None] | None = None
    _stop: int | None = field(default=None, init=False)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[str, Row]]:
        """See :class:`Executor`. SIGINT and SIGTERM are passed on, and each run keeps a checkpoint."""
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.jobs)
        waiting, tries = list(jobs), dict.fromkeys((j.name for j in jobs), 0)
        running: dict[str, tuple[Job, subprocess.Popen[bytes], Path]] = {}
        with tempfile.TemporaryDirectory(prefix="lplr-sweep-") as folder, self._signals(running):
            while running or (waiting and self._stop is None):
                while waiting and len(running) < self.jobs and self._stop is None:
                    job = waiting.pop(0)
                    running[job.name] = (job, *self._start(job, Path(folder), threads))
                    if tries[job.name] == 0 and self.on_start is not None:
                        self.on_start(job)
                for name, (job, process, answer) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    row = self._row(code, answer, tries[name])
                    if row is not None:
                        yield name, row
                    else:
                        tries[name] += 1
                        waiting.insert(0, job)
                time.sleep(_POLL)

    def _row(self, code: int, answer: Path, tries: int) -> Row | None:
        """What a process that has ended leaves; None where its job is to be tried again."""
        if answer.exists():
            row: Row = json.loads(answer.read_text(encoding="utf-8"))
            return row
        if self._stop is not None:
            return {**failed("stopped"), "status": "interrupted"}
        if tries < self.retries:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return failed(f"its process died ({how})")

    def _start(self, job: Job, folder: Path, threads: int) -> tuple[subprocess.Popen[bytes], Path]:
        request, answer = folder / f"{job.name}.json", folder / f"{job.name}.row.json"
        record = {
            "config": job.config.to_dict(),
            "path": str(job.path.resolve()),
            "follows": job.follows,
            "threads": threads,
        }
        request.write_text(json.dumps(record), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # What the user said of code goes with the task itself, never through a file.
        word = json.dumps(job.config.word.to_dict())
        where = json.dumps([str(place) for place in sys.path])
        command = [sys.executable, "-P", "-c", _CELL, where, str(request), str(answer), word]
        # A session of its own: the terminal's Ctrl-C reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return process, answer

    @contextlib.contextmanager
    def _signals(self, running: dict[str, tuple[Job, subprocess.Popen[bytes], Path]]) -> Iterator[None]:
        def pass_on(number: int, frame: FrameType | None) -> None:
            self._stop = number
            for _, process, _ in running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)

        former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            for _, process, _ in running.values():
                process.kill()


@dataclass
class RayCluster(Executor):
    """Runs as Ray tasks (extra ``ray``), tried again when a worker or a node dies.

    A task that is tried again resumes from the last checkpoint where the sweep directory is on storage that all nodes
    share, else it begins anew.

    Attributes:
        address: of the cluster; None starts Ray on this machine.
        cpus, gpus: of each run.
        retries: of a task whose worker or node died.
        on_start: called with each job.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3
    on_start: Callable[[Job], None] | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[str, Row]]:
        """See :class:`Executor`."""
        with connected(self.address) as ray:
            yield from self._tasks(ray, jobs)

    def _tasks(self, ray: Any, jobs: Sequence[Job]) -> Iterator[tuple[str, Row]]:
        task = ray.remote(run_task).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries, retry_exceptions=False
        )
        threads = max(1, int(self.cpus))
        pending = {}
        for job in jobs:
            if self.on_start is not None:
                self.on_start(job)
            # The path as it is: on shared storage it means the same on every node.
            path, word = str(job.path.resolve()), job.config.word
            pending[task.remote(job.config.to_dict(), path, job.follows, threads, word)] = job
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                job = pending.pop(reference)
                try:
                    yield job.name, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield job.name, failed(f"its Ray task was lost ({type(error).__name__})")
