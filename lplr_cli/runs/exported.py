"""Programs of ``torch.export``, screened before torch reads them."""

from __future__ import annotations

import ast
import io
import json
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError, first_line

# An exported program may name any function of torch by its path, expressions that are evaluated, and Python guards.
# Only operators of tensors and arithmetic of sizes are let through.
_OPERATORS = re.compile(r"torch\.ops\.(?:aten|prims)\.\w+\.\w+|_operator\.\w+|math\.(?:ceil|floor|trunc|sqrt)")
_DENIED = re.compile(r"torch\.ops\.aten\.(?:from_file|save|load)\b")
_SYMBOL = re.compile(r"[su]\d{1,6}")
_FUNCTIONS = ("Integer", "Max", "Min", "Mod", "FloorDiv", "CleanDiv", "PythonMod", "Mul", "Add", "Pow")
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
# Of an expression: characters, nesting, largest exponent, bits of the largest number on the way.
_LONGEST, _DEEPEST, _EXPONENT, _MOST_BITS = 1000, 20, 8, 1024
_MEMBERS = re.compile(
    r"[^/]+/(?:data/weights/weight_\d+|data/constants/tensor_\d+|data/(?:weights|constants)/\w+_config\.json|"
    r"models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|"
    r"\.data/(?:version|serialization_id|alignment))"
)


def is_exported(stream: IO[bytes]) -> bool:
    """Whether an archive is an exported program; the stream is at its beginning before and after."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return any(n.endswith(("archive_format", "models/model.json")) for n in archive.namelist())
    except Exception:  # what it is, its reader will say
        return False
    finally:
        stream.seek(0)


def read_exported(stream: IO[bytes], path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """A program written by ``torch.export.save``, screened so that loading it runs nothing but tensor operators.

    Returns:
        The program as a module, and its tensors.

    Raises:
        InputError: pickled members, functions other than tensor operators, expressions that are no small arithmetic
            of sizes, or a damaged file.
    """
    refused = "export it again with torch.export.save, plain tensors only"
    try:
        clean = _screened(stream, path, refused)
        with _quiet():
            program = torch.export.load(clean)
            module = program.module()
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds for damaged programs
        raise InputError(f"cannot read {path} ({first_line(error)})", refused) from error
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    sizes = [s.shape[0] for s in _example_inputs(program) if s.ndim]
    batch = sizes[0] if sizes and not program.range_constraints else None
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return _Program(module, batch), tensors


def _screened(stream: IO[bytes], path: Path, refused: str) -> io.BytesIO:
    """A copy of the archive with members that are known and screened."""
    clean = io.BytesIO()
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(clean, "w") as copy:
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
                with _quiet():
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            copy.writestr(name, content)
    clean.seek(0)
    return clean


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns, and logs, in many lines about programs that it does not like; the error is one."""
    former = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)


def is_small_arithmetic(text: str) -> bool:
    """Whether an expression is arithmetic of sizes that costs nothing to evaluate.

    Symbols, whole numbers, + − × ÷, remainders, minima and maxima, and powers with a small exponent. Evaluating it
    runs no other function, and no number on the way has more than :data:`_MOST_BITS` bits.
    """
    if len(text) > _LONGEST:
        return False
    try:
        return _bits(ast.parse(text, mode="eval").body, 0) <= _MOST_BITS
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _bits(node: ast.expr, depth: int) -> float:
    """A bound on the bits of the number that an expression gives; infinite for what is not let through."""
    if depth > _DEEPEST:
        return math.inf
    match node:
        case ast.Constant(value=bool()):
            return math.inf
        case ast.Constant(value=int(number)):
            return number.bit_length() + 1
        case ast.Name(id=name):
            return 64 if _SYMBOL.fullmatch(name) else math.inf
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _bits(operand, depth + 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(left, right, depth)
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _ARITHMETIC):
            return _bits(left, depth + 1) + _bits(right, depth + 1) + 1
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            return _call(name, arguments, keywords, depth)
    return math.inf


def _power(base: ast.expr, exponent: ast.expr, depth: int) -> float:
    if isinstance(exponent, ast.Call) and len(exponent.args) == 1:
        (exponent,) = exponent.args
    small = isinstance(exponent, ast.Constant) and type(exponent.value) is int and 0 <= exponent.value <= _EXPONENT
    return _bits(base, depth + 1) * max(exponent.value, 1) if small else math.inf  # type: ignore[attr-defined]


def _call(name: str, arguments: list[ast.expr], keywords: list[ast.keyword], depth: int) -> float:
    if name == "Symbol":
        return 64 if _are_marks(keywords) and _is_label(arguments) else math.inf
    if keywords or name not in _FUNCTIONS or not arguments:
        return math.inf
    if name == "Pow":
        return _power(arguments[0], arguments[1], depth) if len(arguments) == 2 else math.inf
    return sum(_bits(a, depth + 1) + 1 for a in arguments)


def _are_marks(keywords: list[ast.keyword]) -> bool:
    """Assumptions on a symbol, each of them true."""
    known = ("positive", "integer", "nonnegative")
    return all(k.arg in known and isinstance(k.value, ast.Constant) and k.value.value is True for k in keywords)


def _is_label(arguments: list[ast.expr]) -> bool:
    """One text that names a symbol."""
    if len(arguments) != 1 or not isinstance(arguments[0], ast.Constant):
        return False
    label = arguments[0].value
    return isinstance(label, str) and _SYMBOL.fullmatch(label) is not None


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
            bad = not isinstance(value, str) or not is_small_arithmetic(value)
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
