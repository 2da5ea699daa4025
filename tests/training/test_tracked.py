"""What a recording measures of parameters, against the plain formulas in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.training.tracked import TrackedParameters, settled


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([v.detach().double().reshape(-1) for v in values])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_and_distances(dtype: torch.dtype) -> None:
    """Of tensors longer than a piece, beyond the size for NumPy, with channels last, and of a type that NumPy lacks."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    module = nn.ModuleList([nn.Linear(300, 301), nn.Linear(1100, 1000), convolution]).to(dtype)
    tracked = TrackedParameters(module)
    parameters = list(module.parameters())
    start = _flat(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    first = _flat([p.grad for p in parameters if p.grad is not None])
    tracked.keep_gradients()
    tracked.mark()
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p), alpha=0.1)
            p.grad = torch.randn_like(p)
    second = _flat([p.grad for p in parameters if p.grad is not None])
    moved = float((_flat(parameters) - start).norm())
    close = {torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert float(tracked.grad_norm_sq() or 0) == pytest.approx(float(second @ second), rel=close)
    assert float(tracked.gradients_changed() or 0) == pytest.approx(
        0.5 * float((second - first).norm()) ** 2, rel=close
    )
    assert tracked.gradients_changed() is None
    assert [float(tracked.moved()), float(tracked.drift())] == pytest.approx([moved, moved], rel=close)
    parameters[0].grad = None
    tracked.keep_gradients()
    assert tracked.gradients_changed() is None


def test_a_frozen_parameter_may_be_replaced_but_not_unfrozen() -> None:
    """Also the one that came later."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].requires_grad_(False)
    tracked = TrackedParameters(module)
    module[1] = nn.Linear(2, 2).requires_grad_(False)
    tracked.check()
    module[1].weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"1\.weight.* was unfrozen"):
        tracked.check()


def test_values_are_waited_for_together() -> None:
    """Of any type; what is not a number is left out of its row."""
    rows = [
        {"step": 0, "loss": torch.tensor(0.5), "drift": torch.tensor([1 / 3], dtype=torch.float64)},
        {"step": 1, "loss": torch.tensor(float("nan")), "drift": float("nan"), "lr": None},
    ]
    assert settled(rows) == [{"step": 0, "loss": 0.5, "drift": 1 / 3}, {"step": 1, "lr": None}]
