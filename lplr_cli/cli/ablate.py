"""``lplr ablate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli import escape
from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.executors import EXECUTORS
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import sweep_progress, training_progress
from lplr_cli.errors import InputError, NumericalError

if TYPE_CHECKING:
    import pandas as pd

    from lplr_cli.ablation import Cell, Executor, Preset, Statement
    from lplr_cli.reporting import Grid
    from lplr_cli.training import TrainConfig

GRID = "Grid (lists separated by commas)"


def _axis(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=GRID)


@dataclass(frozen=True)
class Lists:
    """Options that take several values: the axes of the grid."""

    width: Annotated[str | None, _axis("Widths, e.g. 128,256.")] = None
    depth: Annotated[str | None, _axis("Hidden layers.")] = None
    activation: Annotated[str | None, _axis("Activations.")] = None
    beta: Annotated[str | None, _axis("Sharpness of softplus.")] = None
    parametrization: Annotated[str | None, _axis("standard, ntk.")] = None
    init: Annotated[str | None, _axis("he, lecun, normal.")] = None
    lr: Annotated[str | None, _axis("Step sizes or auto, e.g. 1e-3,5e-4.")] = None
    momentum: Annotated[str | None, _axis("Momenta.")] = None
    batch_size: Annotated[str | None, _axis("Batch sizes of sgd.")] = None
    optimizer: Annotated[str | None, _axis("gd, sgd.")] = None
    schedule: Annotated[str | None, _axis("constant, cosine.")] = None
    samples: Annotated[str | None, _axis("Samples.")] = None
    targets: Annotated[str | None, _axis("pm1, 01, onehot, raw.")] = None
    steps: Annotated[str | None, _axis("Optimiser steps.")] = None
    epochs: Annotated[str | None, _axis("Epochs instead of steps.")] = None
    seed: Annotated[str | None, _axis("Seeds, e.g. 0,1,2.")] = None
    dtype: Annotated[str | None, _axis("float64, float32.")] = None

    def axes(self) -> dict[str, list[Any]]:
        """The values by option, of those that were given."""
        given = {k: getattr(self, k) for k in _ITEMS}
        axes = {k: o.parse_list(v, k.replace("_", "-"), _ITEMS[k]) for k, v in given.items() if v is not None}
        return {"steps": [None], **axes} if "epochs" in axes and "steps" not in axes else axes


@dataclass(frozen=True)
class Choice:
    """Grids that are written down elsewhere."""

    grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="A grid file: [base], [grid], [[run]].", rich_help_panel=GRID),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(help="The paper's experiments: paper-mnist, paper-width or paper-cnn.", rich_help_panel=GRID),
    ] = None
    fast: Annotated[
        bool, typer.Option("--fast", help="A preset at toy size, to try its machinery.", rich_help_panel=GRID)
    ] = False
    full: Annotated[
        bool, typer.Option("--full", help="A preset at the paper's size, for GPUs.", rich_help_panel=GRID)
    ] = False


@dataclass(frozen=True)
class Shared:
    """Options with one value for all runs."""

    model: o.ModelName = "mlp"
    model_arg: o.ModelArg = None
    classes: o.Classes = None
    target: o.Target = None
    task: o.Task = None
    data_dir: o.DataDir = None
    loss: o.Loss = "squared"
    probe_every: o.ProbeEvery = 50
    probe_size: o.ProbeSize = "auto"
    sharpness: o.Sharpness = True
    checkpoint_every: o.CheckpointEvery = 100
    device: o.Device = "cpu"
    log_format: o.LogFormat = "both"


@dataclass(frozen=True)
class Where:
    """Options of executors."""

    executor: Annotated[str, typer.Option(help="local or ray.", rich_help_panel="Executor")] = "local"
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time (local).", rich_help_panel="Executor")] = 1
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; starts Ray here by default.", rich_help_panel="Executor")
    ] = None
    cpus_per_run: Annotated[float, typer.Option(min=0.01, help="For Ray.", rich_help_panel="Executor")] = 1.0
    gpus_per_run: Annotated[float, typer.Option(min=0.0, help="For Ray.", rich_help_panel="Executor")] = 0.0


@expanded
def ablate(
    dataset: o.DatasetName = None,
    lists: Lists = Lists(),
    choice: Choice = Choice(),
    shared: Shared = Shared(),
    recover: Annotated[
        bool,
        typer.Option(
            "--recover", help="Follow runs that left the local regime by smaller steps.", rich_help_panel=o.RUN
        ),
    ] = False,
    along: Annotated[
        bool,
        typer.Option("--path", help="Certify the region along the path of every run.", rich_help_panel=o.RUN),
    ] = False,
    where: Where = Where(),
    out: Annotated[
        Path | None,
        typer.Option(help="Sweep directory; below $LPLR_RUNS (./runs) by default.", rich_help_panel=o.RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out.", rich_help_panel=o.RUN)
    ] = False,
    figure: out_.FigureFile = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Sweep a grid of training runs: where the local regime breaks and recovers.

    [bold]lplr ablate mnist --width 32,64 --seed 0,1 --jobs 2[/bold]
    [bold]lplr ablate --preset paper-width[/bold]
    """
    sink = out_.Sink(format, output, force, require, figure)
    if choice.preset is not None:
        if dataset is not None or choice.grid is not None or lists != Lists():
            what = "leave out DATASET, --grid and the lists"
            raise InputError(f"--preset {choice.preset} fixes its own grid", what)
        plan = _of_preset(choice.preset, choice, shared, out, recover)
        if choice.full and not resume:
            _say_expected(plan)
    else:
        plan = _of_grid(dataset, lists.axes(), choice.grid, shared, out, recover)
    frame = _run(plan, _executor(where), resume, along or (plan.preset is not None and plan.preset.along))
    if plan.preset is not None:
        frame = _with_extras(frame, plan.preset, plan.path)
    statements = [] if plan.preset is None else plan.preset.judge(frame, plan.path)
    _emit_results(sink, frame, statements, plan.path, plan.preset, figure)


