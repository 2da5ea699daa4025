"""A small net with data, a loss and a path of gradient descent, for the tests of regions and of balls."""

from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
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


def exactly(case: Case, theta: Tensor) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """L and ∇L of a softplus net and the squared loss in 50 digits."""
    with mpmath.workdps(50):
        layers, offset = [], 0
        shapes = [p.shape for p in case.module.parameters()]
        for shape in shapes:
            flat = [mpmath.mpf(float(v)) for v in theta[offset : offset + shape.numel()]]
            layers.append(mpmath.matrix(shape[0], shape[1] if len(shape) > 1 else 1))
            for i, v in enumerate(flat):
                layers[-1][i // layers[-1].cols, i % layers[-1].cols] = v
            offset += shape.numel()
        weights, biases = layers[0::2], layers[1::2]
        grads = [mpmath.matrix(m.rows, m.cols) for m in layers]
        total, n = mpmath.mpf(0), len(case.x)
        for row, target in zip(case.x, case.y, strict=True):
            a = [mpmath.matrix([mpmath.mpf(float(v)) for v in row])]
            z = []
            for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
                z.append(w * a[-1] + b)
                a.append(z[-1] if k == len(weights) - 1 else z[-1].apply(lambda v: mpmath.log1p(mpmath.exp(v))))
            r = a[-1] - mpmath.matrix([mpmath.mpf(float(v)) for v in target])
            total += sum(v**2 for v in r) / n
            s = 2 * r / n
            for k in range(len(weights) - 1, -1, -1):
                grads[2 * k] += s * a[k].T
                grads[2 * k + 1] += s
                if k:
                    e = weights[k].T * s
                    s = mpmath.matrix([e[i] / (1 + mpmath.exp(-z[k - 1][i])) for i in range(e.rows)])
        return total, [v for g in grads for v in g]
