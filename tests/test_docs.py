"""What README and docs show is what the tool does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lplr_cli.cli.app import app
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.reporting import summary_grid
from lplr_cli.training import TrainConfig, summarize, train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(
    block: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    if "Recorder" in block:
        assert out.startswith("holds")
        assert (tmp_path / "runs" / "mine" / "checkpoints" / "step-000060.pt").exists()
    else:
        low, bound = (float(v) for v in out.split())
        assert 0 < bound <= low


def shown_commands() -> list[list[str]]:
    """Indented lines of the README that begin with ``lplr``, without the remark behind them."""
    lines = re.findall(r"^    (lplr .*)$", README, re.MULTILINE)
    return [shlex.split(re.split(r"\s{2,}", line)[0])[1:] for line in lines]


def test_every_shown_command_and_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    names = {str(c.name) for c in app.registered_commands}
    commands = shown_commands()
    assert {c[0] for c in commands} == names
    for command in commands:
        assert run([command[0], "--help"]) == 0
        text = capsys.readouterr().out
        for word in command[1:]:
            assert not word.startswith("--") or word in text


def test_the_pasted_table_has_the_rows_of_the_tool(tmp_path: Path) -> None:
    """`make demo` makes the numbers; here the quantities, kinds and their order."""
    config = TrainConfig(DataSpec("mnist", samples=20), ModelSpec(width=4, depth=1), steps=40, probe_every=20)
    rows = summary_grid(summarize(train(config, tmp_path / "r").run)).rows
    pasted = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert pasted is not None
    position = 0
    for quantity, _, kind, _ in rows:
        found = re.search(rf"^ {re.escape(quantity)} .*{kind} ", pasted.group(1)[position:], re.MULTILINE)
        assert found is not None, quantity
        position += found.end()
