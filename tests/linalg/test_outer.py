from __future__ import annotations

import pytest
import torch

from lplr_cli.linalg.outer import add_outer


@pytest.mark.parametrize(
    ("dtype", "columns"),
    [(torch.float32, 17), (torch.float32, 4101), (torch.float64, 17), (torch.float64, 4101), (torch.bfloat16, 17)],
)
@pytest.mark.parametrize("rows", [3, 127, 128, 301])
@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_diagonal_the_product_is_added(
    rows: int, dtype: torch.dtype, columns: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the BLAS, and by torch where it has threads, by slices of the columns where they are many."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(rows)
    left = torch.randint(-3, 4, (rows, columns), generator=generator).to(dtype)
    whole = torch.randint(-3, 4, (rows, rows), generator=generator).to(dtype)
    truth = (whole + left @ left.T).triu()  # small whole numbers: exact in every order
    for matrix, factor in (
        (whole.clone(), left),
        (torch.cat([whole, whole], dim=1)[:, :rows], left),  # a block of a larger matrix
        (whole.clone(), left.T.contiguous().T),
    ):
        add_outer(matrix, factor)
        assert torch.equal(matrix.triu(), truth)
    add_outer(matrix, left[:, :0])
    assert torch.equal(matrix.triu(), truth)
