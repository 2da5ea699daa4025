"""lplr audit through the command line, its CI outputs, and the examples of its use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lplr_cli.cli.main import run
from lplr_cli.reporting.junit import TestCase, junit_xml
from tests.foreign_nets import mlp

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
# The part of Jenkins' JUnit format that consumers agree on, as a schema.
SCHEMA = """<?xml version="1.0"?>
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:attributeGroup name="counts">
    <xs:attribute name="name" type="xs:string" use="required"/>
    <xs:attribute name="tests" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="failures" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="errors" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="skipped" type="xs:nonNegativeInteger"/>
    <xs:attribute name="time" type="xs:decimal"/>
  </xs:attributeGroup>
  <xs:complexType name="outcome"><xs:simpleContent><xs:extension base="xs:string">
    <xs:attribute name="message" type="xs:string"/><xs:attribute name="type" type="xs:string"/>
  </xs:extension></xs:simpleContent></xs:complexType>
  <xs:element name="testsuites"><xs:complexType><xs:sequence>
    <xs:element name="testsuite" maxOccurs="unbounded"><xs:complexType><xs:sequence>
      <xs:element name="testcase" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
        <xs:choice minOccurs="0">
          <xs:element name="failure" type="outcome"/><xs:element name="skipped" type="outcome"/>
          <xs:element name="system-out" type="xs:string"/>
        </xs:choice>
        <xs:attribute name="classname" type="xs:string" use="required"/>
        <xs:attribute name="name" type="xs:string" use="required"/>
        <xs:attribute name="time" type="xs:decimal"/>
      </xs:complexType></xs:element>
    </xs:sequence><xs:attributeGroup ref="counts"/></xs:complexType></xs:element>
  </xs:sequence><xs:attributeGroup ref="counts"/></xs:complexType></xs:element>
</xs:schema>
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    t = np.arange(200)
    pd.DataFrame({"step": t, "loss": 0.97**t, "grad_norm_sq": 0.97**t}).to_csv("log.csv", index=False)
    return "log.csv"


