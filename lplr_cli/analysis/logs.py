"""A log to diagnose: that of a run, or of anyone's program."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lplr_cli.analysis.summary import Summary, run_facts, summary_of
from lplr_cli.diagnostics import NO_FACTS, LossSeries, RunFacts, clean_series
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory
from lplr_cli.runs.logs import Reading, read_foreign_log, read_stream


@dataclass(frozen=True)
class LogInput:
    """A log, and the run it belongs to where there is one.

    Attributes:
        name: for people.
        log: columns of :data:`lplr_cli.runs.logs.KNOWN`, or those of a run.
        run: the run directory.
        summary: of the run, from its logs.
        notes: what was chosen in a foreign log where several things could be meant.
    """

    name: str
    log: pd.DataFrame
    run: RunDirectory | None
    summary: Summary | None
    notes: tuple[str, ...] = ()

    def series(self) -> LossSeries:
        """The usable rows; says which log when there is none."""
        try:
            return clean_series(self.log)
        except InputError as error:
            raise InputError(f"{self.name}: {error.what}", error.remedy) from error

    def facts(self) -> RunFacts:
        """What is known beside the log."""
        return NO_FACTS if self.run is None or self.summary is None else run_facts(self.run, self.summary)


def read_log(source: str | Path, columns: Mapping[str, str] | None = None, run: str | None = None) -> LogInput:
    """Read the log that ``source`` names.

    Args:
        source: a run directory, a log of any format, or - for stdin.
        columns: by known name, the column of the log; see :func:`lplr_cli.runs.logs.parse_columns`.
        run: which run, of a log or store that holds several.

    Raises:
        InputError: it is neither a run directory nor a readable table, or lacks a column.
    """
    if source == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed", "pipe a log into it")
        return _foreign("stdin", read_stream(sys.stdin.buffer, "stdin", columns, run))
    path = Path(source)
    if path.is_dir() and (path / "run.json").exists():
        if columns or run:
            option = "--column" if columns else "--run"
            raise InputError(f"{source} is a run of lplr, whose columns are known", f"leave out {option}")
        own = RunDirectory.open(path)
        return LogInput(str(path), own.log(), own, summary_of(own))
    if not path.exists():
        raise InputError(f"no run or log {source}", "give a run directory, a log or -")
    return _foreign(str(path), read_foreign_log(path, columns, run))


def _foreign(name: str, reading: Reading) -> LogInput:
    return LogInput(name, reading.log, None, None, reading.notes)
