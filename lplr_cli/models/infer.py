"""Networks from bare weights: wrappers' prefixes taken off, the structure of an MLP read from names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.models.activations import ACTIVATIONS
from lplr_cli.models.mlp import MLP
from lplr_cli.models.spec import ModelSpec

# What DataParallel, DistributedDataParallel and torch.compile put before or between the names of a module.
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 12


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes for messages, the first dozen."""
    parts = [f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:_SHOWN]]
    return ", ".join(parts) + (f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else "")


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of parallel and compiled wrappers."""
    names = {}
    for name, tensor in tensors.items():
        short = name
        while any(short.startswith(w) for w in _WRAPPERS):
            short = short.split(".", 1)[1]
        names[short.replace("._orig_mod.", ".")] = tensor
    return names if len(names) == len(tensors) else dict(tensors)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, *, partial: bool = False) -> None:
    """Copy weights into a module, whatever common prefix a trainer put before their names.

    Args:
        module: its parameters and persistent buffers are set.
        tensors: by name; more than the module has is fine (a trainer's own metrics), fewer is not.
        origin: for messages.
        partial: whether buffers and parameters that are not trained may be missing; they then stay as they are.

    Raises:
        InputError: names that are missing, or shapes that differ, listing them.
    """
    own = module.state_dict()
    needed = [k for k, p in module.named_parameters() if p.requires_grad] if partial else list(own)
    arranged = _with_tied(max(_spellings(tensors), key=lambda c: len(c.keys() & set(needed))), own)
    missing = [k for k in needed if k not in arranged]
    if missing:
        raise InputError(
            f"{origin} lacks {', '.join(missing[:_SHOWN])}" + (" and more" if len(missing) > _SHOWN else ""),
            f"it has {shapes(tensors)}",
        )
    wrong = [
        f"{k} is {tuple(arranged[k].shape)}, the model's {tuple(v.shape)}"
        for k, v in own.items()
        if k in arranged and arranged[k].shape != v.shape
    ]
    if wrong:
        raise InputError(f"{origin}: {'; '.join(wrong[:3])}", "it belongs to another model")
    with torch.no_grad():
        for name, value in own.items():
            if name in arranged:
                value.copy_(arranged[name])


def _with_tied(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights, which files such as safetensors keep once, under all their names in the module."""
    by_memory = {(own[k].data_ptr(), own[k].shape): v for k, v in found.items() if k in own and own[k].numel()}
    places = {k: (v.data_ptr(), v.shape) for k, v in own.items() if k not in found}
    return found | {k: by_memory[place] for k, place in places.items() if place in by_memory}


def _spellings(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights under their names, without wrappers' prefixes, and without each common prefix of a trainer."""
    bare = unwrap(tensors)
    prefixes = {k.split(".", 1)[0] + "." for k in bare if "." in k}
    stripped = [{k.removeprefix(p): v for k, v in bare.items() if k.startswith(p)} for p in prefixes]
    return [dict(tensors), bare, *stripped]


def mlp_layers(names: Iterable[str]) -> list[str]:
    """What stands before ``.weight`` for each layer of an MLP's weights, in order; empty for a bare ``weight``."""
    return [re.sub(r"\.?weight$", "", k) for k in names if k == "weight" or k.endswith(".weight")]


def mlp_names(names: Iterable[str]) -> dict[str, str]:
    """Names of an MLP's weights in a file and in the module that :func:`infer_mlp` makes of them."""
    return {
        (f"{stem}.{part}" if stem else part): f"layers.{i}.{part}"
        for i, stem in enumerate(mlp_layers(names))
        for part in ("weight", "bias")
    }


def infer_mlp(
    tensors: Mapping[str, Tensor],
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    activation: str | None = None,
    beta: float = 1.0,
    parametrization: str = "standard",
    origin: str = "the weights",
) -> tuple[MLP, ModelSpec, str]:
    """An MLP with these weights, told from their names and shapes.

    Layers stand in the order of the file, which is that of their definition; the sizes must fit together.

    Args:
        tensors: ``….weight`` (out, in) and ``….bias`` (out,) of each layer.
        input_shape: of one sample of the data, checked against the first layer.
        outputs: C of the data, checked against the last.
        activation: between layers; the weights do not tell it.
        beta: sharpness of softplus.
        parametrization: ``standard`` or ``ntk``.
        origin: for messages.

    Returns:
        The module in float64, its specification, and a line that says what was assumed.

    Raises:
        InputError: no such structure, sizes that do not fit, or an activation that is needed and not given.
    """
    layers = _layers(unwrap(tensors), origin)
    features, widths = math.prod(input_shape), tuple(len(layer.weight) for layer in layers[:-1])
    _check_ends(layers, input_shape, outputs, origin)
    if widths and activation is None:
        raise InputError(
            f"{origin}: an MLP {features}-{'-'.join(map(str, widths))}-{outputs}; weights do not tell the activation",
            f"pass --activation {', '.join(ACTIVATIONS)}",
        )
    spec = ModelSpec(
        kind="mlp",
        width=max(widths, default=1),
        depth=len(widths),
        activation=activation or "softplus",
        beta=beta,
        parametrization=parametrization,
        widths=widths if len(set(widths)) > 1 else None,
        bias=layers[0].bias is not None,
    )
    module = _filled(spec, widths, layers)
    sizes = "-".join(map(str, (features, *widths, outputs)))
    how = f", {activation}" + (f" (β = {beta:g})" if activation == "softplus" and beta != 1 else "") if widths else ""
    return module, spec, f"MLP {sizes} from names and shapes{how}, {parametrization} parametrisation"


@dataclass(frozen=True)
class _Layer:
    """Of an MLP in a file: its name there, weight (out, in) and bias (out,)."""

    stem: str
    weight: Tensor
    bias: Tensor | None


def _layers(tensors: Mapping[str, Tensor], origin: str) -> list[_Layer]:
    """The layers in the order of the file.

    Raises:
        InputError: the tensors are not those of an MLP.
    """
    remedy = f"name the code with --model module:factory; it has {shapes(tensors)}"
    weights = {k: v for k, v in tensors.items() if k == "weight" or k.endswith(".weight")}
    layers = [
        _Layer(stem, weight, tensors.get(f"{stem}.bias" if stem else "bias"))
        for stem, weight in zip(mlp_layers(weights), weights.values(), strict=True)
    ]
    biases = [layer for layer in layers if layer.bias is not None]
    linear = all(v.ndim == 2 and v.is_floating_point() for v in weights.values())
    if not layers or not linear or len(tensors) > len(layers) + len(biases) or len(biases) not in (0, len(layers)):
        raise InputError(f"{origin} does not look like the weights of an MLP", remedy)
    _check_fit(layers, list(weights), origin, remedy)
    return layers


def _check_fit(layers: Sequence[_Layer], names: Sequence[str], origin: str, remedy: str) -> None:
    """Whether each layer takes what the one before it gives, and adds a bias of that size."""
    for (a, one), (b, two) in pairwise(zip(names, layers, strict=True)):
        if two.weight.shape[1] != one.weight.shape[0]:
            sizes = f"{a} {tuple(one.weight.shape)} does not lead to {b} {tuple(two.weight.shape)}"
            raise InputError(f"{origin}: {sizes}", f"no MLP: {remedy}")
    for layer in layers:
        if layer.bias is not None and layer.bias.shape != layer.weight.shape[:1]:
            raise InputError(f"{origin}: the bias of {layer.stem or 'the layer'} does not fit its weight", remedy)


def _check_ends(layers: Sequence[_Layer], input_shape: tuple[int, ...], outputs: int, origin: str) -> None:
    """Whether inputs and targets of the data fit the first and last layer."""
    features, takes, gives = math.prod(input_shape), layers[0].weight.shape[1], len(layers[-1].weight)
    if takes != features:
        raise InputError(
            f"{origin} takes {takes} inputs, the data have {features} (shape {input_shape})",
            "give the data that the model was trained on",
        )
    if gives != outputs:
        raise InputError(
            f"{origin} has {gives} outputs, the targets of the data {outputs}",
            "choose --targets or --classes to fit; --targets onehot gives an output a class",
        )


def _filled(spec: ModelSpec, widths: tuple[int, ...], layers: Sequence[_Layer]) -> MLP:
    """The module in float64 with the weights of the file."""
    module = MLP(
        layers[0].weight.shape[1],
        len(layers[-1].weight),
        width=spec.width,
        depth=spec.depth,
        activation=spec.resolved_activation,
        beta=spec.beta,
        parametrization=spec.parametrization,
        widths=widths,
        bias=spec.bias,
    ).double()
    with torch.no_grad():
        for linear, layer in zip(module.layers, layers, strict=True):
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(layer.weight)
            if layer.bias is not None:
                linear.bias.copy_(layer.bias)
    return module
