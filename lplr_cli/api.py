"""The commands as functions: ``import lplr_cli as lplr; lplr.audit("runs/mine")``.

Every function answers with a dataclass that has ``to_dict`` (the JSON of the command) and ``to_frame`` (its table).
Errors are :class:`lplr_cli.errors.LplrError`, with the same text as on the command line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli import ablation, analysis
from lplr_cli.analysis import (
    OWN,
    HessianProbe,
    HessianSeries,
    KernelProbe,
    LazyPrediction,
    LogInput,
    PathCertificate,
    Source,
    certify_start,
    conclude,
    hessian_along,
    predict_run,
    probe_checkpoint,
    read_log,
    summary_of,
)
from lplr_cli.analysis import certify_path as along_path
from lplr_cli.data import DataSpec
from lplr_cli.diagnostics import Convergence, PLRatio, analyse_pl_ratio, analyse_rate
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.reporting.files import check_target, expanded_runs, write_report
from lplr_cli.reporting.look import view
from lplr_cli.reporting.report import gather
from lplr_cli.runs import RunDirectory, frame_of, runs_root
from lplr_cli.runs.catalogue import COLUMNS, RunRow, catalogue
from lplr_cli.shown import Shown
from lplr_cli.training import TrainConfig
from lplr_cli.training import train as run_training


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """A record of figures, nested as in the command's JSON."""

    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The record."""
        return self.record

    def to_frame(self) -> pd.DataFrame:
        """Dotted keys and their scalar values."""
        return pd.json_normalize(self.record).T.rename_axis("key").set_axis(["value"], axis=1).reset_index()


@dataclass(frozen=True, repr=False)
class TrainingRun(Shown):
    """A run and its closing table.

    Attributes:
        path: the run directory.
        status: finished, interrupted or diverged.
        record: what ``lplr train --format json`` prints.
    """

    path: Path
    status: str
    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The closing table."""
        return self.record

    def to_frame(self) -> pd.DataFrame:
        """The log, a row a step."""
        return read_log(self.path).log


@dataclass(frozen=True, repr=False)
class Sweep(Shown):
    """A grid of runs.

    Attributes:
        path: the sweep directory.
        status: finished or interrupted.
        table: a row a run.
    """

    path: Path
    status: str
    table: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"sweep": str(self.path), "status": self.status, "results": self.table.to_dict("records")}

    def to_frame(self) -> pd.DataFrame:
        """A row a run."""
        return self.table


@dataclass(frozen=True, repr=False)
class RunList(Shown):
    """The runs below a folder.

    Attributes:
        runs: a row a run, with the names of ``lplr list --format json``.
    """

    runs: list[RunRow]

    def to_dict(self) -> dict[str, Any]:
        """The records and their number."""
        return {"count": len(self.runs), "runs": [row.to_dict() for row in self.runs]}

    def short(self) -> list[tuple[str, str]]:
        """A row a run."""
        return [(r.run, r.error or f"{r.status}, step {r.steps}, loss {r.loss}") for r in self.runs]

    def to_frame(self) -> pd.DataFrame:
        """A row a run."""
        return frame_of([row.to_dict() for row in self.runs], COLUMNS)


def _step_size(value: Any) -> Any:
    """A step size, None for ``auto`` as in :class:`lplr_cli.training.TrainConfig`."""
    return None if value == "auto" else value


def _config(dataset: str | DataSpec, options: dict[str, Any]) -> TrainConfig:
    known = {f.name for kind in (TrainConfig, ModelSpec, DataSpec) for f in fields(kind)} - {"data", "model", "source"}
    unknown = set(options) - known
    if unknown:
        raise InputError(f"unknown options {', '.join(sorted(unknown))}", f"known are {', '.join(sorted(known))}")
    if options.get("epochs") is not None:
        options = {"steps": None, **options}
    if "lr" in options:
        options = {**options, "lr": _step_size(options["lr"])}
    data = DataSpec(dataset) if isinstance(dataset, str) else dataset
    return TrainConfig(data, ModelSpec()).with_(**options)


def train(dataset: str | DataSpec, out: str | Path, **options: Any) -> TrainingRun:
    """``lplr train``: a new run directory.

    Args:
        dataset: mnist, cifar10, a file, module:factory, or a :class:`lplr_cli.data.DataSpec`.
        out: the run directory.
        **options: fields of :class:`lplr_cli.training.TrainConfig`, :class:`lplr_cli.models.ModelSpec` (``kind``,
            ``width``, …) and :class:`lplr_cli.data.DataSpec`.
    """
    outcome = run_training(_config(dataset, options), Path(out))
    record = conclude(outcome.run, Source.from_word(outcome.word)).to_dict()
    return TrainingRun(outcome.run.path, outcome.status, record)


def ablate(
    dataset: str | DataSpec,
    out: str | Path,
    axes: dict[str, list[Any]],
    *,
    executor: ablation.Executor | None = None,
    recover: bool = False,
    resume: bool = False,
    **options: Any,
) -> Sweep:
    """``lplr ablate``: a run for each combination of ``axes``.

    Args:
        dataset: as in :func:`train`.
        out: the sweep directory.
        axes: options and their values, e.g. {"width": [32, 64], "seed": [0, 1]}.
        executor: where the runs are executed: ``ablation.LocalProcesses(jobs=2)`` or ``ablation.RayCluster()``; in
            this process by default.
        recover: follow each run that left the local regime by one with a smaller step.
        resume: go on with the sweep in ``out``.
        **options: of every run, as in :func:`train`.

    Raises:
        InputError: unknown options, or a directory that holds something else.
    """
    if "lr" in axes:
        axes = {**axes, "lr": [_step_size(value) for value in axes["lr"]]}
    first = {name: values[0] for name, values in axes.items() if values}
    table, status = ablation.run_sweep(
        _config(dataset, {**options, **first}), axes, Path(out), executor=executor, recover=recover, continue_=resume
    )
    return Sweep(Path(out), status, table)


