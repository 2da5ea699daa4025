"""Weights that other programs wrote: torch files read without unpickling, safetensors, exported programs."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError, first_line

# Where trainers keep the weights inside a checkpoint, most specific first.
NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "parameters")
_STEPS = ("step", "global_step", "iteration", "iter_num", "it")
# A checkpoint that unpacks to more than this many times its size, or than this, is no checkpoint.
_MOST_BYTES = 64 << 30
_DEEPEST = 8


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
    if not path.is_file():
        raise InputError(f"no checkpoint {path}", "give a file such as RUN/checkpoints/step-000000.pt")
    _refuse_bombs(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {culprit.group(1)}" if culprit else "objects"
        raise InputError(
            f"{path} holds {what} that only unpickling could read, which may run code",
            "where you trust it, keep its tensors: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')",
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
    if not path.is_file():
        raise InputError(f"no checkpoint {path}", "give a file of weights or a run directory")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})", "check the file") from error
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04" and _is_exported(path):
        return read_exported(path)
    return read_record(path)


def find_weights(record: Any, origin: str) -> Weights:
    """The state dict in a record of a trainer.

    Raises:
        InputError: none, naming what is there.
    """
    if isinstance(record, Tensor) or not isinstance(record, Mapping):
        raise InputError(
            f"{origin} holds a {type(record).__name__}", "save a state dict: torch.save(model.state_dict(), …)"
        )
    step = next((int(record[k]) for k in _STEPS if isinstance(record.get(k), int)), None)
    level: Mapping[Any, Any] = record
    where: list[str] = []
    for _ in range(_DEEPEST):
        tensors = {str(k): v for k, v in level.items() if isinstance(v, Tensor)}
        inner = next((k for k in NESTS if isinstance(level.get(k), Mapping) and level[k]), None)
        if tensors and (inner is None or len(tensors) == len(level)):
            place = f"{origin} ({'.'.join(where)})" if where else origin
            return Weights(tensors, place, step)
        if inner is None:
            break
        where.append(inner)
        level = level[inner]
    present = ", ".join(str(k) for k in list(level)[:20]) or "nothing"
    raise InputError(
        f"{origin} has no state dict; it has {present}", f"keep the tensors below one of {', '.join(NESTS)}"
    )


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


def _refuse_bombs(path: Path) -> None:
    """Refuse a zip whose members claim far more than the file could hold: torch stores tensors uncompressed."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # damaged directories raise many kinds
        raise InputError(f"cannot read {path} ({first_line(error)})", "the file is damaged") from error
    if size > min(_MOST_BYTES, 4 * path.stat().st_size + (1 << 20)):
        raise InputError(
            f"{path} unpacks to {size:,} bytes", "torch does not compress checkpoints: it is no checkpoint"
        )


# An exported program may name any function of torch by its path, expressions that are evaluated, and Python guards.
# Only operators of tensors and arithmetic of sizes are let through.
_OPERATORS = re.compile(r"torch\.ops\.(?:aten|prims)\.\w+\.\w+|_operator\.\w+|math\.(?:ceil|floor|trunc|sqrt)")
_DENIED = re.compile(r"torch\.ops\.aten\.(?:from_file|save|load)\b")
_EXPRESSION = re.compile(
    r"(?:\s|\d+|[-+*/(),]|'[su]\d+'|[su]\d+\b|Symbol\b|Integer\b|positive=True|integer=True|"
    r"Max\b|Min\b|Mod\b|FloorDiv\b|CleanDiv\b|PythonMod\b|Mul\b|Add\b|Pow\b)*"
)
_MEMBERS = re.compile(
    r"[^/]+/(?:data/weights/weight_\d+|data/constants/tensor_\d+|data/(?:weights|constants)/\w+_config\.json|"
    r"models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|"
    r"\.data/(?:version|serialization_id|alignment))"
)


def _is_exported(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith(("archive_format", "models/model.json")) for n in archive.namelist())
    except Exception:  # what it is, its reader will say
        return False


def read_exported(path: Path) -> Weights:
    """A program written by ``torch.export.save``, screened so that loading it runs nothing but tensor operators.

    Raises:
        InputError: pickled members, functions other than tensor operators, or a damaged file.
    """
    _refuse_bombs(path)
    refused = "export it again with torch.export.save, plain tensors only"
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean, "w") as copy:
            for name in archive.namelist():
                if not _MEMBERS.fullmatch(name):
                    raise InputError(f"{path} has a member {name!r} that exported programs do not need", refused)
                content = archive.read(name)
                if name.endswith(".json"):
                    record = json.loads(content)
                    _screen(record, path)
                    if isinstance(record, dict) and record.get("guards_code"):
                        record["guards_code"] = []  # Python text that loading would compile
                    content = json.dumps(record).encode()
                elif name.endswith(".pt"):
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                copy.writestr(name, content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clean.seek(0)
            program = torch.export.load(clean)
            module = program.module()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {path} ({first_line(error)})", refused) from error
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    sizes = [s.shape[0] for s in _example_inputs(program) if s.ndim]
    batch = sizes[0] if sizes and not _is_dynamic(program) else None
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return Weights(tensors, str(path), program=_Program(module, batch))


def _walk(record: Any) -> Iterator[tuple[str, Any]]:
    stack = [record]
    while stack:
        level = stack.pop()
        if isinstance(level, dict):
            yield from level.items()
            stack += level.values()
        elif isinstance(level, list):
            stack += level


def _screen(record: Any, path: Path) -> None:
    for key, value in _walk(record):
        if key == "target" and isinstance(value, str):
            bad = _OPERATORS.fullmatch(value) is None or _DENIED.match(value) is not None
        elif key == "expr_str":
            bad = not isinstance(value, str) or not _EXPRESSION.fullmatch(value)
        elif key == "use_pickle":
            bad = value is not False
        else:
            bad = key in ("as_custom_obj", "as_operator") and value is not None
        if bad:
            raise InputError(
                f"{path} asks for {key} {str(value)[:80]!r}, which may run code", "export a program of tensor operators"
            )


def _example_inputs(program: Any) -> list[Tensor]:
    example = program.example_inputs
    return [v for v in (example[0] if example else ()) if isinstance(v, Tensor)]


def _is_dynamic(program: Any) -> bool:
    return bool(program.range_constraints)


class _Program(nn.Module):
    """An exported program that takes any number of samples, even where it was exported for a fixed one."""

    def __init__(self, module: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.program, self.batch = module, batch

    def train(self, mode: bool = True) -> _Program:
        """Exported programs have one mode: the one they were exported in."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for x of shape (n, …)."""
        if self.batch is None:
            out: Tensor = self.program(x)
            return out
        parts = []
        for part in torch.split(x, self.batch):
            filled = torch.cat([part, part[-1:].expand(self.batch - len(part), *part.shape[1:])])
            parts.append(self.program(filled)[: len(part)])
        return torch.cat(parts)
