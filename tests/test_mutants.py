"""The table of mutants is up to date, and those that it spells out are killed; ``make mutants`` runs all the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest

from tools.mutants import ROOT, TABLE, mutants, named

TABLE_OF = tomllib.loads(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", TABLE_OF["file"])
def test_the_equivalents_are_mutants_of_today(file: str) -> None:
    names = {m.name for m in mutants((ROOT / file).read_text(encoding="utf-8"))}
    for entry in TABLE_OF["file"][file].get("equivalent", []):
        assert entry["mutant"] in names, "the source has changed: judge this mutant again"
        assert len(entry["reason"]) > 10
    for name in TABLE_OF["file"][file]["tests"]:
        path, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8")
    functions = {m.function for m in mutants((ROOT / file).read_text(encoding="utf-8"))}
    for entry in TABLE_OF["file"][file].get("aside", []):
        assert any(re.fullmatch(entry["functions"], name) for name in functions)


def test_mutants_differ_from_the_source_and_from_each_other() -> None:
    source = "def f(x, y):\n    return min(x + 2 * y, 1) if x < y else -x\n"
    found = [m.make() for m in mutants(source)]
    assert len(set(found)) == len(found) > 12
    assert source not in found
    assert "def f(x, y):\n    return max(x + 2 * y, 1) if x < y else -x" in found
    assert "def f(x, y):\n    return min(x, 1) if x < y else -x" in found
    assert "def f(x, y):\n    return min(x + 2 * y, 1) if x <= y else -x" in found


def test_the_named_mutants_are_changes_of_today() -> None:
    assert len(list(named(TABLE_OF))) >= 15


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants are forks")
def test_the_named_mutants_are_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.mutants", "--named"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
