"""The gradient of any loss that a probe's kernel gives, against autograd through the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lplr_cli.curvature import PerSample
from lplr_cli.losses import Loss
from lplr_cli.training.probes import Prober, ProbeSettings

N, CLASSES = 7, 3


def summed(name: str) -> PerSample:
    function = getattr(nn.functional, name)
    return lambda f, y: function(f, y, reduction="none").sum(dim=1)


def hinge(f: Tensor, y: Tensor) -> Tensor:
    return (1 - (2 * y - 1) * f).clamp_min(0).sum(dim=1)


LOSSES: dict[str, Loss | PerSample] = {
    "squared": Loss("squared", 0.5),
    "cross-entropy": Loss("cross-entropy", 2.0),
    "bce": Loss("bce"),
    "l1": summed("l1_loss"),
    "huber": summed("huber_loss"),
    "hinge": hinge,
    "classes": lambda f, y: nn.functional.cross_entropy(f, y, reduction="none"),
}


def prober(loss: Loss | PerSample | None, outputs: str = "full") -> tuple[Prober, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    x, classes = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % CLASSES
    y = torch.eye(CLASSES, dtype=torch.float64)[classes]
    labels = classes if loss is LOSSES["classes"] else y
    settings = ProbeSettings(N, outputs=outputs, verify=False, sharpness=False, loss=loss)
    return Prober(module, dict(module.named_parameters()), x, y, settings, labels), module, x, labels


@pytest.mark.parametrize("name", LOSSES)
def test_the_kernel_gives_the_gradient_of_any_loss(name: str) -> None:
    loss = LOSSES[name]
    probe, module, x, labels = prober(loss)
    values = loss.values if isinstance(loss, Loss) else loss
    grads = torch.autograd.grad(values(module(x), labels).mean(), list(module.parameters()))
    found = probe.measure(0, dict(module.named_parameters()))["kernel_grad_norm_sq"]
    assert found == pytest.approx(sum(float(g.square().sum()) for g in grads), rel=1e-12)


def test_where_there_is_none_nothing_is_said() -> None:
    def failing(f: Tensor, y: Tensor) -> Tensor:
        raise TypeError("float32 only")

    for probe, module, _, _ in (prober(None), prober(failing), prober(LOSSES["bce"], outputs="trace")):
        assert probe.measure(0, dict(module.named_parameters()))["kernel_grad_norm_sq"] is None
