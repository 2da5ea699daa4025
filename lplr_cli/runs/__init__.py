"""Run directories, logs and checkpoints on disk.

Checkpoints are in :mod:`lplr_cli.runs.checkpoint`, which needs torch; the rest does not, so that logs are read quickly.
"""

from lplr_cli.runs.directory import LOG_FORMATS, RunDirectory, runs_root
from lplr_cli.runs.manifest import (
    BATCHES,
    EXACT,
    NORMALISATION,
    SCHEMA_VERSION,
    STATUSES,
    DataFacts,
    LossFacts,
    Manifest,
    OptimizerFacts,
    described_optimizer,
    versions,
)
from lplr_cli.runs.tables import (
    BATCH_NOISE,
    KERNEL_GRADIENT,
    LARGEST_LOSS,
    LOG_COLUMNS,
    NEW_PROBE_COLUMNS,
    PRECONDITIONED,
    PROBE_COLUMNS,
    SAMPLE_NOISE,
    STABLE,
    UPDATE,
    Appender,
    Clock,
    frame_of,
    plain,
    truncate_before,
)

__all__ = [
    "BATCHES",
    "BATCH_NOISE",
    "EXACT",
    "KERNEL_GRADIENT",
    "LARGEST_LOSS",
    "LOG_COLUMNS",
    "LOG_FORMATS",
    "NEW_PROBE_COLUMNS",
    "NORMALISATION",
    "PRECONDITIONED",
    "PROBE_COLUMNS",
    "SAMPLE_NOISE",
    "SCHEMA_VERSION",
    "STABLE",
    "STATUSES",
    "UPDATE",
    "Appender",
    "Clock",
    "DataFacts",
    "LossFacts",
    "Manifest",
    "OptimizerFacts",
    "RunDirectory",
    "described_optimizer",
    "frame_of",
    "plain",
    "runs_root",
    "truncate_before",
    "versions",
]
