"""What a checkpoint of somebody's tells of its optimiser: torch's state dict beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lplr_cli.curvature import StepRule
from lplr_cli.errors import InputError

Vector = NDArray[np.float64]
# Where trainers keep it; Lightning has a list.
_KEYS = ("optimizer_state_dict", "optimizer_state", "optimizer", "optimizers", "optim", "optimizer_states")


@dataclass(frozen=True)
class OptimizerState:
    """An optimiser at a checkpoint.

    Attributes:
        rule: how it steps.
        second_moments: v̂ in the order of the trained parameters (P,), corrected for its start at zero; None for an
            optimiser that keeps none.
        epsilon: added to √v̂.
        shift: what a coupled weight decay adds to the Hessian before it is preconditioned.
    """

    rule: StepRule
    second_moments: Vector | None = None
    epsilon: float = 0.0
    shift: float = 0.0


def optimizer_state(record: Any, module: nn.Module) -> OptimizerState | str:
    """The optimiser that a file keeps, or why it is not known.

    Args:
        record: what the file holds.
        module: whose parameters it has stepped, in the order of their definition.
    """
    found = _find(record)
    if found is None:
        return "the checkpoint does not tell its optimiser"
    groups = found["param_groups"]
    if len(groups) != 1 or not isinstance(groups[0], Mapping):
        return "its optimiser has several groups of parameters"
    try:
        if "betas" in groups[0]:
            return _adam(groups[0], found["state"], module)
        if "momentum" in groups[0] and "nesterov" in groups[0]:
            return _sgd(groups[0])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError, InputError) as error:
        return f"the state of its optimiser is not understood ({type(error).__name__})"
    return "its optimiser is neither SGD nor Adam"


def _find(record: Any) -> Mapping[str, Any] | None:
    if not isinstance(record, Mapping):
        return None
    for key in _KEYS:
        value = record.get(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if (
            isinstance(value, Mapping)
            and isinstance(value.get("param_groups"), list)
            and isinstance(value.get("state"), Mapping)
        ):
            return value
    return None


def _sgd(group: Mapping[str, Any]) -> OptimizerState:
    return OptimizerState(
        StepRule(
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]) if group["momentum"] else 0.0,
            bool(group["nesterov"]),
            weight_decay=float(group["weight_decay"]),
        )
    )


def _adam(group: Mapping[str, Any], state: Mapping[Any, Any], module: nn.Module) -> OptimizerState | str:
    decay = float(group["weight_decay"])
    decoupled = group.get("decoupled_weight_decay")
    if decay and decoupled is None:
        return "Adam or AdamW: the checkpoint does not tell how its weights decay"
    trained = [p for p in module.parameters() if p.requires_grad]
    if len(group["params"]) != len(trained):
        return f"its optimiser has {len(group['params'])} parameters, the model {len(trained)}"
    beta1, beta2 = (float(b) for b in group["betas"])
    name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    parts = []
    for index, parameter in zip(group["params"], trained, strict=True):
        kept = state[index]
        moment = kept[name]
        if not isinstance(moment, Tensor) or moment.shape != parameter.shape:
            return "the state of its optimiser has other shapes than the model"
        steps = float(kept["step"])
        parts.append(moment.detach().double().cpu().numpy().reshape(-1) / (1 - beta2**steps))
    rule = StepRule(
        float(group["lr"]),
        momentum=beta1,
        dampening=beta1,
        adaptive=True,
        weight_decay=decay if decoupled else 0.0,
        decoupled=bool(decoupled),
    )
    return OptimizerState(rule, np.concatenate(parts), float(group["eps"]), 0.0 if decoupled else decay)
