"""Runs what README and docs show, and holds the shown output against what the tool says.

    python -m tests.docs.pages            # rewrite every shown output that is out of step

In a page

- ``console`` blocks hold commands behind ``$ ``, each followed by its output; a line ``…`` stands for any lines, and a
  command without shown output need only succeed. ``|| echo "exit code $?"`` shows a failure.
- ``python`` blocks run; a ``text`` block right behind is their output. With ``title="NAME"`` a block is a file instead.
- ``sh`` blocks show what a test need not or cannot run here: installing, clusters, minutes of computing. Of their
  ``lplr`` lines every option must exist.

All pages share one working directory and run in the order of the site, README first, so that a run trained on one page
is there on the next; a command that trains is run once. Numbers may differ by two per cent, times, sizes and
rounding errors freely.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import yaml

from tests.command import command

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"
# What changes from machine to machine.
VOLATILE = re.compile(rf"{NUMBER} ?(?:seconds|s|ms|GiB|MiB)\b")
TOLERANCE = 0.02
# Below this a number is the rounding of others.
ROUNDING = 1e-11
TRAINING = ("lplr train ", "lplr ablate ")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    body: str
    start: int
    end: int
    slow: bool


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page in order; ``<!-- slow -->`` above a block marks it."""
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["options"])
        slow = text[: match.start()].rstrip().endswith("<!-- slow -->")
        found.append(
            Block(match["language"], title and title[1], match["body"], match.start("body"), match.end("body"), slow)
        )
    return found


def nav_pages() -> list[Path]:
    """README and the pages of the site in the order of mkdocs.yml, generated ones left out."""

    def names(nav: object) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
            yield from names(entry)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    paths = [ROOT / "README.md", *(ROOT / "docs" / name for name in names(nav))]
    return [p for p in paths if "commands" not in p.parts]


def same(shown: str, actual: str) -> bool:
    """Whether two outputs agree: words exactly, numbers within the tolerance, times and sizes not compared."""
    return _match(_lines(shown), _lines(actual))


def _lines(text: str) -> list[str]:
    plain = (re.sub(r"[─━╭╮╰╯│ ]+", " ", VOLATILE.sub("# s", line)).strip() for line in text.splitlines())
    return [line for line in plain if line]


def _match(shown: list[str], actual: list[str]) -> bool:
    if not shown:
        return not actual
    if shown[0] == "…":
        return any(_match(shown[1:], actual[i:]) for i in range(len(actual) + 1))
    return bool(actual) and _same_line(shown[0], actual[0]) and _match(shown[1:], actual[1:])


def _same_line(shown: str, actual: str) -> bool:
    if re.split(NUMBER, shown) != re.split(NUMBER, actual):
        return False
    pairs = zip(re.findall(NUMBER, shown), re.findall(NUMBER, actual), strict=True)
    return all(
        abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), ROUNDING)
        for a, b in ((float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs)
    )


@dataclass
class Workplace:
    """The directory in which the pages run."""

    folder: Path
    trained: dict[str, str] = field(default_factory=dict)
    names: dict[str, object] = field(default_factory=dict)

    def command(self, line: str) -> str:
        """Run one command line and return what it shows: stdout, and stderr behind it where it fails.

        Raises:
            AssertionError: it fails without showing that it does.
        """
        if line.startswith(TRAINING) and line in self.trained:
            return self.trained[line]
        bare, _, echo = line.partition(' || echo "exit code $?"')
        code, out, err = self._run(bare)
        if code == 0:
            shown = out
        else:
            assert line != bare, f"{line}: exit code {code}\n{out}{err}"
            shown = out + err + f"exit code {code}\n"
        assert not (echo.strip()), f"{line}: nothing may follow the exit code"
        if line.startswith(TRAINING):
            self.trained[line] = shown
        return shown

    def _run(self, line: str) -> tuple[int, str, str]:
        """Without a new interpreter where the line begins with lplr, whatever it is piped or written to."""
        parts = re.fullmatch(r"(lplr (?:[^|><;$&']|'[^']*')*?)(?: ([|>]) (.*))?", line)
        if parts is None:
            return self._shell(line)
        first, mark, rest = parts.groups()
        done = command(*shlex.split(first)[1:], cwd=self.folder)
        code, out, err = done.returncode, done.stdout, done.stderr
        if mark and code in (0, 1):
            then, out, more = self._shell(rest if mark == "|" else f"cat > {rest}", out)
            return code or then, out, err + more
        return code, out, err

    def _shell(self, line: str, stdin: str = "") -> tuple[int, str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=self.folder, input=stdin, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def python(self, body: str) -> str:
        """Run a Python block, behind those of the same page, and return what it prints."""
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.chdir(self.folder),
            mock.patch.object(sys, "path", [str(self.folder), *sys.path]),
        ):
            exec(compile(body, "block", "exec"), self.names)
        return out.getvalue()