def test_exit_codes_of_verdicts(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", log]) == 0
    assert "undetermined" in capsys.readouterr().out
    assert run(["audit", log, "--fail-on", "undetermined"]) == 1
    assert capsys.readouterr().err.startswith("lplr: failed: verdict undetermined")
    assert run(["audit", log, "--require", "C2.holds == true", "--require", "pl_ratio_star.min > 1"]) == 1
    assert capsys.readouterr().err == "lplr: failed: pl_ratio_star.min > 1 (found 0.5)\n"
    assert run(["audit", log, "--require", "H9.holds == true"]) == 2
    assert run(["audit", log, "--fail-on", "maybe"]) == 2
    assert run(["audit", log, "--junit", "no/such/folder.xml"]) == 2


def test_policies_and_baselines(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ci.toml").write_text(
        '[default]\nrequire = ["C2.holds == true"]\n[strict]\nrequire = ["C2.verified == true"]\n'
    )
    assert run(["audit", log, "--policy", "ci.toml"]) == 0
    assert run(["audit", log, "--policy", "ci.toml:strict"]) == 1
    assert run(["audit", log, "--policy", "ci.toml:none"]) == 2
    frame = pd.read_csv(log)
    frame["grad_norm_sq"] *= 0.5
    frame.to_csv("worse.csv", index=False)
    capsys.readouterr()
    assert run(["audit", "worse.csv", "--baseline", log]) == 1
    out, err = capsys.readouterr()
    assert "lplr: failed: pl_ratio_min worse than the baseline by 50.0%" in err
    assert "Against the baseline" in out
    assert run(["audit", "worse.csv", "--baseline", log, "--tolerance", "0.6"]) == 0


def test_junit_is_valid_and_complete(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    xmlschema = pytest.importorskip("xmlschema")
    code = run(["audit", log, "--junit", "a.xml", "--require", "C2.holds == true", "--require", "drift.max < 1"])
    assert code == 1
    xmlschema.XMLSchema(SCHEMA).validate("a.xml")
    cases = {c.get("name"): c for c in ElementTree.parse("a.xml").iter("testcase")}
    assert sum(str(name)[:3] in ("H1:", "H2:", "H3:", "H4:", "H5:", "C1:", "C2:") for name in cases) == 7
    assert cases["drift.max < 1"].find("failure") is not None
    assert cases["C2.holds == 1"].find("failure") is None
    suite = next(ElementTree.parse("a.xml").iter("testsuite"))
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == str(sum(c.find("failure") is not None for c in cases.values()))


def test_junit_of_any_text() -> None:
    xmlschema = pytest.importorskip("xmlschema")
    text = junit_xml("a\x00<&>\ud800", [TestCase("g", "n\x1b", "failed", "]]>\x07"), TestCase("g", "m", "skipped", "")])
    xmlschema.XMLSchema(SCHEMA).validate(text)


def test_markdown_is_appended(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("summary.md").write_text("# Before\n")
    run(["audit", log, "--markdown", "summary.md", "--require", "drift.max < 1"])
    run(["audit", log, "--markdown", "summary.md"])
    text = Path("summary.md").read_text()
    assert text.startswith("# Before\n### lplr audit of log.csv\n")
    assert text.count("### lplr audit") == 2
    assert "- ❌ drift.max &lt; 1 (found null)" in text
    # As GitHub renders it: every table row has as many cells as its head.
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1


def test_a_checkpoint_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(mlp().state_dict(), "w.pt")
    data = ["--data", "tests.foreign_nets:table"]
    assert run(["probe-ntk", "w.pt"]) == 2
    assert "name them: --data" in capsys.readouterr().err
    assert run(["probe-ntk", "w.pt", *data]) == 2
    assert "--activation" in capsys.readouterr().err
    assert run(["probe-ntk", "w.pt", *data, "--activation", "tanh"]) == 0
    assert "Assumed: MLP 5-9-4-2 from names and shapes, tanh" in capsys.readouterr().out
    assert run(["certify", "w.pt", *data, "--activation", "tanh", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["assumptions"]
    factory = ["--model", "tests.foreign_nets:mlp"]
    assert run(["probe-ntk", "w.pt", *data, *factory]) == 0
    assert run(["probe-ntk", "w.pt", *factory, "--model-arg", "x=1", *data]) == 2
    assert run(["probe-ntk", "w.pt", "--samples", "3"]) == 2


def shell(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_the_shell_example_runs(tmp_path: Path) -> None:
    script = str(EXAMPLES / "audit.sh")
    first = shell(tmp_path, "bash", script, ".")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "summary.md").read_text().startswith("### lplr audit of runs/now")
    # The next run is its own baseline's equal; the hook agrees, and refuses a worse one.
    shutil.move(tmp_path / "runs" / "now", tmp_path / "runs" / "former")
    again = shell(tmp_path, "bash", script, ".", GITHUB_STEP_SUMMARY="step.md")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "step.md").exists()
    hook = str(EXAMPLES / "pre-commit-hook.sh")
    assert shell(tmp_path, "bash", hook).returncode == 0
    log = pd.read_csv(tmp_path / "runs" / "now" / "log.csv")
    log["drift"] *= 2
    log.to_csv(tmp_path / "runs" / "now" / "log.csv", index=False)
    refused = shell(tmp_path, "bash", hook)
    assert refused.returncode == 1
    assert "drift_max worse than the baseline by 100.0%" in refused.stderr


def test_the_workflow_and_the_policy_are_what_they_say(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text())
    lines = [step["run"] for step in workflow["jobs"]["audit"]["steps"] if "run" in step]
    (line,) = [text for text in lines if text.startswith("lplr audit")]
    words = line.split()
    assert run(["audit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))
    sets = tomllib.loads((EXAMPLES / "policy.toml").read_text())
    for name in sets:
        assert run(["audit", log, "--policy", f"{EXAMPLES / 'policy.toml'}:{name}"]) == 1
