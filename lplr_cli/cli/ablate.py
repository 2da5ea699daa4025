"""``lplr ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.progress import training_progress
from lplr_cli.errors import InputError, NumericalError


def ablate(
    dataset: o.DatasetName = None,
    width: Annotated[str, typer.Option(help="Widths, e.g. 128,256.", rich_help_panel="Grid")] = "64",
    lr: Annotated[str, typer.Option(help="Step sizes or auto, e.g. 1e-3,5e-4.", rich_help_panel="Grid")] = "auto",
    seed: Annotated[str, typer.Option(help="Seeds, e.g. 0,1,2.", rich_help_panel="Grid")] = "0",
    model: o.ModelName = "mlp",
    depth: o.Depth = 4,
    activation: o.Activation = None,
    beta: o.Beta = 1.0,
    parametrization: o.Parametrization = "standard",
    init: o.Init = "he",
    model_arg: o.ModelArg = None,
    samples: o.Samples = None,
    classes: o.Classes = None,
    targets: o.Targets = None,
    target: o.Target = None,
    data_dir: o.DataDir = None,
    loss: o.Loss = "squared",
    optimizer: o.Optimizer = "gd",
    momentum: o.Momentum = 0.0,
    batch_size: o.BatchSize = 64,
    schedule: o.Schedule = "constant",
    steps: o.Steps = None,
    epochs: o.Epochs = None,
    probe_every: o.ProbeEvery = 50,
    probe_size: o.ProbeSize = "auto",
    sharpness: o.Sharpness = True,
    checkpoint_every: o.CheckpointEvery = 100,
    device: o.Device = "cpu",
    dtype: o.Dtype = "float64",
    out: Annotated[
        Path | None,
        typer.Option(help="Sweep directory; below $LPLR_RUNS (./runs) by default.", rich_help_panel=o.RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out.", rich_help_panel=o.RUN)
    ] = False,
    log_format: o.LogFormat = "both",
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Sweep a grid of training runs: where the local regime breaks and recovers.

    [bold]lplr ablate mnist --width 32,64 --seed 0,1[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    if dataset is None:
        raise InputError("no data set", "name mnist, cifar10, a file or module:factory")
    axes = {
        "width": o.parse_list(width, "width", int),
        "lr": [o.parse_lr(part.strip()) for part in lr.split(",") if part.strip()],
        "seed": o.parse_list(seed, "seed", int),
    }
    if not axes["lr"]:
        raise InputError(f"--lr {lr!r} is no list of step sizes", "separate the values by commas")
    config = o.make_config(
        dataset,
        samples=samples,
        classes=classes,
        targets=targets,
        target=target,
        data_dir=data_dir,
        model=model,
        model_arg=model_arg,
        width=axes["width"][0],
        depth=depth,
        activation=activation,
        beta=beta,
        parametrization=parametrization,
        init=init,
        steps=steps,
        epochs=epochs,
        probe_size=probe_size,
        loss=loss,
        optimizer=optimizer,
        lr=axes["lr"][0],
        momentum=momentum,
        batch_size=batch_size,
        schedule=schedule,
        probe_every=probe_every,
        probe_sharpness=sharpness,
        checkpoint_every=checkpoint_every,
        seed=axes["seed"][0],
        device=device,
        dtype=dtype,
        log_format=log_format,
    )
    from lplr_cli import ablation
    from lplr_cli.reporting import Grid, number
    from lplr_cli.runs import SCHEMA_VERSION, plain, runs_root

    path = out or runs_root() / f"ablate-{o.source_label(dataset)}-{config.model.kind.replace(':', '-')}"

    with training_progress() as progress:
        frame, status = ablation.run_sweep(
            config,
            axes,
            path,
            continue_=resume,
            on_cell=lambda i, n, cell: out_.note(f"run {i + 1} of {n}: {cell.name}"),
            on_progress=progress,
        )
    if status == "interrupted":
        out_.note(f"interrupted; continue by repeating the command with --resume --out {path}")
        raise typer.Exit(130)
    failed = list(ablation.failures(frame))
    cells = [{k: None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]
    record: dict[str, Any] = plain(
        {
            "command": "ablate",
            "schema_version": SCHEMA_VERSION,
            "sweep": str(path),
            "cells": len(frame),
            "failed": len(failed),
            "results": cells,
        }
    )
    columns = (
        "run",
        "parameters",
        "lr",
        "λ_min start",
        "λ_min end",
        "NTK drift %",
        "drift",
        "loss",
        "PL min",
        "status",
    )
    keys = (
        "run",
        "parameters",
        "lr",
        "lambda_min_start",
        "lambda_min_end",
        "ntk_drift_percent",
        "drift",
        "loss_final",
        "pl_ratio_min",
        "status",
    )
    rows = [[number(c[k], 7 if k == "parameters" else 3) for k in keys] for c in cells]
    grid = Grid(f"Sweep {path}", columns, rows, tuple(range(1, 9)))
    sink.emit(out_.Result(record, frame, [grid]))
    for name, what in failed:
        out_.note(f"failed: {name}: {what}")
    if failed:
        raise NumericalError(f"{len(failed)} of {len(frame)} runs failed", f"see {path / 'results.csv'}")
