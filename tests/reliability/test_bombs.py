"""Small files that ask for more time, memory or places than they hold: refused at once, nothing made elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lplr_cli.data import DataSpec
from lplr_cli.data.sources import read_cifar10
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs.iterates import NAME, IterateFile, IterateWriter
from lplr_cli.runs.logs import read_foreign_log, sqlite
from lplr_cli.runs.logs.tensorboard import masked
from lplr_cli.training import TrainConfig, train
from tests.reliability.conftest import Lplr


def header(descr: Any, shape: tuple[int, ...]) -> bytes:
    """An .npy file of 64 bytes that promises this."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


@pytest.mark.parametrize("descr", [[], "V0", "<U0", "<f8"])
def test_arrays_of_many_elements_and_few_bytes(descr: Any, tmp_path: Path, lplr: Lplr) -> None:
    content = header(descr, (10**12,))
    (tmp_path / "a.npy").write_bytes(content)
    for name, members in (("l.npz", ("step", "loss")), ("d.npz", ("X", "y"))):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(f"{member}.npy", content)
    for command in (("pl-ratio", "a.npy"), ("fit-rate", "l.npz"), ("train", "d.npz", "--steps", "1")):
        assert lplr(*command) == 2


def interior(child: int, cells: int, size: int) -> bytes:
    """A page of an SQLite table whose every entry leads to the same child."""
    page, at, places = bytearray(size), size, b""
    for key in range(cells):
        cell = struct.pack(">IB", child, key + 1)
        at -= len(cell)
        page[at : at + len(cell)] = cell
        places += struct.pack(">H", at)
    page[:12] = struct.pack(">BHHHBI", 5, 0, cells, at, 0, child)
    page[12 : 12 + len(places)] = places
    return bytes(page)


