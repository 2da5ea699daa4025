"""Kernels in a file: matrices larger than the memory, on a disk that holds them.

The file is mapped, so that a kernel is a tensor like any other. What was touched stays in memory until it is given
back: whoever walks over a kernel calls :func:`release` as it goes, which does nothing for a matrix in memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lplr_cli.errors import OutputError
from lplr_cli.linalg.tiled import TiledMatrix

# Bytes of a mapped matrix that may lie in memory.
RESIDENT = 96 << 20
# What a system maps around a byte that is touched, at most (Linux's fault_around_bytes).
_AROUND = 64 << 10


@dataclass
class _Mapping:
    """A mapped file and the bytes touched since it was last given back."""

    pages: weakref.ref[mmap.mmap]
    touched: int = 0


# By the address of the storage, which all views of a matrix share; an entry ends with its pages.
MAPPED: dict[int, _Mapping] = {}


def matrix_in_file(rows: int, dtype: torch.dtype, folder: Path) -> Tensor:
    """A zero matrix (rows, rows) in a file of ``folder`` that has no name and ends with the matrix.

    Raises:
        OutputError: the folder cannot be written to, or has too little room.
    """
    size = max(1, rows * rows * dtype.itemsize)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Room is taken now: a full disk in mid-computation would be a bus error.
            os.posix_fallocate(file.fileno(), 0, size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise OutputError(
            f"no room for a matrix of {size / 2**30:.1f}GiB in {folder} ({error.strerror})",
            "name a folder on a larger disk",
        ) from error
    matrix = torch.frombuffer(pages, dtype=dtype, count=rows * rows).view(rows, rows)
    address = matrix.untyped_storage().data_ptr()
    MAPPED[address] = _Mapping(weakref.ref(pages))
    weakref.finalize(pages, MAPPED.pop, address, None)
    return matrix


def is_mapped(matrix: Tensor) -> bool:
    """Whether the matrix, or what it is a view of, lies in a file."""
    return bool(MAPPED) and matrix.untyped_storage().data_ptr() in MAPPED


def release(view: Tensor) -> None:
    """Say that a part of a matrix was used, (m, k) or its transpose; the values stay.

    Once enough of a mapped matrix was used, all of it is given back.
    """
    mapping = MAPPED.get(view.untyped_storage().data_ptr()) if MAPPED else None
    if mapping is None:
        return
    lines, width = view.shape if view.stride(0) >= view.stride(1) else view.shape[::-1]
    mapping.touched += lines * max(width * view.element_size(), _AROUND)
    pages = mapping.pages()
    if mapping.touched >= RESIDENT // 2 and pages is not None:
        pages.madvise(mmap.MADV_DONTNEED)
        mapping.touched = 0


def diagonal(matrix: Tensor | TiledMatrix) -> Tensor:
    """A copy of the diagonal of a square matrix."""
    if isinstance(matrix, TiledMatrix):
        return matrix.diagonal()
    parts = [matrix[rows, rows].diagonal().clone() for rows in _walk(matrix, _AROUND)]
    return torch.cat(parts) if parts else matrix.new_zeros(0)


def set_diagonal(matrix: Tensor, values: Tensor) -> None:
    """Overwrite the diagonal of a square matrix."""
    for rows in _walk(matrix, _AROUND):
        matrix[rows, rows].diagonal().copy_(values[rows])


def strips(matrix: Tensor) -> Iterator[slice]:
    """Rows of a matrix a part at a time, all at once where it lies in memory; each is given back after its use."""
    return _walk(matrix, matrix.shape[1] * matrix.element_size())


def _walk(matrix: Tensor, touched: int) -> Iterator[slice]:
    """Rows of a matrix, of each of which so many bytes are touched."""
    count = len(matrix)
    step = RESIDENT // 4 // max(1, touched) if is_mapped(matrix) else count
    step = max(1, step)
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        yield rows
        release(matrix[rows, : max(1, touched // matrix.element_size())])
