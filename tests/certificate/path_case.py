"""A small net with data, a loss and a path of gradient descent, for the tests of regions and of balls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lplr_cli.certificate import CertifiedCurvature
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.training.objective import Objective

LOSSES = [Loss(), Loss("squared", 0.3), Loss("cross-entropy"), Loss("bce")]


class Case:
    """A small net with data, a loss and a path of gradient descent."""

    def __init__(self, loss: Loss, *, depth: int = 2, width: int = 5, n: int = 6, activation: str = "softplus") -> None:
        generator = torch.Generator().manual_seed(depth + 10 * n)
        outputs = 3 if loss.name == "cross-entropy" else 2
        self.x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        y = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
        if loss.name == "cross-entropy":
            y = nn.functional.one_hot(y.argmax(dim=1), outputs).double()
        self.y = (y > 0).double() if loss.name == "bce" else y
        spec = ModelSpec(width=width, depth=depth, activation=activation)
        self.module = build_model(spec, (4,), outputs, seed=1, dtype=torch.float64)
        self.objective = Objective(build_model(spec, (4,), outputs, seed=1, dtype=torch.float64), self.x, self.y, loss)
        self.curvature = CertifiedCurvature(self.module, self.x, self.y, loss)
        self.start = self.objective.flat.theta.clone()

    def path(self, steps: int, lr: float) -> list[Tensor]:
        theta, found = self.start.clone(), [self.start.clone()]
        for _ in range(steps):
            theta = theta - lr * self.objective(theta)[1]
            found.append(theta.clone())
        return found

    def hessian(self, theta: Tensor) -> Tensor:
        found: Tensor = torch.func.hessian(self.loss_at)(theta)
        return found

    def loss_at(self, theta: Tensor) -> Tensor:
        values, offset = {}, 0
        for name, p in self.module.named_parameters():
            values[name] = theta[offset : offset + p.numel()].view(p.shape)
            offset += p.numel()
        out = torch.func.functional_call(self.module, values, (self.x,)).reshape(len(self.x), -1)
        return self.objective.loss.total(out, self.y, len(self.x))

    def outputs_at(self, theta: Tensor) -> Tensor:
        values, offset = {}, 0
        for name, p in self.module.named_parameters():
            values[name] = theta[offset : offset + p.numel()].view(p.shape)
            offset += p.numel()
        out: Tensor = torch.func.functional_call(self.module, values, (self.x,)).reshape(len(self.x), -1)
        return out