def test_a_database_whose_pages_lead_to_each_other(tmp_path: Path, lplr: Lplr, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows in 100^9 places, none of them of the run that is asked for."""
    monkeypatch.setattr(sqlite, "INSTRUCTIONS", 2_000_000)
    size, path = 1024, tmp_path / "m.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute(f"PRAGMA page_size = {size}")
        made.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, start_time INT)")
        made.execute("INSERT INTO runs VALUES ('a', 'n', 1)")
        made.execute("CREATE TABLE metrics (key TEXT, value REAL, step INT, run_uuid TEXT, timestamp INT)")
        made.executemany("INSERT INTO metrics VALUES ('loss', 1.0, ?, 'b', 1)", [(i,) for i in range(10)])
        made.commit()
        (root,) = made.execute("SELECT rootpage FROM sqlite_master WHERE name = 'metrics'").fetchone()
    content = path.read_bytes()
    pages = [content[i : i + size] for i in range(0, len(content), size)]
    last = len(pages)
    pages.append(pages[root - 1])
    pages += [interior(last + 1 + k, 100, size) for k in range(8)]
    pages[root - 1] = interior(len(pages), 100, size)
    pages[0] = pages[0][:28] + struct.pack(">I", len(pages)) + pages[0][32:]
    path.write_bytes(b"".join(pages))
    assert lplr("pl-ratio", "m.db") == 2


def test_iterates_with_a_hole(tmp_path: Path) -> None:
    """4 TiB of zeros behind the rows that are there."""
    with contextlib.closing(IterateWriter(tmp_path, [(2,)])) as writer:
        for step in range(3):
            writer.append(step, np.full(2, float(step)))
    with contextlib.closing(IterateFile(tmp_path, [(2,)])) as whole:
        assert whole.steps == [0, 1, 2]
    os.truncate(tmp_path / NAME, 4 << 40)
    with pytest.raises(InputError, match="steps out of order"):
        IterateFile(tmp_path, [(2,)])


def batches(folder: Path, record: Any) -> None:
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(record, protocol=2))


class Endless:
    """Pickled as an array of 9 GB, in a hundred bytes."""

    def __reduce__(self) -> Any:
        return np.ndarray, ((3_000_000, 3072), np.dtype(np.uint8))


def nested(depth: int) -> list[Any]:
    """10^depth ones, of which a pickle holds 10 depth."""
    found: list[Any] = [1]
    for _ in range(depth):
        found = [found] * 10
    return found


def test_pickled_images_bring_their_bytes(tmp_path: Path) -> None:
    images = np.zeros((3, 3072), np.uint8)
    batches(tmp_path, {b"data": images, b"labels": [0, 1, 2]})
    assert read_cifar10(tmp_path).images.shape == (15, 32, 32, 3)
    for wrong in (
        {b"data": Endless(), b"labels": [0] * 3}, {b"data": nested(12), b"labels": [0]},
        {b"data": images, b"labels": nested(12)}, {b"data": images, b"labels": [0.5] * 3}, [images],
    ):  # fmt: skip
        batches(tmp_path, wrong)
        with pytest.raises(InputError, match="is no CIFAR-10 batch"):
            read_cifar10(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_archives_that_promise_gigabytes(kind: bytes, tmp_path: Path) -> None:
    """A name, a header or a file before the images that takes 6 GiB."""
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 6 << 30
    content = member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(InputError, match=r"a part of 6,442|more than 536,870,912 bytes"):
        read_cifar10(tmp_path)


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def event(step: int, rest: bytes) -> bytes:
    content = b"\x10" + varint(step) + rest
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked(length)) + content + struct.pack("<I", masked(content))


def scalar(step: int, value: float) -> bytes:
    inner = b"\x0a\x04loss\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(inner)) + inner
    return event(step, b"\x2a" + varint(len(summary)) + summary)


def test_restarts_of_events(tmp_path: Path, lplr: Lplr) -> None:
    """What a run wrote behind the step it went back to is forgotten; a file of nothing else takes no longer."""
    start = b"\x3a\x02\x08\x01"
    first = b"".join(scalar(i, 0.9**i) for i in range(50))
    again = b"".join(scalar(i, 0.9**i) for i in range(20, 40))
    (tmp_path / "a.tfevents").write_bytes(first + event(30, start) + event(20, start) + again)
    (tmp_path / "b.tfevents").write_bytes(first + event(99, start) * 3)
    log = read_foreign_log(tmp_path / "a.tfevents").log
    assert log["step"].tolist() == list(range(40))
    assert np.allclose(log["loss"], 0.9 ** np.arange(40))
    assert len(read_foreign_log(tmp_path / "b.tfevents").log) == 50
    many = b"".join(scalar(i, 1 / (i + 1)) for i in range(4000)) + event(9999, start) * 40_000
    (tmp_path / "c.tfevents").write_bytes(many)
    assert lplr("fit-rate", "c.tfevents") == 0


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that can be resumed."""
    config = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, steps=8, probe_every=4)
    train(config.with_(checkpoint_every=4, log_format="csv"), tmp_path / "r")
    (tmp_path / "r" / "checkpoints" / "step-000008.pt").unlink()
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    (tmp_path / "r" / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    return tmp_path / "r"


def test_links_in_a_run_lead_nowhere(stopped: Path, tmp_path: Path, lplr: Lplr) -> None:
    """A run of somebody else's whose files are links to places that are not there: nothing is made at their end."""
    for name, codes in (("log.csv", (2,)), ("probes.csv", (3,)), (".lock", (3,)), ("summary.json", (0,))):
        folder = tmp_path / f"with {name}"
        shutil.copytree(stopped, folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "outside")
        assert lplr("train", "--resume", folder.name) in codes, name
        assert not (tmp_path / "outside").exists(), name


WIDE = ["step", "loss", *(f"layers.{i}.attention.weight.norm" for i in range(2500))]
MAKERS: dict[str, Callable[[list[list[float]]], str]] = {
    "l.csv": lambda rows: "".join(",".join(row) + "\n" for row in [WIDE, *([str(v) for v in row] for row in rows)]),
    "l.jsonl": lambda rows: "".join(json.dumps(dict(zip(WIDE, row, strict=True))) + "\n" for row in rows),
    "nan.jsonl": lambda rows: "".join(
        json.dumps({**dict(zip(WIDE, row, strict=True)), "x": float("nan")}) + "\n" for row in rows
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_lines_longer_than_what_is_looked_at_first(name: str, tmp_path: Path, lplr: Lplr) -> None:
    """Thousands of columns: the format is told by whole lines, as of any log."""
    rows = [[float(i), 0.9**i, *[1.0] * (len(WIDE) - 2)] for i in range(12)]
    (tmp_path / name).write_text(MAKERS[name](rows))
    assert lplr("fit-rate", name) == 0


def test_a_line_without_end_is_told(tmp_path: Path, lplr: Lplr) -> None:
    (tmp_path / "l.csv").write_bytes(b"step,loss," * (17 << 20 >> 3))
    assert lplr("fit-rate", "l.csv") == 2
    with pytest.raises(InputError, match=r"begins with a line of more than 16,\d{3},\d{3} bytes; write a row a line"):
        read_foreign_log(tmp_path / "l.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_settings_of_matplotlib_in_the_folder_are_not_read(stopped: Path, tmp_path: Path) -> None:
    """A pipe of that name in the current folder would be waited for, a backend in it imported."""
    os.mkfifo(tmp_path / "matplotlibrc")
    code = (
        "import sys; from lplr_cli.reporting import figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "with figures.style():\n    figures.new_figure(figsize=(1, 1))\n"
        "import os, matplotlib; print(os.path.realpath(os.curdir), matplotlib.matplotlib_fname())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(tmp_path.resolve())
