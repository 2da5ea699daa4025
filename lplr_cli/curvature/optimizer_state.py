"""An optimiser of torch's as a rule of stepping with its second moments: from a checkpoint, or while it steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lplr_cli.curvature.stability import StepRule
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
    if groups[0].get("lr") == 0:
        return "the step size of its optimiser is 0, as at the end of a schedule"
    try:
        # Relatives of Adam have betas as well, and step otherwise.
        if "betas" in groups[0] and "amsgrad" in groups[0]:
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
    name, parts = _moment(group), []
    for index, parameter in zip(group["params"], trained, strict=True):
        kept = state[index]
        moment = kept[name]
        if not isinstance(moment, Tensor) or moment.shape != parameter.shape:
            return "the state of its optimiser has other shapes than the model"
        parts.append(_corrected(moment, kept["step"], group))
    return _adam_state(group, np.concatenate(parts), decoupled=bool(decoupled))


def stepping_state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> OptimizerState | None:
    """An optimiser between two of its steps; None where it is no SGD, Adam or AdamW, or does not step all parameters.

    Groups of parameters may differ in their weight decay, of which the largest counts; in nothing else. A step size of
    zero, as at the end of many schedules, bears any curvature and is no step.

    Args:
        optimizer: torch's, or a trainer's wrapper of it.
        parameters: whose curvature it is held against, in their order.
    """
    optimizer = unwrapped_optimizer(optimizer)
    group = _common(optimizer.param_groups)
    if group is None or not float(group["lr"]) > 0:
        return None
    if type(optimizer) is torch.optim.SGD:
        return _sgd(group)
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return None
    name, kept = _moment(group), [optimizer.state.get(p, {}) for p in parameters]
    if not all(name in state and float(state["step"]) > 0 for state in kept):
        return None
    decoupled = bool(group.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW))
    moments = [_corrected(state[name], state["step"], group) for state in kept]
    return _adam_state(group, np.concatenate(moments), decoupled=decoupled)


def unwrapped_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser inside the wrappers of trainers (Accelerate, Lightning)."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _common(groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Groups that differ in their weight decay alone as one, with the largest; None where they differ in more."""
    settings = [{k: v for k, v in g.items() if k not in ("params", "weight_decay")} for g in groups]
    if len({str(sorted((k, str(v)) for k, v in each.items())) for each in settings}) != 1:
        return None
    return {**settings[0], "weight_decay": max(float(g.get("weight_decay", 0.0)) for g in groups)}


def _moment(group: Mapping[str, Any]) -> str:
    """What an Adam calls the second moment that it steps with."""
    return "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"


def _corrected(moment: Tensor, steps: Any, group: Mapping[str, Any]) -> Vector:
    """v̂ (k,): a second moment without the bias of its start at zero."""
    values: Vector = moment.detach().double().cpu().numpy().reshape(-1)
    corrected: Vector = values / (1 - float(group["betas"][1]) ** float(steps))
    return corrected


def _adam_state(group: Mapping[str, Any], moments: Vector, *, decoupled: bool) -> OptimizerState:
    decay, beta1 = float(group["weight_decay"]), float(group["betas"][0])
    rule = StepRule(
        float(group["lr"]),
        momentum=beta1,
        dampening=beta1,
        adaptive=True,
        weight_decay=decay if decoupled else 0.0,
        decoupled=decoupled,
    )
    return OptimizerState(rule, moments, float(group["eps"]), 0.0 if decoupled else decay)
