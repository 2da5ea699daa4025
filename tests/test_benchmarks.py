"""Results of benchmarks: tables to records and back to what got slower."""

from __future__ import annotations

from pathlib import Path

from benchmarks import record

PAGE = """# Benchmarks

Machine: 2 cores, torch 2.

## Kernel

| m | structured, s | over GEMMs |
|---:|---:|---:|
| 128 | 0.0086 | 1.59 |
| 512 | 0.0257 (2 ×) | 1.95 |

No table | here.

## Peers

| | K, m = 128 |
|---|---:|
| lplr | 1,200.5 |
"""


def test_tables_of_a_page_and_what_got_slower(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    before = record.read(page)
    assert before["machine"] == "2 cores, torch 2"
    assert before["sections"]["Peers"]["tables"] == [[{"row": "lplr", "K, m = 128": "1,200.5"}]]
    (table,) = before["sections"]["Kernel"]["tables"]
    assert record.timed(table) == {"128: structured, s": 0.0086, "512: structured, s": 0.0257}
    now = {
        "machine": "2 cores, torch 2",
        "sections": {
            "Kernel": {"tables": record.tables(PAGE.replace("0.0257", "0.0514").replace("0.0086", "0.0087"))[:1]},
            "New": {"tables": []},
        },
    }
    results = tmp_path / "now.json"
    record.write(results, now)
    assert record.read(results) == now
    told = record.slower(now, before)
    assert told.splitlines()[2:] == ["| Kernel, 512: structured, s | 0.0257 | 0.0514 | 2.00 |"]
    assert record.slower({**now, "machine": "another"}, before).endswith(
        "Recorded on another machine: 2 cores, torch 2."
    )
    assert record.slower({**now, "sections": {}}, before) == "Nothing is slower than recorded."


def test_every_section_has_its_report_and_the_page_its_figures() -> None:
    import importlib

    from benchmarks.__main__ import SECTIONS

    for where in SECTIONS.values():
        module, function = where.split(".")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))
    page = record.read(record.RECORDED)
    assert {"Kernel", "Peers", "Recorder", "Scaling"} <= set(page["sections"])
    assert record.timed(page["sections"]["Kernel"]["tables"][0])
