"""Files made to hang, to fill the memory, or to hold values that no such file has: exit 2 and one line, at once."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lplr_cli.analysis.path_figures import kept_rows
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.reading import EXPANSION, UNPACKED
from lplr_cli.runs import RunDirectory
from lplr_cli.runs.exported import is_small_arithmetic
from lplr_cli.schema import is_plain
from lplr_cli.training import TrainConfig, train
from tests.foreign_nets import mlp
from tests.reliability.conftest import Lplr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    config = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, steps=4, probe_every=2)
    train(config.with_(momentum=0.5), folder / "r")
    np.savez(folder / "d.npz", inputs=np.eye(4), targets=np.arange(4.0))
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "r", tmp_path / "r")
    shutil.copy(made / "d.npz", tmp_path)
    return tmp_path


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


ENDLESS: list[Callable[[Path], None]] = [fifo, zeros, folder, sock]
PLACES: dict[str, list[tuple[str, ...]]] = {
    "r/run.json": [("pl-ratio", "r"), ("audit", "r"), ("train", "--resume", "r"), ("watch", "r", "--once")],
    "r/log.csv": [("pl-ratio", "r"), ("fit-rate", "r"), ("audit", "r")],
    "r/probes.csv": [("pl-ratio", "r"), ("audit", "r")],
    "r/checkpoints/step-000004.pt": [("probe-ntk", "r")],
    "r/checkpoints/step-000000.pt": [("certify", "r")],
    "d.npz": [("train", "d.npz"), ("probe-ntk", "w.pt", "--data", "d.npz", "--activation", "tanh")],
    "d.csv": [("train", "d.csv", "--target", "y"), ("fit-rate", "d.csv")],
    "d.parquet": [("train", "d.parquet", "--target", "y"), ("pl-ratio", "d.parquet")],
    "w.pt": [("probe-ntk", "w.pt", "--data", "mnist"), ("certify", "w.pt", "--data", "mnist")],
    "grid.toml": [("ablate", "mnist", "--grid", "grid.toml")],
    "policy.toml": [("audit", "r", "--policy", "policy.toml")],
    "s/sweep.json": [("ablate", "mnist", "--width", "2,3", "--out", "s", "--resume")],
}


@pytest.mark.parametrize("make", ENDLESS)
def test_what_is_no_regular_file_is_refused_everywhere(make: Any, work: Path, lplr: Lplr) -> None:
    (work / "s").mkdir()
    torch.save({"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, work / "w.pt")
    for name, commands in PLACES.items():
        path = work / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        make(path)
        for command in commands:
            assert lplr(*command) == 2, (name, command)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kept is not None:
            path.write_bytes(kept)


def test_one_bad_folder_does_not_stop_list(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    for name in ("bad", "worse"):
        (work / name).mkdir()
    fifo(work / "bad" / "run.json")
    zeros(work / "worse" / "run.json")
    assert run(["list", ".", "--format", "json"]) == 0
    rows = {row["run"]: row["error"] for row in json.loads(capsys.readouterr().out)["runs"]}
    assert rows["r"] is None
    assert "is no file" in rows["bad"]
    assert "is no file" in rows["worse"]


def parquet_bomb(path: Path) -> None:
    """75 million rows of one number in a few KB: 1.2 GB in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.table({k: np.zeros(1 << 22) for k in ("step", "loss")})
    with pq.ParquetWriter(path, part.schema, compression="zstd") as writer:
        for _ in range(18):
            writer.write_table(part)


def test_parquet_bombs(work: Path, lplr: Lplr) -> None:
    parquet_bomb(work / "b.parquet")
    size = (work / "b.parquet").stat().st_size
    assert size * EXPANSION < UNPACKED < 2 * 8 * 18 * (1 << 22)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in (
        ("pl-ratio", "b.parquet"), ("fit-rate", "b.parquet"), ("train", "b.parquet", "--target", "loss"),
    ):  # fmt: skip
        assert lplr(*command) == 2
    (work / "r" / "log.csv").unlink()
    shutil.copy(work / "b.parquet", work / "r" / "log.parquet")
    assert lplr("pl-ratio", "r") == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_tables_that_compress_well_are_read(tmp_path: Path, lplr: Lplr) -> None:
    """A long log of few values is no bomb."""
    steps = np.arange(200_000)
    table = pd.DataFrame({"step": steps, "loss": np.exp(-steps / 2e4).round(3) + 1e-3, "lr": 0.1, "note": "same"})
    table.to_parquet(tmp_path / "l.parquet")
    assert lplr("fit-rate", "l.parquet") == 0


STRANGE = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "meta": lambda: torch.empty(4, 4, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.quint8),
    "complex": lambda: torch.zeros(4, 4, dtype=torch.complex64),
    "repeated": lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_tensors(kind: str, work: Path, lplr: Lplr) -> None:
    torch.save({"weight": STRANGE[kind](), "bias": torch.zeros(4)}, work / "w.pt")
    assert lplr("probe-ntk", "w.pt", "--data", "d.npz") == 2
    path = work / "r" / "checkpoints" / "step-000004.pt"
    record = torch.load(path, weights_only=True)
    for section in ("parameters", "optimizer"):
        first = next(iter(record[section]))
        torch.save({**record, section: {**record[section], first: STRANGE[kind]()}}, path)
        assert lplr("probe-ntk", "r") == 2
        assert lplr("certify", str(path)) == 2


