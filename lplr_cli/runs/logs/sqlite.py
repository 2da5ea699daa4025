"""SQLite stores of MLflow and trackio; opened read-only, as they lie on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import numpy as np
import pandas as pd

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table, pick_run
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader, Rows, flatten

_MAGIC = b"SQLite format 3\0"
_LONGEST_VALUE = 16 << 20
_MOST_ROWS = 50_000_000
_MOST_NAMES = 10_000
# Instructions of SQLite's machine, in all and for a byte of the file: pages that name each other may have more rows
# than anything counts, whether they are given out or not.
INSTRUCTIONS, _A_BYTE, _AT_ONCE = 50_000_000, 64, 1_000_000
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_PRAGMA}
_FUNCTIONS = {"min", "max", "count"}


class Mlflow(Reader):
    """The database that MLflow keeps by default since 3.7, ``mlflow.db``."""

    kind = "MLflow database"
    tables: ClassVar = {"metrics": ("key", "value", "step", "run_uuid"), "runs": ("run_uuid", "name", "start_time")}

    def sniff(self, place: Place) -> bool:
        """By its tables."""
        return _has_tables(place, self.tables)

    def read(self, place: Place, choice: Choice) -> Table:
        """One run's metrics, joined on their steps; NaN where MLflow marked them so."""
        with _connected(place) as database:
            logged = (
                "SELECT run_uuid, name FROM runs WHERE run_uuid IN (SELECT run_uuid FROM metrics) ORDER BY start_time"
            )
            runs = {str(key): str(name or key) for key, name in _rows(database, logged)}
            key = pick_run(runs, choice, place.name)
            keys = _rows(database, "SELECT DISTINCT key FROM metrics WHERE run_uuid = ?", key)
            present = [str(name) for (name,) in keys][:_MOST_NAMES]
            series = {}
            for name in choice.pick(["step", *present]):
                if name in present:
                    query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
                    series[name] = {int(step): float(value) for step, value in _rows(database, query, key, name)}
        notes = (f"read the run {runs[key]}",) if len(runs) > 1 else ()
        return joined(series, present, notes + _unwritten(place))


class Trackio(Reader):
    """The database of a trackio project."""

    kind = "trackio database"
    tables: ClassVar = {"metrics": ("run_name", "step", "metrics")}

    def sniff(self, place: Place) -> bool:
        """By its tables."""
        return _has_tables(place, self.tables)

    def read(self, place: Place, choice: Choice) -> Table:
        """One run's rows, in order."""
        rows = Rows(choice)
        with _connected(place) as database:
            names = [str(name) for (name,) in _rows(database, "SELECT DISTINCT run_name FROM metrics")]
            run = pick_run({name: name for name in names}, choice, place.name)
            query = "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY step, id"
            for step, text in _rows(database, query, run):
                record = json.loads(text)
                if not isinstance(record, dict):
                    raise InputError(f"{place.name} holds a row that is no object", "the database is damaged")
                rows.add({**flatten(record), "_step": step})
        return rows.table(_unwritten(place))


def _unwritten(place: Place) -> tuple[str, ...]:
    """That rows are still in the journal beside the database, which is not touched and therefore not read."""
    journal = Path(f"{place.path}-wal")
    if not journal.is_file() or journal.stat().st_size == 0:
        return ()
    return (f"rows that are still in {journal.name} are not read: close the program that writes them",)


def joined(series: Mapping[str, Mapping[int, float]], present: Sequence[str], notes: tuple[str, ...] = ()) -> Table:
    """Metrics that were logged each by itself, a row a step."""
    steps = sorted({step for values in series.values() for step in values})
    columns = {name: [values.get(step, np.nan) for step in steps] for name, values in series.items()}
    frame = pd.DataFrame({"step": np.array(steps, dtype=np.float64), **columns})
    return Table(frame, ["step", *present], notes)


def _has_tables(place: Place, tables: Mapping[str, tuple[str, ...]]) -> bool:
    if place.path is None or not place.head.startswith(_MAGIC):
        return False
    try:
        with _connected(place) as database:
            return all(set(columns) <= set(_columns(database, table)) for table, columns in tables.items())
    except InputError:
        return False


def describe(place: Place) -> str | None:
    """What an SQLite database holds that no reader knows; None for other files."""
    if not place.head.startswith(_MAGIC):
        return None
    if place.path is None:
        return "a compressed SQLite database"
    with _connected(place) as database:
        names = [str(n) for (n,) in _rows(database, "SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 10")]
    return f"an SQLite database with the tables {', '.join(names) or 'none'}"


@contextmanager
def _connected(place: Place) -> Iterator[sqlite3.Connection]:
    """The database without locks and journal; only tables are read, and no function of a file's making is called.

    Raises:
        InputError: damaged.
    """
    assert place.path is not None
    path = Path(place.path).absolute()
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA cell_size_check = ON")
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            database.set_authorizer(_authorise)
            left = iter(range((INSTRUCTIONS + _A_BYTE * path.stat().st_size) // _AT_ONCE))
            database.set_progress_handler(lambda: int(next(left, None) is None), _AT_ONCE)
            yield database
    except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"cannot read {place.name} ({first_line(error)})", "the database is damaged") from error


def _authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION:
        return sqlite3.SQLITE_OK if second in _FUNCTIONS else sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA:
        return sqlite3.SQLITE_OK if first == "table_info" else sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    """Columns of a plain table; none of a view or a virtual table."""
    query = "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = ?"
    plain = [page for (page,) in database.execute(query, (table,)) if page]
    return [str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")] if plain else []


def _rows(database: sqlite3.Connection, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
    for count, row in enumerate(database.execute(query, values)):
        if count >= _MOST_ROWS:
            raise ValueError("too many rows")
        yield row
