"""The specification of a model, from which it can be built again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.data import Dataset, DataSpec
from lplr_cli.errors import InputError, first_line
from lplr_cli.factories import Word, import_factory, is_factory_reference, model_options, refuse_unnamed
from lplr_cli.models.mlp import MLP, initialise
from lplr_cli.models.resnet import ResNet
from lplr_cli.schema import check_fields, is_plain

DTYPES = {"float64": torch.float64, "float32": torch.float32}
# A network of lplr's own beyond these is refused before anything is allocated: 8 GiB of float64.
MOST_LAYERS = 10_000
MOST_PARAMETERS = 2**30


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
        told_by: the file that this was read from; code that it names does not run until :meth:`vouched`.
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
    told_by: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """A list of widths, as JSON has it, becomes a tuple.

        Raises:
            InputError: a value of another type than it should have.
        """
        if isinstance(self.widths, list):
            object.__setattr__(self, "widths", tuple(self.widths))
        check_fields(self, "the model")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what does not concern the kind is left out."""
        record = asdict(self)
        del record["told_by"]
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
    def from_dict(cls, record: Any, told_by: str = "a file") -> ModelSpec:
        """The inverse of :meth:`to_dict`; unknown keys and values of the wrong type are refused.

        Code that the record names does not run before the user has named it, too: see :meth:`vouched`.
        """
        known = {f.name for f in fields(cls)} - {"told_by"}
        if not isinstance(record, Mapping) or not set(record) <= known or "kind" not in record:
            keys = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise InputError(f"model specification with keys {keys}", "it comes from another version")
        if not is_plain(record.get("arguments")):
            raise InputError(f"{told_by} has arguments that are no plain values", "it comes from another program")
        return cls(**record, told_by=told_by)

    @property
    def code(self) -> str | None:
        """The options that name the code of this model; None where it needs none of the user's."""
        return model_options(self.kind, self.arguments) if is_factory_reference(self.kind) else None

    def vouched(self, word: Word) -> ModelSpec:
        """This model as the user's, where the user says the same; unchanged where the user says nothing.

        Raises:
            InputError: the user says something else.
        """
        if word.model is None:
            return self
        given = model_options(word.model, word.arguments or {})
        own = self.code or f"--model {self.kind}"
        if word.model != self.kind or dict(word.arguments or {}) != self.arguments:
            raise InputError(f"{self.told_by or 'the run'} knows its own model: {own}, not {given}", "give the same")
        return replace(self, told_by=None)

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


def refuse_unnamed_code(model: ModelSpec | None, data: DataSpec | None) -> None:
    """Refuse code of a model and of data that files name and the user does not, both in one line.

    Raises:
        UnnamedCodeError: with the options that name it.
    """
    unnamed = [s for s in (model, data) if s is not None and s.told_by is not None and s.code is not None]
    if unnamed:
        refuse_unnamed(unnamed[0].told_by, *(s.code or "" for s in unnamed))


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
        InputError: a model that does not exist, cannot take such inputs, has no trainable parameter or more than
            :data:`MOST_PARAMETERS`; or code that a file names and the user does not.
    """
    if is_factory_reference(spec.kind):
        return _from_factory(spec, seed).to(dtype)
    size = parameter_count(_bare(spec, input_shape, outputs, torch.device("meta")))
    if size > MOST_PARAMETERS:
        raise InputError(f"the model has {size:,} parameters", f"networks up to {MOST_PARAMETERS:,} are built")
    model = _bare(spec, input_shape, outputs, torch.device("cpu")).to(dtype)
    parametrization = spec.parametrization if spec.kind == "mlp" else "standard"
    initialise(model, spec.init, parametrization, torch.Generator().manual_seed(seed))
    return model


def refuse_other_size(spec: ModelSpec, dataset: Dataset, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse to build a network of lplr's own that is larger than the weights it is to be given.

    Raises:
        InputError: with both sizes.
    """
    if is_factory_reference(spec.kind):
        return
    size = parameter_count(_bare(spec, tuple(dataset.inputs.shape[1:]), dataset.outputs, torch.device("meta")))
    held = sum(t.numel() for t in tensors.values())
    if size > held:
        raise InputError(
            f"{origin} holds {held:,} parameters, the model that it names {size:,}", "it belongs to another model"
        )


def _from_factory(spec: ModelSpec, seed: int) -> nn.Module:
    refuse_unnamed(spec.told_by, spec.code or "")
    torch.manual_seed(seed)
    try:
        produced = import_factory(spec.kind)(**spec.arguments)
    except TypeError as error:
        raise InputError(f"{spec.kind} refused its arguments ({error})", "pass --model-arg key=value") from error
    if not isinstance(produced, nn.Module):
        raise InputError(f"{spec.kind} returned {type(produced).__name__}", "return a torch.nn.Module")
    return produced


def _bare(spec: ModelSpec, input_shape: tuple[int, ...], outputs: int, device: torch.device) -> nn.Module:
    """A network of lplr's own before its weights are drawn; on the meta device nothing but its shape."""
    if spec.kind == "mlp":
        if spec.depth > MOST_LAYERS or len(spec.widths or ()) > MOST_LAYERS:
            raise InputError(f"the model has more than {MOST_LAYERS:,} hidden layers", "lower --depth")
        with device:
            return MLP(
                math.prod(input_shape),
                outputs,
                width=spec.width,
                depth=spec.depth,
                activation=spec.resolved_activation,
                beta=spec.beta,
                parametrization=spec.parametrization,
                widths=spec.widths,
                bias=spec.bias,
            )
    if spec.kind == "resnet":
        if len(input_shape) != 3:
            raise InputError(f"a resnet takes images, not samples of shape {input_shape}", "use --model mlp")
        activation = spec.resolved_activation
        with device:
            return ResNet(input_shape[0], outputs, width=spec.width, activation=activation, beta=spec.beta)
    raise InputError(f"model {spec.kind!r} is unknown", "choose mlp, resnet or module:factory")


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters P."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextmanager
def logits_alone(module: nn.Module) -> Iterator[None]:
    """For a while, as :func:`take_logits`, in the middle of a loop that wants the whole record."""
    hook = module.register_forward_hook(_logits)
    try:
        yield
    finally:
        hook.remove()


def _logits(module: nn.Module, inputs: Any, answer: Any) -> Any:
    """A forward hook."""
    return answer["logits"] if isinstance(answer, Mapping) and "logits" in answer else answer


def take_logits(module: nn.Module, dataset: Dataset) -> bool:
    """Let a module whose answer is a record with ``logits``, as those of transformers are, give these alone.

    Returns:
        Whether it is such a module.
    """
    parameter = next(module.parameters(), None)
    inputs, _ = dataset.tensors(None if parameter is None else parameter.dtype)
    try:
        with torch.no_grad():
            out = module(inputs[:1])
    except Exception:  # whatever it is, check_outputs says it
        return False
    if not isinstance(out, Mapping) or not isinstance(out.get("logits"), Tensor):
        return False
    module.register_forward_hook(_logits)
    return True


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
        remedy = "make them agree" + ("; --targets onehot gives an output a class" if dataset.outputs == 1 else "")
        raise InputError(f"the model has {out.numel()} outputs, the targets {dataset.outputs}", remedy)