def check(text: str, place: Workplace, *, slow: bool = False) -> tuple[str, list[str]]:
    """Run a page.

    Args:
        text: of the page.
        place: where it runs.
        slow: whether blocks marked so run as well.

    Returns:
        The page with its outputs in step, and what was out of step.
    """
    found = _Comparison()
    listed = blocks(text)
    place.names = {"__name__": "__main__"}
    for block, after in zip(listed, [*listed, None][1:], strict=True):
        if slow or not block.slow:
            _run(block, after, text, place, found)
    for start, end, replacement in reversed(found.edits):
        text = text[:start] + replacement + text[end:]
    return text, found.wrong


class _Comparison:
    """What is shown against what happens: differences, and the edits that mend them."""

    def __init__(self) -> None:
        self.edits: list[tuple[int, int, str]] = []
        self.wrong: list[str] = []

    def __call__(self, what: str, shown: str, actual: str, start: int, end: int) -> None:
        if not same(shown, actual):
            lines = difflib.unified_diff(shown.splitlines(), actual.splitlines(), "shown", "actual", lineterm="")
            self.wrong.append("\n".join([what, *lines]))
            self.edits.append((start, end, "".join(line.rstrip() + "\n" for line in actual.splitlines())))


def _run(block: Block, after: Block | None, text: str, place: Workplace, compare: _Comparison) -> None:
    """Run a block, or write its file; what it prints is compared where the page shows it."""
    if block.title is not None:
        target = place.folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.body, encoding="utf-8")
    elif block.language == "python":
        actual = place.python(block.body)
        if after is not None and after.language == "text" and not text[block.end + 3 : after.start - 8].strip():
            compare(f"python block at {block.start}", after.body, actual, after.start, after.end)
    elif block.language == "console":
        for command, start, end in _commands(block):
            shown, actual = text[start:end], place.command(command)
            if shown.strip():
                compare(f"$ {command}", shown, actual, start, end)
    elif block.language == "yaml":
        yaml.safe_load(block.body)


def _commands(block: Block) -> Iterator[tuple[str, int, int]]:
    """The commands of a console block, with the place of their output in the page."""
    starts = [m.start() for m in re.finditer(r"^\$ ", block.body, re.MULTILINE)]
    for start, stop in zip(starts, [*starts[1:], len(block.body)], strict=True):
        part = block.body[start:stop]
        line = re.match(r"\$ ((?:.*\\\n)*.*)\n", part)
        assert line is not None
        command = re.sub(r"\\\n\s*", "", line[1])
        yield command, block.start + start + line.end(), block.start + stop


def main() -> int:
    """Bring every page into step."""
    changed = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        for page in nav_pages():
            old = page.read_text(encoding="utf-8")
            try:
                new, wrong = check(old, place, slow=True)
            except Exception as error:
                new, wrong = old, [str(error)]
            for what in wrong:
                print(f"{page.relative_to(ROOT)}: {what}")
            if new != old:
                page.write_text(new, encoding="utf-8")
                changed += 1
    print(f"{changed} pages changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
