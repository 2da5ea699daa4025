"""User data from .npz, .csv and .parquet files."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.errors import InputError, first_line
from lplr_cli.reading import BULK, open_regular, read_parquet, refuse_expansion

# Names shown in a message, and bytes of a number as networks take it.
_SHOWN = 40
_FLOAT = 8
# Bytes of a line that are looked at for a table's separator.
_LONGEST = 1 << 20

# Names of the inputs and of the targets in an archive, the first that is there counts.
INPUT_NAMES = ("inputs", "X", "x", "X_train", "x_train", "features", "data", "images", "train_images")
TARGET_NAMES = ("targets", "y", "Y", "y_train", "Y_train", "labels", "label", "target", "train_labels")


@dataclass(frozen=True)
class Arrays:
    """What a file holds.

    Attributes:
        inputs: shape (n, …).
        targets: shape (n,) or (n, C); numbers or text.
        name: of the targets in a file; None where they have none.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    name: str | None


def read_npz(path: Path) -> Arrays:
    """Inputs (n, …) and targets (n,) or (n, C) of an .npz file, by their usual names; nothing is unpickled.

    Raises:
        InputError: unreadable, too large unpacked, or without such arrays.
    """
    try:
        with open_regular(path, BULK, "give an .npz file with inputs and targets") as stream:
            packed = os.fstat(stream.fileno()).st_size
            with zipfile.ZipFile(stream) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
                refuse_expansion(str(path), unpacked, packed, "save it with np.savez, uncompressed")
                inputs, targets = _names([m.filename.removesuffix(".npy") for m in archive.infolist()], path)
                numbers = sum(_promised(archive, name, path) for name in (inputs, targets))
                refuse_expansion(str(path), _FLOAT * numbers, packed, "save it with np.savez, uncompressed")
                return Arrays(_array(archive, inputs), _array(archive, targets), targets)
    except InputError:
        raise
    except Exception as error:  # damaged archives and headers raise many kinds
        raise InputError(
            f"cannot read {path} ({first_line(error)})", "give an .npz file with arrays of numbers"
        ) from error


def _names(present: list[str], path: Path) -> tuple[str, str]:
    """Of the arrays with inputs and targets."""
    names_of_both = [next((n for n in names if n in present), None) for names in (INPUT_NAMES, TARGET_NAMES)]
    if None in names_of_both:
        what = " and ".join(w for w, name in zip(("inputs", "targets"), names_of_both, strict=True) if name is None)
        raise InputError(
            f"{path} has no array {what} (it has {', '.join(present[:_SHOWN]) or 'none'})",
            "save it with np.savez(path, inputs=…, targets=…); X and y, x_train and y_train, … are known, too",
        )
    return str(names_of_both[0]), str(names_of_both[1])


def _promised(archive: zipfile.ZipFile, name: str, path: Path) -> int:
    """Numbers of an array by its header, which may not promise more than the member holds."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    count = math.prod(int(v) for v in shape)
    if dtype.hasobject:
        raise InputError(f"cannot read {path} ({name} holds objects)", "save arrays of numbers")
    # Elements of no size would be as many as the header likes.
    if count * max(dtype.itemsize, 1) > member.file_size:
        raise InputError(f"cannot read {path} ({name} is shorter than its header says)", "save it again")
    return count


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def read_table(path: Path, target_columns: tuple[str, ...]) -> Arrays:
    """Columns of a .csv or .parquet table: ``target_columns`` are the targets, all others the inputs.

    One target may be text, which are classes.

    Raises:
        InputError: no target named, a column missing, an input column of text, or an unreadable file.
    """
    with open_regular(path, BULK, "give a table with a header line") as stream:
        frame = _parquet(stream, path, target_columns) if path.suffix == ".parquet" else _csv(stream, path)
    _check_columns([str(c) for c in frame.columns], target_columns, path)
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        if not numeric and (column not in target_columns or len(target_columns) > 1):
            kind = "target" if column in target_columns else "input"
            raise InputError(f"{kind} column {column!r} of {path} is text", "encode it as numbers")
    inputs = frame.drop(columns=list(target_columns)).to_numpy(dtype=np.float64)
    if inputs.shape[1] == 0:
        raise InputError(f"{path} has target columns only", "add input columns")
    if len(target_columns) > 1:
        return Arrays(inputs, frame[list(target_columns)].to_numpy(dtype=np.float64), ", ".join(target_columns))
    target = frame[target_columns[0]]
    if target.isna().any():
        row = int(target.isna().to_numpy().nonzero()[0][0])
        raise InputError(
            f"target column {target_columns[0]!r} of {path} has no value in row {row + 1}", "remove the row"
        )
    return Arrays(inputs, target.to_numpy(), target_columns[0])


def _csv(stream: IO[bytes], path: Path) -> pd.DataFrame:
    try:
        separator, decimal = _layout(stream)
        return pd.read_csv(stream, sep=separator, decimal=decimal)
    except Exception as error:  # pandas raises many kinds
        raise InputError(f"cannot read {path} ({first_line(error)})", "give a table with a header line") from error


def _layout(stream: IO[bytes]) -> tuple[str, str]:
    """Separator, another one where the header has no comma, and the decimal comma that this leaves room for."""
    header, row = stream.readline(_LONGEST), stream.readline(_LONGEST)
    stream.seek(0)
    if b"," in header or not (marks := [mark for mark in (b";", b"\t") if mark in header]):
        return ",", "."
    return marks[0].decode(), "," if b"," in row and b"." not in row else "."


def _parquet(stream: IO[bytes], path: Path, targets: tuple[str, ...]) -> pd.DataFrame:
    """The table; what is no number is named before it is decoded."""

    def numbers(present: list[str]) -> list[str]:
        _check_columns(present, targets, path)
        return present

    return read_parquet(stream, str(path), numbers)[0]


def _check_columns(columns: list[str], targets: tuple[str, ...], path: Path) -> None:
    shown = ", ".join(columns[:_SHOWN]) + (f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else "")
    if not targets:
        raise InputError(f"{path} needs --target", f"its columns are {shown}")
    missing = [c for c in targets if c not in columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}", f"its columns are {shown}")