@dataclass(frozen=True)
class _Plan:
    """What is run, and where it is kept."""

    base: TrainConfig
    axes: dict[str, list[Any]]
    single: list[Cell]
    recover: bool
    path: Path
    preset: Preset | None = None


def _say_expected(plan: _Plan) -> None:
    """What a preset at full size will take, before it begins."""
    from lplr_cli import ablation

    if plan.base.epochs is None:
        return
    out_.note("a short trial tells how long this will take")
    hours = ablation.expected_seconds(plan.base, plan.single) / 3600
    span = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    out_.note(
        f"about {span} of training on {plan.base.device} for {len(plan.single)} runs (estimate; kernel probes apart). "
        f"It may be stopped: go on with --resume --out {plan.path}"
    )


def _run(plan: _Plan, executor: Executor | None, resume: bool, along: bool) -> pd.DataFrame:
    """The table of results; ends the command where the sweep was interrupted."""
    from lplr_cli import ablation

    alone = executor is None
    with training_progress() as progress, sweep_progress(not alone) as table:
        frame, status = ablation.run_sweep(
            plan.base,
            plan.axes,
            plan.path,
            single=plan.single,
            continue_=resume,
            recover=plan.recover,
            along=along,
            executor=executor,
            preset=None if plan.preset is None else plan.preset.name,
            on_cell=lambda i, n, cell: out_.note(f"run {i + 1} of {n}: {cell.name}"),
            on_row=table,
            on_progress=progress if alone else None,
            on_path=lambda name: out_.note(f"certifying the path of {name}"),
        )
    if status == "interrupted":
        out_.note(f"interrupted; continue by repeating the command with --resume --out {plan.path}")
        raise typer.Exit(130)
    return frame


def _of_preset(name: str, choice: Choice, shared: Shared, out: Path | None, recover: bool) -> _Plan:
    """One of the paper's experiments, as it stands but for device, data and format."""
    from lplr_cli import ablation
    from lplr_cli.runs import runs_root

    chosen = ablation.preset(name, fast=choice.fast, full=choice.full)
    config = chosen.base.with_(device=shared.device, log_format=shared.log_format)
    if shared.data_dir is not None:
        config = config.with_(data_dir=str(shared.data_dir.resolve()))
    path = out or runs_root() / f"{name}{'-fast' if choice.fast else ''}"
    return _Plan(config, {}, list(chosen.cells), recover or chosen.recover, path, chosen)


