"""Logs that other programs wrote: a short reader a format, sniffed by content, columns told by their usual names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO

from lplr_cli.errors import InputError
from lplr_cli.runs.logs import (
    arrays,
    delimited,
    folder,
    json_document,
    json_lines,
    mlflow,
    parquet,
    sqlite,
    tensorboard,
    text,
    wandb,
)
from lplr_cli.runs.logs.columns import KNOWN, Choice, Reading, Table, parse_columns
from lplr_cli.runs.logs.place import Place, opened, piped
from lplr_cli.runs.logs.reader import Reader
from lplr_cli.runs.logs.unknown import holds_weights, refuse

__all__ = [
    "KNOWN",
    "READERS",
    "Choice",
    "Reader",
    "Reading",
    "Table",
    "holds_weights",
    "parse_columns",
    "read_foreign_log",
    "read_stream",
    "sniff",
]

# In the order in which they are asked; the last ones take what has no mark of its own.
READERS: tuple[Reader, ...] = (
    folder.HuggingFace(),
    folder.Lightning(),
    folder.WandbFolder(),
    mlflow.MlflowFolder(),
    parquet.Parquet(),
    arrays.Npy(),
    arrays.Npz(),
    wandb.WandbFile(),
    sqlite.Mlflow(),
    sqlite.Trackio(),
    tensorboard.TensorBoard(),
    mlflow.MlflowFile(),
    json_lines.JsonLines(),
    json_document.JsonDocument(),
    delimited.Delimited(),
    text.Text(),
)


def sniff(place: Place) -> Reader | None:
    """The reader for a file or folder."""
    return next((reader for reader in READERS if reader.sniff(place)), None)


def read_foreign_log(path: Path, columns: Mapping[str, str] | None = None, run: str | None = None) -> Reading:
    """The log at ``path``: a file, or the folder of a run; the format is told by the content, not by the name.

    Args:
        path: compressed files are unpacked.
        columns: by known name, the column of the log; the usual names need none.
        run: name of one of several runs.

    Raises:
        InputError: it cannot be read, lacks a column or holds several runs; the message lists those present.
    """
    with opened(path) as place:
        return _read(place, Choice(columns or {}, run))


def read_stream(
    stream: IO[bytes], name: str, columns: Mapping[str, str] | None = None, run: str | None = None
) -> Reading:
    """The log in a binary stream; see :func:`read_foreign_log`."""
    with piped(stream, name) as place:
        return _read(place, Choice(columns or {}, run))


def _read(place: Place, choice: Choice) -> Reading:
    if place.folder is None and not place.text.strip(b"\0"):
        raise InputError(f"{place.name} is empty", "give a log with a header and rows")
    reader = sniff(place)
    if reader is None:
        raise refuse(place)
    return choice.select(reader.read(place, choice), place.name)
