"""Logs: appended row by row as CSV, read back whole, kept as Parquet at the end."""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from lplr_cli import escape, reading
from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.atomic import NO_LINK, output_errors, write_atomically

LOG_COLUMNS = ("step", "epoch", "loss", "grad_norm_sq", "drift", "lr", "seconds")
# Of recorded probes: the curvature as an adaptive optimiser sees it, and the largest that the optimiser bears.
PRECONDITIONED, STABLE = "preconditioned", "stable_curvature"
# Of probes under a cross-entropy with hard labels: the largest loss of a sample, for scale 1.
LARGEST_LOSS = "largest_loss"
# Of probes: ||∇L||² as the kernel and the gradients of the loss in the outputs give it.
KERNEL_GRADIENT = "kernel_grad_norm_sq"
# Of a recorder's steps: ||θ_t − θ_{t−1}||.
UPDATE = "update_norm"
# Of runs with mini-batches: tr Σ of single samples' gradients, and the variance of the row's own gradient.
SAMPLE_NOISE, BATCH_NOISE = "noise_trace", "grad_noise_sq"
PROBE_COLUMNS = (
    "step",
    "probe_size",
    "outputs",
    "lambda_min",
    "lambda_min_lower",
    "lambda_max",
    "trace",
    "effective_rank",
    "ntk_change",
    "jacobian_change",
    "residual_rayleigh",
    "sharpness",
    "engine",
    "dtype",
    "seconds",
)

# Those of new runs; older ones lack the last.
NEW_PROBE_COLUMNS = (*PROBE_COLUMNS, KERNEL_GRADIENT)
# Bytes of a header, at most.
_HEADER = 1 << 14

TEXT_COLUMNS = ("outputs", "engine", "dtype")
# What only some runs have.
_SOMETIMES = (KERNEL_GRADIENT, PRECONDITIONED, STABLE, LARGEST_LOSS, UPDATE, SAMPLE_NOISE, BATCH_NOISE, "accuracy")


def format_value(value: Any) -> str:
    """A CSV field with full precision; nothing for a missing value."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    return str(value)


Settle = Callable[[list[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]


class Appender:
    """A CSV file that grows by whole lines.

    Args:
        path: created with its header when it does not exist, else continued in the columns that it has.
        columns: of every row of a new file.
        lag: seconds that a row may wait in memory before it is written; 0 writes each at once. Waiting rows are written
            by a thread, so that a loop which stops appending loses none; what cannot be written waits on, and is told
            by the next :meth:`append` or :meth:`close`.
        settle: called with all rows that wait, when they are written, for those to write.
    """

    def __init__(self, path: Path, columns: Sequence[str], lag: float = 0.0, settle: Settle = list) -> None:
        self.path, self.columns = path, tuple(columns)
        self._lag, self.written = lag, time.monotonic()
        self._waiting, self._guard = _Waiting(self.columns, settle), threading.Lock()
        self._timer: threading.Timer | None = None
        with output_errors(path):
            fresh = not path.exists() or path.stat().st_size == 0
            self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
            if not fresh:
                header = os.read(self._handle, _HEADER).split(b"\n", 1)[0].decode(errors="replace")
                self.columns = self._waiting.columns = tuple(header.strip().split(","))
            # Also where nobody closes it: at the end of the process, but not in a forked child.
            self._release = weakref.finalize(self, _release, self._handle, self._waiting, os.getpid())
            if fresh:
                self._waiting.lines += f"{','.join(self.columns)}\n".encode()
                self._write()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, at once unless it may wait; columns that ``row`` lacks stay empty. It is not changed after."""
        self._waiting.rows.append(row)
        # A timer that is still to wake takes this row with it.
        if self._timer is not None and time.monotonic() - self.written < self._lag:
            return
        with self._guard, output_errors(self.path):
            if self._lag and time.monotonic() - self.written < self._lag:
                self._wake()
            else:
                self._write()

    def _wake(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._lag, self.write_late)
            self._timer.daemon = True
            self._timer.start()

    def write_late(self) -> None:
        with self._guard, contextlib.suppress(OSError):
            self._timer = None
            if self._release.alive:
                self._write()

    def _write(self) -> None:
        self._waiting.drain(self._handle)
        self.written = time.monotonic()

    def close(self) -> None:
        """Write what waits and close the file."""
        with self._guard, output_errors(self.path):
            if self._timer is not None:
                self._timer.cancel()
            if self._release.detach():
                try:
                    self._write()
                finally:
                    os.close(self._handle)

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Waiting:
    """What is to be written: lines, and rows that become lines together when it is time."""

    def __init__(self, columns: Sequence[str], settle: Settle) -> None:
        # A loop appends to the rows while a thread takes them out.
        self.lines, self.rows = bytearray(), deque[Mapping[str, Any]]()
        self.columns, self._settle = columns, settle

    def drain(self, handle: int) -> None:
        """Write all; what a full disk took is taken out, so that nothing is written twice."""
        taken = []
        while self.rows:
            taken.append(self.rows.popleft())
        if taken:
            rows = self._settle(taken)
            self.lines += "".join(
                [",".join([format_value(r.get(c)) for c in self.columns]) + "\n" for r in rows]
            ).encode()
        while self.lines:
            del self.lines[: os.write(handle, self.lines)]


