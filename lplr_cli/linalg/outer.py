"""Symmetric products L Lᵀ: what lies above the diagonal, and not the other half."""

from __future__ import annotations

import torch
from scipy.linalg.blas import dsyrk, ssyrk
from torch import Tensor

from lplr_cli.linalg import scratch

# Rows from which on the BLAS of SciPy saves more than a call of it costs.
_FEWEST = 128
_SYRK = {torch.float32: ssyrk, torch.float64: dsyrk}


def add_outer(matrix: Tensor, left: Tensor) -> None:
    """Add L Lᵀ on and above the diagonal of ``matrix`` (rows, rows), L ``left`` (rows, columns).

    What stands below the diagonal afterwards means nothing. On one thread of a CPU a matrix that lies in one piece is
    updated by the BLAS (syrk), whose blocks on the diagonal are half as much work as the product's.
    """
    rows, width = len(matrix), matrix.shape[1] * matrix.element_size()
    mapped = scratch.is_mapped(matrix)
    syrk = _SYRK.get(matrix.dtype)
    in_place = not mapped and matrix.device.type == "cpu" and matrix.is_contiguous() and left.is_contiguous()
    # Its threads are not those of torch, and each would wait for the others.
    pays = rows >= _FEWEST and torch.get_num_threads() == 1
    if syrk is not None and in_place and pays and left.numel():
        # The BLAS reads the transposes of row-major arrays: its lower triangle is what stands above the diagonal here.
        syrk(1.0, left.numpy().T, beta=1.0, c=matrix.numpy().T, trans=1, lower=1, overwrite_c=1)
        return
    step = max(128, -(-rows // 8))
    if mapped:
        step = min(step, max(1, scratch.RESIDENT // 4 // width))
    for start in range(0, rows, step):
        panel = matrix[start : start + step, start:]
        panel.addmm_(left[start : start + step], left[start:].T)
        scratch.release(panel)