def test_half_precision_is_read(work: Path, lplr: Lplr) -> None:
    torch.save({k: v.half() for k, v in torch.nn.Linear(4, 1).state_dict().items()}, work / "w.pt")
    assert lplr("probe-ntk", "w.pt", "--data", "d.npz") == 0


WRONG: list[dict[str, Any]] = [
    {"model": {"kind": "mlp", "width": "64"}},
    {"model": {"kind": "mlp", "width": 2**30}},
    {"model": {"kind": "mlp", "depth": 10**7}},
    {"model": {"kind": "mlp", "widths": [2] * 10**5}},
    {"model": {"kind": "mlp", "beta": float("inf")}},
    {"model": {"kind": "resnet", "width": 8.5}},
    {"model": {"kind": 5}},
    {"model": [1]},
    {"data": {"source": 5}},
    {"data": {"source": "mnist", "samples": 2**70}},
    {"data": {"source": "mnist", "classes": "38"}},
    {"data": {"source": "a\0b.npz"}},
    {"step": float("inf")},
    {"step": -1},
    {"seed": 2**70},
    {"dtype": "float16"},
    {"outputs": None},
    {"input_shape": [float("nan")]},
    {"loss_scale": "1"},
    {"parameters": [1]},
    {"parameters": {}},
    {"parameters": {"layers.0.weight": 1}},
    {"rng": torch.zeros(3)},
    {"optimizer": {"momentum": "m"}},
    {"schema_version": torch.zeros(2, 2)},
    {"format": torch.zeros(2)},
]


@pytest.mark.parametrize("changes", WRONG, ids=lambda changes: repr(changes)[:60])
def test_wrong_values_in_checkpoints(changes: dict[str, Any], work: Path, lplr: Lplr) -> None:
    path = work / "r" / "checkpoints" / "step-000000.pt"
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    assert lplr("probe-ntk", str(path)) == 2
    assert lplr("certify", "r") == 2


WRONG_RUNS: list[dict[str, Any]] = [
    {"model": {"kind": "mlp", "width": "64"}},
    {"model": {"kind": "mlp", "width": 2**30, "depth": 1}},
    {"model": {"kind": "mlp", "width": 2**14, "depth": 3}},
    {"model": {"kind": "mlp", "depth": 10**7}},
    {"data": {"source": 5}},
    {"probe_size": float("inf")},
    {"probe_size": True},
    {"seed": 2**70},
    {"steps": 1e300},
    {"device": "meta"},
    {"device": "nothing"},
    {"log_format": []},
    {"loss": {}},
    {"batch_size": "9"},
]


@pytest.mark.parametrize("changes", WRONG_RUNS, ids=lambda changes: repr(changes)[:60])
def test_wrong_values_in_run_json(changes: dict[str, Any], work: Path, lplr: Lplr) -> None:
    path = work / "r" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "interrupted", "config": {**record["config"], **changes}}))
    assert lplr("train", "--resume", "r") == 2
    assert lplr("train", "--from", "r", "--out", "again") == 2
    assert not (work / "again").exists()


def test_checkpoints_that_do_not_fit_are_no_fault(work: Path, lplr: Lplr) -> None:
    """Momentum and random state of another size; a resume goes back to the checkpoint before, or says what is wrong."""
    path = work / "r" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "interrupted"}))
    last = work / "r" / "checkpoints" / "step-000004.pt"
    record = torch.load(last, weights_only=True)
    for changes in ({"optimizer": {"momentum": torch.zeros(3)}}, {"rng": torch.zeros(5, dtype=torch.uint8)}):
        torch.save({**record, **changes}, last)
        assert lplr("train", "--resume", "r") == 0
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "interrupted"}))


@pytest.mark.parametrize("value", ["inf", "", "-1", "nan", "text"])
@pytest.mark.parametrize("column", [0, 1])
def test_counts_in_tables(value: str, column: int, work: Path, lplr: Lplr) -> None:
    """Steps and sizes of probes, found by fuzzing."""
    path = work / "r" / "probes.csv"
    header, *rows = path.read_text().splitlines()
    cells = rows[0].split(",")
    path.write_text("\n".join([header, ",".join([*cells[:column], value, *cells[column + 1 :]]), *rows[1:], ""]))
    for command in (("pl-ratio", "r"), ("audit", "r")):
        assert lplr(*command) == 2


@pytest.mark.parametrize("column", ["mu", "beta", "eta_beta", "factor", "pieces"])
def test_rows_of_a_path_are_numbers(column: str, tmp_path: Path) -> None:
    """Found by fuzzing: a report took any of them for numbers."""
    row = dict.fromkeys(("step", "certified", "mu", "mu_star", "beta", "eta_beta", "factor", "length", "pieces"), "1")
    pd.DataFrame([row, {**row, "step": "2", column: "24.5=cmd|"}]).to_csv(tmp_path / "path.csv", index=False)
    with pytest.raises(InputError, match=f"something else than numbers in {column}"):
        kept_rows(RunDirectory(tmp_path))


