"""Run directories, logs and checkpoints on disk."""

from lplr_cli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lplr_cli.runs.directory import LOG_FORMATS, SCHEMA_VERSION, RunDirectory, runs_root, versions
from lplr_cli.runs.tables import LOG_COLUMNS, PROBE_COLUMNS, Appender, Clock, plain, truncate_before

__all__ = [
    "LOG_COLUMNS",
    "LOG_FORMATS",
    "PROBE_COLUMNS",
    "SCHEMA_VERSION",
    "Appender",
    "Checkpoint",
    "Clock",
    "RunDirectory",
    "load_checkpoint",
    "plain",
    "runs_root",
    "save_checkpoint",
    "truncate_before",
    "versions",
]
