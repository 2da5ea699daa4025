"""NumPy arrays: a curve in an .npy file, columns in an .npz file."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.errors import InputError, first_line
from lplr_cli.runs.logs.columns import Choice, Table
from lplr_cli.runs.logs.place import Place
from lplr_cli.runs.logs.reader import Reader

_MOST_BYTES = 1 << 30
_PAIR = ("step", "loss")


class Npy(Reader):
    """One array: (T,) of losses, (T, 2) of steps and losses, or a structured array with named columns."""

    kind = "NumPy array"

    def sniff(self, place: Place) -> bool:
        """By its magic."""
        return place.head.startswith(b"\x93NUMPY")

    def read(self, place: Place, choice: Choice) -> Table:
        """Nothing is unpickled."""
        values = _array(place.whole(_MOST_BYTES), place.name)
        if values.dtype.names:
            present = list(values.dtype.names)
            flat = values.reshape(-1)
            return Table(pd.DataFrame({name: flat[name] for name in choice.pick(present)}), present)
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim == 1:
            return Table(pd.DataFrame({"values": values}), ["values"])
        if values.ndim == 2 and values.shape[1] == 2:
            return Table(pd.DataFrame(values, columns=list(_PAIR)), _PAIR, ("its columns are read as step, loss",))
        raise InputError(f"{place.name} has shape {values.shape}", "give losses (T,), or steps and losses (T, 2)")


class Npz(Reader):
    """Columns of one length, by name."""

    kind = "NumPy archive"

    def sniff(self, place: Place) -> bool:
        """An archive whose first member is an array."""
        name = place.head[30 : 30 + int.from_bytes(place.head[26:28], "little")]
        return place.head.startswith(b"PK\x03\x04") and name.endswith(b".npy")

    def read(self, place: Place, choice: Choice) -> Table:
        """Only what is wanted is unpacked, to a bounded size."""
        try:
            with zipfile.ZipFile(place.open()) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                present = list(members)
                columns = {}
                for name in choice.pick(present):
                    with archive.open(members[name]) as stream:
                        content = stream.read(_MOST_BYTES + 1)
                    columns[name] = _array(content, f"{place.name} ({name})")
        except InputError:
            raise
        except Exception as error:  # damaged archives raise many kinds
            raise InputError(f"cannot read {place.name} ({first_line(error)})", "the archive is damaged") from error
        lengths = {v.shape for v in columns.values()}
        if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
            raise InputError(f"{place.name} holds arrays of shapes {sorted(lengths)}", "give columns of one length")
        return Table(pd.DataFrame(columns), present)


def _array(content: bytes, name: str) -> NDArray[Any]:
    """An .npy file's array of numbers; its header may not promise more than the file holds."""
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError("too long")
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(stream)
        # Elements of no size would be as many as the header likes.
        if dtype.hasobject or not dtype.itemsize or np.prod(shape, dtype=object) * dtype.itemsize > len(content):
            raise ValueError("objects, or less than its header says")
        stream.seek(0)
        values: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # damaged headers raise many kinds
        raise InputError(f"cannot read {name} ({first_line(error)})", "save numbers with numpy.save") from error
    fields = [values.dtype] if values.dtype.names is None else [values.dtype[n] for n in values.dtype.names]
    if any(kind.kind not in "biuf" for kind in fields):
        raise InputError(f"{name} has dtype {values.dtype}", "save numbers with numpy.save")
    return values
