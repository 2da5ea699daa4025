"""What is said at the end of a run: its certificates as far as they are cheap, its figures, its summary.json."""

from __future__ import annotations

from lplr_cli.analysis.certificates import certified_columns
from lplr_cli.analysis.noise import floor_while_cheap
from lplr_cli.analysis.path import Progress, path_while_cheap
from lplr_cli.analysis.predicted_end import predict_while_cheap
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.analysis.summary import PATH_NOT_ASKED, Summary, summarize
from lplr_cli.runs import RunDirectory

# Seconds that the region along the path may take beyond the training itself.
PATIENCE = 30.0


def conclude(
    run: RunDirectory, source: Source = OWN, *, patience: float | None = PATIENCE, progress: Progress | None = None
) -> Summary:
    """Summarise a run that ended, and write summary.json.

    Args:
        run: finished or diverged.
        source: what the user says of code that the run names.
        patience: seconds that the region along the path may cost beyond the training itself; None leaves it out, and
            the noise floor and the prediction by the kernel with it.
        progress: called with (steps done, steps) while it is certified.

    Raises:
        InputError: a log without a usable row.
    """
    ball, why = certified_columns(run, source), PATH_NOT_ASKED
    if patience is not None and run.manifest().status == "finished":
        why = path_while_cheap(run, patience, source, progress)
        floor_while_cheap(run, source)
        predict_while_cheap(run, source)
    summary = summarize(run, ball, why)
    run.write_summary(summary.to_dict())
    return summary
