"""Losses L = (1/n) Σ_i ℓ(f_i, y_i) of the outputs, and the constants that the theory needs of them (theory.md 9, 14).

    squared        ℓ = s ||f − y||²                       ∇²ℓ = 2s I
    cross-entropy  ℓ = s (log Σ_c e^{f_c} − Σ_c y_c f_c)  ∇²ℓ = s (diag p − p pᵀ), p = softmax(f), Σ_c y_c = 1
    bce            ℓ = s Σ_c (log(1 + e^{f_c}) − y_c f_c) ∇²ℓ = s diag(p (1 − p)), p = logistic(f)

Targets of the last two are probabilities: one-hot rows for classes, 0 or 1 for a single logit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError

LOSSES = ("squared", "cross-entropy", "bce")


@dataclass(frozen=True)
class Loss:
    """A loss of known name and scale.

    Attributes:
        name: one of :data:`LOSSES`.
        scale: s, e.g. 1/C for torch's ``MSELoss`` or ``BCEWithLogitsLoss`` with C outputs.

    Raises:
        InputError: an unknown name, or a scale that is not positive and finite.
    """

    name: str = "squared"
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check at once what a file or a caller gave."""
        if self.name not in LOSSES:
            raise InputError(f"loss {self.name!r} is unknown", f"choose from {', '.join(LOSSES)}")
        if not 0 < self.scale < math.inf:
            raise InputError(f"loss scale {self.scale} is no scale", "give a positive number")

    @property
    def formula(self) -> str:
        """For run.json and people."""
        factor = "1/n" if self.scale == 1 else f"{self.scale:g}/n"
        return (
            f"L = ({factor}) "
            + {
                "squared": "sum_i ||f(x_i) - y_i||^2",
                "cross-entropy": "sum_i (log sum_c exp f_c(x_i) - sum_c y_ic f_c(x_i))",
                "bce": "sum_i sum_c (log(1 + exp f_c(x_i)) - y_ic f_c(x_i))",
            }[self.name]
        )

    def check_targets(self, targets: Tensor) -> None:
        """Refuse targets (n, C) that are no probabilities where the loss needs them.

        Raises:
            InputError: with the option that makes them so.
        """
        if self.name == "squared":
            return
        if bool((targets < 0).any()) or bool((targets > 1).any()):
            raise InputError(f"targets outside [0, 1] are none of {self.name}", "give --targets onehot or 01")
        if self.name == "cross-entropy":
            if targets.shape[1] < 2:
                raise InputError("cross-entropy with one output is constant", "give --targets onehot, or --loss bce")
            if not bool(torch.isclose(targets.sum(dim=1), targets.new_ones(()), rtol=0, atol=1e-6).all()):
                raise InputError("targets of cross-entropy must sum to 1 in each row", "give --targets onehot")

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ℓ of each sample, (n,), of outputs and targets (n, C)."""
        if self.name == "squared":
            each = (outputs - targets).square().sum(dim=1)
        elif self.name == "cross-entropy":
            each = torch.logsumexp(outputs, dim=1) - (targets * outputs).sum(dim=1)
        else:
            each = (nn.functional.softplus(outputs) - targets * outputs).sum(dim=1)
        return each if self.scale == 1 else self.scale * each

    def total(self, outputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """The share of these samples in L: Σ ℓ / ``count``, where ``count`` is the n of the whole mean."""
        if self.name == "squared":
            # One sum: the value to the last bit that runs have always logged.
            squares = (outputs - targets).square().sum()
            return (squares if self.scale == 1 else self.scale * squares) / count
        return self.values(outputs, targets).sum() / count

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """q_i = ∇_f ℓ, (n, C)."""
        if self.name == "squared":
            return 2 * self.scale * (outputs - targets)
        p = torch.softmax(outputs, dim=1) if self.name == "cross-entropy" else torch.sigmoid(outputs)
        return self.scale * (p - targets)

    def hessian_products(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """∇²_f ℓ_i v_i of each sample, (n, C)."""
        if self.name == "squared":
            return 2 * self.scale * vectors
        if self.name == "bce":
            p = torch.sigmoid(outputs)
            return self.scale * p * (1 - p) * vectors
        p = torch.softmax(outputs, dim=1)
        along = p * vectors
        return self.scale * (along - p * along.sum(dim=1, keepdim=True))

    @property
    def smoothness(self) -> float:
        """c₂ ≥ sup ||∇²_f ℓ||_op: 2s, s/2 or s/4."""
        return {"squared": 2.0, "cross-entropy": 0.5, "bce": 0.25}[self.name] * self.scale

    @property
    def hessian_lipschitz(self) -> float:
        """c₃ ≥ the Lipschitz constant of ∇²_f ℓ: 0, s/√2 or s/(6√3); the last two rounded upwards."""
        exact = {"squared": 0.0, "cross-entropy": math.sqrt(0.5), "bce": 1 / (6 * math.sqrt(3))}[self.name]
        return exact * self.scale * (1 + 2**-50)

    def gradient_bound(self, outputs: int) -> float:
        """sup ||q|| over all outputs: infinite, √2 s or √C s."""
        exact = {"squared": math.inf, "cross-entropy": math.sqrt(2), "bce": math.sqrt(outputs)}[self.name]
        return exact * self.scale * (1 + 2**-50)

    def gradient_change(self, reach: Tensor) -> Tensor:
        """sup |q_c(f') − q_c(f)| over |f' − f| ≤ ``reach``, entrywise, (n, C)."""
        if self.name == "cross-entropy":
            # ||∇p_c|| ≤ ½.
            size = torch.linalg.vector_norm(reach, dim=1, keepdim=True)
            together: Tensor = (self.smoothness * size).expand_as(reach)
            return together
        return self.smoothness * reach

    def curvature_over(self, outputs: Tensor, reach: Tensor) -> Tensor:
        """w with ∇²_f ℓ_i ≤ diag(w_i) for all outputs within ``reach`` of ``outputs``, entrywise, (n, C).

        Squared: 2s. Single logits: s p(1 − p), largest where p is nearest to ½. Softmax: s max_c 2 p_c (1 − p_c), the
        bound of λ_max by Gershgorin's discs, at most s/2.
        """
        if self.name == "squared":
            return torch.full_like(outputs, 2 * self.scale)
        # Above the rounding of exponentials and sums.
        slack = 2**-44 * (1 + outputs.abs().amax(dim=1, keepdim=True) + outputs.shape[1])
        if self.name == "bce":
            nearest = (outputs.abs() - reach).clamp_min(0)
            p = torch.sigmoid(nearest)
            single: Tensor = (self.scale * (p * (1 - p) + slack)).clamp_max(self.smoothness)
            return single
        p = torch.softmax(outputs, dim=1)
        moved = 0.5 * torch.linalg.vector_norm(reach, dim=1, keepdim=True) + slack
        nearest = p + (0.5 - p).clamp(min=-moved, max=moved)
        disc = (2 * nearest * (1 - nearest)).amax(dim=1, keepdim=True) + slack
        result: Tensor = (self.scale * disc).clamp_max(self.smoothness).expand_as(outputs)
        return result

    @property
    def classifies(self) -> bool:
        """Whether an accuracy makes sense: targets are probabilities of classes."""
        return self.name != "squared"

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of samples whose likeliest class is right: the largest logit, or for ``bce`` the sign of each."""
        return float(self.right(outputs, targets).double().mean())

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the likeliest class is right (n,), as in :meth:`accuracy`."""
        if self.name == "bce":
            return ((outputs > 0) == (targets > 0.5)).all(dim=1)
        return outputs.argmax(dim=1) == targets.argmax(dim=1)


SQUARED = Loss()
