"""The layers of the package import downwards only; ``--help`` and the layers below cli stay free of Typer."""

from __future__ import annotations

import ast
from pathlib import Path

import lplr_cli

ROOT = Path(lplr_cli.__file__).parent
# From the top down; a layer may import those after it. What stands in BASE is below all.
LAYERS = [
    "cli",
    "api",
    "reporting",
    "audit",
    "ablation",
    "analysis",
    "training",
    "runs",
    "certificate",
    "curvature",
    "ntk",
    "linalg",
    "diagnostics",
    "models",
    "data",
]
BASE = {"batches", "errors", "escape", "factories", "losses", "reading", "schema", "shown"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "lplr_cli" and len(parts) > 1 else None


def test_layers_import_downwards_only() -> None:
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own not in LAYERS:
            continue
        for module in imports(path):
            other = layer_of(module)
            if other in LAYERS:
                assert LAYERS.index(other) >= LAYERS.index(own), f"{path} imports {module}"


def test_base_modules_import_no_layer() -> None:
    for name in BASE:
        assert not {layer_of(m) for m in imports(ROOT / f"{name}.py")} & set(LAYERS)


def test_only_cli_knows_typer_and_only_cli_and_reporting_print() -> None:
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if own != "cli":
            assert "typer" not in {m.split(".")[0] for m in imports(path)}, path
        if own not in ("cli", "reporting"):
            calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            assert "print" not in calls, path


def test_diagnostics_need_no_torch() -> None:
    for path in (ROOT / "diagnostics").glob("*.py"):
        assert "torch" not in {m.split(".")[0] for m in imports(path)}, path
