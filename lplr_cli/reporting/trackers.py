"""The figures of an audit in the tracker that a team looks at: MLflow, Weights & Biases, TensorBoard, trackio.

Each is asked for by name and imported only then; where it keeps its runs is its own setting (``MLFLOW_TRACKING_URI``,
``WANDB_MODE=offline``, …).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lplr_cli import escape
from lplr_cli.errors import InputError, LplrError, OutputError, first_line
from lplr_cli.shown import flatten

PREFIX = "lplr/"


@dataclass(frozen=True)
class Entry:
    """What is logged.

    Attributes:
        run: name of the tracker's run.
        figures: by key of the JSON, finite; truth values are 0 and 1.
        texts: verdict and explanation, by key.
    """

    run: str
    figures: Mapping[str, float]
    texts: Mapping[str, str]

    @classmethod
    def of(cls, record: dict[str, Any]) -> Entry:
        """Of the JSON of ``lplr audit``."""
        pairs = flatten(record)
        figures = {PREFIX + k: float(v) for k, v in pairs if isinstance(v, int | float) and k != "schema_version"}
        keys = ("verdict", "explanation", "along.verdict", "along.explanation", "scope.loss", "scope.optimizer")
        texts = {PREFIX + k: escape.line(str(v)) for k, v in pairs if k in keys and v is not None}
        return cls(escape.line(str(record["source"])), figures, texts)


def check_trackers(targets: Iterable[str]) -> None:
    """Refuse what :func:`send` would, before there is anything to send.

    Raises:
        InputError: no such tracker.
    """
    for target in targets:
        kind = target.partition(":")[0]
        if kind not in TRACKERS:
            raise InputError(f"--to {kind!r} is unknown", f"choose from {', '.join(TRACKERS)}")


def send(target: str, record: dict[str, Any]) -> None:
    """Log an audit.

    Args:
        target: ``KIND`` or ``KIND:NAME``, NAME an experiment of mlflow, a project of wandb or trackio, or a folder of
            tensorboard.
        record: the JSON of ``lplr audit``.

    Raises:
        InputError: no such tracker, or one that is not installed.
        OutputError: it does not take the figures.
    """
    check_trackers([target])
    kind, _, name = target.partition(":")
    entry = Entry.of(record)
    try:
        # Some say on stdout what they do, where the result alone belongs.
        with contextlib.redirect_stdout(sys.stderr):
            TRACKERS[kind](entry, name or None)
    except ImportError as error:
        raise InputError(f"--to {kind} needs {kind}", f"pip install {kind}") from error
    except LplrError:
        raise
    except Exception as error:
        what = first_line(error)
        raise OutputError(f"cannot log to {kind} ({what})", "check its settings") from error


def _mlflow(entry: Entry, name: str | None) -> None:
    import mlflow

    if name is not None:
        mlflow.set_experiment(name)
    with mlflow.start_run(run_name=entry.run):
        mlflow.log_metrics(dict(entry.figures))
        mlflow.set_tags(dict(entry.texts))


def _wandb(entry: Entry, name: str | None) -> None:
    import wandb

    settings = wandb.Settings(silent=True)
    run = wandb.init(project=name, name=entry.run, job_type="lplr audit", config=dict(entry.texts), settings=settings)
    run.log(dict(entry.figures))
    run.finish()


def _tensorboard(entry: Entry, name: str | None) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(name) as writer:
        for key, value in entry.figures.items():
            writer.add_scalar(key, value, 0)
        for key, text in entry.texts.items():
            writer.add_text(key, text, 0)


def _trackio(entry: Entry, name: str | None) -> None:
    import trackio

    trackio.init(project=name or "lplr", name=entry.run, config=dict(entry.texts))
    trackio.log(dict(entry.figures))
    trackio.finish()


TRACKERS: Mapping[str, Callable[[Entry, str | None], None]] = {
    "mlflow": _mlflow,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
}
