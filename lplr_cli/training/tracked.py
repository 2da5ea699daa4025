"""The parameters that a recording measures: those that train when it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lplr_cli.errors import InputError

DTYPES = {torch.float64: "float64", torch.float32: "float32"}
Value = float | Tensor
# Numbers of a tensor up to which NumPy, which starts no threads, is faster; numbers of a difference at a time.
_SMALL, _PIECE = 2**20, 2**16


class TrackedParameters:
    """Trainable parameters of a module with their values at the start.

    Drift and gradient norm are of these very tensors. One that is frozen later stays among them, with no gradient; one
    that is replaced, moved, added or unfrozen would make both wrong without a sign, so that :meth:`check` refuses it.

    What is measured on an accelerator is a tensor that nobody has waited for; on the CPU a number.

    Raises:
        InputError: nothing trains.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        if not self.named:
            raise InputError("the model has no trainable parameter", "nothing to record")
        self.start = [p.detach().clone() for _, p in self.named]
        self._frozen = {k: p for k, p in module.named_parameters() if not p.requires_grad}
        self._kinds = [_kind(p) for p in self.start]
        self._registers = _registers(module)
        self._marked: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._has_gradients = False

    @property
    def reference(self) -> Tensor:
        """The first parameter at the start, for device and dtype."""
        return self.start[0]

    def check(self) -> None:
        """Whether the module still trains these parameters and no others.

        Raises:
            InputError: naming the first one that changed, and how.
        """
        if not self._is_unchanged():
            self._name_a_change()
            self._frozen = {k: p for k, p in self._module.named_parameters() if not p.requires_grad}
            self._registers = _registers(self._module)

    def _is_unchanged(self) -> bool:
        """A few µs, where walking the module by name takes a hundred."""
        for register, kept in self._registers:
            if len(register) != len(kept) or not all(map(is_, register.values(), kept)):
                return False
        kinds = zip(self.named, self._kinds, strict=True)
        return all(_kind(p) == kind for (_, p), kind in kinds) and not any(
            p.requires_grad for p in self._frozen.values()
        )

    def _name_a_change(self) -> None:
        now = dict(self._module.named_parameters())
        for (name, parameter), kind in zip(self.named, self._kinds, strict=True):
            replaced = now.pop(name, None)
            if replaced is not parameter:
                raise _changed(name, "is gone" if replaced is None else "was replaced by another tensor")
            if _kind(replaced) != kind:
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

    def grad_norm_sq(self) -> Value | None:
        """||∇L||² of the gradients that the parameters hold; None where none has one."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        return square_norm(grads) if grads else None

    def keep_gradients(self) -> None:
        """Keep the gradients that the parameters hold for :meth:`gradients_changed`, where all have one."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        self._has_gradients = len(grads) == len(self.named)
        if self._has_gradients:
            self._gradients = _copied(grads, self._gradients)

    def gradients_changed(self) -> Value | None:
        """½ ||g − g'||² from the gradients at the last :meth:`keep_gradients`, once; None where one is gone."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        known, self._has_gradients = self._has_gradients and len(grads) == len(self.named), False
        return 0.5 * _square_distance(grads, self._gradients) if known else None

    def mark(self) -> None:
        """Keep the present values for :meth:`moved`."""
        self._marked = _copied([p for _, p in self.named], self._marked)

    def moved(self) -> Value:
        """||θ − θ'|| from the values at the last :meth:`mark`."""
        return self._distance(self._marked)

    def drift(self) -> Value:
        """||θ − θ_0||."""
        return self._distance(self.start)

    def _distance(self, former: Sequence[Tensor]) -> Value:
        return _square_distance([p for _, p in self.named], former) ** 0.5


def number(value: Tensor | float) -> Value:
    """A number; on an accelerator a copy that nobody has waited for."""
    if not isinstance(value, Tensor):
        return float(value)
    return float(value.item()) if value.device.type == "cpu" else value.detach().clone()


def _fetched(waiting: Sequence[Tensor]) -> dict[int, float]:
    """Numbers of tensors by their identity, with one wait a device, as torch.stack wants them."""
    known: dict[int, float] = {}
    for device in {v.device for v in waiting}:
        here = [v for v in waiting if v.device == device]
        values = torch.stack([v.detach().reshape(()) for v in here]).cpu().double().tolist()
        known |= {id(v): value for v, value in zip(here, values, strict=True)}
    return known


def settled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of numbers, of rows some of whose values are still on an accelerator: one wait for all; NaN is left out."""
    waiting = [v for row in rows for v in row.values() if isinstance(v, Tensor)]
    known = _fetched(waiting)
    values = [{k: known.get(id(v), v) for k, v in row.items()} for row in rows] if waiting else rows
    return [{k: v for k, v in row.items() if v == v} for row in values]


def square_norm(tensors: Sequence[Tensor]) -> Value:
    """Sum of squares: a number on the CPU, a tensor elsewhere."""
    if not all(_is_plain(t) for t in tensors):
        return get_total_norm([t.detach() for t in tensors]) ** 2
    with np.errstate(all="ignore"):
        return sum(_dot(t.detach().reshape(-1)) for t in tensors)


def _square_distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Value:
    """Sum of the squares of differences, on the CPU a piece at a time in memory that stays in the cache."""
    if not all(map(_is_plain, ones)):
        return get_total_norm([a.detach() - b for a, b in zip(ones, others, strict=True)]) ** 2
    total, room = 0.0, torch.empty(_PIECE, dtype=ones[0].dtype)
    with np.errstate(all="ignore"):
        for one, other in zip(ones, others, strict=True):
            a, b = one.detach().reshape(-1), other.reshape(-1)
            total += _small_distance(a, b, room) if len(a) <= _SMALL and a.dtype == room.dtype else _dot(a - b)
    return total


def _small_distance(one: Tensor, other: Tensor, room: Tensor) -> float:
    """Of tensors on the CPU."""
    a, b, c, total = one.numpy(), other.numpy(), room.numpy(), 0.0
    for first in range(0, len(a), _PIECE):
        part = a[first : first + _PIECE]
        difference = np.subtract(part, b[first : first + _PIECE], c[: len(part)])
        total += float(difference.dot(difference))
    return total


def _dot(flat: Tensor) -> float:
    """On the CPU, by NumPy up to the size from which the threads of torch pay; where there are any, NumPy has its own,
    and to go from the ones to the others costs more."""
    if len(flat) > _SMALL or torch.get_num_threads() > 1:
        return float(torch.dot(flat, flat))
    values = flat.numpy()
    return float(values.dot(values))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in DTYPES and type(tensor) in (Tensor, nn.Parameter)


def _copied(tensors: Sequence[Tensor], room: list[Tensor]) -> list[Tensor]:
    """Copies in memory that is kept: fresh memory costs more than the copy."""
    if not room:
        return [t.detach().clone() for t in tensors]
    torch._foreach_copy_(room, [t.detach() for t in tensors])
    return room


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype, torch.Size]:
    return tensor.device, tensor.dtype, tensor.shape


def _registers(module: nn.Module) -> list[tuple[dict[str, Any], list[Any]]]:
    """Where the modules keep parameters and submodules, with what lies there."""
    return [(register, list(register.values())) for m in module.modules() for register in (m._parameters, m._modules)]


def _changed(name: str, how: str) -> InputError:
    return InputError(
        f"the trainable parameter {name!r} {how} while it is recorded",
        "make the recorder after the last change of the model",
    )
