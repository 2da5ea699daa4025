"""Every sink of text, held against the program that reads it: adversarial text comes out as itself and does nothing."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text
from rich.console import Console

import lplr_cli
from lplr_cli import escape
from lplr_cli.errors import InputError
from lplr_cli.reporting import Grid, terminal_chart
from lplr_cli.reporting.figures import style
from lplr_cli.reporting.junit import TestCase, junit_xml, markdown_summary
from lplr_cli.reporting.text import plain_text
from lplr_cli.runs.tables import frame_of, write_parquet

HOSTILE = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;aGk=\x07", "\x9b2J",
    "\x9d0;x\x9c", "a\nb\r\nc\td", "\u202egnp.exe", "\u2028x\u2029", "\udc80\udcff", "\x00", "[red]x[/red]", "[/b]",
    ":smile:", "[link=http://x]y[/link]", "<script>alert(1)</script>", "\" onload='x'", "]]>", "--><!--", "&lt;&amp;",
    "a|b", "`code`", "**bold**", "_x_ __init__ a_b a__b", "[a](javascript:x)", "![i](x)", "# head", "1. one", "12) x",
    "- item", "+ item", "---", "===", "~~gone~~", "> quote", "\\", "\\|", "``` fence", "    code", "<!-- c -->",
    "=1+1", "+1", "-1", "-1.5e3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "-x", "=cmd|' /C calc'!A0", "1_000", "$x^{$", "$",
    "_nolegend_", "é λ 中文 🙂", "", " ", "'", "\x7f", "\ufeffx", "\ufffe",
]  # fmt: skip
PIECES = st.sampled_from(HOSTILE) | st.text(max_size=8) | st.characters(codec=None, categories=["Cc", "Cf", "Cs", "Po"])
TEXTS = st.lists(PIECES, max_size=4).map("".join)


def obeyed(text: str) -> list[str]:
    """Characters that a terminal acts on, by the Unicode database and not by the pattern under test."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c
        for c in text
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in turning
    ]


Test = TypeVar("Test", bound=Callable[..., None])


def every_case(test: Test) -> Test:
    for text in HOSTILE:
        test = example(text)(test)
    return test


@every_case
@given(TEXTS)
def test_a_line_is_one_line_and_is_only_seen(text: str) -> None:
    shown = escape.line(text)
    assert not obeyed(shown)
    assert len(shown.splitlines()) <= 1
    # What was to be seen is seen, in its order.
    rest = iter(shown)
    assert all(c in rest for c in text if not obeyed(c) and c not in "\u061c\u200e\u200f\ufeff\ufffe\uffff")
    assert escape.line("a" + text, keep="\n").count("\n") == text.count("\n")


@every_case
@given(TEXTS)
def test_rich_takes_no_markup(text: str) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=4000, color_system=None)
    console.print(plain_text(text))
    assert stream.getvalue().rstrip("\n").rstrip() == escape.line(text).rstrip()


@every_case
@given(TEXTS)
def test_tables_keep_every_text(text: str) -> None:
    grid = Grid(text, ("k" + text, "value"), [[text, "1"], ["a" + text, "2"]], right=(1,), note=(text,))
    stream = io.StringIO()
    Console(file=stream, width=4000, color_system=None).print(grid.to_rich())
    lines = stream.getvalue().split("\n")
    shown = escape.line(text)
    assert lines[0].strip() == shown.strip()
    assert "a" + shown in stream.getvalue()
    assert not obeyed(stream.getvalue().replace("\n", ""))
    assert "k" + shown in stream.getvalue()


