"""Float32 is float32 where a bound counts on it, whatever a program allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lplr_cli.linalg import lambda_min_lower
from lplr_cli.linalg.precision import full_precision
from lplr_cli.linalg.tasks import Here
from lplr_cli.ntk import Network, empirical_ntk, jacobian, kernel_spectrum, structured
from lplr_cli.ntk import tiled as tiles
from tests.cases import make

PLACES = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
pytestmark = pytest.mark.skipif(PLACES[1] is None, reason="settings of torch 2.9 and later")


def allowed() -> list[str]:
    """What products of float32 matrices may be rounded to, on GPUs and on CPUs."""
    return [getattr(place, "fp32_precision") for place in PLACES]  # noqa: B009


@pytest.fixture(params=["medium", "high"])
def lowered(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    torch.set_float32_matmul_precision(request.param)
    yield allowed()
    torch.set_float32_matmul_precision("highest")


def test_what_was_allowed_is_allowed_again(lowered: list[str]) -> None:
    assert "ieee" not in lowered
    with full_precision():
        assert allowed() == ["ieee", "ieee"]
    assert allowed() == lowered
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert allowed() == lowered


def test_older_versions_have_one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        """``torch.backends.cuda.matmul`` as it was."""

    monkeypatch.setattr(torch.backends.cuda, "matmul", Older())
    torch.set_float32_matmul_precision("medium")
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")


def test_verified_kernels_are_formed_and_factored_in_float32(
    lowered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = make("mlp-softplus")
    single = Network.from_module(network.module, dtype=torch.float32)
    seen: list[list[str]] = []

    def noting(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            seen.append(allowed())
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    noting(structured, "gram")
    noting(jacobian, "gram")
    noting(tiles, "accumulate")
    found = [empirical_ntk(single, x, engine=engine, bound_rounding=True) for engine in ("structured", "jacobian")]
    assert all(kernel.formation_error is not None for kernel in found)
    assert seen == 2 * [["ieee", "ieee"]]
    kernel_spectrum(single, x, verify=True, tasks=Here())
    assert len(seen) > 2
    assert all(one == ["ieee", "ieee"] for one in seen)

    def look(solve: Any) -> None:
        seen.append(allowed())

    matrix: Tensor = torch.eye(3)
    assert lambda_min_lower(matrix, 1.0, use=look).value > 0
    assert seen[-1] == ["ieee", "ieee"]
    assert allowed() == lowered
