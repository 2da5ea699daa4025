"""Loss, gradient norm and noise over all data in the middle of somebody's loop, which notices nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.models import logits_alone
from lplr_cli.runs import SAMPLE_NOISE, LossFacts
from lplr_cli.training.noise import MIN_PARTS, trace_of_noise
from lplr_cli.training.tracked import TrackedParameters, square_norm


class ExactValues:
    """L and ||∇L||² of a module at its present parameters; its gradients and modes stay as they are.

    Args:
        module: the network.
        tracked: the parameters that the gradient is of; those frozen since have none.
        data: inputs (n, …) and targets (n, …), as ``loss_fn`` takes them.
        matrix: the targets as a matrix (n, C), for ``loss``.
        loss_fn: mean loss of outputs and targets of a micro-batch; None for ``loss``.
        loss: what is trained, for ``loss_fn`` None.
        noise: whether tr Σ of single samples' gradients is measured, from random parts of the data.
        micro_batch: samples at a time, which bounds the memory.

    Raises:
        InputError: a loss that is not known, and no function.
    """

    def __init__(
        self,
        module: nn.Module,
        tracked: TrackedParameters,
        data: tuple[Tensor, Tensor],
        matrix: Tensor,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
        loss: LossFacts,
        noise: bool = False,
        micro_batch: int = 1024,
    ) -> None:
        if loss_fn is None and loss.known is None:
            raise InputError(f"exact values of {loss.label} need its function", "pass loss_fn")
        self._module, self._tracked = module, tracked
        self._inputs, self._targets = data
        self._matrix, self._loss_fn, self._loss = matrix, loss_fn, loss.known
        n = len(self._inputs)
        self._noise = noise
        if noise:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(self._inputs.device)
            self._parts = torch.split(order, min(micro_batch, max(1, n // MIN_PARTS)))
        else:
            self._parts = torch.split(torch.arange(n, device=self._inputs.device), micro_batch)

    def __call__(self) -> dict[str, float]:
        """What a row of the log has: L and ||∇L||², in evaluation mode, added up in float64, and tr Σ."""
        parameters = [p for _, p in self._tracked.named if p.requires_grad]
        total, sums = 0.0, [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        squares, n = [], len(self._inputs)
        with _evaluating(self._module), torch.enable_grad():
            for chosen in self._parts:
                part = self._share(chosen)
                gradients = torch.autograd.grad(part, parameters, materialize_grads=True)
                for s, g in zip(sums, gradients, strict=True):
                    s.add_(g)
                if self._noise:
                    squares.append(float(square_norm(gradients)) * (n / len(chosen)) ** 2)
                total += float(part.detach())
        row = {"loss": total, "grad_norm_sq": float(square_norm(sums))}
        if self._noise:
            row[SAMPLE_NOISE] = trace_of_noise([len(p) for p in self._parts], squares, row["grad_norm_sq"])
        return row

    def _share(self, rows: Tensor) -> Tensor:
        """What these samples add to L."""
        x, n = self._inputs[rows], len(self._inputs)
        outputs = self._module(x)
        if self._loss_fn is not None:
            return self._loss_fn(outputs, self._targets[rows]) * (len(x) / n)
        assert self._loss is not None
        return self._loss.total(outputs.reshape(len(x), -1), self._matrix[rows], n)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, each part in its own mode again afterwards; of a record of outputs the logits."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with logits_alone(module):
            yield
    finally:
        for m, mode in modes:
            m.training = mode