def rendered(markdown: str) -> list[tuple[str, str]]:
    """Leaves of a page as GitHub reads it: kind and text."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    leaves = []
    for token in tokens:
        if token.children is None:
            leaves.append((token.type, token.content))
        else:
            leaves += [(t.type, t.content) for t in token.children]
    return leaves


def only_text(leaves: list[tuple[str, str]], *around: str) -> str:
    assert {kind for kind, _ in leaves} <= {"text", "text_special", *around}, leaves
    return "".join(text for _, text in leaves)


@every_case
@given(TEXTS)
@settings(max_examples=200)
def test_markdown_is_text_alone(text: str) -> None:
    shown = " ".join(escape.line(text).split(" ")).strip()
    safe = escape.markdown(text)
    assert "\n" not in safe
    paragraph = only_text(rendered(safe), "paragraph_open", "paragraph_close")
    assert paragraph == shown
    item = only_text(rendered(f"- {safe}"), "bullet_list_open", "list_item_open", "paragraph_open", "paragraph_close",
                     "list_item_close", "bullet_list_close")  # fmt: skip
    assert item == shown
    table = rendered(f"| a | b |\n| --- | --- |\n| {safe} | end |\n")
    texts = [t for kind, t in table if kind in ("text", "text_special")]
    assert "".join(texts) == f"ab{shown}end"
    assert not {k for k, _ in table} & {"html_inline", "html_block", "link_open", "image", "em_open", "code_inline"}
    assert sum(k == "td_open" for k, _ in table) == 2


def test_addresses_in_markdown_are_no_links() -> None:
    """GitHub makes links of bare addresses, but not behind a backslash."""
    for text, safe in {
        "http://x.y/z": r"http\://x.y/z", "see HTTPS://x.y": r"see HTTPS\://x.y", "www.x.y": r"www\.x.y", "a:b": "a:b",
    }.items():  # fmt: skip
        assert escape.markdown(text) == safe
        assert only_text(rendered(safe), "paragraph_open", "paragraph_close") == text


@every_case
@given(TEXTS)
def test_summaries_in_markdown(text: str) -> None:
    grid = Grid(text, ("k", text), [["x", text]], note=(text,))
    page = rendered(markdown_summary(text, text, [text], [grid]))
    html = [t for kind, t in page if kind.startswith("html")]
    assert [t.strip() for t in html] == ["<details><summary>Figures</summary>", "</details>"]
    assert not {kind for kind, _ in page} & {"link_open", "image", "em_open", "code_inline", "fence", "hr", "s_open"}
    assert sum(kind == "heading_open" for kind, _ in page) == 1


@every_case
@given(TEXTS)
def test_html_text_and_attributes(text: str) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__(convert_charrefs=True)
            self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append((tag, attrs))

        def handle_data(self, data: str) -> None:
            self.text += data

        def handle_comment(self, data: str) -> None:
            self.tags.append(("comment", []))

    safe = escape.html(text)
    reader = Reader()
    reader.feed(f'<p title="{safe}">{safe}</p>')
    reader.close()
    assert reader.tags == [("p", [("title", escape.line(text))])]
    assert reader.text == escape.line(text)
    # Inline SVG is XML as well.
    node = ElementTree.fromstring(f'<svg aria-label="{safe}"><title>{safe}</title></svg>')
    assert node.get("aria-label") == escape.line(text)
    assert node[0].text == (escape.line(text) or None)


@every_case
@given(TEXTS)
def test_junit_is_well_formed(text: str) -> None:
    cases = [TestCase("g", text, outcome, text) for outcome in ("passed", "failed", "skipped")]
    document = junit_xml(text, cases)
    root = ElementTree.fromstring(document.encode("utf-8"))
    shown = escape.line(text)
    assert root[0].get("name") == shown
    assert [c.get("name") for c in root.iter("testcase")] == [shown] * 3
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == shown
    assert not obeyed(document.replace("\n", ""))


@every_case
@given(TEXTS)
def test_json_reads_back_the_same(text: str) -> None:
    record = {text: [text, {"k": text}], "λ": 0.1}
    for ascii in (False, True):
        written = escape.json(record, ascii)
        # Two surrogates that Python holds apart are one character once they have been written.
        plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        assert json.loads(written) == {plain: [plain, {"k": plain}], "λ": 0.1}
        assert not obeyed(written.replace("\n", ""))
        assert not ascii or written.isascii()
        written.encode("utf-8")


def test_json_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON"):
        escape.json({"a": math.nan})


@every_case
@given(TEXTS)
def test_csv_has_no_formula_and_a_line_a_row(text: str) -> None:
    frame = pd.DataFrame({"n": [-1.5, 2.0], "texts": [text, "x"], "mixed": [-3, text]}, dtype=object)
    frame.columns = pd.Index(["n" + text, text, "mixed"], dtype=object)
    frame.isetitem(0, [-1.5, 2.0])
    written = escape.csv(frame)
    assert written.count("\n") == 3
    assert not obeyed(written.replace("\n", ""))
    head, first, second = csv.reader(io.StringIO(written))
    assert head[0] == "n" + escape.line(text)
    assert (first[0], second[0], first[2], second[1]) == ("-1.5", "2.0", "-3", "x")
    for cell in (head[1], first[1], second[2]):
        assert cell in (escape.line(text), "'" + escape.line(text))
        if cell[:1] in tuple("=+-@＝＋－＠\t\r"):
            assert math.isnan(float(cell)) or isinstance(float(cell), float)


def test_csv_says_what_is_text() -> None:
    cells = ["=1+1", "+1", "-2.5e-3", "-x", "@a", "\t=1", "plain", "-inf", "-", "=", "+1_0"]
    written = escape.csv(pd.DataFrame({"c": cells, "number": range(len(cells))}))
    kept = [row[0] for row in csv.reader(io.StringIO(written))][1:]
    assert kept == ["'=1+1", "+1", "-2.5e-3", "'-x", "'@a", "\\t=1", "plain", "-inf", "'-", "'=", "'+1_0"]
    frame = pd.read_csv(io.StringIO(escape.csv(pd.DataFrame({"x": [0.1, -1e-300, math.nan], "y": [1, -2, 3]}))))
    assert frame["x"].tolist()[:2] == [0.1, -1e-300]
    assert frame["y"].tolist() == [1, -2, 3]


@every_case
@given(TEXTS)
def test_titles_of_figures_hold_no_formula(text: str) -> None:
    shown, formula = Text()._preprocess_math(escape.figure(text))  # type: ignore[attr-defined]
    assert not formula
    assert shown.lstrip(" ") == escape.line(text).lstrip(" ")
    assert not escape.figure(text).startswith("_")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_are_drawn_with_any_title() -> None:
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        axes = figure.subplots()
        for text in HOSTILE:
            axes.plot([1, 2], [1, 2], label=escape.figure(text))
        figure.suptitle(escape.figure("".join(HOSTILE)))
        axes.legend()
        stream = io.StringIO()
        figure.savefig(stream, format="svg")
    assert not {e.tag for e in ElementTree.fromstring(stream.getvalue()).iter()} & {"script", "a"}


def test_terminal_charts_hold_any_name() -> None:
    pytest.importorskip("plotext")
    for text in HOSTILE:
        drawn = terminal_chart(text, [0, 1], [(text, [1.0, 2.0])], label=text)
        empty = terminal_chart(text, [0, 1], [(text, [-1.0, -2.0])], label=text)
        assert not obeyed((drawn + empty).replace("\n", "")), text


def test_tables_and_columnar_files_hold_any_name(tmp_path: Path) -> None:
    frame = frame_of([{"run": text, "x": 1.5} for text in [*HOSTILE, None]], ("run", "x", "y"))
    write_parquet(tmp_path / "x.parquet", frame)
    kept = pd.read_parquet(tmp_path / "x.parquet")
    assert list(kept.columns) == ["run", "x", "y"]
    assert kept["run"].tolist()[:-1] == [t.encode("utf-8", "backslashreplace").decode() for t in HOSTILE]
    assert kept["run"].isna().tolist()[-1]
    assert (kept["x"] == 1.5).all()


def test_errors_keep_their_text_for_programs() -> None:
    """Only what is shown is spelled: code that catches an error sees the name as it is."""
    assert "\x1b" in str(InputError("no run \x1b", "look"))


# JSON that lplr writes for itself to read.
INSIDE = {
    "ablation/sweep.py",
    "ablation/cell.py",
    "ablation/executors.py",
    "runs/exported.py",
    "analysis/path_figures.py",
}
# Where text leaves; everything else hands it to these.
ALLOWED = {
    "print": {"cli/output.py"},  # of a Rich console, for Grid alone
    "to_csv": {"escape.py", "runs/directory.py"},
    "add_row": {"reporting/text.py"},
    "rich.table": {"reporting/text.py"},
    "rich.text": {"reporting/text.py", "cli/watch.py"},
    "savefig": {"reporting/figures.py", "reporting/page.py"},
    "suptitle": {"reporting/figures.py", "reporting/sweeps.py"},
    "ElementTree.tostring": {"reporting/junit.py"},
    "sys.stdout.write": {"cli/main.py", "cli/output.py", "cli/watch.py"},
    "sys.stderr.write": {"cli/main.py", "cli/streams.py"},
    "html.escape": set[str](),
    "json.dumps": {"factories.py", "runs/directory.py", *INSIDE},
}


def test_text_leaves_through_these_doors_alone() -> None:
    root = Path(lplr_cli.__file__).parent
    found: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                names = {called, called.rsplit(".", 1)[-1]}
            elif isinstance(node, ast.ImportFrom):
                names = {str(node.module)}
            for name in names & set(ALLOWED):
                found[name].add(str(path.relative_to(root)))
    for name, allowed in ALLOWED.items():
        assert found[name] <= allowed, name