def probe_ntk(checkpoint: str | Path, **options: Any) -> KernelProbe:
    """``lplr probe-ntk``; options of :func:`lplr_cli.analysis.probe_checkpoint`."""
    return probe_checkpoint(Path(checkpoint), **options)


def predict(run: str | Path, **options: Any) -> LazyPrediction:
    """The loss that the kernels of a run predict; options of :func:`lplr_cli.analysis.predict_run`."""
    return predict_run(Path(run), **options)


def predict_outputs(run: str | Path, inputs: Any, **options: Any) -> NDArray[np.float64]:
    """Outputs on other inputs (M, …) → (M, C) of the network linearised at a run's start, after the run's steps;
    options of :func:`lplr_cli.analysis.predict_outputs`.
    """
    return analysis.predict_outputs(Path(run), inputs, **options)


def probe_hessian(checkpoint: str | Path, *, every: int | None = None, **options: Any) -> HessianProbe | HessianSeries:
    """``lplr probe-hessian``; options of :func:`lplr_cli.analysis.probe_hessian`.

    Args:
        checkpoint: a checkpoint or a run directory.
        every: a row for every such step of the run that has a checkpoint, instead of one checkpoint.
        **options: among them ``effort`` (:class:`lplr_cli.curvature.Effort`) and ``loss``.
    """
    if every is not None:
        return hessian_along(Path(checkpoint), every=every, **options)
    return analysis.probe_hessian(Path(checkpoint), **options)


def certify(checkpoint: str | Path, **options: Any) -> Report:
    """``lplr certify``; options of :func:`lplr_cli.analysis.certify_start`."""
    return Report(certify_start(Path(checkpoint), **options).to_dict())


def certify_path(run: str | Path, **options: Any) -> PathCertificate:
    """``lplr certify RUN --path``; options of :func:`lplr_cli.analysis.certify_path`."""
    return along_path(RunDirectory.open(Path(run)), **options)


def _log(source: str | Path | pd.DataFrame, columns: dict[str, str] | None) -> LogInput:
    if isinstance(source, pd.DataFrame):
        return LogInput("table", source.rename(columns={v: k for k, v in (columns or {}).items()}), None, None)
    return read_log(source, columns)


def pl_ratio(
    source: str | Path | pd.DataFrame,
    *,
    columns: dict[str, str] | None = None,
    l_star: str | float = "min",
    window: tuple[float, float] | None = None,
) -> PLRatio:
    """``lplr pl-ratio`` on a run, a log or a table in memory."""
    log = _log(source, columns)
    return analyse_pl_ratio(log.series(), l_star=l_star, window=window, facts=log.facts())


def fit_rate(
    source: str | Path | pd.DataFrame,
    *,
    columns: dict[str, str] | None = None,
    window: tuple[float, float] | None = None,
    smoothing: float | None = None,
) -> Convergence:
    """``lplr fit-rate`` on a run, a log or a table in memory."""
    log = _log(source, columns)
    return analyse_rate(log.series(), window=window, facts=log.facts(), smoothing=smoothing)


def list_runs(folder: str | Path | None = None, *, status: str | None = None, name: str | None = None) -> RunList:
    """``lplr list``: the runs below a folder, $LPLR_RUNS (./runs) by default, with status and key figures.

    Raises:
        InputError: no such folder or status.
    """
    root = runs_root() if folder is None else Path(folder)
    return RunList(catalogue(root, lambda run: summary_of(run).to_dict(), status=status, name=name))


def watch(run: str | Path, *, every: float = 1.0) -> Iterator[str]:
    """``lplr watch``: looks at a run as text, now and every ``every`` seconds until it has ended.

        for look in lplr.watch("runs/mine"):
            print(look)

    Raises:
        InputError: no run, or one without a row yet.
    """
    directory = RunDirectory.open(Path(run))
    while True:
        running = directory.manifest().status == "running"
        yield view(directory)
        if not running:
            return
        time.sleep(every)


def report(
    *runs: str | Path,
    out: str | Path = "report.html",
    columns: dict[str, str] | None = None,
    window: tuple[float, float] | None = None,
    title: str | None = None,
    formats: Sequence[str] = ("png", "svg"),
    certificate: bool = True,
    source: Source = OWN,
    force: bool = False,
) -> Report:
    """``lplr report``: a self-contained HTML page, or a folder of figures.

    Args:
        *runs: run directories, sweep directories or logs.
        out: a page, which ends in .html, or a folder.
        columns: as in :func:`pl_ratio`.
        window: as in :func:`pl_ratio`.
        title: of the page.
        formats: of figures in a folder: png, svg, pdf.
        certificate: prove what can be proved.
        source: network and data of runs that do not tell them.
        force: overwrite.

    Raises:
        InputError: a run that cannot be read, or a target that exists.
    """
    target = Path(out)
    check_target(target, formats, force)
    logs = [read_log(name, columns) for name in expanded_runs([str(run) for run in runs])]
    reports = [gather(log, source, window=window, certificate=certificate) for log in logs]
    return Report(write_report(reports, target, kinds=formats, title=title, force=force).to_dict())
