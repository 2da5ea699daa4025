"""The pages for those who change lplr, or trust it, name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Files of a run.
WRITTEN = {"run.json", "summary.json", "path.json", "sweep.json", "noise.json"}


@pytest.mark.parametrize(("page", "least"), [("design.md", 40), ("reliability.md", 20)])
def test_every_file_that_a_page_names_exists(page: str, least: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+\.(?:py|md|yml|toml|json)|[\w/]+/)`", text)) - WRITTEN
    assert len(named) > least
    missing = {name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "lplr_cli"))}
    assert not missing
