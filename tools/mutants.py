"""Mutants of the code that proves: each one is a term, a factor, a margin or a condition less, and must fail a test.

    python -m tools.mutants                     every file of tests/mutants.toml (hours)
    python -m tools.mutants lplr_cli/linalg/verified.py --only 0:40

Libraries for this start an interpreter a mutant, which costs a minute with torch on a small machine. Here torch is
imported once, each mutant is a fork that reads the changed source instead of the file, and only the tests named for
the file run. Mutants that change nothing that could be wrong stand in tests/mutants.toml with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import re
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "mutants.toml"
_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_SWAPPED = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "amax": "amin",
    "_up": "_down",
    "_down": "_up",
    "any": "all",
    "all": "any",
}
# Methods without which their object has the same type.
_DROPPED = {"abs", "square", "sqrt", "clamp_min", "clamp_max"}


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, what it is, and the source of the whole module with it."""

    function: str
    before: str
    after: str
    make: Callable[[], str]

    @property
    def name(self) -> str:
        """What a table of equivalents calls it."""
        return f"{self.function}: {self.before} -> {self.after}"


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its source; those of one name are numbered."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for owner, parent, node in _expressions(tree):
        # A constant alone says little.
        shown = parent if isinstance(node, ast.Constant) else node
        for new in _changes(node):
            after = ast.unparse(new if shown is node else _replaced(shown, node, new))
            mutant = Mutant(owner, _short(ast.unparse(shown)), _short(after), partial(_source, tree, node, new))
            seen[mutant.name] += 1
            if seen[mutant.name] > 1:
                mutant = replace(mutant, after=f"{mutant.after} ({seen[mutant.name]})")
            found.append(mutant)
    return found


def _source(tree: ast.Module, node: ast.AST, new: ast.AST) -> str:
    return ast.unparse(_replaced(tree, node, new))


def named(table: dict[str, Any]) -> Iterator[tuple[str, Mutant]]:
    """The mutants that the table spells out as text, each with its file.

    Raises:
        ValueError: the text does not stand in the file exactly once.
    """
    for entry in table["named"]:
        source = (ROOT / entry["file"]).read_text(encoding="utf-8")
        if source.count(entry["before"]) != 1:
            raise ValueError(f"{entry['file']} has {source.count(entry['before'])} times {entry['before']!r}")
        changed = source.replace(entry["before"], entry["after"])
        yield entry["file"], Mutant(entry["what"], entry["before"], entry["after"], partial(str, changed))


def _short(text: str) -> str:
    """The first line of a statement."""
    return text.splitlines()[0]


def _expressions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """What stands inside functions: the function's name, the parent and the node.

    Annotations, the words of errors and the axes of tensors are left out.
    """

    def walk(node: ast.AST, parent: ast.AST, owner: str) -> Iterator[tuple[str, ast.AST, ast.AST]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            owner = f"{owner}.{node.name}" if owner else node.name
            for statement in node.body:
                yield from walk(statement, node, owner)
            return
        if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "dim"):
            return
        if owner:
            yield owner, parent, node
        children = [node.value] if isinstance(node, ast.AnnAssign) else list(ast.iter_child_nodes(node))
        for child in children:
            if child is not None:
                yield from walk(child, node, owner)

    yield from walk(tree, tree, "")


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What takes the place of a node."""
    if isinstance(node, ast.BinOp):
        yield from _changed_arithmetic(node)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _BOUNDARY:
        yield ast.Compare(node.left, [_BOUNDARY[type(node.ops[0])](), *node.ops[1:]], node.comparators)
        yield ast.UnaryOp(ast.Not(), node) if len(node.ops) == 1 else ast.Constant(True)
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(0 if node.value else 1)
    elif isinstance(node, ast.If):
        yield ast.If(ast.Constant(False), node.body, node.orelse)
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        yield from _changed_calls(node)


def _changed_arithmetic(node: ast.BinOp) -> Iterator[ast.AST]:
    yield node.left
    if not isinstance(node.op, ast.Pow | ast.Div | ast.MatMult | ast.FloorDiv):
        yield node.right
    if isinstance(node.op, ast.Add | ast.Sub):
        yield ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)


def _changed_calls(node: ast.Call) -> Iterator[ast.AST]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _SWAPPED:
        func = copy.copy(node.func)
        setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", _SWAPPED[name])
        yield ast.Call(func, node.args, node.keywords)
    if isinstance(node.func, ast.Attribute) and name in _DROPPED:
        yield node.func.value
    elif name in _SWAPPED or name in ("hypot", "sqrt", "abs", "_bound", "nextafter") or name.startswith("_"):
        yield from node.args


def _replaced(tree: ast.AST, node: ast.AST, new: ast.AST) -> ast.AST:
    """A copy of ``tree`` with ``new`` in the place of ``node``."""

    class Change(ast.NodeTransformer):
        def visit(self, at: ast.AST) -> ast.AST:
            return new if at is node else self.generic_visit(at)

    # The copy keeps the node itself, by whose identity it is found.
    result: ast.AST = ast.fix_missing_locations(Change().visit(copy.deepcopy(tree, {id(node): node})))
    return result


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def outcome(path: Path, mutant: Mutant, tests: Sequence[str], timeout: float) -> str:
    """``killed``, ``survived`` or ``timeout`` (an endless loop: killed as well)."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, _Finder(name, path, mutant.make()))
        os._exit(_run(tests))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def _run(tests: Sequence[str]) -> int:
    import pytest

    try:
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))
    except BaseException:
        return 1


