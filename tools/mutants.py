"""Mutants of the code that proves: each one is a term, a factor, a margin or a condition less, and must fail a test.

    python -m tools.mutants                     every file of tests/mutants.toml (hours)
    python -m tools.mutants lplr_cli/linalg/verified.py --only 0:40

How they are run stands in :mod:`tools.mutant_runs`. What was found is kept in build/mutants, so that a run that was
stopped goes on where it was. Mutants that change nothing that could be wrong stand in tests/mutants.toml with the
reason, one by one or by function.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import os
import re
import sys
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tools.mutant_runs import judge, survivors

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
    "rounded_up": "rounded_down",
    "rounded_down": "rounded_up",
    "any": "all",
    "all": "any",
}
# Methods without which their object has the same type.
_DROPPED = {"abs", "square", "sqrt", "clamp_min", "clamp_max"}


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, what it is, and the source of the whole module with it.

    Attributes:
        function: its name, with those of the class and the functions around it.
        before, after: the first lines of what is changed.
        make: the changed source of the module.
        line, last: of the statement that is changed, in the source; of everything where that is not known.
        digest: of the outermost function or the class that it lies in, so that the change is known again.
    """

    function: str
    before: str
    after: str
    make: Callable[[], str]
    line: int
    last: int
    digest: str

    @property
    def name(self) -> str:
        """What a table of equivalents calls it."""
        return f"{self.function}: {self.before} -> {self.after}"


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its source; those of one name are numbered."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    bodies = _digests(tree)
    for owner, statement, parent, node in _expressions(tree):
        lines = _lines(statement)
        # A constant alone says little.
        shown = parent if isinstance(node, ast.Constant) else node
        for new in _changes(node):
            after = ast.unparse(new if shown is node else _replaced(shown, node, new))
            make, digest = partial(_source, tree, node, new), bodies[owner.split(".")[0]]
            mutant = Mutant(owner, _short(ast.unparse(shown)), _short(after), make, *lines, digest)
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
        digest = hashlib.sha256(changed.encode()).hexdigest()
        make = partial(str, changed)
        yield entry["file"], Mutant(entry["what"], entry["before"], entry["after"], make, 0, sys.maxsize, digest)


def _short(text: str) -> str:
    """The first line of a statement."""
    return text.splitlines()[0]


def _digests(tree: ast.Module) -> dict[str, str]:
    """A digest of every function and class of a module."""
    return {
        node.name: hashlib.sha256(ast.dump(node).encode()).hexdigest()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """The first and the last line of a statement, of its head where it has a body."""
    body = getattr(statement, "body", None)
    return statement.lineno, body[0].lineno - 1 if body else statement.end_lineno or statement.lineno


def _expressions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, ast.AST, ast.AST]]:
    """What stands inside functions: the function's name, the statement, the parent and the node.

    Annotations, the words of errors and the axes of tensors are left out.
    """

    def walk(
        node: ast.AST, parent: ast.AST, owner: str, statement: ast.stmt | None
    ) -> Iterator[tuple[str, ast.stmt, ast.AST, ast.AST]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            owner = f"{owner}.{node.name}" if owner else node.name
            for inner in node.body:
                yield from walk(inner, node, owner, inner)
            return
        if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "dim"):
            return
        if isinstance(node, ast.stmt):
            statement = node
        if owner and statement is not None:
            yield owner, statement, parent, node
        children = [node.value] if isinstance(node, ast.AnnAssign) else list(ast.iter_child_nodes(node))
        for child in children:
            if child is not None:
                yield from walk(child, node, owner, statement)

    yield from walk(tree, tree, "", None)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants of the files given; exit 1 when one survives that the table does not excuse."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("files", nargs="*", help="of tests/mutants.toml; all by default")
    parser.add_argument(
        "--only", default=":", help="a slice of the mutants of each file, START:STOP or START:STOP:STEP"
    )
    parser.add_argument("--functions", default="", help="a regular expression that the function's name must match")
    parser.add_argument("--survivors", action="store_true", help="only those that survived when they were tried last")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests a mutant must survive")
    parser.add_argument("--list", action="store_true", help="name the mutants and run none")
    parser.add_argument("--named", action="store_true", help="run only those that the table spells out")
    given = parser.parse_args(arguments)
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    if given.named:
        chosen: dict[str, list[Mutant]] = {}
        for file, mutant in named(table):
            chosen.setdefault(file, []).append(mutant)
    else:
        part = slice(*(int(v) if v else None for v in given.only.split(":")))
        chosen = {f: _open(table, f, given.functions)[part] for f in given.files or table["file"]}
        if given.survivors:
            chosen = {f: left for f, every in chosen.items() if (left := survivors(f, every))}
    if given.list:
        for left in chosen.values():
            print("\n".join(m.name for m in left))
        return 0
    bad = 0
    for file, left in chosen.items():
        bad |= _apart(file, left, table["file"][file]["tests"], given.budget)
    return bad


def _open(table: dict[str, Any], file: str, functions: str) -> list[Mutant]:
    """The mutants of a file that the table does not set aside."""
    equivalent = {e["mutant"] for e in table["file"][file].get("equivalent", [])}
    aside = [re.compile(e["functions"]) for e in table["file"][file].get("aside", [])]
    every = mutants((ROOT / file).read_text(encoding="utf-8"))
    return [
        m
        for m in every
        if re.search(functions, m.function)
        and m.name not in equivalent
        and not any(pattern.fullmatch(m.function) for pattern in aside)
    ]


def _apart(file: str, chosen: Sequence[Mutant], tests: Sequence[str], budget: float) -> int:
    """One file in a process of its own, as pytest collects once a process; 1 when a mutant survives."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(judge(file, chosen, tests, budget))
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
