"""A run written by schema version 1 is read by this version, with the same figures; other versions are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lplr_cli.analysis import summarize
from lplr_cli.cli.main import run
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory

GOLDEN = Path(__file__).parent / "golden-v1"


def test_the_golden_run_is_read() -> None:
    directory = RunDirectory.open(GOLDEN)
    kept = directory.summary()
    assert kept is not None
    now = summarize(directory).to_dict()
    for key in ("lambda_min", "lambda_max", "drift", "loss", "mu_certified", "certified_radius"):
        assert json.dumps(now[key]) == json.dumps(kept[key]), key
    # The rows of the ratio's window follow a rule that later versions have bettered; the ratio itself does not.
    log = directory.log()
    assert kept["pl_ratio_star"]["min"] in (log["grad_norm_sq"] / (2 * log["loss"])).tolist()
    assert directory.checkpoint_steps() == [0, 10, 20]
    assert directory.load(20).step == 20


@pytest.mark.parametrize("command", ["pl-ratio", "fit-rate", "audit"])
def test_commands_on_the_golden_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, str(GOLDEN), "--format", "json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["command"] == command


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_other_versions_are_refused_by_name(version: object, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "schema_version": version}))
    with pytest.raises(InputError, match=r"schema version .*this lplr reads version 1"):
        RunDirectory.open(tmp_path / "run")
