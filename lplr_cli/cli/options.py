"""Options of a training run, shared by the commands that train."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.errors import InputError
from lplr_cli.factories import parse_argument

if TYPE_CHECKING:
    from lplr_cli.analysis import Source
    from lplr_cli.data import DataSpec
    from lplr_cli.training import TrainConfig

DATA, MODEL, OPTIM, PROBES, RUN = "Data", "Model", "Optimisation", "Probes and checkpoints", "Run"

DatasetName = Annotated[
    str | None,
    typer.Argument(metavar="DATASET", help="mnist, cifar10, FILE.npz, FILE.csv, FILE.parquet or module:factory."),
]
Samples = Annotated[
    int | None, typer.Option(help="Samples, classes taking turns; all by default.", rich_help_panel=DATA)
]
Classes = Annotated[str | None, typer.Option(help="Labels to keep, e.g. 3,8 or cat,dog.", rich_help_panel=DATA)]
Targets = Annotated[
    str | None,
    typer.Option(help="pm1, 01, onehot or raw; by default 01 or onehot for classes, else raw.", rich_help_panel=DATA),
]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="Target column of a table; repeatable.", rich_help_panel=DATA),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="regression or classification, of targets in a file. Default: text and truth values are classes, and few "
        "whole numbers called label, class, species, category, target or y.",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[Path | None, typer.Option(help="Original IDX or CIFAR-10 files.", rich_help_panel=DATA)]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch the whole data set, with fixed hashes.", rich_help_panel=DATA),
]
ModelName = Annotated[str, typer.Option("--model", help="mlp, resnet or module:factory.", rich_help_panel=MODEL)]
ModelArg = Annotated[
    list[str] | None,
    typer.Option("--model-arg", help="key=value for a model factory; repeatable.", rich_help_panel=MODEL),
]
Depth = Annotated[int, typer.Option(help="Hidden layers of the MLP.", rich_help_panel=MODEL)]
Activation = Annotated[
    str | None,
    typer.Option(
        help="softplus, tanh, gelu, silu or relu. Default: softplus (mlp), relu (resnet).",
        rich_help_panel=MODEL,
    ),
]
Beta = Annotated[float, typer.Option(help="Sharpness of softplus.", rich_help_panel=MODEL)]
Parametrization = Annotated[str, typer.Option(help="standard or ntk.", rich_help_panel=MODEL)]
Init = Annotated[str, typer.Option(help="he, lecun or normal.", rich_help_panel=MODEL)]
Loss = Annotated[
    str,
    typer.Option(help="squared: (1/n) Σ ‖f(x_i) − y_i‖²; cross-entropy; bce.", rich_help_panel=OPTIM),
]
Optimizer = Annotated[str, typer.Option(help="gd (full batch) or sgd.", rich_help_panel=OPTIM)]
Momentum = Annotated[float, typer.Option(help="Heavy-ball momentum.", rich_help_panel=OPTIM)]
BatchSize = Annotated[int, typer.Option(help="Mini-batch of sgd.", rich_help_panel=OPTIM)]
Schedule = Annotated[str, typer.Option(help="constant or cosine.", rich_help_panel=OPTIM)]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps; 500 by default.", rich_help_panel=OPTIM)]
Epochs = Annotated[int | None, typer.Option(help="Epochs instead of steps.", rich_help_panel=OPTIM)]
ProbeEvery = Annotated[
    int, typer.Option(help="Steps between NTK probes; 0: first and last step.", rich_help_panel=PROBES)
]
ProbeSize = Annotated[
    str,
    typer.Option(
        help="Samples of the probe, or all, or auto: all up to 1,024 rows of K, else 100.",
        rich_help_panel=PROBES,
    ),
]
Sharpness = Annotated[
    bool,
    typer.Option("--sharpness/--no-sharpness", help="Measure the sharpness in probes.", rich_help_panel=PROBES),
]
CheckpointEvery = Annotated[
    int, typer.Option(help="Steps between checkpoints; 0: first and last step.", rich_help_panel=PROBES)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, …", rich_help_panel=RUN)]
Dtype = Annotated[str, typer.Option(help="float64 or float32, of training; probes are float64.", rich_help_panel=RUN)]
LogFormat = Annotated[str, typer.Option(help="csv, parquet or both.", rich_help_panel=RUN)]


def parse_lr(text: str) -> float | None:
    """A step size, or None for ``auto``."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--lr {text!r} is no step size", "give a positive number or auto") from None


def parse_list(text: str, name: str, kind: Callable[[str], Any]) -> list[Any]:
    """Values of a comma-separated list."""
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values:
        raise InputError(f"--{name} {text!r} is no list of {kind.__name__}", "separate the values by commas")
    return values


def parse_label(text: str) -> int | str:
    """A class: a whole number where it is one, else its name."""
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d{1,15}", text) else text


def say_targets(data: DataSpec) -> None:
    """Say on stderr what is decided of the targets of a file.

    Raises:
        InputError: the data cannot be loaded.
    """
    from lplr_cli.cli.output import note
    from lplr_cli.data import load_dataset

    if Path(data.source).is_file():
        decided = load_dataset(data).note
        if decided:
            note(f"{data.source}: {decided}")


def parse_arguments(pairs: list[str] | None) -> dict[str, Any]:
    """``key=value`` pairs; see :func:`lplr_cli.factories.parse_argument` for the values."""
    arguments: dict[str, Any] = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise InputError(f"--model-arg {pair!r} is not understood", "write it as key=value")
        arguments[key] = parse_argument(value)
    return arguments


