"""Weights that other programs wrote: torch files read without unpickling, safetensors, exported programs."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError, first_line
from lplr_cli.reading import BULK, open_regular
from lplr_cli.runs.exported import is_exported, read_exported
from lplr_cli.schema import matches

# Where trainers keep the weights inside a checkpoint, most specific first.
NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "parameters")
_STEPS = ("step", "global_step", "iteration", "iter_num", "it")
_DEEPEST = 8
_REMEDY = "give a checkpoint such as RUN/checkpoints/step-000000.pt, or a file of weights"


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        tensors: by name, as in the file.
        origin: the file, and where in it, for messages.
        step: of the optimiser, where the file tells.
        program: the network itself, when the file is an exported program.
    """

    tensors: dict[str, Tensor]
    origin: str
    step: int | None = None
    program: nn.Module | None = field(default=None, compare=False)


def read_record(path: Path) -> Any:
    """What ``torch.save`` wrote, tensors and plain containers only; nothing in the file is executed.

    Raises:
        InputError: no such file, damaged, or holding objects that only unpickling could read.
    """
    with open_regular(path, BULK, _REMEDY) as stream:
        refuse_bombs(stream, path)
        return _unpickled(stream, path)


def _unpickled(stream: IO[bytes], path: Path) -> Any:
    head = stream.read(2)
    stream.seek(0)
    if head[:1] != b"\x80" and head != b"PK":
        raise InputError(
            f"{path} holds no weights",
            "give what torch.save or safetensors wrote; a log is for fit-rate, pl-ratio, audit or report",
        )
    try:
        # torch writes several lines about pickles that it did not make; the error below is the one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {culprit.group(1)}" if culprit else "objects"
        raise InputError(
            f"{path} holds {what} that only unpickling could read, which may run code",
            'where you trust it, keep its tensors, with its code at hand: python -c "import torch; '
            f"m = torch.load('{path}', weights_only=False); "
            "torch.save(getattr(m, 'state_dict', lambda: m['state_dict'])(), 'weights.pt')\"",
        ) from error
    except Exception as error:  # what torch raises on garbage is open-ended
        raise InputError(
            f"cannot read {path} ({first_line(error)})", "the file is truncated or no checkpoint"
        ) from error


def read_file(path: Path) -> Any:
    """What a file of weights holds, told by its content: :class:`Weights` of a safetensors file or an exported
    program, else the record that ``torch.save`` wrote.

    Raises:
        InputError: as :func:`read_record`.
    """
    with open_regular(path, BULK, _REMEDY) as stream:
        head, size = stream.read(9), stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
            return _read_safetensors(path)
        refuse_bombs(stream, path)
        if head[:4] == b"PK\x03\x04" and is_exported(stream):
            program, tensors = read_exported(stream, path)
            return Weights(tensors, str(path), program=program)
        return _unpickled(stream, path)


def refuse_strange(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that no network here computes with, or that would grow when they are copied.

    Raises:
        InputError: a sparse, quantised, nested, complex or meta tensor, or one that shows its numbers repeatedly.
    """
    for name, tensor in tensors.items():
        kind = _strange(tensor)
        if kind:
            raise InputError(f"{origin} has a {kind} tensor {name}", "save plain dense tensors: tensor.contiguous()")


def _strange(tensor: Tensor) -> str:
    if tensor.device.type != "cpu":
        return tensor.device.type
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    stored = tensor.untyped_storage().nbytes()
    return "repeated" if tensor.numel() * tensor.element_size() > stored else ""


def find_weights(record: Any, origin: str) -> Weights:
    """The state dict in a record of a trainer.

    Raises:
        InputError: none, naming what is there.
    """
    if isinstance(record, Tensor) or not isinstance(record, Mapping):
        raise InputError(
            f"{origin} holds a {type(record).__name__}", "save a state dict: torch.save(model.state_dict(), …)"
        )
    step = next((int(record[k]) for k in _STEPS if matches(record.get(k), int)), None)
    level: Mapping[Any, Any] = record
    where: list[str] = []
    for _ in range(_DEEPEST):
        tensors, inner = _tensors(level), _nest(level)
        if tensors and (inner is None or len(tensors) == len(level)):
            place = f"{origin} ({'.'.join(where)})" if where else origin
            refuse_strange(tensors, place)
            return Weights(tensors, place, step)
        if inner is None:
            break
        where.append(inner)
        level = level[inner]
    present = ", ".join(str(k) for k in list(level)[:20]) or "nothing"
    raise InputError(
        f"{origin} has no state dict; it has {present}", f"keep the tensors below one of {', '.join(NESTS)}"
    )


def _tensors(level: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(k): v for k, v in level.items() if isinstance(v, Tensor)}


def _nest(level: Mapping[Any, Any]) -> str | None:
    """The key below which a trainer keeps the state dict."""
    return next((k for k in NESTS if isinstance(level.get(k), Mapping) and level[k]), None)


def _read_safetensors(path: Path) -> Weights:
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:
        raise InputError(f"cannot read {path} ({first_line(error)})", "the file is no safetensors file") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors", "save the model's state dict")
    # The format keeps no order; that of a module's definition is told by its numbers.
    return Weights({k: tensors[k] for k in sorted(tensors, key=_natural)}, str(path))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def refuse_bombs(stream: IO[bytes], path: Path) -> None:
    """Refuse a zip whose members claim far more than the file could hold: torch stores tensors uncompressed.

    The stream is at its beginning before and after.
    """
    try:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            return
        with zipfile.ZipFile(stream) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # damaged directories raise many kinds
        raise InputError(f"cannot read {path} ({first_line(error)})", "the file is damaged") from error
    if size > min(BULK, 4 * stream.seek(0, os.SEEK_END) + (1 << 20)):
        raise InputError(
            f"{path} unpacks to {size:,} bytes", "torch does not compress checkpoints: it is no checkpoint"
        )
    stream.seek(0)