def _of_grid(
    dataset: str | None,
    axes: dict[str, list[Any]],
    grid: Path | None,
    shared: Shared,
    out: Path | None,
    recover: bool,
) -> _Plan:
    """The lists on the line, together with a grid file."""
    from lplr_cli import ablation
    from lplr_cli.runs import runs_root

    if dataset is None:
        raise InputError("no data set", "name mnist, cifar10, a file or module:factory, or a --preset")
    base: dict[str, Any] = {}
    single: list[Cell] = []
    if grid is not None:
        base, more, single = ablation.read_grid(grid, shared.model)
        twice = set(more) & set(axes)
        if twice:
            raise InputError(f"{', '.join(sorted(twice))} both in {grid} and on the line", "give each once")
        axes = {**more, **axes}
    config = _base(dataset, axes, base, shared)
    o.say_targets(config.data)
    # What has one value is shared, and stays out of the names of the runs.
    axes = {k: v for k, v in axes.items() if len(v) > 1}
    if not axes and not single:
        axes = {"width": [config.model.width]}
    path = out or runs_root() / f"ablate-{o.source_label(dataset)}-{config.model.kind.replace(':', '-')}"
    return _Plan(config, axes, single, recover, path)


def _step_size(text: str) -> float | None:
    return o.parse_lr(text.strip())


_step_size.__name__ = "step sizes"

# What the items of the lists are.
_ITEMS: dict[str, Callable[[str], Any]] = {
    "width": int,
    "depth": int,
    "activation": str,
    "beta": float,
    "parametrization": str,
    "init": str,
    "lr": _step_size,
    "momentum": float,
    "batch_size": int,
    "optimizer": str,
    "schedule": str,
    "samples": int,
    "targets": str,
    "steps": int,
    "epochs": int,
    "seed": int,
    "dtype": str,
}


def _base(dataset: str, axes: dict[str, list[Any]], base: dict[str, Any], shared: Shared) -> TrainConfig:
    """The configuration that the cells share: defaults, the grid file's [base], then what the line says."""
    rest = {f.name: getattr(shared, f.name) for f in fields(shared) if f.name != "sharpness"}
    config = o.make_config(
        dataset,
        samples=None,
        targets=None,
        width=64,
        depth=4,
        activation=None,
        beta=1.0,
        parametrization="standard",
        init="he",
        steps=None,
        epochs=None,
        probe_sharpness=shared.sharpness,
        **rest,
    )
    first = {k: v[0] for k, v in axes.items()}
    if "epochs" in base and "steps" not in base:
        base = {"steps": None, **base}
    # One step, so that steps and epochs can change places.
    return config.with_(**{**base, **first})


def _executor(where: Where) -> Executor | None:
    from lplr_cli.ablation import LocalProcesses, RayCluster

    if where.executor not in EXECUTORS:
        raise InputError(f"--executor {where.executor!r} is unknown", f"choose from {', '.join(EXECUTORS)}")
    if where.executor == "ray":
        return RayCluster(where.ray_address, where.cpus_per_run, where.gpus_per_run)
    return LocalProcesses(where.jobs) if where.jobs > 1 else None


def _with_extras(frame: pd.DataFrame, preset: Preset, path: Path) -> pd.DataFrame:
    from lplr_cli.runs.atomic import write_text
    from lplr_cli.runs.tables import write_parquet

    extras = preset.extras(frame, path)
    if extras:
        import pandas as pd

        more = pd.DataFrame.from_dict(extras, orient="index").rename_axis("run").reset_index()
        frame = frame.drop(columns=[c for c in more.columns if c != "run"], errors="ignore")
        frame = frame.merge(more, on="run", how="left")
        write_text(path / "results.csv", escape.csv(frame))
        write_parquet(path / "results.parquet", frame)
    return frame


