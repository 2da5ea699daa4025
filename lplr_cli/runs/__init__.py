"""Run directories, logs and checkpoints on disk.

Checkpoints are in :mod:`lplr_cli.runs.checkpoint`, which needs torch; the rest does not, so that logs are read quickly.
"""

<<<<<<< HEAD
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
from lplr_cli.runs.tables import LOG_COLUMNS, PROBE_COLUMNS, Appender, Clock, plain, truncate_before
=======
from lplr_cli.runs.directory import LOG_FORMATS, SCHEMA_VERSION, RunDirectory, runs_root, versions
from lplr_cli.runs.tables import LOG_COLUMNS, PROBE_COLUMNS, Appender, Clock, frame_of, plain, truncate_before
>>>>>>> 0ab66f8 (Text leaves through one function a sink: terminals, Rich, Markdown, CSV, HTML, XML, JSON, figures; streams that are closed, full or gone have one meaning in every command)

__all__ = [
    "BATCHES",
    "EXACT",
    "LOG_COLUMNS",
    "LOG_FORMATS",
    "NORMALISATION",
    "PROBE_COLUMNS",
    "SCHEMA_VERSION",
    "STATUSES",
    "Appender",
    "Clock",
    "DataFacts",
    "LossFacts",
    "Manifest",
    "OptimizerFacts",
    "RunDirectory",
<<<<<<< HEAD
    "described_optimizer",
=======
    "frame_of",
>>>>>>> 0ab66f8 (Text leaves through one function a sink: terminals, Rich, Markdown, CSV, HTML, XML, JSON, figures; streams that are closed, full or gone have one meaning in every command)
    "plain",
    "runs_root",
    "truncate_before",
    "versions",
]
