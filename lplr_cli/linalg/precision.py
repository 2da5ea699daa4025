"""The precision of products of float32 matrices, which a program may have lowered for all that runs in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32, whatever was set before, and put that back.

    TensorFloat-32 and bfloat16, which ``torch.set_float32_matmul_precision`` allows on GPUs and on CPUs, round the
    factors to 11 and 8 binary digits: no bound with the unit roundoff of float32 holds for them.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    # The older pair of functions raises where a program has used the newer settings.
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    kept = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            place.fp32_precision = value
