"""The page for those who change lplr names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_that_the_design_names_exists() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+\.(?:py|md|yml|json)|[\w/]+/)`", text)) - {"run.json"}
    assert len(named) > 40
    missing = {name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "lplr_cli"))}
    assert not missing
