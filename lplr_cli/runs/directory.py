"""The run directory: run.json, logs, probes, checkpoints, summary (the layout of the README)."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lplr_cli.errors import InputError, OutputError
from lplr_cli.reading import read_json
from lplr_cli.runs.atomic import NO_LINK, clear_temporaries, output_errors, write_text
from lplr_cli.runs.manifest import SCHEMA_VERSION, STATUSES, Manifest
from lplr_cli.runs.tables import (
    LOG_COLUMNS,
    PROBE_COLUMNS,
    checked,
    plain,
    read_csv,
    read_parquet,
    write_parquet,
)

if TYPE_CHECKING:
    from lplr_cli.runs.checkpoint import Checkpoint

LOG_FORMATS = ("csv", "parquet", "both")
_CHECKPOINT = re.compile(r"step-(\d+)\.pt")


def runs_root() -> Path:
    """Where runs go that are given no ``--out``: $LPLR_RUNS, else ./runs."""
    return Path(os.environ.get("LPLR_RUNS") or "runs")


class RunDirectory:
    """A run on disk.

    Use :meth:`create` to begin one and :meth:`open` to read one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, remedy: str = "choose another --out, or --resume it") -> RunDirectory:
        """A new, empty run directory, locked for this process.

        What a process left that died before it wrote run.json counts as empty: nothing in it can be resumed.

        Args:
            path: where it is to be.
            remedy: what to do about one that is there.

        Raises:
            InputError: the directory exists and is not empty.
            OutputError: it cannot be made.
        """
        if path.exists() and not cls._is_unborn(path):
            raise InputError(f"{path} exists already", remedy)
        run = cls(path)
        with output_errors(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        run.lock()
        return run

    @staticmethod
    def _is_unborn(path: Path) -> bool:
        """Whether nothing lies there but the skeleton of a run that never began."""
        if not path.is_dir():
            return False
        with output_errors(path):
            return all(
                p.name == ".lock"
                or (p.name == "checkpoints" and p.is_dir() and not any(p.iterdir()))
                or (p.name.startswith(".run.json.") and p.suffix == ".tmp")
                for p in path.iterdir()
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            InputError: no run directory of a schema that this version reads.
        """
        if not path.is_dir():
            raise InputError(f"no run directory {path}", "give the directory that lplr train wrote")
        run = cls(path)
        version = run.config().get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{path} has schema version {version!r}", f"this lplr reads version {SCHEMA_VERSION}")
        return run

    def lock(self) -> None:
        """Hold the directory for this process; the system frees it when the process ends, however it ends.

        Temporary files of processes that died in it are removed.
        """
        with output_errors(self.path):
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no advisory locks on this platform
            pass
        except OSError as error:
            os.close(handle)
            raise InputError(f"{self.path} is in use by another process", "wait for it or stop it") from error
        self._lock = handle
        for directory in (self.path, self.path / "checkpoints"):
            clear_temporaries(directory)

    def unlock(self) -> None:
        """Free the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def log_path(self) -> Path:
        """The CSV log of steps."""
        return self.path / "log.csv"

    @property
    def probes_path(self) -> Path:
        """The CSV log of probes."""
        return self.path / "probes.csv"

    def config(self) -> dict[str, Any]:
        """The content of run.json."""
        return self._read_json("run.json")

    def write_config(self, record: dict[str, Any]) -> None:
        """Write run.json atomically."""
        self._write_json("run.json", record)

    def manifest(self) -> Manifest:
        """run.json, every value checked.

        Raises:
            InputError: it is damaged.
        """
        return Manifest.from_dict(self.config(), str(self.path / "run.json"))

    def write_manifest(self, manifest: Manifest) -> None:
        """Write run.json atomically."""
        self.write_config(manifest.to_dict())

    def set_status(self, status: str) -> None:
        """Update the status in run.json."""
        assert status in STATUSES
        self.write_config({**self.config(), "status": status})

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json, None before the end of the run."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    def is_summarized(self) -> bool:
        """Whether summary.json is there and of the last step of the log; a process may have died before it wrote it."""
        kept, log = self.summary(), self.log()
        return kept is not None and len(log) > 0 and kept.get("steps") == int(log["step"].iloc[-1])

    def write_summary(self, record: dict[str, Any], *, replace: bool = True) -> None:
        """Write summary.json atomically; one that is there stays without ``replace``, of whatever steps it is."""
        if replace or not (self.path / "summary.json").exists():
            self._write_json("summary.json", record)

    def record(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file that was derived from the run; None where there is none."""
        return self._read_json(name) if (self.path / name).exists() else None

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write it atomically."""
        self._write_json(name, record)

    def rows(self, stem: str, columns: tuple[str, ...]) -> pd.DataFrame:
        """A CSV table that was derived from the run, with at least these columns of numbers."""
        return checked(read_csv(self.path / f"{stem}.csv"), columns, self.path / f"{stem}.csv")

    def write_rows(self, stem: str, frame: pd.DataFrame) -> None:
        """Write it atomically."""
        write_text(self.path / f"{stem}.csv", frame.to_csv(index=False))

    def log(self) -> pd.DataFrame:
        """All steps logged so far."""
        return self._table("log")

    def probes(self) -> pd.DataFrame:
        """All probes so far; empty when there are none."""
        return self._table("probes")

    def _table(self, stem: str) -> pd.DataFrame:
        columns = LOG_COLUMNS if stem == "log" else PROBE_COLUMNS
        # The CSV is what the run appends to, so it is the newer one while both exist.
        if (self.path / f"{stem}.csv").exists():
            return checked(read_csv(self.path / f"{stem}.csv"), columns, self.path / f"{stem}.csv")
        if (self.path / f"{stem}.parquet").exists():
            return checked(read_parquet(self.path / f"{stem}.parquet"), columns, self.path / f"{stem}.parquet")
        if stem == "probes":
            return pd.DataFrame()
        raise InputError(f"{self.path} has no {stem}.csv or {stem}.parquet", "it is no run of lplr")

    def finish_tables(self, log_format: str) -> None:
        """Write Parquet from the CSV, and drop the CSV when only Parquet was asked for."""
        if log_format == "csv":
            return
        for stem in ("log", "probes"):
            path = self.path / f"{stem}.csv"
            if path.exists():
                write_parquet(self.path / f"{stem}.parquet", read_csv(path))
                if log_format == "parquet":
                    path.unlink()

    def restore_csv(self) -> None:
        """Bring the CSV back from Parquet, so that a finished or interrupted run can be appended to."""
        for stem in ("log", "probes"):
            csv, parquet = self.path / f"{stem}.csv", self.path / f"{stem}.parquet"
            if not csv.exists() and parquet.exists():
                frame = read_parquet(parquet)
                write_text(csv, frame.to_csv(index=False))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lies."""
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint atomically."""
        from lplr_cli.runs.checkpoint import save_checkpoint

        path = self.checkpoint_path(checkpoint.step)
        save_checkpoint(path, checkpoint)
        return path

    def checkpoint_steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        with contextlib.suppress(OSError):
            matches = (_CHECKPOINT.fullmatch(p.name) for p in (self.path / "checkpoints").iterdir())
            return sorted(int(m.group(1)) for m in matches if m)
        return []

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of ``step``."""
        from lplr_cli.runs.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint_path(step))

    def _read_json(self, name: str) -> dict[str, Any]:
        return read_json(self.path / name, "give a run directory of lplr, not damaged")

    def _write_json(self, name: str, record: dict[str, Any]) -> None:
        if not self.path.is_dir():
            raise OutputError(f"{self.path} has vanished", "restore the directory and resume")
        write_text(self.path / name, json.dumps(plain(record), indent=2, allow_nan=False) + "\n")
