"""Damaged and hostile files of every kind: an answer or one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lplr_cli.analysis import summarize
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1000)
# What a random place in a file is replaced by: NUL, quotes, brackets, signs, high bytes, numbers out of range.
BITES = st.sampled_from(
    [b"\0", b'"', b"{", b"[", b"-", b"\xff\xfe", b"1e999", b"nan", b",,", b"\n", b"../", b"\x80", b"9" * 400, b"null"]
)


def answer(*arguments: str) -> int:
    """The exit code of a command; fails on a traceback, more than one line of error, or a fault of lplr itself."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(arguments))
    text = err.getvalue()
    assert code in (0, 1, 2, 3), text
    assert "Traceback" not in text
    if code in (2, 3):
        errors = [line for line in text.splitlines() if line.startswith("lplr: error: ")]
        assert len(errors) == 1, text
    return code


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("garbage")
    outcome = train(
        TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, steps=12, probe_every=6),
        folder / "r",
    )
    outcome.run.write_summary(summarize(outcome.run).to_dict())
    np.savez(folder / "d.npz", inputs=np.eye(4), targets=np.arange(4.0))
    (folder / "d.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i * i},{i % 2}" for i in range(6)))
    torch.save({"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2)}, folder / "w.pt")
    return folder


def bitten(content: bytes, data: st.DataObject) -> bytes:
    """A file with a few places bitten, or cut."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        bite = data.draw(st.one_of(BITES, st.binary(min_size=1, max_size=8)))
        content = content[:at] + bite + content[at + len(bite) :]
    return content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content


def damaged_run(small: Path, name: str, data: st.DataObject) -> None:
    work = small / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(small / "r", work)
    target = work / name
    target.write_bytes(bitten(target.read_bytes(), data))
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    commands = ["pl-ratio", "fit-rate", "audit", "probe-ntk"] if name != "log.csv" else ["pl-ratio", "fit-rate"]
    answer(data.draw(st.sampled_from(commands)), str(work), "--format", "json")
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before


FILES = ["run.json", "log.csv", "probes.csv", "summary.json", "checkpoints/step-000012.pt"]


@pytest.mark.parametrize("name", FILES)
@QUICK
@given(data=st.data())
def test_damaged_runs(small: Path, name: str, data: st.DataObject) -> None:
    damaged_run(small, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(LONG, max_examples=400)
@given(data=st.data())
def test_damaged_runs_at_length(small: Path, name: str, data: st.DataObject) -> None:
    damaged_run(small, name, data)


def damaged_input(small: Path, name: str, data: st.DataObject) -> None:
    target = small / f"bitten-{name}"
    target.write_bytes(bitten((small / name).read_bytes(), data))
    if name.startswith("w"):
        answer("probe-ntk", str(target), "--data", str(small / "d.npz"), "--format", "json")
        return
    with contextlib.suppress(InputError):
        load_dataset(DataSpec(str(target), target_columns=("y",) if name.endswith("csv") else ()))


@pytest.mark.parametrize("name", ["d.npz", "d.csv", "w.pt"])
@QUICK
@given(data=st.data())
def test_damaged_data_and_weights(small: Path, name: str, data: st.DataObject) -> None:
    damaged_input(small, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d.npz", "d.csv", "w.pt"])
@LONG
@given(data=st.data())
def test_damaged_data_and_weights_at_length(small: Path, name: str, data: st.DataObject) -> None:
    damaged_input(small, name, data)


def test_bombs_and_huge_shapes(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("inputs.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(2300):
            member.write(b"\0" * (1 << 20))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with zipfile.ZipFile(tmp_path / "shape.npz", "w") as archive:
        archive.writestr("inputs.npy", header.getvalue())
        archive.writestr("targets.npy", header.getvalue())
    for name, match in (("bomb.npz", "unpacks to"), ("shape.npz", "cannot read")):
        with pytest.raises(InputError, match=match):
            load_dataset(DataSpec(str(tmp_path / name)))
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    assert answer("probe-ntk", str(tmp_path / "w.pt"), "--data", str(tmp_path / "shape.npz")) == 2


def test_archives_whose_directory_is_damaged(small: Path, tmp_path: Path) -> None:
    """Found by fuzzing: a disk number, a flag of encryption and an unknown compression in the zip directory."""
    for name in ("w.pt", "d.npz"):
        content = (small / name).read_bytes()
        end, entry = content.rindex(b"PK\x05\x06"), content.index(b"PK\x01\x02")
        for at, bite in ((end + 4, b"\x22"), (end + 6, b"\x22"), (entry + 8, b"\x01"), (entry + 10, b"\x63")):
            (tmp_path / name).write_bytes(content[:at] + bite + content[at + 1 :])
            if name == "w.pt":
                answer("probe-ntk", str(tmp_path / name), "--data", str(small / "d.npz"))
            else:
                with contextlib.suppress(InputError):
                    load_dataset(DataSpec(str(tmp_path / name)))


def test_links_names_and_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    Path("latin.csv").write_bytes("schritt,verlüst\n0,1\n".encode("latin-1"))
    Path("nul.csv").write_bytes(b"step,loss\n0,1\n\0\0\0\n1,2\n")
    Path("deep.json").write_text('{"a":' * 5000 + "1" + "}" * 5000)
    for name in ("loop", "latin.csv", "deep.json", "/dev/null", ".", "\0", "x" * 5000):
        assert answer("fit-rate", name) == 2
        assert answer("probe-ntk", name) == 2
        assert answer("audit", name) == 2
    assert answer("fit-rate", "nul.csv") == 2  # three usable rows are too few
    assert answer("train", "loop") == 2
    assert answer("train", "../../../../etc/passwd") == 2
    assert answer("ablate", "mnist", "--init", "../../x,he", "--steps", "1", "--samples", "4") in (2, 3)
    assert not (tmp_path.parent.parent / "x").exists()


@pytest.mark.slow
def test_coverage_guided_fuzzing(tmp_path: Path) -> None:
    """Ten thousand inputs of atheris, which looks for new branches."""
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.fuzz_readers", "-runs=10000", "-max_len=400", "-seed=1"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 10000 runs" in done.stderr


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("log.csv", b"0.", b"\0."),
        ("log.csv", b"step,", b"st\0p,"),
        ("probes.csv", b"step,", b"\0tep,"),
        ("probes.csv", b"lambda_min,", b"lambda,"),
        ("run.json", b'"config"', b'"konfig"'),
        ("run.json", b'"n": 6', b'"n": []'),
    ],
)
def test_cases_that_were_found(small: Path, tmp_path: Path, name: str, before: bytes, after: bytes) -> None:
    """Inputs that once gave a traceback, and their like."""
    shutil.copytree(small / "r", tmp_path / "r")
    target = tmp_path / "r" / name
    content = target.read_bytes()
    assert before in content
    target.write_bytes(content.replace(before, after, 1))
    for command in ("pl-ratio", "fit-rate", "audit"):
        assert answer(command, str(tmp_path / "r")) == 2