def _preload() -> None:
    """Import once what the package and its tests need of others; nothing of the package itself stays imported."""
    import hypothesis  # noqa: F401
    import mpmath  # type: ignore[import-untyped]  # noqa: F401
    import torch

    import lplr_cli.certificate  # noqa: F401

    torch.set_num_threads(1)
    for name in [m for m in sys.modules if m.split(".")[0] == "lplr_cli"]:
        del sys.modules[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants of the files given; exit 1 when one survives that the table does not excuse."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("files", nargs="*", help="of tests/mutants.toml; all by default")
    parser.add_argument(
        "--only", default=":", help="a slice of the mutants of each file, START:STOP or START:STOP:STEP"
    )
    parser.add_argument("--functions", default="", help="a regular expression that the function's name must match")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a mutant")
    parser.add_argument("--list", action="store_true", help="name the mutants and run none")
    parser.add_argument("--named", action="store_true", help="run only those that the table spells out")
    given = parser.parse_args(arguments)
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    if given.list:
        for file in given.files or table["file"]:
            print("\n".join(m.name for m in mutants((ROOT / file).read_text(encoding="utf-8"))))
        return 0
    _preload()
    if given.named:
        return _judge("named", [(f, m, table["file"][f]["tests"]) for f, m in named(table)], given.timeout)
    part = slice(*(int(v) if v else None for v in given.only.split(":")))
    bad = 0
    for file in given.files or table["file"]:
        equivalent = {e["mutant"] for e in table["file"][file].get("equivalent", [])}
        every = mutants((ROOT / file).read_text(encoding="utf-8"))
        chosen = [m for m in every if re.search(given.functions, m.function)][part]
        left = [(file, m, table["file"][file]["tests"]) for m in chosen if m.name not in equivalent]
        bad |= _judge(file, left, given.timeout)
    return bad


def _judge(title: str, chosen: Sequence[tuple[str, Mutant, Sequence[str]]], timeout: float) -> int:
    """Run them, print the survivors and a count; 1 when there are any."""
    counts: Counter[str] = Counter()
    for file, tests in {file: tests for file, _, tests in chosen}.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        if outcome(ROOT / file, Mutant("", "", "", partial(str, source)), tests, 600) != "survived":
            print(f"{file}: its tests fail without any change", flush=True)
            return 1
    for file, mutant, tests in chosen:
        found = outcome(ROOT / file, mutant, tests, timeout)
        counts[found] += 1
        if found == "survived":
            print(f"{file}: survived: {mutant.name}", flush=True)
        if sum(counts.values()) % 50 == 0:
            print(f"{title}: {dict(counts)} of {len(chosen)}", flush=True)
    print(f"{title}: {dict(counts)}", flush=True)
    return int(counts["survived"] > 0)


if __name__ == "__main__":
    sys.exit(main())
