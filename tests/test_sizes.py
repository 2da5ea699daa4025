"""How large a module, a body and the complexity of a function may be; ruff holds McCabe's at 10 (pyproject.toml)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lplr_cli

ROOT = Path(lplr_cli.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES, LONGEST_BODY, MOST_COMPLEX = 450, 50, 15


def bodies(source: str) -> Iterator[tuple[str, int]]:
    """Functions with the lines of their statements, the docstring aside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_modules_and_bodies_are_short() -> None:
    assert len(FILES) > 200
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= MOST_LINES, path
        long = [(name, lines) for name, lines in bodies(source) if lines > LONGEST_BODY]
        assert not long, f"{path}: {long}"


def test_no_function_is_complex() -> None:
    """Counted as radon does: comprehensions, conditions in expressions and their parts, too."""
    radon = pytest.importorskip("radon.complexity")
    for path in FILES:
        found = radon.cc_visit(path.read_text(encoding="utf-8"))
        methods = [m for block in found if hasattr(block, "methods") for m in block.methods]
        functions = [block for block in [*found, *methods] if not hasattr(block, "methods")]
        many = [(f.name, f.complexity) for f in functions if f.complexity > MOST_COMPLEX]
        assert not many, f"{path}: {many}"
