"""The functions of ``import lplr_cli as lplr`` answer as the commands do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lplr_cli as lplr
from lplr_cli.cli.main import run
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    result = lplr.train("mnist", folder / "r", samples=12, width=6, depth=1, steps=25, probe_every=5)
    assert result.status == "finished"
    assert len(result.to_frame()) == 26
    assert result.to_dict()["model"]["parameters"] == 785 * 6 + 7
    return folder / "r"


@pytest.mark.parametrize("name", ["probe-ntk", "certify", "pl-ratio", "fit-rate", "audit"])
def test_functions_equal_commands(name: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, str(trained), "--format", "json", *(["--fail-on", "never"] if name == "audit" else [])]) == 0
    printed = json.loads(capsys.readouterr().out)
    function = getattr(lplr, name.replace("-", "_"))
    found = function(str(trained)) if name != "certify" else function(trained)
    record = found.to_dict()
    shared = printed.keys() & record.keys()
    assert len(shared) > 5
    assert json.loads(json.dumps({k: record[k] for k in shared})) == {k: printed[k] for k in shared}
    assert len(found.to_frame()) > 0


def test_a_table_in_memory() -> None:
    t = np.arange(100)
    table = pd.DataFrame({"it": t, "l": 0.9**t, "g": 0.9**t})
    columns = {"step": "it", "loss": "l", "grad_norm_sq": "g"}
    assert lplr.fit_rate(table, columns=columns).fit.rate == pytest.approx(0.9)
    assert lplr.pl_ratio(table, columns=columns, l_star=0.0).pl_ratio.min == pytest.approx(0.5)


def test_sweeps_and_unknown_options(tmp_path: Path) -> None:
    sweep = lplr.ablate("mnist", tmp_path / "s", {"width": [2, 3]}, samples=6, depth=1, steps=2, probe_every=0)
    assert sweep.to_frame()["status"].tolist() == ["finished", "finished"]
    assert len(sweep.to_dict()["results"]) == 2
    with pytest.raises(InputError, match="unknown options widht"):
        lplr.train("mnist", tmp_path / "t", widht=3)
    with pytest.raises(AttributeError):
        lplr.nothing  # noqa: B018


def test_importing_lplr_is_light_and_typed() -> None:
    code = "import sys, lplr_cli; assert 'Recorder' in lplr_cli.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (Path(lplr.__file__).parent / "py.typed").exists()


def test_lists_looks_and_reports(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", str(trained.parent), "--format", "json"]) == 0
    listed = lplr.list_runs(trained.parent)
    assert json.loads(capsys.readouterr().out)["runs"] == listed.to_dict()["runs"]
    assert listed.to_frame()["steps"].tolist() == [25]
    assert str(trained) in repr(listed)
    assert run(["watch", str(trained), "--once"]) == 0
    assert list(lplr.watch(trained)) == [capsys.readouterr().out]
    page = lplr.report(trained, out=tmp_path / "page.html", certificate=False)
    assert page.to_dict()["written"] == [str(tmp_path / "page.html")]
    assert "Local PL regime around its start" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="exists"):
        lplr.report(trained, out=tmp_path / "page.html")
    figures = lplr.report(trained, out=tmp_path / "f", formats=("svg",), certificate=False)
    assert {Path(p).name for p in figures.to_dict()["written"]} == {p.name for p in (tmp_path / "f").iterdir()}


def test_a_watch_ends_with_its_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "r")
    directory = RunDirectory.open(tmp_path / "r")
    directory.set_status("running")
    looks = lplr.watch(tmp_path / "r", every=0.0)
    assert "running" in next(looks)
    assert "running" in next(looks)
    directory.set_status("finished")
    assert [look.split()[1] for look in looks] == ["finished"]


def test_results_print_as_short_tables(trained: Path) -> None:
    t = np.arange(100)
    table = pd.DataFrame({"step": t, "loss": 0.9**t})
    fit = lplr.fit_rate(table)
    lines = repr(fit).splitlines()
    assert lines[0] == "Convergence"
    assert ["rate", "0.9"] in [line.split() for line in lines]
    assert len(lines) <= 32
    audit = lplr.audit(str(trained), certificate=False)
    assert any(line.startswith("  H1") for line in str(audit).splitlines())
    html = audit._repr_html_()
    assert html.startswith("<table><caption>Audit</caption><tr><th>source</th>")
    assert "<td>" in html
    for result in (lplr.probe_ntk(trained), lplr.pl_ratio(trained), lplr.certify(trained)):
        assert 2 < len(repr(result).splitlines()) <= 32


def test_results_of_hostile_names_are_harmless() -> None:
    from lplr_cli.api import Report

    shown = Report({"a\x1b[2J": "<b>\x07", "long": {str(i): i for i in range(100)}, "missing": None})
    assert "\x1b" not in repr(shown)
    assert "<b>" not in shown._repr_html_()
    assert "72 more in to_dict()" in repr(shown)


def test_the_names_are_listed_for_completion() -> None:
    assert set(dir(lplr)) == {*lplr.__all__, "__version__"}
    assert all(getattr(lplr, name) is not None for name in lplr.__all__)
