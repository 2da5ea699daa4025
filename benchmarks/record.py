"""Results of benchmarks as JSON, and what got slower since they were last recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# The page holds the figures that were recorded last, and names their machine.
RECORDED = Path(__file__).parents[1] / "docs" / "benchmarks.md"
# A figure this much above the recorded one is told.
TOLERANCE = 1.15

Table = list[dict[str, str]]


def tables(markdown: str) -> list[Table]:
    """The tables of a Markdown text, a record a row; the first column of an empty heading is ``row``."""
    found: list[Table] = []
    lines = [line.strip() for line in markdown.splitlines()]
    for at, line in enumerate(lines[:-1]):
        rule = lines[at + 1].replace("|", "").replace(":", "").replace("-", "").strip()
        if not (line.startswith("|") and lines[at + 1].startswith("|") and not rule):
            continue
        heading = [name or "row" for name in _cells(line)]
        rows: Table = []
        for row in lines[at + 2 :]:
            if not row.startswith("|"):
                break
            rows.append(dict(zip(heading, _cells(row), strict=False)))
        found.append(rows)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def number(cell: str) -> float | None:
    """The number at the beginning of a cell, None where there is none."""
    head = cell.replace(",", "").replace("%", "").split(" ")[0]
    try:
        return float(head)
    except ValueError:
        return None


def timed(table: Table) -> dict[str, float]:
    """Seconds of a table: columns whose heading says ``s``, a row named by the cells before the first of them."""
    found: dict[str, float] = {}
    for row in table:
        names = list(row)
        clocks = [name for name in names if name == "s" or name.endswith(", s")]
        if not clocks:
            continue
        label = " ".join(row[name] for name in names[: names.index(clocks[0])] if row[name])
        for clock in clocks:
            value = number(row[clock])
            if value is not None:
                found[f"{label}: {clock}"] = value
    return found


def slower(now: dict[str, Any], before: dict[str, Any]) -> str:
    """A Markdown table of the seconds that rose above the tolerance, by section."""
    lines = ["| what | recorded, s | now, s | ratio |", "|---|---:|---:|---:|"]
    for section, found in now["sections"].items():
        earlier = {
            key: value
            for table in before["sections"].get(section, {}).get("tables", [])
            for key, value in timed(table).items()
        }
        for table in found["tables"]:
            for key, value in timed(table).items():
                if key in earlier and value > TOLERANCE * earlier[key]:
                    lines.append(f"| {section}, {key} | {earlier[key]:g} | {value:g} | {value / earlier[key]:.2f} |")
    same = now["machine"] == before["machine"]
    note = "" if same else f"\n\nRecorded on another machine: {before['machine']}."
    return ("\n".join(lines) if len(lines) > 2 else "Nothing is slower than recorded.") + note


def of_page(text: str) -> dict[str, Any]:
    """Results as a page of Markdown shows them, a section under each heading of the second level."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    machine = re.search(r"Machine: (.*)\.$", parts[0], flags=re.MULTILINE)
    sections = {name: {"tables": tables(body)} for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {"machine": machine.group(1) if machine else "unknown", "sections": sections}


def read(path: Path) -> dict[str, Any]:
    """Results of a file of JSON, or of a page."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, Any] = of_page(text) if path.suffix == ".md" else json.loads(text)
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    """A file of results."""
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
