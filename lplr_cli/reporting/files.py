"""The report on disk: one page, or a folder of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lplr_cli.errors import InputError
from lplr_cli.reporting.figures import save
from lplr_cli.reporting.page import html_report
from lplr_cli.reporting.report import RunReport
from lplr_cli.reporting.run_figures import all_figures
from lplr_cli.runs import SCHEMA_VERSION, plain
from lplr_cli.runs.atomic import output_errors, write_text

KINDS = ("png", "svg", "pdf")


def check_target(out: Path, kinds: Sequence[str], force: bool) -> None:
    """Whether a report can go there, before any work begins.

    Raises:
        InputError: a page that exists, a name that is neither page nor folder, a folder that is missing, a format that
            is unknown.
    """
    page = out.suffix == ".html"
    if page and out.exists() and not force:
        raise InputError(f"{out} exists", "choose another name or pass --force")
    if page and not out.parent.is_dir():
        raise InputError(f"no directory {out.parent}", "create it first")
    if not page and (out.suffix or (out.exists() and not out.is_dir())):
        raise InputError(f"-o {out} is neither a page nor a folder", "end it in .html, or name a folder")
    if not set(kinds) <= set(KINDS):
        raise InputError(f"--formats {','.join(kinds)!r} is unknown", f"choose from {', '.join(KINDS)}")


def expanded_runs(names: Sequence[str]) -> list[str]:
    """Runs of sweep directories in the place of the sweeps.

    Raises:
        InputError: a sweep without runs, or a run that is named twice.
    """
    expanded: list[str] = []
    for name in names:
        path = Path(name)
        if (path / "sweep.json").is_file():
            inside = sorted(str(p.parent) for p in path.glob("*/run.json"))
            if not inside:
                raise InputError(f"{name} has no runs", "run the sweep first")
            expanded += inside
        else:
            expanded.append(name)
    if len(set(expanded)) < len(expanded):
        raise InputError("a run is named twice", "name each once")
    return expanded


@dataclass(frozen=True)
class Written:
    """What a report is: its files, and the verdict on each run by its name."""

    paths: tuple[Path, ...]
    verdicts: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The record of ``report --format json``."""
        record: dict[str, Any] = plain(
            {
                "command": "report",
                "schema_version": SCHEMA_VERSION,
                "written": [str(path) for path in self.paths],
                "verdicts": self.verdicts,
            }
        )
        return record


def write_report(
    reports: Sequence[RunReport], out: Path, *, kinds: Sequence[str], title: str | None, force: bool
) -> Written:
    """Write the page ``out``, or the figures into the folder ``out``.

    Raises:
        InputError: a figure exists already.
        OutputError: it cannot be written.
    """
    if out.suffix == ".html":
        write_text(out, html_report(reports, title or "lplr report"))
        written = [out]
    else:
        written = _figures(reports, out, kinds, force)
    return Written(tuple(written), {r.name: r.audit.verdict for r in reports})


def _figures(reports: Sequence[RunReport], out: Path, kinds: Sequence[str], force: bool) -> list[Path]:
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    targets = [
        (out / f"{Path(r.name).name}-{figure}.{kind}", drawn)
        for r in reports
        for figure, drawn in all_figures(r).items()
        for kind in kinds
    ]
    taken = [path for path, _ in targets if path.exists()]
    if taken and not force:
        raise InputError(f"{taken[0]} exists", "choose another folder or pass --force")
    for path, drawn in targets:
        save(drawn, path)
    return [path for path, _ in targets]