@pytest.mark.parametrize("seed", ["4294967296", "-1", "99999999999999999999999"])
def test_seeds_out_of_range(seed: str, lplr: Lplr) -> None:
    assert lplr("train", "mnist", "--samples", "6", "--width", "2", "--seed", seed, "--optimizer", "sgd") == 2


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


NPZ = {
    "empty arrays": npz(inputs=np.empty((0, 3)), targets=np.empty(0)),
    "no features": npz(inputs=np.empty((3, 0)), targets=np.ones(3)),
    "huge inputs": npz(inputs=np.full((3, 2), 1e300), targets=np.arange(3.0)),
    "huge targets": npz(inputs=np.eye(3), targets=np.full(3, 1e300)),
    "no arrays": npz(),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", NPZ)
def test_npz_of_extreme_values(kind: str, tmp_path: Path, lplr: Lplr) -> None:
    (tmp_path / "d.npz").write_bytes(NPZ[kind])
    code = lplr("train", "d.npz", "--width", "2", "--depth", "1", "--steps", "2", "--out", "r")
    assert code in ((2, 3) if kind.startswith("huge") else (2,))
    if (tmp_path / "r").exists():
        for command in ("audit", "certify", "probe-ntk", "pl-ratio", "fit-rate"):
            lplr(command, "r")


GOOD = [
    "Symbol('s0', positive=True, integer=True)", "2*s0 + 1", "Max(1, s77)", "FloorDiv(s0, 2)",
    "Pow(Symbol('s0', positive=True, integer=True), Integer(2))", "Mod(Add(s0, Mul(Integer(-1), 3)), 4)", "u3",
]  # fmt: skip
BAD = [
    "9**9**9**9", "Pow(9, Pow(9, Pow(9, 9)))", "Pow(Pow(Pow(s0, 8), 8), 8)", "9" * 400 + "**8", "Pow(s0, s1)",
    "Pow(s0, -1)", "2**s0", "Integer('9'*9)", "Symbol('x')", "__import__('os')", "s0.__class__", "(lambda: 1)()",
    "[s0]", "1e300", "'a'*9", "-" * 900 + "1", "(" * 400 + "1" + ")" * 400, "s0 if 1 else 2", "Max()", "True", "",
    "*".join(["s0"] * 200),
]  # fmt: skip


def test_expressions_of_sizes() -> None:
    assert [text for text in GOOD if not is_small_arithmetic(text)] == []
    assert [text for text in BAD if is_small_arithmetic(text)] == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["9", "s0", "**", "*", "+", "(", ")", "Pow(", ",", "-", "Max(", "//", " "]), max_size=40)
)
def test_what_is_small_arithmetic_evaluates_at_once(parts: list[str]) -> None:
    sympy = pytest.importorskip("sympy")
    text = "".join(parts)
    if is_small_arithmetic(text):
        s0 = sympy.Symbol("s0", positive=True, integer=True)
        try:
            value = sympy.sympify(text, locals={"s0": s0, "Pow": sympy.Pow, "Max": sympy.Max})
        except (sympy.SympifyError, TypeError, ZeroDivisionError, ValueError):
            return
        assert len(str(value)) < 2000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["9**9**9**9", "Pow(9, Pow(9, Pow(9, 9)))"])
def test_exported_programs_do_not_hang(text: str, work: Path, lplr: Lplr) -> None:
    program = torch.export.export(mlp(), (torch.zeros(4, 5),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, work / "good.pt2")
    with zipfile.ZipFile(work / "good.pt2") as old, zipfile.ZipFile(work / "bad.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b"Symbol('s", f"{text}+Symbol('s".encode()))
    assert lplr("probe-ntk", "bad.pt2", "--data", "d.npz") == 2


def test_torch_says_nothing_beside_the_error(work: Path) -> None:
    """In a process of its own, where torch's warnings have not been shown before."""
    (work / "raw.pt").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=4))
    for name, model in (("bad.pt2", "{}"), ("half.pt2", '{"graph_module": 3')):
        with zipfile.ZipFile(work / name, "w") as archive:
            archive.writestr("w/archive_format", "pt2")
            archive.writestr("w/models/model.json", model)
    each = "run(['probe-ntk', name, '--data', 'd.npz'])"
    code = f"from lplr_cli.cli.main import run; print([{each} for name in ('raw.pt', 'bad.pt2', 'half.pt2')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "[2, 2, 2]\n"
    assert len(done.stderr.splitlines()) == 3, done.stderr


def test_arguments_that_repeat_themselves() -> None:
    laughs: Any = "ha"
    for _ in range(30):
        laughs = [laughs] * 10
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert not is_plain({"a": laughs})
    assert not is_plain({"a": deep})
    assert not is_plain({"a": torch.zeros(1)})
    assert not is_plain({"a": float("nan")})
    assert is_plain({"a": [1, 2.5, None, {"b": "c", "d": [True] * 1000}]})
