"""What a recorder can tell of a loss and an optimiser that are not its own; what it cannot, stays unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lplr_cli.curvature import unwrapped_optimizer
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.factories import is_factory_reference
from lplr_cli.losses import LOSSES, Loss
from lplr_cli.models import ModelSpec, logits_alone, parameter_count
from lplr_cli.ntk import evaluation_mode
from lplr_cli.runs import BATCH_STATISTICS, BATCHES, EXACT, DataFacts, LossFacts, Manifest, OptimizerFacts
from lplr_cli.training.wrappers import mixes_samples

LossFunction = Callable[[Tensor, Tensor], Tensor]
# Losses of lplr (by name) among torch's; of every other class of torch.nn the name is known, and that it is no other.
_NAMES: dict[Any, str] = {
    nn.MSELoss: "squared",
    functional.mse_loss: "squared",
    nn.CrossEntropyLoss: "cross-entropy",
    functional.cross_entropy: "cross-entropy",
    nn.BCEWithLogitsLoss: "bce",
    functional.binary_cross_entropy_with_logits: "bce",
    functional.l1_loss: "l1",
    functional.smooth_l1_loss: "smoothl1",
    functional.huber_loss: "huber",
}
# Options of torch's losses that make another loss of one, with the value that leaves it as it is.
_PLAIN = {"reduction": "mean", "weight": None, "pos_weight": None, "label_smoothing": 0.0}


def loss_facts(
    loss: str | Loss | None,
    loss_fn: LossFunction | None,
    loss_scale: float | None,
    targets: Tensor | None,
    *,
    exact: bool,
) -> LossFacts:
    """Name and scale of a loss: as the user says, else read off torch's own losses, else unknown.

    Args:
        loss: a loss of lplr, or the name of any.
        loss_fn: mean loss of outputs and targets; the recorder computes exact values with it, or without one those of
            the squared loss.
        loss_scale: s; of the squared loss where nothing else is said.
        targets: all training targets, for the mean over outputs that torch takes.
        exact: whether the recorder computes exact values.

    Raises:
        InputError: a scale that is none, or two that differ.
    """
    values = EXACT if exact else BATCHES
    if loss_scale is not None and not 0 < loss_scale < float("inf"):
        raise InputError(f"loss_scale {loss_scale} is no scale", "give a positive number")
    if isinstance(loss, Loss):
        if loss_scale not in (None, loss.scale):
            raise InputError(f"loss_scale {loss_scale} is not that of the loss, {loss.scale}", "give one of them")
        return LossFacts(loss.name, loss.formula, loss.scale, values)
    if loss is not None:
        return _named(loss, loss_scale, values)
    if loss_fn is None and exact:
        return _named("squared", 1.0 if loss_scale is None else loss_scale, values)
    name, scale = (None, None) if loss_fn is None else _recognised(loss_fn, targets)
    if name is None and loss_scale is not None:
        name = "squared"
    return _named(name, scale if loss_scale is None else loss_scale, values)


def _named(name: str | None, scale: float | None, values: str) -> LossFacts:
    facts = LossFacts(name, None, scale, values)
    known = facts.known
    return facts if known is None else LossFacts(name, known.formula, scale, values)


def _recognised(loss_fn: LossFunction, targets: Tensor | None) -> tuple[str | None, float | None]:
    """Name and scale of a loss of torch."""
    name = _NAMES.get(type(loss_fn)) if isinstance(loss_fn, nn.Module) else _NAMES.get(loss_fn)
    if name is None:
        torchs = type(loss_fn).__module__ == nn.MSELoss.__module__
        return (type(loss_fn).__name__.removesuffix("Loss").lower() if torchs else None), None
    changed = [k for k, v in _PLAIN.items() if isinstance(loss_fn, nn.Module) and getattr(loss_fn, k, v) != v]
    if changed == ["reduction"]:
        return name, None
    if changed:
        return f"{name} with {' and '.join(changed)}", None
    return name, _mean_scale(name, targets) if targets is not None and name in LOSSES else None


def _mean_scale(name: str, targets: Tensor) -> float | None:
    """s of torch's mean: over samples and outputs; for cross-entropy over samples, none of which is ignored."""
    if name != "cross-entropy":
        return 1.0 / targets.reshape(len(targets), -1).shape[1]
    classes = not targets.is_floating_point()
    plain = targets.dim() == 1 and bool((targets >= 0).all()) if classes else targets.dim() == 2
    return 1.0 if plain else None


