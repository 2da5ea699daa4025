"""What a command examines: a network at one θ with its training data, from a run of lplr or from anyone's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.data import Dataset, DataSpec, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.factories import Word
from lplr_cli.models import (
    DTYPES,
    ModelSpec,
    build_model,
    check_outputs,
    infer_mlp,
    load_weights,
    mlp_names,
    refuse_other_size,
    refuse_unnamed_code,
    take_logits,
    unwrap,
)
from lplr_cli.ntk import Network
from lplr_cli.runs import RunDirectory
from lplr_cli.runs.checkpoint import Checkpoint, is_checkpoint, parse_checkpoint
from lplr_cli.runs.foreign_weights import Weights, find_weights, read_file


@dataclass(frozen=True)
class Source:
    """What the user says of a file; all None for a checkpoint of lplr that needs no code of the user's.

    What a file tells itself is not overruled: here it may be said again, and code must be.

    Attributes:
        model: ``module:factory`` of the network's code; without it an MLP is read from names and shapes.
        arguments: keyword arguments of the factory.
        data: the training data.
        activation, beta, parametrization: of an MLP read from names and shapes.
        data_dir: where the original files of a known data set lie now.
    """

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: DataSpec | None = None
    activation: str | None = None
    beta: float = 1.0
    parametrization: str = "standard"
    data_dir: Path | None = None

    @classmethod
    def from_word(cls, word: Word) -> Source:
        """What the user said of the code of a run."""
        data = None if word.data is None else DataSpec(word.data)
        return cls(model=word.model, arguments=word.arguments or {}, data=data)

    @property
    def word(self) -> Word:
        """What is said of code."""
        return Word(self.model, self.arguments, None if self.data is None else self.data.source)


OWN = Source()


@dataclass(frozen=True)
class Subject:
    """A network at one θ, with the data it is examined on.

    Attributes:
        path: of the file.
        module: in evaluation mode, parameters set, in the dtype of its file.
        dataset: all samples.
        step: of the optimiser; None when the file does not tell.
        spec: how the module was built; None for an exported program.
        assumptions: what was read off rather than written down, for the output.
        names: of the module's parameters by their names in the file, where these differ.
        loss_scale: s of the squared loss that the file tells; None where it tells none, or another loss.
    """

    path: Path
    module: nn.Module
    dataset: Dataset
    step: int | None
    spec: ModelSpec | None
    assumptions: tuple[str, ...] = ()
    names: Mapping[str, str] | None = None
    loss_scale: float | None = None

    def move_to(self, run: RunDirectory, step: int) -> None:
        """Set θ to that of another checkpoint of the same run.

        Raises:
            InputError: it lacks parameters of the module, or has others.
        """
        tensors: Mapping[str, Tensor] = run.load(step).parameters
        if self.names is not None:
            tensors = {self.names.get(k, k): v for k, v in unwrap(tensors).items()}
        load_weights(self.module, tensors, str(run.checkpoint_path(step)), partial=True)

    def network(self, dtype: torch.dtype, device: torch.device) -> Network:
        """For the kernel."""
        return Network.from_module(self.module, dtype=dtype, device=device)


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """``path`` itself, or of a run directory the checkpoint of ``step``, the last one by default."""
    if not path.is_dir():
        return path
    if not (path / "run.json").exists():
        saved = _saved_model(path)
        if saved is not None:
            return saved
    run = RunDirectory.open(path)
    steps = run.checkpoint_steps()
    if not steps:
        raise InputError(f"{path} has no checkpoint", "give a run with checkpoints, or a file")
    return run.checkpoint_path(steps[-1] if step is None else step)


def _saved_model(folder: Path) -> Path | None:
    """The weights in a folder of Hugging Face's, its last checkpoint where it holds several; None in other folders.

    Raises:
        InputError: they are spread over several files.
    """
    numbered = {int(p.name[11:]): p for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal() and p.is_dir()}
    for place in (folder, *([numbered[max(numbered)]] if numbered else [])):
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (place / name).is_file():
                return place / name
            if (place / f"{name}.index.json").is_file():
                raise InputError(f"{place} holds its weights in several files", "save it with max_shard_size='50GB'")
    return None


def open_subject(path: Path, source: Source = OWN, *, step: int | None = None) -> Subject:
    """Open a checkpoint of lplr, or weights of anyone's with what the user says of them.

    Args:
        path: a file, or a run directory.
        source: for files that do not describe themselves.
        step: which checkpoint of a run directory; the last by default.

    Raises:
        InputError: unreadable, incomplete or contradictory, naming keys and shapes; or data that changed.
    """
    path = find_checkpoint(path, step)
    content = read_file(path)
    if is_checkpoint(content):
        return _own(parse_checkpoint(content, path), path, source)
    weights = content if isinstance(content, Weights) else find_weights(content, str(path))
    dataset = load_dataset(_named(source.data, path))
    shape = tuple(dataset.inputs.shape[1:])
    if weights.program is not None:
        if source.model is not None:
            raise InputError(f"{path} is an exported program, which has its own code", "leave out --model")
        module: nn.Module = weights.program
        spec, assumption = None, f"the exported program {path.name}"
    elif source.model is not None:
        spec = ModelSpec(kind=source.model, arguments=dict(source.arguments))
        module = build_model(spec, shape, dataset.outputs)
        load_weights(module, weights.tensors, weights.origin)
        assumption = f"code of {source.model}, weights of {weights.origin}"
    else:
        module, spec, assumption = _mlp(weights.tensors, dataset, source, weights.origin)
    taken = take_logits(module.eval(), dataset)
    check_outputs(module, dataset)
    assumption += ", its logits" if taken else ""
    note = f" ({dataset.note})" if dataset.note else ""
    return Subject(
        path,
        module,
        dataset,
        weights.step,
        spec,
        (assumption, f"data {dataset.origin}{note}"),
    )


def _named(data: DataSpec | None, path: Path) -> DataSpec:
    """The data, which somebody must have named."""
    if data is None:
        raise InputError(f"{path} does not tell its training data", "name them: --data FILE, mnist or module:factory")
    return data


def _mlp(
    tensors: Mapping[str, Tensor], dataset: Dataset, source: Source, origin: str
) -> tuple[nn.Module, ModelSpec, str]:
    """An MLP read from names and shapes."""
    return infer_mlp(
        tensors,
        tuple(dataset.inputs.shape[1:]),
        dataset.outputs,
        activation=source.activation,
        beta=source.beta,
        parametrization=source.parametrization,
        origin=origin,
    )


def _own(checkpoint: Checkpoint, path: Path, source: Source) -> Subject:
    """A checkpoint of lplr; what it says itself is not overruled, what a recorder was not told is asked for."""
    if checkpoint.model is not None and source.activation:
        raise InputError(f"{path} knows its own model", "leave out --activation")
    model = None if checkpoint.model is None else checkpoint.model.vouched(source.word)
    data = _named(source.data if checkpoint.data is None else _same_data(checkpoint.data, source, path), path)
    refuse_unnamed_code(model, data)
    if source.data_dir is not None:
        data = replace(data, data_dir=str(source.data_dir))
    dataset = load_dataset(data)
    if checkpoint.data_sha256 and dataset.fingerprint != checkpoint.data_sha256:
        raise InputError(f"the data of {path} changed since it was written", "restore the data")
    shape = tuple(dataset.inputs.shape[1:])
    if model is None and source.model is None:
        module, spec, assumption = _mlp(checkpoint.parameters, dataset, source, str(path))
        names = mlp_names(unwrap(checkpoint.parameters))
        return Subject(path, module.eval(), dataset, checkpoint.step, spec, (assumption,), names, checkpoint.loss_scale)
    spec = model or ModelSpec(kind=source.model or "", arguments=dict(source.arguments))
    refuse_other_size(spec, dataset, checkpoint.parameters, str(path))
    built = build_model(spec, shape, dataset.outputs, seed=checkpoint.seed, dtype=DTYPES[checkpoint.dtype])
    # Buffers and frozen parameters, which training leaves alone, are those of the module as built.
    load_weights(built, checkpoint.parameters, str(path), partial=True)
    take_logits(built.eval(), dataset)
    check_outputs(built, dataset)
    return Subject(path, built, dataset, checkpoint.step, spec, loss_scale=checkpoint.loss_scale)


def _same_data(own: DataSpec, source: Source, path: Path) -> DataSpec:
    """The data that a checkpoint knows, with which everything that the user says of them must agree."""
    if source.data is None:
        return own
    settled = own.vouched(source.word)
    name = own.differing(source.data)
    if name is not None:
        given = getattr(source.data, name)
        raise InputError(f"{path} knows its own data: {name} is {getattr(own, name)}, not {given}", "leave it out")
    return settled
