"""Every reader keeps the contract, on files of the real libraries where a library writes them."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lplr_cli.runs.logs import (
    arrays,
    delimited,
    folder,
    json_document,
    json_lines,
    mlflow,
    parquet,
    sqlite,
    tensorboard,
    text,
    wandb,
)
from tests.runs.logs import contract
from tests.runs.logs.contract import ReaderContract, SampleContract
from tests.runs.logs.make_samples import WRITERS, decay, inside
from tests.runs.logs.make_samples import rows as made_rows

PLAIN = pd.DataFrame(decay())
LOSS_ONLY = PLAIN[["step", "loss"]]


class TestHuggingFace(SampleContract):
    reader, library = folder.HuggingFace, "huggingface"
    files = ("log", "checkpoint-40")


class TestLightning(SampleContract):
    reader, library = folder.Lightning, "lightning"
    files = ("log", "version_0")
    tolerance = 1e-6


class TestWandbFolder(SampleContract):
    reader, library = folder.WandbFolder, "wandb"
    files = ("log", "offline-run-20260101_000000-abc")


class TestWandbFile(SampleContract):
    reader, library = wandb.WandbFile, "wandb"
    files = ("offline-run-20260101_000000-abc/run-abc.wandb",)


class TestMlflowDatabase(SampleContract):
    reader, library, run = sqlite.Mlflow, "mlflow_database", "first"
    files = ("mlflow.db",)


class TestTrackio(SampleContract):
    reader, library, run = sqlite.Trackio, "trackio", "first"
    files = ("p.db",)


class TestMlflowFolder(SampleContract):
    reader, library = mlflow.MlflowFolder, "mlflow_folder"
    files = ("log", "mlruns")


class TestMlflowFile(SampleContract):
    reader, library = mlflow.MlflowFile, "mlflow_folder"
    files = ("train/loss",)

    def write(self, name: str, folder: Path) -> Path:
        return next(super().write("log", folder).rglob(f"metrics/{name}"))

    def expected(self, name: str) -> pd.DataFrame:
        return super().expected(name)[["step", "loss"]]


class TestTensorBoard(SampleContract):
    reader, library = tensorboard.TensorBoard, "tensorboard"
    files = ("log", "events.out.tfevents.1700000000.host.1.0")


class TestParquet(ReaderContract):
    reader = parquet.Parquet

    def write(self, name: str, folder: Path) -> Path:
        folder.mkdir()
        PLAIN.to_parquet(folder / "log")
        return folder / "log"

    def expected(self, name: str) -> pd.DataFrame:
        return PLAIN


class Written(ReaderContract):
    """Of a reader whose samples are made of bytes here."""

    contents: ClassVar[dict[str, bytes]]

    def write(self, name: str, folder: Path) -> Path:
        folder.mkdir()
        (folder / "log").write_bytes(self.contents[name])
        return folder / "log"

    def expected(self, name: str) -> pd.DataFrame:
        return LOSS_ONLY if name.startswith("loss") else PLAIN


RECORDS = [json.dumps(row) for row in PLAIN.to_dict("records")]
NESTED = [json.dumps({"_step": r["step"], "train": {"loss": r["loss"]}}) for r in PLAIN.to_dict("records")]


class TestJsonLines(Written):
    reader = json_lines.JsonLines
    contents: ClassVar = {
        "plain": "\n".join(RECORDS).encode(),
        "torn": ("\n".join(RECORDS) + '\n{"step": 40, "lo').encode(),
        "loss, nested": "\n".join(NESTED).encode(),
        "with NaN": "\n".join([*RECORDS, '{"step": 40, "loss": NaN}']).encode(),
    }
    files = tuple(contents)


class TestJsonDocument(Written):
    reader = json_document.JsonDocument
    contents: ClassVar = {
        "rows": f"[{', '.join(RECORDS)}]".encode(),
        "columns": json.dumps(decay()).encode(),
        "indented": json.dumps({"history": decay()}, indent=1).encode(),
        "loss, by row number": LOSS_ONLY.to_json(double_precision=15).encode(),
        "loss, split": LOSS_ONLY.to_json(orient="split", double_precision=15).encode(),
        "loss, pairs": json.dumps(LOSS_ONLY.to_numpy().tolist()).encode(),
        "loss, TensorBoard's download": json.dumps([[1.7e9, *row] for row in LOSS_ONLY.to_numpy().tolist()]).encode(),
        "loss, curve": json.dumps(decay()["loss"]).encode(),
        "loss, named curve": json.dumps({"loss_curve_": decay()["loss"]}).encode(),
    }
    files = tuple(contents)


def npy(values: object) -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


class TestNpy(Written):
    reader = arrays.Npy
    contents: ClassVar = {
        "loss, curve": npy(decay()["loss"]),
        "loss, column": npy(LOSS_ONLY[["loss"]]),
        "loss, pairs": npy(LOSS_ONLY),
        "structured": npy(PLAIN.to_records(index=False)),
    }
    files = tuple(contents)


class TestNpz(Written):
    reader = arrays.Npz

    def write(self, name: str, folder: Path) -> Path:
        folder.mkdir()
        columns = {name: np.array(values) for name, values in decay().items()}
        np.savez(folder / "log.npz", allow_pickle=False, **columns)
        return folder / "log.npz"


def comma(text: str) -> bytes:
    return text.replace(".", ",").encode()


class TestDelimited(Written):
    reader = delimited.Delimited
    contents: ClassVar = {
        "csv": PLAIN.to_csv(index=False).encode(),
        "tabs": PLAIN.to_csv(index=False, sep="\t").encode(),
        "CRLF, BOM": b"\xef\xbb\xbf" + PLAIN.to_csv(index=False, lineterminator="\r\n").encode(),
        "spaces": PLAIN.to_string(index=False, float_format="{:.17g}".format).encode(),
        "semicolons, decimal comma": comma(PLAIN.to_csv(index=False, sep=";")),
        "spaces, decimal comma": comma(PLAIN.to_csv(index=False, sep=" ")),
        "blanks behind commas": PLAIN.to_csv(index=False).replace(",", ", ").encode(),
        "header in a comment": b"# a run\n# step loss grad_norm lr\n"
        + PLAIN.to_csv(index=False, header=False, sep=" ").encode(),
        "loss, two columns": LOSS_ONLY.astype({"step": int}).to_csv(index=False, header=False, sep=" ").encode(),
        "loss, one column": LOSS_ONLY["loss"].to_csv(index=False, header=False).encode(),
        "loss, a series": LOSS_ONLY["loss"].rename(None).to_csv().encode(),
        "loss, TensorBoard's download": b"Wall time,Step,Value\n"
        + b"".join(f"1.7e9,{s},{v!r}\n".encode() for s, v in LOSS_ONLY.itertuples(index=False)),
        "loss, chart of W&B": b'"Step","run-1 - train/loss","run-1 - train/loss__MIN","run-1 - train/loss__MAX"\n'
        + b"".join(f'"{s}","{v!r}","0","9"\n'.encode() for s, v in LOSS_ONLY.itertuples(index=False)),
    }
    files = tuple(contents)


def lines(template: str, head: str = "") -> bytes:
    rows = (template.format(s=int(r["step"]), l=r["loss"], g=r["grad_norm"], r=r["lr"]) for r in made_rows(decay()))
    return (head + "\n".join(rows)).encode()


class TestText(Written):
    reader = text.Text
    contents: ClassVar = {
        "loss, nanoGPT": lines(
            "iter {s}: loss {l!r}, time 20.15ms, mfu 1.5%", "tokens per iteration: 12\nstep 0: val loss 9.9\n"
        ),
        "pairs": lines("step={s} loss={l!r} grad_norm={g!r} lr={r}"),
        "dictionaries": lines("{{'loss': {l!r}, 'grad_norm': {g!r}, 'learning_rate': {r}, 'step': {s}}}"),
        "loss, brackets": lines("2026-01-01 10:00:00,123 INFO [train] Step [{s}/400], Loss: {l!r}", "INFO: begins\n"),
        "loss, percent": lines("Train Epoch: 1 [{s}/60000 (0%)]\tLoss: {l!r}"),
        "loss, Keras": lines("Epoch {s}/40\n8/8 - 0s - 4ms/step - loss: {l!r} - val_loss: 7.5"),
        "loss, colours": lines("\x1b[32mstep {s}\x1b[0m | train loss {l!r} | val loss 3.5"),
    }
    files = tuple(contents)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lambda b: pa.compress(b, codec="zstd", asbytes=True)])
def test_compressed_logs_are_unpacked(tmp_path: Path, pack: object) -> None:
    from lplr_cli.runs.logs import read_foreign_log

    assert callable(pack)
    (tmp_path / "log").write_bytes(pack(PLAIN.to_csv(index=False).encode()))
    pd.testing.assert_frame_equal(read_foreign_log(tmp_path / "log").log[list(PLAIN)], PLAIN)


def test_every_reader_keeps_the_contract() -> None:
    assert contract.readers_tested(globals()) == contract.ALL


@pytest.mark.slow
@pytest.mark.parametrize("library", WRITERS)
def test_samples_are_what_the_installed_library_writes(library: str, tmp_path: Path) -> None:
    from lplr_cli.runs.logs import read_foreign_log

    (tmp_path / library).mkdir()
    try:
        with inside(tmp_path):
            expected = WRITERS[library](tmp_path / library)
    except ImportError as error:
        pytest.skip(f"needs lplr[readers]: {error}")
    places = {"keras": ["training.csv", "history.json"], "sklearn": ["curve.npy", "curve.txt", "curve.json"]}
    places |= {"mlflow_database": ["mlflow.db"], "trackio": ["p.db"]}
    for name in places.get(library, ["."]):
        run = "first" if library in ("mlflow_database", "trackio") else None
        log = read_foreign_log(tmp_path / library / name, run=run).log
        rows = log[np.isfinite(log["loss"])]
        for column, values in expected.items():
            np.testing.assert_allclose(rows[column], values, rtol=1e-6, err_msg=f"{library}: {column}")
