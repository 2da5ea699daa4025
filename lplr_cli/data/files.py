"""User data from .npz, .csv and .parquet files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError, first_line

# An archive that unpacks to more than this, and to more than so many times its size, is no data set.
_UNPACKED = 2 << 30
_RATIO = 20

Arrays = tuple[NDArray[Any], NDArray[Any]]


def read_npz(path: Path) -> Arrays:
    """Arrays ``inputs`` (n, …) and ``targets`` (n,) or (n, C) of an .npz file; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max(_UNPACKED, _RATIO * path.stat().st_size):
            raise InputError(f"{path} unpacks to {size:,} bytes", "save it with np.savez, uncompressed")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("inputs", "targets") if name not in arrays.files]
            if missing:
                raise InputError(
                    f"{path} has no array {' and '.join(missing)} (it has {', '.join(arrays.files) or 'none'})",
                    "save it with np.savez(path, inputs=…, targets=…)",
                )
            return arrays["inputs"], arrays["targets"]
    except InputError:
        raise
    except Exception as error:  # damaged archives and headers raise many kinds
        raise InputError(
            f"cannot read {path} ({first_line(error)})", "give an .npz file with inputs and targets"
        ) from error


def read_table(path: Path, target_columns: tuple[str, ...]) -> Arrays:
    """Columns of a .csv or .parquet table: ``target_columns`` are the targets, all others the inputs.

    Raises:
        InputError: no target named, a column missing, a column of text, or an unreadable file.
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
        if not pd.api.types.is_numeric_dtype(frame[column]):
            kind = "target" if column in target_columns else "input"
            raise InputError(f"{kind} column {column!r} of {path} is text", "encode it as numbers")
    inputs = frame.drop(columns=list(target_columns)).to_numpy(dtype=np.float64)
    if inputs.shape[1] == 0:
        raise InputError(f"{path} has target columns only", "add input columns")
    targets = frame[list(target_columns)].to_numpy()
    return inputs, targets[:, 0] if len(target_columns) == 1 else targets
