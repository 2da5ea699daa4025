"""Symmetric products L Lᵀ: what lies above the diagonal, and not the other half."""

from __future__ import annotations

import torch
from scipy.linalg.blas import dsyrk, ssyrk
from torch import Tensor

from lplr_cli.linalg import scratch

# Rows from which on the BLAS of SciPy, and slices of the columns, save more than their calls cost.
_FEWEST = 128
# Panels of a product by slices: the fewer, the more is computed below the diagonal.
_PANELS = 5
# Columns of a slice at the least, and numbers that products of all slices may take at the most.
_COLUMNS, _ROOM = 1024, 1 << 20
_SYRK = {torch.float32: ssyrk, torch.float64: dsyrk}


def add_outer(matrix: Tensor, left: Tensor) -> None:
    """Add L Lᵀ on and above the diagonal of ``matrix`` (rows, rows), L ``left`` (rows, columns).

    What stands below the diagonal afterwards means nothing. On one thread of a CPU a matrix that lies in one piece is
    updated by the BLAS (syrk), whose blocks on the diagonal are half as much work as the product's; on several, few
    rows of many columns are multiplied by slices of the columns.
    """
    rows, width = len(matrix), matrix.shape[1] * matrix.element_size()
    mapped = scratch.is_mapped(matrix)
    if not mapped and matrix.device.type == "cpu" and rows >= _FEWEST and _added_at_once(matrix, left):
        return
    step = max(128, -(-rows // 8))
    if mapped:
        step = min(step, max(1, scratch.RESIDENT // 4 // width))
    for start in range(0, rows, step):
        panel = matrix[start : start + step, start:]
        panel.addmm_(left[start : start + step], left[start:].T)
        scratch.release(panel)


def _added_at_once(matrix: Tensor, left: Tensor) -> bool:
    """Whether the BLAS or slices of the columns have added L Lᵀ."""
    rows, threads, syrk = len(matrix), torch.get_num_threads(), _SYRK.get(matrix.dtype)
    # Threads of the BLAS are not those of torch, and each would wait for the others.
    if threads == 1:
        if syrk is None or not (matrix.is_contiguous() and left.is_contiguous() and left.numel()):
            return False
        # The BLAS reads the transposes of row-major arrays: its lower triangle is what stands above the diagonal here.
        syrk(1.0, left.numpy().T, beta=1.0, c=matrix.numpy().T, trans=1, lower=1, overwrite_c=1)
        return True
    step, slices = -(-rows // _PANELS), 2 * threads
    if left.shape[1] < slices * _COLUMNS or slices * step * rows > _ROOM:
        return False
    _add_sliced(matrix, left, step, slices)
    return True


def _add_sliced(matrix: Tensor, left: Tensor, step: int, slices: int) -> None:
    """By panels of ``step`` rows, as sums over slices of the columns: a thread multiplies whole slices by itself.

    Threads that share one product of few rows and many columns wait for each other.
    """
    width = left.shape[1] // slices
    sliced = torch.unflatten(left[:, : width * slices], 1, (slices, width)).transpose(0, 1)
    rest = left[:, width * slices :]
    for start in range(0, len(matrix), step):
        panel = matrix[start : start + step, start:]
        panel += torch.bmm(sliced[:, start : start + step], sliced[:, start:].transpose(1, 2)).sum(dim=0)
        panel.addmm_(rest[start : start + step], rest[start:].T)
