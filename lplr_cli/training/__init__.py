"""Training runs with diagnostics."""

from lplr_cli.training.config import OPTIMIZERS, SCHEDULES, TrainConfig
from lplr_cli.training.loop import Outcome, repeat, resume, train
from lplr_cli.training.observers import Progress
from lplr_cli.training.probes import Prober, ProbeSettings
from lplr_cli.training.recorder import Recorder
from lplr_cli.training.trainer import Trainer, resolve_device

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Outcome",
    "ProbeSettings",
    "Prober",
    "Progress",
    "Recorder",
    "TrainConfig",
    "Trainer",
    "repeat",
    "resolve_device",
    "resume",
    "train",
]
