from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lplr_cli.audit import check_requirements, parse_requirement
from lplr_cli.cli.main import OVERVIEW, run
from lplr_cli.cli.options import parse_arguments, parse_list, parse_memory
from lplr_cli.errors import InputError
from tests.command import command

LPLR = str(Path(sys.executable).with_name("lplr"))
TINY = ["train", "mnist", "--samples", "40", "--width", "8", "--depth", "2", "--steps", "60", "--probe-every", "20"]


def lplr(*arguments: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The real command where it reads stdin, the same in this process elsewhere."""
    if not stdin:
        return command(*arguments, cwd=cwd, **env)
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LPLR_RUNS", "LPLR_DEBUG")}
    return subprocess.run(
        [LPLR, *arguments],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, made by the real command."""
    folder = tmp_path_factory.mktemp("cli")
    done = lplr(*TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "μ certified" in done.stdout
    assert "\x1b" not in done.stdout
    return folder


RUN = "runs/mnist-mlp8-s0"


def test_run_directory_is_as_promised(workspace: Path) -> None:
    run = workspace / RUN
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert names == {
        ".lock",
        "run.json",
        "log.csv",
        "log.parquet",
        "probes.csv",
        "probes.parquet",
        "summary.json",
        "path.json",
        "path.csv",
        "prediction.json",
        "checkpoints/step-000000.pt",
        "checkpoints/step-000060.pt",
    }
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["loss"]["scale"] == 1.0
    assert re.fullmatch("[0-9a-f]{64}", record["data"]["sha256"])
    log = pd.read_csv(run / "log.csv")
    assert list(log.columns) == ["step", "epoch", "loss", "grad_norm_sq", "drift", "lr", "seconds"]
    pd.testing.assert_frame_equal(log, pd.read_parquet(run / "log.parquet"))


@pytest.mark.parametrize(
    "command",
    [
        ["pl-ratio", RUN],
        ["fit-rate", RUN],
        ["probe-ntk", RUN, "--verify"],
        ["probe-ntk", RUN, "--size", "7"],
        ["certify", RUN],
    ],
)
def test_every_format_of_every_command(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(workspace)

    def shown(*more: str) -> str:
        assert run([*command, *more]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    assert "\x1b" not in shown()
    record = json.loads(shown("--format", "json"))
    assert record["command"] == command[0]
    assert "NaN" not in json.dumps(record)
    assert len(pd.read_csv(io.StringIO(shown("--format", "csv")))) > 0
    assert "| --- |" in shown("--format", "markdown")


def test_no_color_on_a_terminal(workspace: Path) -> None:
    def on_a_terminal(**env: str) -> str:
        shell = f"{LPLR} pl-ratio {RUN}"
        done = subprocess.run(
            ["script", "-qec", shell, "/dev/null"],
            cwd=workspace,
            env={**os.environ, "TERM": "xterm-256color", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    assert "\x1b[" in on_a_terminal(NO_COLOR="")
    assert "\x1b[" not in on_a_terminal(NO_COLOR="1")


def test_output_files(workspace: Path, tmp_path: Path) -> None:
    run = str(workspace / RUN)
    for suffix in ("csv", "parquet", "json", "md"):
        path = tmp_path / f"out.{suffix}"
        assert lplr("pl-ratio", run, "--output", str(path), cwd=tmp_path).returncode == 0
        assert path.stat().st_size > 0
    before = path.read_bytes()
    refused = lplr("pl-ratio", run, "--output", str(path), cwd=tmp_path)
    assert refused.returncode == 2
    assert path.read_bytes() == before
    assert lplr("pl-ratio", run, "--output", str(path), "--force", cwd=tmp_path).returncode == 0
    series = pd.read_parquet(tmp_path / "out.parquet")
    log = pd.read_csv(workspace / RUN / "log.csv")
    assert np.allclose(series["pl_ratio_star"], 0.5 * log["grad_norm_sq"] / log["loss"], rtol=1e-14)


def test_fit_rate_through_the_console_script(workspace: Path) -> None:
    done = lplr("fit-rate", RUN, "--format", "json", cwd=workspace)
    assert done.returncode == 0
    record = json.loads(done.stdout)
    assert done.stderr == ""
    assert (record["rate"] is None) == (record["window"] is None or record["points"] == 0)


def test_logs_from_elsewhere_and_from_stdin(workspace: Path) -> None:
    text = (workspace / RUN / "log.csv").read_text()
    by_run = json.loads(lplr("pl-ratio", RUN, "--format", "json", cwd=workspace).stdout)
    piped = json.loads(lplr("pl-ratio", "-", "--format", "json", cwd=workspace, stdin=text).stdout)
    parquet = json.loads(lplr("pl-ratio", f"{RUN}/log.parquet", "--format", "json", cwd=workspace).stdout)
    assert by_run["pl_ratio"] == piped["pl_ratio"] == parquet["pl_ratio"]


def test_requirements_set_the_exit_code(workspace: Path) -> None:
    assert lplr("pl-ratio", RUN, "--require", "pl_ratio_star.min > 0", cwd=workspace).returncode == 0
    failed = lplr("pl-ratio", RUN, "--require", "pl_ratio_star.min > 1e9", cwd=workspace)
    assert failed.returncode == 1
    assert failed.stderr.startswith("lplr: failed: pl_ratio_star.min > 1e+09 (found ")
    assert failed.stderr.count("\n") == 1
    null = lplr("pl-ratio", RUN, "--require", "mu_certified > 0", cwd=workspace)
    assert null.returncode == 1
    assert "found null" in null.stderr
    unknown = lplr("pl-ratio", RUN, "--require", "nope > 0", cwd=workspace)
    assert unknown.returncode == 2
    assert "pl_ratio_star.min" in unknown.stderr
    assert unknown.stdout == ""


BAD = [
    ([], 0, ""),
    (["nope"], 2, "nope"),
    (["train"], 2, "no data set"),
    (["train", "nope"], 2, "no data set 'nope'"),
    (["train", "mnist", "--nope"], 2, "--nope"),
    (["train", "mnist", "--width", "x"], 2, "--width"),
    (["train", "mnist", "--lr", "x"], 2, "--lr"),
    (["train", "mnist", "--samples", "5000"], 2, "1000 at hand"),
    (["train", "mnist", "--model", "no_module:f"], 2, "cannot import"),
    (["train", "--resume", "nope"], 2, "no run directory"),
    (["train", "mnist", "--resume", RUN], 2, "does not go with DATASET"),
    (["train", "mnist", "--out", RUN], 2, "exists already"),
    (["probe-ntk", "nope.pt"], 2, "cannot read nope.pt"),
    (["probe-ntk", RUN, "--size", "9999"], 2, "out of range"),
    (["probe-ntk", RUN, "--engine", "magic"], 2, "engine"),
    (["probe-ntk", RUN, "--memory", "much"], 2, "--memory"),
    (["probe-ntk", RUN, "--memory", "1MiB", "--verify"], 2, "needs"),
    (["probe-ntk", RUN, "--engine", "operator", "--verify"], 2, "verified bound"),
    (["certify", "nope.pt"], 2, "cannot read nope.pt"),
    (["certify", RUN, "--radius", "-1"], 2, "radius"),
    (["certify", RUN, "--bounds", "magic"], 2, "magic"),
    (["probe-ntk", RUN, "--scratch", "nowhere"], 2, "no directory nowhere"),
    (["probe-ntk", RUN, "--executor", "slurm"], 2, "--executor 'slurm' is unknown"),
    (["probe-ntk", RUN, "--ray-address", "here:1"], 2, "add --executor ray"),
    (["audit", RUN, "--executor", "slurm"], 2, "--executor 'slurm' is unknown"),
    (["probe-ntk", RUN, "--executor", "ray", "--engine", "operator"], 2, "tiles are of the structured engine"),
    (["pl-ratio", "nope"], 2, "no run or log"),
    (["pl-ratio", RUN, "--format", "xml"], 2, "--format"),
    (["pl-ratio", RUN, "--output", "a.xyz"], 2, "suffix"),
    (["pl-ratio", RUN, "--require", "a ~ b"], 2, "not understood"),
    (["pl-ratio", f"{RUN}/run.json"], 2, ""),
    (["fit-rate", f"{RUN}/checkpoints/step-000000.pt"], 2, ""),
    (["ablate", "mnist", "--width", "a,b"], 2, "--width"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_usage_is_one_line(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("LPLR_DEBUG", raising=False)
    before = sorted(p.name for p in workspace.rglob("*"))
    # The same function as the console script's, without a second of imports each time.
    assert run(list(arguments)) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        assert err.startswith("lplr: error: ")
        assert err.count("\n") == 1
        assert message in err
    assert sorted(p.name for p in workspace.rglob("*")) == before


def test_divergence_exits_3_and_keeps_the_run(tmp_path: Path) -> None:
    done = lplr(*TINY, "--lr", "50", "--out", "r", cwd=tmp_path)
    assert done.returncode == 3
    assert "exceeds 2/sharpness" in done.stderr
    assert (tmp_path / "r" / "log.csv").stat().st_size > 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "diverged"


def test_ablate_table_failures_and_resume(tmp_path: Path) -> None:
    command = ["ablate", "mnist", "--samples", "30", "--depth", "1", "--steps", "20", "--width", "4,6"]
    done = lplr(*command, "--lr", "auto,60", "--out", "s", "--format", "json", cwd=tmp_path)
    assert done.returncode == 3
    record = json.loads(done.stdout)
    statuses = {row["run"]: row["status"] for row in record["results"]}
    assert statuses["width4-lrauto"] == statuses["width6-lrauto"] == "finished"
    assert statuses["width4-lr60.0"] == "diverged"
    table = pd.read_csv(tmp_path / "s" / "results.csv")
    assert table["run"].tolist() == list(statuses)
    pd.testing.assert_series_equal(pd.read_parquet(tmp_path / "s" / "results.parquet")["drift"], table["drift"])
    refused = lplr(*command, "--lr", "auto,60", "--out", "s", cwd=tmp_path)
    assert refused.returncode == 2
    stamp = (tmp_path / "s" / "width4-lrauto" / "log.csv").stat().st_mtime_ns
    other = lplr(*command, "--lr", "auto,50", "--out", "s", "--resume", cwd=tmp_path)
    assert other.returncode == 2
    again = lplr(*command, "--lr", "auto,60", "--out", "s", "--resume", "--format", "json", cwd=tmp_path)
    assert again.returncode == 3
    assert (tmp_path / "s" / "width4-lrauto" / "log.csv").stat().st_mtime_ns == stamp
    assert [r["drift"] for r in json.loads(again.stdout)["results"]] == [r["drift"] for r in record["results"]]


def test_user_model_and_data(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net(hidden):\n    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2))\n"
        "def data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.randn(9, 3, generator=g), torch.randn(9, 2, generator=g)\n"
    )
    done = lplr(
        "train", "my_task:data", "--model", "my_task:net", "--model-arg", "hidden=5", "--steps", "15", "--out", "r",
        "--format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 3 * 5 + 5 + 5 * 2 + 2
    named = ("--model", "my_task:net", "--model-arg", "hidden=5", "--data", "my_task:data")
    # A part of the kernel is named where it changes what is said, and bounds λ_min of the whole.
    whole = json.loads(lplr("probe-ntk", "r", "--format", "json", *named, cwd=tmp_path).stdout)["lambda_min"]["value"]
    for part, said in (("trace", "the trace over the outputs"), ("1", "of output c = 1")):
        table = lplr("probe-ntk", "r", "--outputs", part, *named, cwd=tmp_path)
        assert said in " ".join(table.stdout.split())
        assert "η = 1/λ_max" not in table.stdout
        found = json.loads(lplr("probe-ntk", "r", "--outputs", part, "--format", "json", *named, cwd=tmp_path).stdout)
        assert "J J^T" not in found["normalisation"]["ntk"]
        assert found["lambda_min"]["upper_bound_full"] >= whole * (1 - 1e-9)
    half = json.loads(
        lplr("probe-ntk", "r", "--outputs", "trace", "--size", "5", "--format", "json", *named, cwd=tmp_path).stdout
    )
    assert half["lambda_min"]["upper_bound_full"] >= whole * (1 - 1e-9)


def test_help_is_light_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from lplr_cli.cli.main import run; assert run(['--help']) == 0;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pandas', 'rich', 'typer')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    from lplr_cli.cli.app import app

    for entry in app.registered_commands:
        assert entry.callback is not None
        first = (entry.callback.__doc__ or "").strip().splitlines()[0]
        assert re.search(rf"^  {entry.name}\s+{re.escape(first)}$", OVERVIEW, re.MULTILINE)
        assert run([str(entry.name), "--help"]) == 0
        assert ("--require" in capsys.readouterr().out) == (entry.name != "watch")
    assert lplr("--version", cwd=tmp_path).stdout.startswith("lplr ")


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    script = f"""
        PATH={Path(LPLR).parent}:$PATH; eval "$(lplr --show-completion bash)"
        COMP_WORDS=(lplr pro); COMP_CWORD=1; _lplr_completion lplr; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(lplr train --parametri); COMP_CWORD=2; _lplr_completion lplr; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["probe-ntk", "probe-hessian", "--parametrization"]


def test_module_runs_from_the_checkout() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "lplr_cli", "--version"], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lplr ")


def test_a_closed_pipe_is_no_traceback(workspace: Path) -> None:
    shell = f"set -o pipefail; {LPLR} pl-ratio {RUN} --format csv | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("step,loss")
    assert "Traceback" not in done.stderr


def test_requirement_expressions() -> None:
    record = {"a": {"b": 1.5, "c": None}, "d": True, "e": None, "f": "text"}
    good = ["a.b >= 1.5", "a.b<2", "d == true", " a.b != 0 "]
    assert check_requirements([parse_requirement(t) for t in good], record) == []
    bad = ["a.b > 1.5", "a.c > 0", "d == false", "e.x.y > 0"]
    assert len(check_requirements([parse_requirement(t) for t in bad], record)) == 4
    for text in ("a.b", "a.b >= x", ">= 1", "a.b >= nan", "a b >= 1"):
        with pytest.raises(InputError):
            parse_requirement(text)
    with pytest.raises(InputError, match=r"a\.b"):
        check_requirements([parse_requirement("g == 1")], record)


def test_requirements_of_texts() -> None:
    record = {"verdict": "linear", "a": {"status": "holds (verified)", "n": None}, "rate": 0.5}
    good = ['verdict == "linear"', "verdict=='linear'", 'a.status != "fails"', 'verdict != ""']
    assert check_requirements([parse_requirement(t) for t in good], record) == []
    bad = ['verdict == "two_rate"', "a.status != 'holds (verified)'", 'a.n == "x"']
    failures = [str(f) for f in check_requirements([parse_requirement(t) for t in bad], record)]
    assert failures[0] == 'verdict == "two_rate" (found "linear")'
    assert failures[2] == 'a.n == "x" (found null)'
    for text in ('verdict >= "linear"', 'verdict == "linear', "verdict == linear", "verdict == 'a\"", 'x == "a" b'):
        with pytest.raises(InputError, match="not understood"):
            parse_requirement(text)
    for text, kind in (("verdict == 1", "verdict is a text"), ('rate == "x"', "rate is a number")):
        with pytest.raises(InputError, match=kind):
            check_requirements([parse_requirement(text)], record)


def test_a_verdict_can_be_required(workspace: Path) -> None:
    log = workspace / "verdict.csv"
    log.write_text("step,loss\n" + "".join(f"{t},{0.97**t!r}\n" for t in range(200)))
    assert run(["fit-rate", str(log), "--require", 'verdict == "linear"']) == 0
    assert run(["fit-rate", str(log), "--require", 'verdict == "sublinear"']) == 1
    assert run(["fit-rate", str(log), "--require", "verdict == 3"]) == 2


def test_option_parsers() -> None:
    assert parse_memory("2GiB") == 2 << 30
    assert parse_memory("500 MB") == 500_000_000
    assert parse_arguments(["a=1", "b=0.5", "c=true", "d=x=y"]) == {"a": 1, "b": 0.5, "c": True, "d": "x=y"}
    assert parse_list("1, 2", "n", int) == [1, 2]
    with pytest.raises(InputError):
        parse_arguments(["a"])


def test_a_kernel_in_a_file_has_the_same_figures(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if K did not fit: through the option, to the verified bound."""
    from lplr_cli.ntk import kernel

    plain = json.loads(lplr("probe-ntk", RUN, "--verify", "--format", "json", cwd=workspace).stdout)
    monkeypatch.setattr(kernel.Task, "kernel_bytes", 1 << 40)
    refused = lplr("probe-ntk", RUN, "--verify", cwd=workspace)
    assert refused.returncode == 2
    assert "above --memory 2GiB" in refused.stderr
    filed = json.loads(lplr("probe-ntk", RUN, "--verify", "--scratch", ".", "--format", "json", cwd=workspace).stdout)
    for key in ("value", "lower"):
        assert filed["lambda_min"][key] == pytest.approx(plain["lambda_min"][key], rel=0.02)
    assert filed["lambda_max"] == pytest.approx(plain["lambda_max"], rel=1e-8)


def test_matrix_free_probe_says_so(workspace: Path) -> None:
    dense = json.loads(lplr("probe-ntk", RUN, "--format", "json", cwd=workspace).stdout)
    done = lplr("probe-ntk", RUN, "--engine", "operator", "--format", "json", cwd=workspace)
    free = json.loads(done.stdout)
    assert "Ritz values" in done.stderr
    assert (free["engine"], free["method"]) == ("operator", "lanczos")
    assert free["lambda_max"] == pytest.approx(dense["lambda_max"], rel=1e-8)
    assert free["lambda_min"]["value"] >= dense["lambda_min"]["value"] * (1 - 1e-6)


def test_certify_tells_verified_from_estimated(workspace: Path, tmp_path: Path) -> None:
    found = json.loads(lplr("certify", RUN, "--format", "json", cwd=workspace).stdout)
    assert 0 < found["lambda_0_lower"] <= found["lambda_0"]
    assert 0 < found["radius_kernel"] < found["radius_jacobian"]
    assert found["estimates"]["L_J_sampled"] <= found["given"]["l_j"]
    assert found["run"]["L_J_probes"] <= found["given"]["l_j"]
    assert found["given"]["radius"] == pytest.approx(found["run"]["drift_max"])
    inside = str(found["radius_jacobian"] / 2)
    given = ["certify", f"{RUN}/checkpoints/step-000000.pt", "--radius", inside, "--directions", "0"]
    half = json.loads(lplr(*given, "--format", "json", cwd=workspace).stdout)
    assert 0 < half["given"]["mu_jacobian"] < 2 * half["lambda_0"]
    assert half["estimates"] is None
    assert lplr(*given, "--require", "given.mu_jacobian > 0", cwd=workspace).returncode == 0
    assert "verified" in lplr(*given, cwd=workspace).stdout
    relu = lplr(
        "train",
        "mnist",
        "--samples",
        "20",
        "--activation",
        "relu",
        "--width",
        "4",
        "--steps",
        "2",
        "--out",
        "q",
        cwd=tmp_path,
    )
    assert relu.returncode == 0
    assert "no certificate for relu" in json.loads((tmp_path / "q" / "summary.json").read_text())["mu_certified_reason"]
    refused = lplr("certify", "q", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("lplr: error: no certificate for relu")
    assert refused.stdout == ""
    still = lplr(
        "train",
        "mnist",
        "--samples",
        "8",
        "--width",
        "8",
        "--depth",
        "1",
        "--steps",
        "3",
        "--lr",
        "1e-9",
        "--out",
        "s",
        cwd=tmp_path,
    )
    assert still.returncode == 0
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert 0 < summary["mu_certified"] < 2 * summary["lambda_min"]["initial"]
