"""``lplr train``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import counting_progress, training_progress
from lplr_cli.errors import InputError, NumericalError

if TYPE_CHECKING:
    from lplr_cli.factories import Word
    from lplr_cli.training import Outcome, TrainConfig


@dataclass(frozen=True)
class Options:
    """Everything that determines a run but its data set."""

    model: o.ModelName = "mlp"
    width: Annotated[int, typer.Option(help="Hidden units, or base channels.", rich_help_panel=o.MODEL)] = 64
    depth: o.Depth = 4
    activation: o.Activation = None
    beta: o.Beta = 1.0
    parametrization: o.Parametrization = "standard"
    init: o.Init = "he"
    model_arg: o.ModelArg = None
    samples: o.Samples = None
    classes: o.Classes = None
    targets: o.Targets = None
    target: o.Target = None
    task: o.Task = None
    data_dir: o.DataDir = None
    download: o.Download = False
    loss: o.Loss = "squared"
    optimizer: o.Optimizer = "gd"
    lr: Annotated[
        str,
        typer.Option(help="Step size, or auto: 1/sharpness at initialisation.", rich_help_panel=o.OPTIM),
    ] = "auto"
    momentum: o.Momentum = 0.0
    batch_size: o.BatchSize = 64
    schedule: o.Schedule = "constant"
    steps: o.Steps = None
    epochs: o.Epochs = None
    probe_every: o.ProbeEvery = 50
    probe_size: o.ProbeSize = "auto"
    sharpness: o.Sharpness = True
    checkpoint_every: o.CheckpointEvery = 100
    seed: Annotated[int, typer.Option(help="Of weights and shuffling.", rich_help_panel=o.RUN)] = 0
    device: o.Device = "cpu"
    dtype: o.Dtype = "float64"

    def config(self, dataset: str, log_format: str) -> TrainConfig:
        """The configuration that they make."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("download", "lr", "sharpness")}
        return o.make_config(
            dataset, lr=o.parse_lr(self.lr), probe_sharpness=self.sharpness, log_format=log_format, **plain
        )


@expanded
def train(
    context: typer.Context,
    dataset: o.DatasetName = None,
    options: Options = Options(),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; a name made from the configuration below $LPLR_RUNS (./runs) by default.",
            rich_help_panel=o.RUN,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue this run, with its own configuration.", rich_help_panel=o.RUN),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="Repeat this run from its start.", rich_help_panel=o.RUN),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="With --resume or --from: the code of the data that the run names, as --model is that of the network.",
            rich_help_panel=o.RUN,
        ),
    ] = None,
    log_format: o.LogFormat = "both",
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Train a network, log the diagnostics, end with the table of μ beside the PL ratio.

    [bold]lplr train mnist --width 64[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    if resume is not None:
        outcome = _resume(context, resume)
    elif from_run is not None:
        outcome = _repeat(context, from_run, out)
    else:
        if data is not None:
            raise InputError("--data goes with --resume and --from", "name the data of a new run as DATASET")
        if dataset is None:
            raise InputError("no data set", "name mnist, cifar10, a file or module:factory")
        config = options.config(dataset, log_format)
        from lplr_cli import training
        from lplr_cli.runs import runs_root

        o.say_targets(config.data)
        with training_progress() as progress:
            outcome = training.train(
                config,
                out,
                source=o.source_label(dataset),
                fetch=options.download,
                on_progress=progress,
                root=runs_root(),
            )
    _emit_summary(outcome, sink)


# What may stand beside --resume: where the result goes, not what is computed; and the user's word for its code.
_WITH_RESUME = {"resume", "format", "output", "force", "require", "context", "model", "model_arg", "data"}


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user typed this option, rather than leaving its default."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") not in ("DEFAULT", "DEFAULT_MAP")


def _refuse_others(context: typer.Context, option: str, allowed: set[str]) -> None:
    """A run that knows its configuration takes no other."""
    given = [name for name in context.params if name not in allowed and _is_given(context, name)]
    if given:
        flags = ", ".join("DATASET" if n == "dataset" else "--" + n.replace("_", "-") for n in given)
        raise InputError(f"{option} does not go with {flags}", "the run keeps its own configuration")


def _word(context: typer.Context) -> Word:
    """The code of an earlier run, as the user names it on this line."""
    from lplr_cli.factories import Word

    given = context.params
    model = given["model"] if _is_given(context, "model") else None
    if given["model_arg"] and model is None:
        raise InputError("--model-arg without --model", "name the factory as well")
    return Word(model, o.parse_arguments(given["model_arg"]), given["data"])


def _repeat(context: typer.Context, path: Path, out: Path | None) -> Outcome:
    _refuse_others(context, "--from", {*_WITH_RESUME, "from_run", "out"} - {"resume"})
    from lplr_cli import training
    from lplr_cli.runs import runs_root

    with training_progress() as progress:
        return training.repeat(path, out, word=_word(context), on_progress=progress, root=runs_root())


def _resume(context: typer.Context, path: Path) -> Outcome:
    _refuse_others(context, "--resume", _WITH_RESUME)
    from lplr_cli import training

    with training_progress() as progress:
        return training.resume(path, word=_word(context), on_progress=progress)


def _emit_summary(outcome: Outcome, sink: out_.Sink) -> None:
    from lplr_cli.analysis import Source, conclude
    from lplr_cli.reporting import summary_grid

    path = outcome.run.path
    if outcome.status == "interrupted":
        out_.note(f"{outcome.message}; continue with: lplr train --resume {path}")
        raise typer.Exit(130)
    try:
        with counting_progress("steps certified") as progress:
            summary = conclude(outcome.run, Source.from_word(outcome.word), progress=progress)
    except InputError:
        if outcome.status != "diverged":
            raise
        raise NumericalError(outcome.message, f"the run is kept in {path}") from None
    record = summary.to_dict()
    result = out_.Result(record, out_.key_value_frame(record), [summary_grid(summary)])
    if outcome.status == "diverged":
        out_.Sink(sink.format, sink.output, True, None).emit(result)
        raise NumericalError(outcome.message, f"lower --lr; the run is kept in {path}")
    sink.emit(result)
