"""Results for continuous integration: JUnit XML and a Markdown summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from lplr_cli import escape
from lplr_cli.reporting.text import Grid


@dataclass(frozen=True)
class TestCase:
    """One line of a test report.

    Attributes:
        group: hypotheses, sanity, requirements or baseline.
        name: what is tested.
        outcome: ``passed``, ``failed`` or ``skipped``.
        message: with the figure.
    """

    __test__ = False  # no class of pytest's

    group: str
    name: str
    outcome: str
    message: str


def junit_xml(suite: str, cases: Iterable[TestCase]) -> str:
    """A JUnit report with one suite, as Jenkins, GitLab and GitHub's report actions read it."""
    cases = list(cases)
    counts = {k: str(sum(c.outcome == v for c in cases)) for k, v in (("failures", "failed"), ("skipped", "skipped"))}
    total = {"tests": str(len(cases)), **counts, "errors": "0", "time": "0"}
    root = ElementTree.Element("testsuites", {"name": "lplr", **total})
    top = ElementTree.SubElement(root, "testsuite", {"name": escape.xml(suite), **total})
    for case in cases:
        node = ElementTree.SubElement(
            top, "testcase", {"classname": f"lplr.{case.group}", "name": escape.xml(case.name), "time": "0"}
        )
        message = escape.xml(case.message)
        if case.outcome == "failed":
            ElementTree.SubElement(node, "failure", {"message": message, "type": case.group}).text = message
        elif case.outcome == "skipped":
            ElementTree.SubElement(node, "skipped", {"message": message})
        else:
            ElementTree.SubElement(node, "system-out").text = message
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown_summary(title: str, verdict: str, failures: Sequence[str], grids: Sequence[Grid]) -> str:
    """A section for a pull request or a step summary: verdict and failures first, the tables folded below."""
    lines = [f"### {escape.markdown(title)}", "", escape.markdown(verdict, bold=True), ""]
    lines += [f"- ❌ {escape.markdown(failure)}" for failure in failures] or ["No requirement failed."]
    lines += ["", "<details><summary>Figures</summary>", ""]
    for grid in grids:
        lines += [grid.to_markdown(), ""]
    return "\n".join([*lines, "</details>", ""])
