"""The site builds without a warning, and what is drawn from the code is that of the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import lplr_cli
from lplr_cli.cli.app import app
from tests.command import program
from tests.docs.pages import ROOT


def test_the_architecture_picture_is_that_of_the_code() -> None:
    """The picture is drawn by grimp; here the imports are read by hand."""
    architecture = program(ROOT / "docs" / "tools" / "architecture.py")
    drawn = architecture.layer_imports()
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw(drawn), (
        "bring it into step: python docs/tools/architecture.py"
    )
    package = Path(lplr_cli.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    parts = name.split(".")
                    if parts[0] == "lplr_cli" and own != parts[1] and {own, parts[1]} <= set(architecture.ROLES):
                        found.add((own, parts[1]))
    assert set(drawn.edges) == found
    arrows = set(re.findall(r'data-import="(\w+) (\w+)"', architecture.PICTURE.read_text(encoding="utf-8")))
    assert arrows <= found
    rows = {name: row for name, (_, _, row) in architecture.ROLES.items()}
    assert all(rows[a] < rows[b] for a, b in found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Links(HTMLParser):
    """Where a page fetches from when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        for key in ("src", "href"):
            if tag in ("script", "img", "link") and given.get(key) and given.get("rel") != "canonical":
                self.fetched.append(given[key] or "")


def test_every_command_and_option_has_its_page(site: Path) -> None:
    for command in app.registered_commands:
        text = (site / "reference" / "commands" / f"{command.name}.html").read_text(encoding="utf-8")
        for part in ("Synopsis", "Exit status", "See also", "--help"):
            assert part in text, (command.name, part)
    assert "--parametrization" in (site / "reference" / "commands" / "train.html").read_text(encoding="utf-8")


def test_every_public_function_is_in_the_reference(site: Path) -> None:
    pages = (site / "reference" / "python").glob("*.html")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    for name in lplr_cli.__all__:
        assert re.search(rf'id="lplr_cli[\w.]*\.{name}"', text), name


def test_pages_ask_nobody_for_anything(site: Path) -> None:
    for path in site.rglob("*.html"):
        links = Links()
        links.feed(path.read_text(encoding="utf-8"))
        assert not [u for u in links.fetched if u.startswith(("http:", "https:", "//"))], path


FORMULA = re.compile(r"\$\$[^$]+\$\$|\$[^$\n]+\$")


class Words(HTMLParser):
    """What a page says outside of code, how many formulas are drawn there, and how many proofs folded."""

    SILENT = ("script", "style", "pre", "code", "title")

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.words, self.formulas, self.folded = "", 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside += [tag] if tag in self.SILENT else []
        self.formulas += tag == "svg" and dict(attrs).get("role") == "img"
        self.folded += (tag, attrs) == ("details", [])

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        self.words += "" if self.inside else data


def test_every_formula_is_drawn(site: Path) -> None:
    for path in set((ROOT / "docs").rglob("*.md")) - set((ROOT / "docs" / "reference").rglob("*")):
        page = Words()
        page.feed((site / path.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8"))
        assert not re.findall(r".*[$\\].*", page.words), path
        source = re.sub(r"`[^`]*`", "", path.read_text(encoding="utf-8"))
        assert page.formulas == len(FORMULA.findall(source)), path
        assert page.folded == source.count("<details markdown>\n<summary>"), path
        if path.name == "theory.md":
            assert page.formulas > 200
            assert "Proof of Lemma A" in page.words


def test_forges_read_the_formulas_as_they_are_written() -> None:
    """A forge reads Markdown before it reads LaTeX.

    So no formula may hold what Markdown takes for its own: a backslash before punctuation, and an underscore or
    asterisk that begins emphasis. ``\\Vert``, ``\\lbrace``, ``\\cr``, ``\\ast`` and ``x_{ij}''`` are safe.
    """
    markdown = MarkdownIt("commonmark").enable("table")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for token in markdown.parse(path.read_text(encoding="utf-8")):
            source = re.sub(r"(`+).*?\1", "", token.content, flags=re.DOTALL)
            if token.type == "inline":
                read = "".join("\n" if t.type == "softbreak" else t.content for t in token.children or [])
                for formula in FORMULA.findall(source):
                    assert " ".join(formula.split()) in " ".join(read.split()), (path, formula)
