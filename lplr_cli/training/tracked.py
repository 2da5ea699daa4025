"""The parameters that a recording measures: those that train when it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lplr_cli.errors import InputError

DTYPES = {torch.float64: "float64", torch.float32: "float32"}


class TrackedParameters:
    """Trainable parameters of a module with their values at the start.

    Drift and gradient norm are of these very tensors. One that is frozen later stays among them, with no gradient; one
    that is replaced, moved, added or unfrozen would make both wrong without a sign, so that :meth:`check` refuses it.

    Raises:
        InputError: nothing trains.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        if not self.named:
            raise InputError("the model has no trainable parameter", "nothing to record")
        self.start = [p.detach().clone() for _, p in self.named]
        self._frozen = {k for k, p in module.named_parameters() if not p.requires_grad}
        self._scratch: Tensor | None = None
        self._marked: list[Tensor] | None = None
        self._is_marked = False

    @property
    def reference(self) -> Tensor:
        """The first parameter at the start, for device and dtype."""
        return self.start[0]

    def check(self) -> None:
        """Whether the module still trains these parameters and no others.

        Raises:
            InputError: naming the first one that changed, and how.
        """
        now = dict(self._module.named_parameters())
        for (name, parameter), start in zip(self.named, self.start, strict=True):
            found = now.pop(name, None)
            if found is not parameter:
                raise _changed(name, "is gone" if found is None else "was replaced by another tensor")
            if (found.device, found.dtype, found.shape) != (start.device, start.dtype, start.shape):
                raise _changed(name, "was moved to another device, type or shape")
        for name, parameter in now.items():
            if parameter.requires_grad:
                raise _changed(name, "was unfrozen" if name in self._frozen else "was added")

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """In the order of θ."""
        return [tuple(p.shape) for _, p in self.named]

    def theta(self) -> NDArray[np.float64]:
        """All present values, (P,)."""
        return torch.cat([p.detach().double().reshape(-1).cpu() for _, p in self.named]).numpy()

    def state(self) -> dict[str, Tensor]:
        """The present values, by name."""
        return {k: p.detach() for k, p in self.named}

    def grad_norm_sq(self) -> float | None:
        """||∇L||² of the gradients that the parameters hold; None where none has one."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        return square_norm(grads) if grads else None

    def gradients(self) -> list[Tensor] | None:
        """Copies of the gradients that the parameters hold; None where one has none."""
        grads = [p.grad for _, p in self.named]
        return [g.detach().clone() for g in grads if g is not None] if all(g is not None for g in grads) else None

    def half_square_distance(self, former: Sequence[Tensor]) -> float | None:
        """½ ||g − g'||² of the gradients from earlier ones; None where one is gone. ``former`` is used up."""
        grads = [p.grad for _, p in self.named]
        if any(g is None for g in grads):
            return None
        return 0.5 * square_norm([f.sub_(g.detach()) for f, g in zip(former, grads, strict=True) if g is not None])

    def mark(self) -> None:
        """Keep the present values for :meth:`moved`, in memory that is kept, too."""
        with torch.no_grad():
            if self._marked is None:
                self._marked = [p.detach().clone() for _, p in self.named]
            else:
                for kept, (_, p) in zip(self._marked, self.named, strict=True):
                    kept.copy_(p)
        self._is_marked = True

    def moved(self) -> float | None:
        """||θ − θ'|| from the values at the last :meth:`mark`, once; None without one since."""
        if self._marked is None or not self._is_marked:
            return None
        self._is_marked = False
        return self._distance(self._marked)

    def drift(self) -> float:
        """||θ − θ_0||."""
        return self._distance(self.start)

    def _distance(self, former: Sequence[Tensor]) -> float:
        """Through one buffer that is kept: fresh memory for each difference costs more than the sum."""
        total = 0.0
        with torch.no_grad():
            if any(s.device.type != "cpu" for s in former):
                return float(get_total_norm([p - s for (_, p), s in zip(self.named, former, strict=True)]))
            for (_, p), s in zip(self.named, former, strict=True):
                if self._scratch is None or self._scratch.dtype != s.dtype or self._scratch.numel() < s.numel():
                    self._scratch = torch.empty(s.numel(), dtype=s.dtype)
                difference = self._scratch[: s.numel()].view(s.shape)
                torch.sub(p, s, out=difference)
                total += square_norm([difference])
        return math.sqrt(total)


def square_norm(tensors: Sequence[Tensor]) -> float:
    """Sum of squares; on an accelerator with one wait for it, on the CPU with the least calls."""
    if all(t.device.type == "cpu" and t.dtype in DTYPES for t in tensors):
        return sum(float(torch.dot(flat, flat)) for flat in (t.detach().reshape(-1) for t in tensors))
    return float(get_total_norm(tensors)) ** 2


def _changed(name: str, how: str) -> InputError:
    return InputError(
        f"the trainable parameter {name!r} {how} while it is recorded",
        "make the recorder after the last change of the model",
    )
