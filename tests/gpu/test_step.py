"""What a step of training asks of an accelerator, seen without one: no transfer, no wait, nothing on another device."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lplr_cli
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient, share_of_loss
from lplr_cli.training.tracked import TrackedParameters, number
from lplr_cli.training.trainer import Trainer

aten = torch.ops.aten
# The host needs a value of the device, or the shape of a result.
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.item}


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that wait for the device, move between devices, or mix them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [a for a in args if isinstance(a, Tensor)]
        result = func(*args, **(kwargs or {}))
        devices = {a.device.type for a in given if a.dim()}
        moved = isinstance(result, Tensor) and bool(given) and result.device.type not in {a.device.type for a in given}
        if func.overloadpacket in WAITS or moved or len(devices) > 1:
            self.found.append(str(func))
        return result


def parts(kind: str, loss: str, device: str) -> tuple[torch.nn.Module, FlatParameters, Tensor, Tensor]:
    torch.manual_seed(0)
    shape, outputs = ((6,), 3) if kind == "mlp" else ((3, 8, 8), 3)
    module = build_model(ModelSpec(kind=kind, width=8, depth=2), shape, outputs).to(device)
    x = torch.rand((10, *shape), dtype=torch.float64).to(device)
    y = torch.eye(3, dtype=torch.float64)[torch.arange(10) % 3].to(device)
    return module, FlatParameters(module), x, y


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", "bce"])
@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_a_step_waits_for_nothing(kind: str, loss: str) -> None:
    """On the meta device, which has no values: whoever asked for one would fail."""
    module, flat, x, y = parts(kind, loss, "meta")
    trainer = Trainer.__new__(Trainer)
    trainer.flat, trainer.momentum = flat, torch.zeros_like(flat.theta)
    trainer.config = type("Config", (), {"momentum": 0.9})()
    with Watch() as watch:
        for _ in range(2):
            flat.grad.zero_()
            share_of_loss(Loss(loss), module, x, y, len(x)).backward()  # type: ignore[no-untyped-call]
            trainer.update(0.1)
    assert watch.found == []
    assert flat.grad.device.type == "meta"


def test_a_recorded_step_waits_for_nothing() -> None:
    """Norms, distances and losses stay where they are until rows are written, all together."""
    module = build_model(ModelSpec(width=8, depth=2), (6,), 3).to("meta")
    tracked = TrackedParameters(module)
    with Watch() as watch:
        tracked.check()
        loss = module(torch.rand((10, 6), dtype=torch.float64, device="meta")).square().mean()
        loss.backward()
        tracked.mark()
        tracked.keep_gradients()
        found = [number(loss), tracked.grad_norm_sq(), tracked.gradients_changed(), tracked.moved(), tracked.drift()]
    assert watch.found == []
    assert all(isinstance(v, Tensor) and v.device.type == "meta" and v.dim() == 0 for v in found)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_micro_batches_wait_once_however_many_they_are(loss: str) -> None:
    waits = []
    for size in (10, 2):
        module, flat, x, y = parts("mlp", loss, "cpu")
        with Watch() as watch:
            found = accumulate_gradient(Loss(loss), module, x, y, size)
        waits.append(len(watch.found))
        whole = share_of_loss(Loss(loss), module, x, y, len(x))
        assert found.loss == pytest.approx(float(whole.detach()), rel=1e-14)
        assert found.accuracy is None or found.accuracy == Loss(loss).accuracy(module(x), y)
        assert flat.grad.any()
    assert waits[0] == waits[1] <= 1


def test_the_watch_sees_what_it_should() -> None:
    """Waits and transfers that were put there on purpose."""
    here, there = torch.ones(3), torch.ones(3, device="meta")
    with Watch() as watch:
        float(here.sum())
        here.nonzero()
        here.to("meta")
    assert len(watch.found) == 3
    with Watch(), pytest.raises((RuntimeError, NotImplementedError)):
        float(there.sum())


def test_no_array_is_made_of_a_tensor_that_may_lie_on_a_device() -> None:
    """``.numpy()`` follows ``.cpu()``, or stands where docs say that everything lies on the CPU."""
    on_cpu = {
        "linalg/cholesky.py", "linalg/lanczos.py", "linalg/outer.py", "linalg/tiled.py", "ntk/tiled.py",
        "analysis/lazy.py", "reporting/report.py", "training/tracked.py",
    }  # fmt: skip
    root = Path(lplr_cli.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "numpy"):
                continue
            inner = node.func.value
            calls = {
                n.func.attr for n in ast.walk(inner) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            }
            assert "cpu" in calls or path.relative_to(root).as_posix() in on_cpu, f"{path}:{node.lineno}"
