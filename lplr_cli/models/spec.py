"""The specification of a model, from which it can be built again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.data import Dataset
from lplr_cli.errors import InputError, first_line
from lplr_cli.factories import import_factory, is_factory_reference
from lplr_cli.models.mlp import MLP, initialise
from lplr_cli.models.resnet import ResNet

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a model again; stored in run.json and in every checkpoint.

    Attributes:
        kind: ``mlp``, ``resnet`` or ``module:factory``.
        width: hidden units of the MLP, base channels of the ResNet.
        depth: hidden layers of the MLP.
        activation: None means softplus for the MLP and relu for the ResNet.
        beta: sharpness of softplus.
        parametrization: ``standard`` or ``ntk`` (MLP only).
        init: ``he``, ``lecun`` or ``normal``; a factory initialises its own model.
        arguments: keyword arguments of a factory.
        widths: units of each hidden layer of the MLP, where they differ; replaces ``width`` and ``depth``.
        bias: whether the MLP has biases.
    """

    kind: str = "mlp"
    width: int = 64
    depth: int = 4
    activation: str | None = None
    beta: float = 1.0
    parametrization: str = "standard"
    init: str = "he"
    arguments: dict[str, Any] = field(default_factory=dict)
    widths: tuple[int, ...] | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        """A list of widths, as JSON has it, becomes a tuple."""
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what does not concern the kind is left out."""
        record = asdict(self)
        if self.kind == "mlp":
            del record["arguments"]
            if self.widths is None:
                del record["widths"]
            if self.bias:
                del record["bias"]
        elif self.kind == "resnet":
            for name in ("arguments", "depth", "parametrization", "widths", "bias"):
                del record[name]
        else:
            record = {"kind": self.kind, "arguments": self.arguments}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`; unknown keys are refused."""
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown or "kind" not in record:
            raise InputError(f"model specification with keys {sorted(record)}", "it comes from another version")
        return cls(**record)

    @property
    def resolved_activation(self) -> str:
        """The activation with the default of the kind filled in."""
        return self.activation or ("softplus" if self.kind == "mlp" else "relu")

    @property
    def label(self) -> str:
        """Short name for directories and tables, e.g. ``mlp64``."""
        if self.kind in ("mlp", "resnet"):
            return f"{self.kind}{self.width}"
        return self.kind.replace(":", "-").replace(".", "-")


def build_model(
    spec: ModelSpec,
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Build and initialise the model; the same seed gives the same weights in float64 and, rounded, in float32.

    Args:
        spec: what to build.
        input_shape: shape of one sample.
        outputs: number of outputs C.
        seed: of the weights.
        dtype: of the parameters.

    Raises:
        InputError: a model that does not exist, cannot take such inputs, or has no trainable parameter.
    """
    if spec.kind == "mlp":
        features = 1
        for size in input_shape:
            features *= size
        model: nn.Module = MLP(
            features,
            outputs,
            width=spec.width,
            depth=spec.depth,
            activation=spec.resolved_activation,
            beta=spec.beta,
            parametrization=spec.parametrization,
            widths=spec.widths,
            bias=spec.bias,
        )
    elif spec.kind == "resnet":
        if len(input_shape) != 3:
            raise InputError(f"a resnet takes images, not samples of shape {input_shape}", "use --model mlp")
        model = ResNet(input_shape[0], outputs, width=spec.width, activation=spec.resolved_activation, beta=spec.beta)
    elif is_factory_reference(spec.kind):
        torch.manual_seed(seed)
        try:
            produced = import_factory(spec.kind)(**spec.arguments)
        except TypeError as error:
            raise InputError(f"{spec.kind} refused its arguments ({error})", "pass --model-arg key=value") from error
        if not isinstance(produced, nn.Module):
            raise InputError(f"{spec.kind} returned {type(produced).__name__}", "return a torch.nn.Module")
        return produced.to(dtype)
    else:
        raise InputError(f"model {spec.kind!r} is unknown", "choose mlp, resnet or module:factory")
    model = model.to(dtype)
    initialise(model, spec.init, spec.parametrization if spec.kind == "mlp" else "standard", _generator(seed))
    return model


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters P."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_outputs(module: nn.Module, dataset: Dataset) -> None:
    """Refuse a module that cannot take the samples or has another number of outputs than the targets.

    Raises:
        InputError: with the shapes.
    """
    parameter = next(module.parameters(), None)
    inputs, _ = dataset.tensors(None if parameter is None else parameter.dtype)
    if parameter is not None:
        inputs = inputs[:1].to(parameter.device)
    with torch.no_grad():
        try:
            out = module(inputs[:1])
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            shape = tuple(dataset.inputs.shape[1:])
            raise InputError(
                f"the model cannot take samples of shape {shape} ({first_line(error)})",
                "choose a model that fits the data",
            ) from error
    if not isinstance(out, Tensor):
        raise InputError(f"the model returns {type(out).__name__}", "return one tensor of shape (n, C)")
    if out.reshape(1, -1).shape[1] != dataset.outputs:
        raise InputError(f"the model has {out.numel()} outputs, the targets {dataset.outputs}", "make them agree")
