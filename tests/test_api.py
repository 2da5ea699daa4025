"""The functions of ``import lplr_cli as lplr`` answer as the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lplr_cli as lplr
from lplr_cli.cli.main import run
from lplr_cli.errors import InputError


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
