"""The iterates of a recorded run in one file: every step's parameters in float64, appended as the run goes.

A header (magic, number of parameters, digest of their shapes), then a row a step: the step as a 64-bit
integer and θ, all little-endian. A row that a kill has torn is dropped by the reader.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError
from lplr_cli.reading import open_regular
from lplr_cli.runs.atomic import output_errors

NAME = "iterates.f64"
_MAGIC = b"lplr iterates 1\n"
_HEADER = struct.Struct("<16sQ32s")
# Only rows that are asked for are read: a file may be as large as the disk allows.
_MOST = 1 << 50

Shapes = Sequence[Sequence[int]]


def _head(shapes: Shapes) -> bytes:
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    spelled = "\n".join(str(tuple(shape)) for shape in shapes)
    return _HEADER.pack(_MAGIC, count, hashlib.sha256(spelled.encode()).digest())


class IterateWriter:
    """Appends iterates to a new file.

    Args:
        folder: the run directory.
        shapes: of the parameters, in the order of θ.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self.path = folder / NAME
        with output_errors(self.path):
            self._file: IO[bytes] = self.path.open("xb", buffering=0)
            self._file.write(_head(shapes))

    def append(self, step: int, theta: NDArray[np.float64]) -> None:
        """θ of shape (P,) before the update of this step; in the system's hands when this returns."""
        with output_errors(self.path):
            self._file.write(struct.pack("<q", step) + theta.astype("<f8", copy=False).tobytes())

    def close(self) -> None:
        """No more rows."""
        with output_errors(self.path):
            self._file.close()


class IterateFile:
    """Reads the iterates that :class:`IterateWriter` left, one at a time.

    Args:
        folder: the run directory.
        shapes: of the parameters as the network has them.

    Attributes:
        steps: of the whole rows, increasing.

    Raises:
        InputError: of other parameters, or damaged.
    """

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self.path, head = folder / NAME, _head(shapes)
        self._size = _HEADER.unpack(head)[1]
        self._row = 8 * (1 + self._size)
        self._file = open_regular(self.path, _MOST)
        if self._file.read(len(head)) != head:
            raise InputError(f"{self.path} holds iterates of other parameters", "give the network that was recorded")
        rows = (os.fstat(self._file.fileno()).st_size - len(head)) // self._row
        self.steps: list[int] = []
        # Looked at one by one: a file with holes may promise rows without end.
        for row in range(rows):
            step = self._step(row)
            if step < 0 or (self.steps and step <= self.steps[-1]):
                raise InputError(f"{self.path} has steps out of order", "the run directory is damaged")
            self.steps.append(step)
        self._index = {step: k for k, step in enumerate(self.steps)}

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether the run kept its iterates."""
        return (folder / NAME).exists()

    def _step(self, row: int) -> int:
        self._file.seek(_HEADER.size + row * self._row)
        step: int = struct.unpack("<q", self._file.read(8))[0]
        return step

    def at(self, step: int) -> NDArray[np.float64]:
        """θ of shape (P,) at one of :attr:`steps`."""
        self._file.seek(_HEADER.size + self._index[step] * self._row + 8)
        read = np.frombuffer(self._file.read(8 * self._size), dtype="<f8")
        if len(read) != self._size:
            raise InputError(f"{self.path} ended while it was read", "the run directory is damaged")
        return read.astype(np.float64)

    def close(self) -> None:
        """Free the file."""
        self._file.close()