def target_matrix(module: nn.Module, inputs: Tensor, targets: Tensor, loss: LossFacts) -> Tensor:
    """Targets as the losses of lplr take them, (n, C): the classes of a cross-entropy as one-hot rows."""
    if loss.name != "cross-entropy" or targets.is_floating_point() or targets.dim() != 1:
        return targets.reshape(len(targets), -1)
    with torch.no_grad(), evaluation_mode(module), logits_alone(module):
        classes = module(inputs[:1]).reshape(1, -1).shape[1]
    if bool((targets < 0).any()) or bool((targets >= classes).any()):
        return targets.reshape(len(targets), -1)  # classes that the loss ignores have no row
    return functional.one_hot(targets, classes).to(next(module.parameters()))


def optimizer_facts(optimizer: torch.optim.Optimizer, given: OptimizerFacts | None) -> OptimizerFacts:
    """What an optimiser tells of itself, and the user beside it.

    That batches are all data (``gd``), and the schedule, is the user's to say; the rest is the optimiser's.
    """
    optimizer = unwrapped_optimizer(optimizer)
    group = optimizer.param_groups[0]
    name = type(optimizer).__name__.lower()
    plain = name == "sgd" and not group.get("dampening") and not group.get("maximize")
    same = all(_settings(g) == _settings(group) for g in optimizer.param_groups)
    said = given or OptimizerFacts()
    if said.name is not None and (said.name != "gd" or (plain and same)):
        name = said.name
    momentum, decay = group.get("momentum"), group.get("weight_decay")
    return OptimizerFacts(
        name=name,
        lr=float(group["lr"]) if said.lr is None else said.lr,
        momentum=said.momentum if momentum is None else float(momentum),
        schedule=said.schedule,
        weight_decay=said.weight_decay if decay is None else float(decay),
        batch_size=said.batch_size,
        sampling=said.sampling,
    )


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(v) if k == "lr" else v for k, v in group.items() if k != "params"}


def described_model(model: str | None, arguments: Mapping[str, Any] | None) -> ModelSpec | None:
    """What builds the network, where that is said.

    Raises:
        InputError: no factory reference.
    """
    if model is None:
        return None
    if not is_factory_reference(model):
        raise InputError(f"model {model!r} is no factory reference", "write it as module:factory")
    return ModelSpec(kind=model, arguments=dict(arguments or {}))


def spread(loss_fn: LossFunction) -> LossFunction:
    """The mean loss of samples as (m,) values of them with that mean: what is asked of it are sums over samples."""

    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss_fn(outputs, targets).reshape(1).expand(len(outputs))

    return values


def check_schedules(from_never: Sequence[int], from_one: Sequence[int]) -> None:
    """Steps between things: none is negative, and what happens always happens at some step.

    Raises:
        InputError: a number of steps that is none.
    """
    if min(from_never) < 0 or min(from_one) < 1:
        raise InputError("a schedule is negative", "give 0 for never, or a number of steps")


def data_facts(data: tuple[Tensor, Tensor] | None, targets: Tensor | None, spec: DataSpec | None) -> DataFacts:
    """What is known of the training data; ``targets`` is their matrix (n, C)."""
    return DataFacts(
        None if spec is None else spec.source,
        None if data is None else len(data[0]),
        None if targets is None else targets.shape[1],
        None,
        {} if spec is None else spec.to_dict(),
    )


def recorded_manifest(
    module: nn.Module,
    spec: ModelSpec | None,
    reference: Tensor,
    data: DataFacts,
    loss: LossFacts,
    optimizer: OptimizerFacts,
    config: dict[str, Any],
) -> Manifest:
    """The manifest of a recorded run; ``reference`` is one of its parameters, for dtype and device.

    Its configuration tells whether the module trains as another function than the one that exact values are of.
    """
    model = {"kind": type(module).__name__} if spec is None else spec.to_dict()
    return Manifest.begin(
        recorded=True,
        loss=loss,
        optimizer=optimizer,
        data=data,
        config={**config, BATCH_STATISTICS: mixes_samples(module)},
        model={**model, "parameters": parameter_count(module)},
        dtype=str(reference.dtype).removeprefix("torch."),
        device=str(reference.device),
    )
