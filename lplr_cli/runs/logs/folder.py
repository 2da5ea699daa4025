"""Folders that trainers leave: which file in them is the log."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lplr_cli.errors import InputError
from lplr_cli.runs.logs.columns import Choice, Table, pick_run
from lplr_cli.runs.logs.delimited import Delimited
from lplr_cli.runs.logs.json_document import JsonDocument
from lplr_cli.runs.logs.place import Place, opened
from lplr_cli.runs.logs.reader import Reader
from lplr_cli.runs.logs.wandb import WandbFile

_DEEPEST = 6
_MOST_ENTRIES = 200_000
_STATE = "trainer_state.json"
_METRICS = "metrics.csv"


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in order, to a bounded depth and number; links to folders are not followed."""
    seen = 0
    base = len(folder.parts)
    for where, folders, files in os.walk(folder):
        folders.sort()
        if len(Path(where).parts) - base >= _DEEPEST:
            folders.clear()
        seen += len(files) + len(folders)
        if seen > _MOST_ENTRIES:
            raise InputError(f"{folder} has more than {_MOST_ENTRIES:,} entries", "name the folder of one run")
        yield from (Path(where) / name for name in sorted(files))


class HuggingFace(Reader):
    """``trainer_state.json`` of a checkpoint, or of the last checkpoint of an output folder."""

    kind = "Hugging Face trainer state"

    def sniff(self, place: Place) -> bool:
        """A trainer state in the folder or in its ``checkpoint-N``."""
        return place.folder is not None and _trainer_state(place.folder) is not None

    def read(self, place: Place, choice: Choice) -> Table:
        """Its ``log_history``."""
        assert place.folder is not None
        path = _trainer_state(place.folder)
        assert path is not None
        with opened(path) as state:
            table = JsonDocument().read(state, choice)
        if path.parent == place.folder:
            return table
        return Table(table.frame, table.present, (f"read {path.parent.name}/{_STATE}, the last", *table.notes))


def _trainer_state(folder: Path) -> Path | None:
    if (folder / _STATE).is_file():
        return folder / _STATE
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d{1,15})", path.name)) and (path / _STATE).is_file()
    }
    return steps[max(steps)] / _STATE if steps else None


class Lightning(Reader):
    """``metrics.csv`` of a ``version_N`` folder, or of the folder that holds the versions."""

    kind = "Lightning metrics"

    def sniff(self, place: Place) -> bool:
        """A ``metrics.csv`` in the folder or one below."""
        return place.folder is not None and bool(_versions(place.folder))

    def read(self, place: Place, choice: Choice) -> Table:
        """Rows of training; those of validation have no training loss and are left out as such."""
        assert place.folder is not None
        versions = _versions(place.folder)
        key = pick_run({name: name for name in versions}, choice, place.name)
        with opened(versions[key]) as metrics:
            return Delimited().read(metrics, choice)


def _versions(folder: Path) -> dict[str, Path]:
    if (folder / _METRICS).is_file():
        return {folder.name: folder / _METRICS}
    below = [*folder.glob(f"*/{_METRICS}"), *folder.glob(f"*/version_*/{_METRICS}")]
    return {str(p.parent.relative_to(folder)): p for p in sorted(below) if p.is_file()}


class WandbFolder(Reader):
    """The ``.wandb`` file of a run's folder, or of the folder ``wandb`` with all runs."""

    kind = "W&B folder"

    def sniff(self, place: Place) -> bool:
        """Files whose names end so."""
        return place.folder is not None and bool(_wandb_files(place.folder))

    def read(self, place: Place, choice: Choice) -> Table:
        """Of several runs the one whose folder is named."""
        assert place.folder is not None
        files = _wandb_files(place.folder)
        key = pick_run({p.parent.name: p.stem.removeprefix("run-") for p in files}, choice, place.name)
        with opened(next(p for p in files if p.parent.name == key)) as file:
            return WandbFile().read(file, choice)


def _wandb_files(folder: Path) -> list[Path]:
    files = [*folder.glob("*.wandb"), *folder.glob("*run-*/*.wandb"), *folder.glob("wandb/*run-*/*.wandb")]
    return [p for p in sorted(files) if p.is_file() and not p.parent.is_symlink()]
