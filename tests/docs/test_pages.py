"""What README and docs show is what the tool does."""

from __future__ import annotations

import html
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from lplr_cli.cli.app import app
from lplr_cli.cli.main import run
from tests.docs.pages import ROOT, Block, Workplace, blocks, check, nav_pages, same

PAGES = nav_pages()
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_page_shows_what_happens(page: Path, place: Workplace) -> None:
    _, wrong = check(page.read_text(encoding="utf-8"), place)
    assert not wrong, "\n\n".join(wrong) + "\n\nbring the pages into step: python -m tests.docs.pages"


def test_the_picture_of_the_terminal_shows_what_happens(place: Workplace) -> None:
    picture = (ROOT / "docs" / "figures" / "terminal.svg").read_text(encoding="utf-8")
    lines: dict[int, str] = {}
    for line, text in re.findall(r'clip-path="url\(#[\w-]+-line-(\d+)\)">([^<]*)</text>', picture):
        lines[int(line)] = f"{lines.get(int(line), '')} {html.unescape(text)}"
    shown = [lines[i] for i in sorted(lines)]
    assert " ".join(shown[0].split()) == "$ lplr train mnist --width 64"
    table = "\n".join(shown[1:]).replace("\xa0", " ").split("Along the run")[0]
    actual = place.command("lplr train mnist --width 64").split("Along the run")[0]
    assert same(table, actual), "bring it into step: python docs/tools/terminal.py"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_slow_blocks_too(page: Path, place: Workplace) -> None:
    text = page.read_text(encoding="utf-8")
    if any(b.slow for b in blocks(text)):
        assert not check(text, place, slow=True)[1]


def shown_commands(block: Block) -> list[list[str]]:
    """The ``lplr`` lines of a block, without prompts, continuations and remarks."""
    joined = re.sub(r"\\\n\s*", "", block.body)
    lines = re.findall(r"^(?:\$ |- run: )?(lplr .*)$", joined, re.MULTILINE)
    bare = [re.match(r"(?:[^|>#']|'[^']*')*", re.split(r"\s{2,}", line)[0]) for line in lines]
    return [shlex.split(match[0])[1:] for match in bare if match is not None]


def test_every_shown_command_and_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    names = {str(c.name) for c in app.registered_commands}
    helps = {}
    for name in names:
        assert run([name, "--help"]) == 0
        helps[name] = capsys.readouterr().out
    seen = set()
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            for command in shown_commands(block):
                seen.add(command[0])
                for word in command[1:]:
                    known = not word.startswith("--") or word.split("=")[0] in helps.get(command[0], "")
                    assert known or command[0].startswith("--"), (page.name, command)
    assert names <= seen


def test_every_shown_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in PAGES:
        for named in re.findall(r"lplr\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras), page.name


def test_links_and_pictures_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or "commands/" in target, (page.name, target)


@pytest.mark.parametrize(
    ("shown", "actual", "agree"),
    [
        ("a 1.00 b", "a  1.01 b", True),
        ("a 1.00 b", "a 1.10 b", False),
        ("a 1 b", "a 1 c", False),
        ("took 3 s", "took 88 s", True),
        ("head\n…\ntail", "head\nx\ny\ntail", True),
        ("head\n…\ntail", "head\nx\ny", False),
        ("1 runs", "1,000 runs", False),
        ("", "more", False),
    ],
)
def test_outputs_are_compared_as_documented(shown: str, actual: str, agree: bool) -> None:
    assert same(shown, actual) is agree


def test_a_page_out_of_step_is_found_and_mended(tmp_path: Path) -> None:
    page = "```python\nprint(2 + 2)\n```\n\n```text\n5\n```\n"
    mended, wrong = check(page, Workplace(tmp_path))
    assert len(wrong) == 1
    assert mended == page.replace("5", "4")
    with pytest.raises(AssertionError, match="exit code 2"):
        check("```console\n$ lplr pl-ratio nothing.csv\n```\n", Workplace(tmp_path))