def make_config(
    dataset: str,
    *,
    samples: int | None,
    classes: str | None,
    targets: str | None,
    target: list[str] | None,
    data_dir: Path | None,
    task: str | None,
    model: str,
    model_arg: list[str] | None,
    width: int,
    depth: int,
    activation: str | None,
    beta: float,
    parametrization: str,
    init: str,
    steps: int | None,
    epochs: int | None,
    probe_size: str,
    **rest: Any,
) -> TrainConfig:
    """A training configuration from the options as typed.

    Raises:
        InputError: an option that is out of range, naming it.
    """
    from lplr_cli.data import DataSpec
    from lplr_cli.models import ModelSpec
    from lplr_cli.training import TrainConfig

    size: int | str = probe_size
    if probe_size not in ("auto", "all"):
        (size,) = parse_list(probe_size, "probe-size", int)[:1]
    return TrainConfig(
        data=DataSpec(
            source=dataset,
            classes=None if classes is None else tuple(parse_list(classes, "classes", parse_label)),
            task=task,
            samples=samples,
            targets=targets,
            target_columns=tuple(target or ()),
            data_dir=None if data_dir is None else str(data_dir.resolve()),
        ),
        model=ModelSpec(
            kind=model,
            width=width,
            depth=depth,
            activation=activation,
            beta=beta,
            parametrization=parametrization,
            init=init,
            arguments=parse_arguments(model_arg),
        ),
        steps=500 if steps is None and epochs is None else steps,
        epochs=epochs,
        probe_size=size,
        **rest,
    )


def source_label(dataset: str) -> str:
    """A short name of the data set for directory names."""
    if dataset in ("mnist", "cifar10"):
        return dataset
    return Path(dataset).stem.replace(":", "-").replace(".", "-") or "data"


def parse_size(text: str) -> int | None:
    """A number of samples, None for ``all``."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--size {text!r} is no number", "give a number of samples, or all") from None


_UNITS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def parse_memory(text: str) -> int:
    """Bytes from a size such as ``2GiB`` or ``500MB``."""
    digits = text.rstrip("kKmMgGiIbB ")
    unit = text[len(digits) :].strip().lower()
    try:
        value = float(digits) * (_UNITS[unit] if unit not in ("", "b") else 1)
    except (ValueError, KeyError):
        value = 0.0
    if not 1 <= value < 2**60:
        raise InputError(f"--memory {text!r} is no size", "write it like 2GiB or 500MB")
    return int(value)


SOURCE = "A file of somebody else's, or one that names code"


def _said(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=SOURCE)


@dataclass(frozen=True)
class SourceOptions:
    """What the user says of a file: its code, which runs only when named here, and what the file does not tell."""

    model: Annotated[
        str | None,
        _said(
            "--model",
            metavar="MODULE:FACTORY",
            help="Code of the network, run only when named here; without it an MLP is read from names and shapes.",
        ),
    ] = None
    model_arg: Annotated[list[str] | None, _said("--model-arg", help="key=value for --model; repeatable.")] = None
    data: Annotated[
        str | None,
        _said(
            "--data",
            metavar="FILE|NAME|MODULE:FACTORY",
            help="Its training data: .npz, .csv, .parquet, mnist, cifar10 or module:factory.",
        ),
    ] = None
    activation: Annotated[str | None, _said("--activation", help="Of an MLP read from names and shapes.")] = None
    beta: Annotated[float, _said("--beta", help="Sharpness of its softplus.")] = 1.0
    parametrization: Annotated[str, _said("--parametrization", help="Its parametrisation: standard or ntk.")] = (
        "standard"
    )
    samples: Annotated[int | None, _said("--samples", help="Of --data.")] = None
    classes: Annotated[str | None, _said("--classes", help="Of --data, e.g. 3,8.")] = None
    targets: Annotated[str | None, _said("--targets", help="Of --data: pm1, 01, onehot or raw.")] = None
    target: Annotated[list[str] | None, _said("--target", help="Target column of a table in --data; repeatable.")] = (
        None
    )
    task: Annotated[str | None, _said("--task", help="Of --data: regression or classification.")] = None
    data_dir: Annotated[
        Path | None, _said("--data-dir", help="Where the IDX or CIFAR-10 files of the data lie now.")
    ] = None

    def source(self) -> Source:
        """The options read.

        Raises:
            InputError: options of the data without --data, or of the model without --model.
        """
        from lplr_cli.analysis import Source

        if self.model_arg and self.model is None:
            raise InputError("--model-arg without --model", "name the factory as well")
        return Source(
            model=self.model,
            arguments=parse_arguments(self.model_arg),
            data=self._data(),
            activation=self.activation,
            beta=self.beta,
            parametrization=self.parametrization,
            data_dir=self.data_dir,
        )

    def _data(self) -> DataSpec | None:
        if self.data is None:
            details = {
                "--samples": self.samples,
                "--classes": self.classes,
                "--targets": self.targets,
                "--target": self.target,
                "--task": self.task,
            }
            alone = [k for k, v in details.items() if v]
            if alone:
                raise InputError(f"{', '.join(alone)} without --data", "name the data as well")
            return None
        from lplr_cli.data import DataSpec

        return DataSpec(
            source=self.data,
            classes=None if self.classes is None else tuple(parse_list(self.classes, "classes", parse_label)),
            task=self.task,
            samples=self.samples,
            targets=self.targets,
            target_columns=tuple(self.target or ()),
            data_dir=None if self.data_dir is None else str(self.data_dir.resolve()),
        )
