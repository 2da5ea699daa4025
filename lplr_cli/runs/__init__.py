"""Run directories, logs and checkpoints on disk.

Checkpoints are in :mod:`lplr_cli.runs.checkpoint`, which needs torch; the rest does not, so that logs are read quickly.
"""

from lplr_cli.runs.directory import LOG_FORMATS, SCHEMA_VERSION, RunDirectory, runs_root, versions
from lplr_cli.runs.tables import LOG_COLUMNS, PROBE_COLUMNS, Appender, Clock, plain, truncate_before

__all__ = [
    "LOG_COLUMNS",
    "LOG_FORMATS",
    "PROBE_COLUMNS",
    "SCHEMA_VERSION",
    "Appender",
    "Clock",
    "RunDirectory",
    "plain",
    "runs_root",
    "truncate_before",
    "versions",
]