def _emit_results(
    sink: out_.Sink,
    frame: pd.DataFrame,
    statements: list[Statement],
    path: Path,
    preset: Preset | None,
    figure: Path | None,
) -> None:
    import pandas as pd

    from lplr_cli import ablation
    from lplr_cli.runs import SCHEMA_VERSION, plain

    failed = list(ablation.failures(frame))
    cells = [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]
    record: dict[str, Any] = plain(
        {
            "command": "ablate",
            "schema_version": SCHEMA_VERSION,
            "sweep": str(path),
            "preset": None if preset is None else preset.name,
            "cells": len(frame),
            "failed": len(failed),
            "left": int((frame["regime"] == "left").sum()),
            "recovered": int((frame["regime"] == "recovered").sum()),
            "statements": {s.key: s.to_dict() for s in statements},
            "results": cells,
        }
    )
    seeds = preset is not None and preset.name == "paper-cnn"
    grids = [_results_grid([*cells, _mean(frame)] if seeds else cells, path)]
    if statements:
        grids.append(_checklist(statements))
    sink.emit(out_.Result(record, frame, grids))
    if figure is not None:
        from lplr_cli.reporting.figures import save
        from lplr_cli.reporting.sweeps import seeds_figure, sweep_figure

        draw = seeds_figure if preset is not None and preset.name == "paper-cnn" else sweep_figure
        save(draw(path, [str(n) for n in frame["run"]], path.name), figure)
    for name, what in failed:
        out_.note(f"failed: {name}: {what}")
    if failed:
        raise NumericalError(f"{len(failed)} of {len(frame)} runs failed", f"see {path / 'results.csv'}")


def _mean(frame: pd.DataFrame) -> dict[str, Any]:
    """The mean over the seeds of the paper's schedule of every number in the table, as a row of it."""
    numbers = frame[frame["run"].str.startswith("seed")].select_dtypes("number").mean()
    return {"run": "mean", "status": "finished", **{str(k): float(v) for k, v in numbers.items() if v == v}}


# The main things first: where a terminal is narrow, the rest stands below.
COLUMNS = {
    "run": "run",
    "status": "status",
    "regime": "regime",
    "lr": "lr",
    "loss_final": "loss",
    "pl_ratio_min": "PL min",
    "pl_ratio_median": "PL median",
    "mu_path": "μ along path",
    "path_share_certified": "share certified",
    "path_rate": "rate proved",
    "drift": "drift",
    "ntk_drift_percent": "NTK drift %",
    "lambda_min_start": "λ_min start",
    "lambda_min_end": "λ_min end",
    "lambda_min_full_lower": "full λ_min ≥",
    "certified_radius": "certified R",
    "lr_over_stable": "η·sharp/2",
}

# A rate is told by what it lacks to 1.
_DIGITS = {"path_rate": 6}


def _results_grid(cells: list[dict[str, Any]], path: Path) -> Grid:
    from lplr_cli.reporting import Grid, number

    known = {k for c in cells for k, value in c.items() if value is not None}
    if all(c["status"] == "finished" for c in cells):
        known.discard("status")
    shown = {k: v for k, v in COLUMNS.items() if k in known}
    rows = [[number(c.get(k), _DIGITS.get(k, 3)) for k in shown] for c in cells]
    right = tuple(i for i, k in enumerate(shown) if k not in ("run", "status", "regime"))
    return Grid(f"Sweep {path}", tuple(shown.values()), rows, right, _departures(cells))


def _departures(cells: list[dict[str, Any]]) -> tuple[str, ...]:
    """Which runs left, and where a proof breaks."""
    left = [f"{c['run']} {c['regime']}: {c['departures']}." for c in cells if c.get("departures")]
    broken = [f"{c['run']}, proof along the path: none at {c['path_breaks']}." for c in cells if c.get("path_breaks")]
    return (*left, *broken)


def _checklist(statements: list[Statement]) -> Grid:
    from lplr_cli.reporting import Grid

    verdicts = {True: "holds", False: "does not hold", None: "unknown"}
    rows = [[s.key, s.text, verdicts[s.holds], s.figures] for s in statements]
    notes = tuple(f"{s.key}, our setting: {s.differs}." for s in statements if s.differs)
    return Grid("The paper's statements on these runs", ("key", "statement", "verdict", "figures"), rows, (), notes)