def _release(handle: int, waiting: _Waiting, owner: int) -> None:
    with contextlib.suppress(OSError):
        if os.getpid() == owner:
            waiting.drain(handle)
        os.close(handle)


def exact_floats() -> dict[str, Any]:
    """What makes pandas read floats exactly: from 3.1 on it does so by itself and deprecates the option."""
    major, minor = (int(part) for part in pd.__version__.split(".")[:2])
    return {} if (major, minor) >= (3, 1) else {"float_precision": "round_trip"}


def read_csv(path: Path) -> pd.DataFrame:
    """A log written by :class:`Appender`; a last line without its newline, torn by a crash, is dropped.

    Raises:
        InputError: the file is missing, has no header, or its lines do not fit the header.
    """
    content = reading.read_bytes(path, remedy="give a run directory")
    whole = content[: content.rfind(b"\n") + 1]
    try:
        frame: pd.DataFrame = pd.read_csv(io.BytesIO(whole), **exact_floats())
        return frame
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"cannot read {path} ({first_line(error)})", "the file is no CSV log") from error


def read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet table; InputError when it cannot be read."""
    with reading.open_regular(path, remedy="give a run directory") as stream:
        return reading.read_parquet(stream, str(path))[0]


def checked(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """A log or probe table, refused where columns are missing or hold something else than they should.

    Raises:
        InputError: naming the column.
    """
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}", "the run directory is damaged")
    for column in (*columns, *(c for c in _SOMETIMES if c in frame.columns)):
        if column not in TEXT_COLUMNS and not pd.api.types.is_numeric_dtype(frame[column]):
            if frame[column].notna().any():
                raise InputError(
                    f"{path} holds something else than numbers in {column}", "the run directory is damaged"
                )
            frame[column] = frame[column].astype("float64")
    if not frame["step"].between(0, 2**53).all():
        raise InputError(f"{path} has a row without a step", "the run directory is damaged")
    if "probe_size" in columns and not frame["probe_size"].between(1, 2**53).all():
        raise InputError(f"{path} has a probe without samples", "the run directory is damaged")
    return frame


def frame_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of rows. Bytes of file names that are no text are spelled: no column of text can hold them."""
    safe = [{k: escape.encodable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    return pd.DataFrame(safe, columns=None if columns is None else list(columns))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write ``frame`` atomically."""
    write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))


def truncate_before(path: Path, columns: Sequence[str], step: int) -> None:
    """Drop the rows of ``step`` and later ones, and a torn last line, line by line so that no digit changes.

    A file whose very header is torn is removed.
    """
    if not path.exists():
        return
    try:
        content = reading.read_bytes(path, remedy="the run directory is damaged").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path} ({error})", "the run directory is damaged") from error
    lines = content[: content.rfind("\n") + 1].splitlines(keepends=True)
    if not lines:
        path.unlink()
        return
    position = list(columns).index("step")

    def early(line: str) -> bool:
        try:
            return float(line.split(",")[position]) < step
        except (ValueError, IndexError):
            return False

    kept = lines[:1] + [line for line in lines[1:] if early(line)]
    write_atomically(path, lambda temporary: _fill(temporary, "".join(kept)))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def plain(value: Any) -> Any:
    """A value that JSON can hold: NumPy scalars unwrapped, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Clock:
    """Seconds since the run began, continued across resumes."""

    def __init__(self, offset: float = 0.0) -> None:
        self._start = time.perf_counter() - offset

    def __call__(self) -> float:
        return round(time.perf_counter() - self._start, 4)
