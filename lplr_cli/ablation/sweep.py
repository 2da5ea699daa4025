"""Sweeps: a directory of runs, its definition in sweep.json, a table of results that grows as runs end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lplr_cli import escape
from lplr_cli.ablation.cell import RESULT_COLUMNS, path_columns
from lplr_cli.ablation.executors import Executor, InProcess, Job
from lplr_cli.ablation.grid import Cell, distinct, grid_cells
from lplr_cli.ablation.recover import smaller_step
from lplr_cli.ablation.statements import TEXT
from lplr_cli.analysis import Source, certify_path, keep, kept_path
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.reading import read_json
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, frame_of, plain
from lplr_cli.runs.atomic import clear_temporaries, output_errors, write_text
from lplr_cli.runs.tables import write_parquet
from lplr_cli.training import Progress, TrainConfig


def run_sweep(
    base: TrainConfig,
    axes: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    single: Sequence[Cell] = (),
    continue_: bool = False,
    recover: bool = False,
    along: bool = False,
    executor: Executor | None = None,
    preset: str | None = None,
    on_cell: Callable[[int, int, Cell], None] | None = None,
    on_row: Callable[[pd.DataFrame], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_path: Callable[[str], None] | None = None,
) -> tuple[pd.DataFrame, str]:
    """Run every cell of the grid that is not finished yet.

    Args:
        base: configuration of all cells.
        axes: options and their values; see :data:`lplr_cli.ablation.grid.OPTIONS`.
        out: sweep directory, with a run directory a cell, sweep.json and results.csv / .parquet.
        single: further cells beside the product of the axes.
        continue_: go on with an existing sweep of the same grid.
        recover: follow each run that left the local regime by one with a smaller step.
        along: certify the region along the path of each run that ended well, one after another, in this process.
        executor: where; in this process by default.
        preset: noted in sweep.json.
        on_cell: called before each cell with its number, their count and the cell.
        on_row: called with the table so far after each cell.
        on_progress: passed to training, in this process only.
        on_path: called with the name of each run before its path is certified.

    Returns:
        The table of results, a row a cell in the order of the grid, and ``finished`` or ``interrupted``. A cell that
        fails is a row with its status and error, and the others go on.

    Raises:
        InputError: the directory holds something else, or another grid; or the data of a cell cannot be loaded.
    """
    cells = distinct([*(grid_cells(axes) if axes else []), *single])
    if not cells:
        raise InputError("the sweep has no runs", "give a list of values, or a grid")
    _check_data(base, cells)
    _claim(out, _definition(base, axes, single, recover, preset), continue_)
    where = executor or InProcess()
    if isinstance(where, InProcess):
        where.on_progress = on_progress
    progress = _Sweep(base, out, where, on_cell, on_row)
    status = progress.execute(cells)
    if recover and status == "finished":
        status = progress.execute(list(progress.following()))
    if along and status == "finished":
        progress.certify_paths(on_path)
    frame = progress.table()
    write_parquet(out / "results.parquet", frame)
    return frame, status


class _Sweep:
    """Cells that have been started, and the rows of those that have ended."""

    def __init__(
        self,
        base: TrainConfig,
        out: Path,
        executor: Executor,
        on_cell: Callable[[int, int, Cell], None] | None,
        on_row: Callable[[pd.DataFrame], None] | None,
    ) -> None:
        self._base, self._out, self._executor = base, out, executor
        self._on_cell, self._on_row = on_cell, on_row
        self._cells: dict[str, Cell] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        executor.on_start = self._announce

    def execute(self, cells: Sequence[Cell]) -> str:
        """Run ``cells``; the table is written after each. Returns ``finished`` or ``interrupted``."""
        if not cells:
            return "finished"
        self._cells |= {c.name: c for c in cells}
        jobs = [Job(c.name, self._base.with_(**c.values), self._out / c.name, follows=bool(c.follows)) for c in cells]
        status = "finished"
        for name, row in self._executor.run(jobs):
            self._rows[name] = row
            frame = self.table()
            write_text(self._out / "results.csv", escape.csv(frame))
            if self._on_row is not None:
                self._on_row(frame)
            if row["status"] == "interrupted":
                status = "interrupted"
        return status

    def _announce(self, job: Job) -> None:
        if self._on_cell is not None:
            self._on_cell(list(self._cells).index(job.name), len(self._cells), self._cells[job.name])

    def certify_paths(self, on_path: Callable[[str], None] | None = None) -> None:
        """The columns of the path, for every run that has none yet; a run without a certificate keeps them empty."""
        for name, row in self._rows.items():
            if row["status"] != "finished":
                continue
            run = RunDirectory.open(self._out / name)
            if kept_path(run) is None:
                if on_path is not None:
                    on_path(name)
                try:
                    certificate = certify_path(run, source=Source.from_word(self._base.word), kernel=False)
                except (InputError, NumericalError):
                    continue
                keep(run, certificate.figures, certificate.to_frame())
            row |= path_columns(kept_path(run))
        write_text(self._out / "results.csv", escape.csv(self.table()))

    def following(self) -> Iterator[Cell]:
        """The runs that recover those that left."""
        for cell in self._cells.values():
            row = self._rows.get(cell.name)
            if row is None or row["regime"] != "left":
                continue
            lr = smaller_step(row["lr"], row["sharpness_max"])
            if lr is not None:
                yield Cell(f"{cell.name}-recovered", {**cell.values, "lr": lr}, cell.name)

    def table(self) -> pd.DataFrame:
        """A row a cell that has ended, in the order of the grid."""
        records = []
        for name, cell in self._cells.items():
            if name in self._rows:
                special = {k: str(v) if isinstance(v, tuple) else v for k, v in cell.values.items() if k != "lr"}
                records.append({"run": name, **special, **self._rows[name], "follows": cell.follows or None})
        frame = frame_of(records)
        columns = [c for c in frame.columns if c not in RESULT_COLUMNS and c not in ("run", "follows")]
        frame = frame[["run", *columns, *RESULT_COLUMNS, "follows"]]
        return frame.astype(dict.fromkeys(TEXT, "string"))


def _check_data(base: TrainConfig, cells: Sequence[Cell]) -> None:
    """Refuse what is out of range, and load each data set once, before anything is written.

    Raises:
        InputError: naming the cell, where it is its data.
    """
    data: dict[DataSpec, str] = {}
    for cell in cells:
        data.setdefault(base.with_(**cell.values).data, cell.name)
    for spec, name in data.items():
        try:
            load_dataset(spec)
        except InputError as error:
            raise InputError(f"{name}: {error.what}", error.remedy) from error


def _definition(
    base: TrainConfig,
    axes: Mapping[str, Sequence[Any]],
    single: Sequence[Cell],
    recover: bool,
    preset: str | None,
) -> dict[str, Any]:
    definition: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "base": base.to_dict(),
            "axes": {k: list(v) for k, v in axes.items()},
            "runs": {c.name: c.values for c in single},
            "recover": recover,
            "preset": preset,
        }
    )
    return definition


def _claim(out: Path, definition: dict[str, Any], continue_: bool) -> None:
    """Make the sweep directory, or check that it is this sweep's."""
    clear_temporaries(out)
    path = out / "sweep.json"
    if path.exists():
        if not continue_:
            raise InputError(f"{out} holds a sweep already", "pass --resume to go on with it, or choose another --out")
        if read_sweep(out) != definition:
            raise InputError(f"{out} holds a sweep with other options", "repeat its options, or choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds no sweep", "choose another --out")
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(definition, indent=2) + "\n")


def read_sweep(out: Path) -> dict[str, Any]:
    """The definition in sweep.json.

    Raises:
        InputError: none, or damaged.
    """
    return read_json(out / "sweep.json", "give a sweep directory of lplr ablate")


def failures(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(run, what happened) of the cells that did not finish."""
    for record in frame.to_dict("records"):
        if record["status"] != "finished":
            error = record["error"]
            yield str(record["run"]), str(record["status"] if pd.isna(error) else error)
