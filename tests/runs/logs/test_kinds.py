"""The kinds of log that people have are read without a flag, through the command; other kinds are told kindly."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from lplr_cli.cli.main import run
from lplr_cli.errors import InputError
from lplr_cli.runs.logs import json_document, place, read_foreign_log
from lplr_cli.runs.logs.tensorboard import masked
from tests.runs.logs.contract import SAMPLES, expected_of
from tests.runs.logs.make_samples import ROWS, decay, rows

PLAIN = pd.DataFrame(decay())


def sample(path: str) -> Callable[[Path], Path]:
    """A file that a library wrote."""

    def copy(folder: Path) -> Path:
        library = path.split("/")[0]
        shutil.copytree(SAMPLES / library, folder / library)
        return next(p for p in [folder / path, *folder.rglob(path.split("/", 1)[-1])] if p.exists())

    return copy


def written(content: str | bytes) -> Callable[[Path], Path]:
    """A file as users or servers write it."""

    def write(folder: Path) -> Path:
        (folder / "log").write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / "log"

    return write


def table(header: str, row: str) -> str:
    lines = (row.format(s=int(r["step"]), l=r["loss"]) for r in rows(decay()))
    return "\n".join([header, *lines, ""])


CHART = table('"Step","sunny-1 - train/loss","sunny-1 - train/loss__MIN"', '"{s}","{l!r}","0"')
EXPORT = table("_step,_runtime,train/loss,note", "{s},1.5,{l!r},x")
KINDS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "Hugging Face trainer_state.json": (sample("huggingface/checkpoint-40/trainer_state.json"), []),
    "Hugging Face checkpoint-40": (sample("huggingface/checkpoint-40"), []),
    "Hugging Face output folder": (sample("huggingface"), []),
    "Lightning metrics.csv": (sample("lightning/version_0/metrics.csv"), []),
    "Lightning version_0": (sample("lightning/version_0"), []),
    "TensorBoard folder": (sample("tensorboard"), []),
    "MLflow run folder": (sample("mlflow_folder"), []),
    "MLflow metric file": (sample("mlflow_folder/metrics/train/loss"), []),
    "MLflow SQLite store": (sample("mlflow_database/mlflow.db"), ["--run", "first"]),
    "W&B CSV": (written(EXPORT), []),
    "W&B JSONL": (written(table("", '{{"_step": {s}, "train/loss": {l!r}}}')), []),
    "W&B chart": (written(CHART), []),
    "W&B offline run": (sample("wandb/offline-run-20260101_000000-abc/run-abc.wandb"), []),
    "trackio SQLite": (sample("trackio/p.db"), ["--run", "first"]),
    "Keras CSVLogger": (sample("keras/training.csv"), []),
    "Keras history.json": (sample("keras/history.json"), []),
    "scikit-learn loss_curve_, JSON": (sample("sklearn/curve.json"), []),
    "scikit-learn loss_curve_, .npy": (sample("sklearn/curve.npy"), []),
    "one column": (sample("sklearn/curve.txt"), []),
    "lists by name": (written(json.dumps({"loss": decay()["loss"]})), []),
    "compressed CSV": (written(gzip.compress(EXPORT.encode())), []),
    "CSV by zstd": (written(pa.compress(EXPORT.encode(), codec="zstd", asbytes=True)), []),
    "spaces": (written(table("step loss", "{s} {l!r}")), []),
    "semicolons, decimal comma": (written(table("step;loss", "{s};{l!r}").replace(".", ",")), []),
    "printed lines": (written(table("starting", "iter {s}: loss {l!r}, time 20ms")), []),
    "key=value lines": (written(table("", "step={s} loss={l!r}")), []),
    "a name of one's own": (written(table("step,objective_a,b", "{s},{l!r},1")), ["--column", "loss=objective_a"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_of_every_kind_of_log(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, flags = KINDS[kind]
    path = make(tmp_path)
    assert run(["fit-rate", str(path), *flags, "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    library = path.relative_to(tmp_path).parts[0]
    expected = expected_of(library) if (SAMPLES / library).is_dir() else PLAIN
    assert record["points"] >= len(expected) - 1
    if expected["loss"].equals(PLAIN["loss"]):
        assert record["rate"] == pytest.approx(0.9, rel=1e-6)


def test_fourteen_kinds_need_no_flag_and_none_more_than_one() -> None:
    assert sum(not flags for _, flags in KINDS.values()) >= 14
    assert len(KINDS) >= 17
    assert all(len(flags) <= 2 for _, flags in KINDS.values())


def test_audit_and_report_take_what_fit_rate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = str(sample("mlflow_database/mlflow.db")(tmp_path))
    assert run(["fit-rate", database]) == 2
    assert "holds 2 runs; choose one with --run: first, second" in capsys.readouterr().err
    flags = ["--run", "second", "--column", "loss=train/loss", "--window", "5:35"]
    for command in (["audit"], ["pl-ratio"], ["report", "-o", str(tmp_path / "page.html")]):
        assert run([command[0], database, *flags, *command[1:], "--format", "json"]) == 0
        answer = capsys.readouterr()
        assert "read the run second" in answer.err
    assert "mlflow.db" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_could_be_meant_is_said(tmp_path: Path) -> None:
    both = written(table("epoch,train_loss_step,train_loss_epoch", "{s},{l!r},9"))(tmp_path)
    reading = read_foreign_log(both)
    assert reading.log["loss"].tolist() == PLAIN["loss"].tolist()
    assert reading.notes == (
        "'train_loss_step' is taken as the loss; also there: train_loss_epoch",
        "no column of steps: 'epoch' is taken as the step",
    )
    column = written("loss\n3\n2\n1\n")(tmp_path)
    assert read_foreign_log(column).notes == ("no column of steps: rows are counted as steps, from 0",)
    text = written("begin\nstep=1 loss=3\nstep=2 loss=2\n")(tmp_path)
    assert read_foreign_log(text).notes == ("read as text: 2 lines with step, loss; 1 other lines passed over",)


def test_steps_that_start_again_with_each_epoch_are_no_restart(tmp_path: Path) -> None:
    lines = [f"Epoch [{e}/3], Step [{s}/30], Loss: {5 - e - s / 40}" for e in (1, 2, 3) for s in (10, 20, 30)]
    reading = read_foreign_log(written("\n".join(lines))(tmp_path))
    assert reading.log["step"].tolist() == list(range(9))
    assert "starts again with each epoch" in reading.notes[-1]


def test_several_runs_of_a_chart_are_chosen_from(tmp_path: Path) -> None:
    chart = written(table("Step,a - loss,b - loss", "{s},{l!r},7"))(tmp_path)
    with pytest.raises(InputError, match=r"holds 2 runs; choose one with --run: a, b"):
        read_foreign_log(chart)
    assert read_foreign_log(chart, run="b").log["loss"].tolist() == [7] * ROWS


def test_a_validation_loss_is_not_taken_for_the_loss(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'loss'.*val_loss, accuracy"):
        read_foreign_log(written(table("step,val_loss,accuracy", "{s},{l!r},1"))(tmp_path))


def weights(folder: Path) -> Path:
    torch.save({"a": torch.zeros(3)}, folder / "w.pt")
    return folder / "w.pt"


def tensors(folder: Path) -> Path:
    save_file({"a": torch.zeros(3)}, folder / "w.safetensors")
    return folder / "w.safetensors"


def aim(folder: Path) -> Path:
    (folder / ".aim").mkdir()
    return folder


def weights_folder(folder: Path) -> Path:
    tensors(folder)
    return folder


def other_database(folder: Path) -> Path:
    with sqlite3.connect(folder / "o.db") as database:
        database.execute("CREATE TABLE people (name TEXT)")
    return folder / "o.db"


def data_set(folder: Path) -> Path:
    np.savez(folder / "d.npz", X=np.zeros((4, 2)), y=np.zeros(4))
    return folder / "d.npz"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (weights, "holds weights, no log; probe them: lplr probe-ntk"),
        (tensors, "holds weights, no log; probe them: lplr probe-ntk"),
        (aim, "is a repository of Aim; export the run's metrics as CSV"),
        (weights_folder, "holds weights, and no log; probe them: lplr probe-ntk"),
        (other_database, "is an SQLite database with the tables people"),
        (data_set, "no column 'loss'; name it with --column loss=NAME; it has X, y"),
        (pipe, "is no file"),
        (written(b"\x89HDF\r\n\x1a\n"), "HDF5"),
        (written(b"\x89PNG\r\n\x1a\n"), "is a picture"),
        (written("<!DOCTYPE html><p>"), "markup"),
        (written("dear diary"), "nothing in it names a loss"),
    ],
)
def test_what_is_no_log_is_told_kindly(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_foreign_log(make(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def hostile(statement: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with sqlite3.connect(folder / "mlflow.db") as database:
            database.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, start_time INTEGER)")
            database.execute(statement)
        return folder / "mlflow.db"

    return write


ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i FROM c)"
COLUMNS = "key, value, step, timestamp, run_uuid"


@pytest.mark.parametrize(
    "make",
    [
        hostile(f"CREATE VIEW metrics ({COLUMNS}) AS {ENDLESS} SELECT 'loss', 1, i, 0, 'a' FROM c"),
        hostile(f"CREATE VIRTUAL TABLE metrics USING fts4({COLUMNS})"),
        hostile(f"CREATE TABLE metrics ({COLUMNS}, more GENERATED ALWAYS AS (load_extension('x')))"),
    ],
)
def test_databases_run_nothing_of_their_own(make: Callable[[Path], Path], tmp_path: Path) -> None:
    try:
        path = make(tmp_path)
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite does not write it: {error}")
    before = path.read_bytes()
    with pytest.raises(InputError):
        read_foreign_log(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db"]


def test_rows_in_a_journal_are_said_to_be_missing(tmp_path: Path) -> None:
    path = sample("trackio/p.db")(tmp_path)
    Path(f"{path}-wal").write_bytes(b"rows")
    assert "rows that are still in p.db-wal are not read" in read_foreign_log(path, run="first").notes[-1]


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "UNPACKED", 1 << 20)
    with pytest.raises(InputError, match="holds more than"):
        read_foreign_log(written(gzip.compress(b"0" * (3 << 20)))(tmp_path))
    monkeypatch.setattr(json_document, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="in one document"):
        read_foreign_log(written(json.dumps({"loss": decay(400)["loss"]}))(tmp_path))


def test_headers_that_promise_too_much_allocate_nothing(tmp_path: Path) -> None:
    lying = bytearray((SAMPLES / "sklearn" / "curve.npy").read_bytes())
    at = lying.index(b"(")
    lying[at : at + 12] = b"(9999999999,"
    length = struct.pack("<Q", 1 << 60)
    record = length + struct.pack("<I", masked(length)) + b"x"
    frame = struct.pack("<HB", 60_000, 1) + b"x"
    block = b":W&B\xe1\xbe\0" + struct.pack("<I", zlib.crc32(b"x", zlib.crc32(b"\1"))) + frame
    for content in (bytes(lying), record, block):
        with pytest.raises(InputError):
            read_foreign_log(written(content)(tmp_path))
