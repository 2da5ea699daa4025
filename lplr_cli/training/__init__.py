"""Training runs with diagnostics."""

from lplr_cli.training.certify_checkpoint import certificate_of_run, certified_columns, certify_checkpoint
from lplr_cli.training.checkpoint_probe import KernelProbe, probe_checkpoint
from lplr_cli.training.config import OPTIMIZERS, SCHEDULES, TrainConfig
from lplr_cli.training.logs import LogInput, read_log
from lplr_cli.training.loop import Outcome, Progress, Trainer, repeat, resolve_device, resume, train
from lplr_cli.training.offline import probe_checkpoints
from lplr_cli.training.probes import Prober, ProbeSettings
from lplr_cli.training.recompute import recompute_gradients
from lplr_cli.training.recorder import Recorder
from lplr_cli.training.subject import OWN, Source, Subject, find_checkpoint, open_subject
from lplr_cli.training.summary import run_facts, summarize

__all__ = [
    "OPTIMIZERS",
    "OWN",
    "SCHEDULES",
    "KernelProbe",
    "LogInput",
    "Outcome",
    "ProbeSettings",
    "Prober",
    "Progress",
    "Recorder",
    "Source",
    "Subject",
    "TrainConfig",
    "Trainer",
    "certificate_of_run",
    "certified_columns",
    "certify_checkpoint",
    "find_checkpoint",
    "open_subject",
    "probe_checkpoint",
    "probe_checkpoints",
    "read_log",
    "recompute_gradients",
    "repeat",
    "resolve_device",
    "resume",
    "run_facts",
    "summarize",
    "train",
]
