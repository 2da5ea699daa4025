"""User data from .npz, .csv and .parquet files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError, first_line

# An archive that unpacks to more than this, and to more than so many times its size, is no data set.
_UNPACKED = 2 << 30
_RATIO = 20

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
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max(_UNPACKED, _RATIO * path.stat().st_size):
            raise InputError(f"{path} unpacks to {size:,} bytes", "save it with np.savez, uncompressed")
        with np.load(path, allow_pickle=False) as arrays:
            found = [next((n for n in names if n in arrays.files), None) for names in (INPUT_NAMES, TARGET_NAMES)]
            if None in found:
                what = " and ".join(w for w, name in zip(("inputs", "targets"), found, strict=True) if name is None)
                raise InputError(
                    f"{path} has no array {what} (it has {', '.join(arrays.files) or 'none'})",
                    "save it with np.savez(path, inputs=…, targets=…); X and y, x_train and y_train, … are known, too",
                )
            return Arrays(arrays[str(found[0])], arrays[str(found[1])], str(found[1]))
    except InputError:
        raise
    except Exception as error:  # damaged archives and headers raise many kinds
        raise InputError(
            f"cannot read {path} ({first_line(error)})", "give an .npz file with arrays of numbers"
        ) from error


def read_table(path: Path, target_columns: tuple[str, ...]) -> Arrays:
    """Columns of a .csv or .parquet table: ``target_columns`` are the targets, all others the inputs.

    One target may be text, which are classes.

    Raises:
        InputError: no target named, a column missing, an input column of text, or an unreadable file.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:
        raise InputError(f"cannot read {path} ({first_line(error)})", "give a table with a header line") from error
    columns = ", ".join(map(str, frame.columns))
    if not target_columns:
        raise InputError(f"{path} needs --target", f"its columns are {columns}")
    missing = [c for c in target_columns if c not in frame.columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}", f"its columns are {columns}")
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
