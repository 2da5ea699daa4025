from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.data import download as download_module
from lplr_cli.data.download import Remote, download
from lplr_cli.data.sources import (
    LabelledImages,
    balanced_order,
    from_differences,
    read_cifar10,
    read_embedded,
    read_mnist,
)
from lplr_cli.errors import InputError
from tools.cut_embedded_data import write_subset

DIGITS = np.array([3, 8, 3, 1, 8, 8, 3, 8], dtype=np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, packed: bool = False) -> NDArray[np.uint8]:
    images = np.random.default_rng(0).integers(0, 256, (len(DIGITS), 28, 28), dtype=np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", DIGITS)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return images


def test_embedded_subsets() -> None:
    digits = load_dataset(DataSpec("mnist"))
    assert digits.inputs.shape == (1000, 784)
    assert digits.targets.mean() == 0.5
    assert (digits.inputs.min(), digits.inputs.max()) == (0.0, 1.0)
    pictures = load_dataset(DataSpec("cifar10"))
    assert pictures.inputs.shape == (500, 3, 32, 32)
    assert pictures.targets.sum(axis=0).tolist() == [100.0] * 5
    assert abs(pictures.inputs.mean()) < 0.1
    assert abs(pictures.inputs.std() - 1) < 0.1


def test_classes_of_pictures_have_names() -> None:
    """Those of the file batches.meta, in the order of their numbers; digits have none."""
    named = load_dataset(DataSpec("cifar10", classes=("Cat", "deer"), samples=20))
    numbered = load_dataset(DataSpec("cifar10", classes=(3, 4), samples=20))
    assert named.fingerprint == numbered.fingerprint
    with pytest.raises(InputError, match=r"no class 'dragon'.*choose --classes from airplane, automobile"):
        load_dataset(DataSpec("cifar10", classes=("dragon", "cat")))
    with pytest.raises(InputError, match="named twice"):
        load_dataset(DataSpec("cifar10", classes=("cat", 3)))
    with pytest.raises(InputError, match=r"mnist has no class 'three'.*numbers"):
        load_dataset(DataSpec("mnist", classes=("three", "8")))


def test_prefixes_are_balanced_and_nested() -> None:
    whole, part = load_dataset(DataSpec("mnist")), load_dataset(DataSpec("mnist", samples=101))
    assert np.array_equal(part.inputs, whole.inputs[:101])
    assert part.targets.sum() == 50
    assert part.fingerprint != whole.fingerprint


@pytest.mark.parametrize("packed", [False, True])
def test_original_idx_files(tmp_path: Path, packed: bool) -> None:
    images = write_mnist(tmp_path, packed=packed)
    data = load_dataset(DataSpec("mnist", data_dir=str(tmp_path), targets="pm1"))
    # Classes take turns: first 3, first 8, second 3, second 8, third 3, third 8, fourth 8.
    order = [0, 1, 2, 4, 6, 5, 7]
    assert np.array_equal(data.inputs, images[order].reshape(7, -1) / 255.0)
    assert data.targets[:, 0].tolist() == [-1, 1, -1, 1, -1, 1, 1]


def test_subset_script_is_what_the_loader_sees(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    source = read_mnist(tmp_path)
    write_subset(tmp_path / "a.npz", source, (3, 8), 4)
    write_subset(tmp_path / "b.npz", source, (3, 8), 4)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["images"], source.images[balanced_order(source.labels, (3, 8), 4)])


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 5, 4, 3), (2, 32, 32, 3)])
def test_colour_subsets_lose_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    images[0, 0, 0] = (0, 255, 0)
    labels = np.zeros(len(images), dtype=np.int64)
    write_subset(tmp_path / "a.npz", LabelledImages(images, labels, "test"), (0,), len(images))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["differences"].shape == (3, *shape[:-1])
        assert np.array_equal(from_differences(arrays["differences"]), images)


def test_the_embedded_pixels() -> None:
    """Of the images that the first version shipped, whatever the file makes of them."""
    digest = hashlib.sha256(read_embedded("cifar10").images.tobytes()).hexdigest()
    assert digest == "daa6cfbe5cb86b640127558948d3bb2852232c505625eb49381d014d13287470"


@pytest.mark.parametrize("kind", ["binary", "binary-gz", "pickle", "archive"])
def test_original_cifar_files(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
    labels = np.arange(10) % 5
    for batch in range(5):
        rows = slice(2 * batch, 2 * batch + 2)
        if kind.startswith("binary"):
            content = np.column_stack([labels[rows].astype(np.uint8), pixels[rows]]).tobytes()
            name = f"data_batch_{batch + 1}.bin" + (".gz" if kind.endswith("gz") else "")
            (tmp_path / name).write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
        else:
            record = {b"data": pixels[rows], b"labels": [int(v) for v in labels[rows]]}
            (tmp_path / f"data_batch_{batch + 1}").write_bytes(pickle.dumps(record, protocol=2))
    folder = tmp_path
    if kind == "archive":
        folder = tmp_path / "packed"
        folder.mkdir()
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
            for batch in range(1, 6):
                tar.add(tmp_path / f"data_batch_{batch}", f"cifar-10-batches-py/data_batch_{batch}")
    found = read_cifar10(folder)
    assert np.array_equal(found.images, pixels.reshape(10, 3, 32, 32).transpose(0, 2, 3, 1))
    assert np.array_equal(found.labels, labels)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (str(self.path),))


def test_a_malicious_batch_runs_nothing(tmp_path: Path) -> None:
    for batch in range(1, 6):
        (tmp_path / f"data_batch_{batch}").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "touched")}))
    with pytest.raises(InputError, match="not part of a CIFAR-10 batch"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated"),
        (struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 2**31), "declares"),
        (struct.pack(">HBBI", 0, 13, 1, 4) + b"abcd", "no IDX file"),
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_dataset(DataSpec("mnist", data_dir=str(tmp_path)))


def test_user_arrays_and_tables(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(6, 2)
    y = np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "d.npz", inputs=x, targets=y)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y})
    frame.to_csv(tmp_path / "d.csv", index=False)
    frame.to_parquet(tmp_path / "d.parquet", index=False)
    raw = load_dataset(DataSpec(str(tmp_path / "d.npz"), task="regression"))
    for name in ("d.csv", "d.parquet"):
        table = load_dataset(DataSpec(str(tmp_path / name), target_columns=("y",), task="regression"))
        assert table.fingerprint == raw.fingerprint
    assert raw.targets.shape == (6, 1)
    onehot = load_dataset(DataSpec(str(tmp_path / "d.npz"), targets="onehot", samples=4))
    assert onehot.targets.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    again = DataSpec.from_dict(onehot.spec.to_dict())
    assert load_dataset(again).fingerprint == onehot.fingerprint


def _save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_bad_user_data(tmp_path: Path) -> None:
    good = np.ones((3, 2))
    cases = [
        (_save(tmp_path / "a.npz", z=good), "no array inputs and targets"),
        (_save(tmp_path / "b.npz", inputs=good, targets=np.ones(4)), "shape"),
        (_save(tmp_path / "c.npz", inputs=np.full((3, 2), np.nan), targets=np.ones(3)), "NaN"),
        (_save(tmp_path / "d.npz", inputs=np.array([["a"], ["b"], ["c"]]), targets=np.ones(3)), "dtype"),
        (_save(tmp_path / "e.npz", inputs=np.ones(3), targets=np.ones(3)), "shape"),
        (_save(tmp_path / "f.npz", inputs=np.array([{}], dtype=object), targets=np.ones(1)), "cannot read"),
        (str(tmp_path / "none.npz"), "no data set"),
    ]
    (tmp_path / "g.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "h.txt").write_text("1")
    cases += [(str(tmp_path / "g.npz"), "cannot read"), (str(tmp_path / "h.txt"), "no .npz")]
    for source, message in cases:
        with pytest.raises(InputError, match=message):
            load_dataset(DataSpec(source))
    pd.DataFrame({"a": [1, 2], "label": ["x", "y"]}).to_csv(tmp_path / "t.csv", index=False)
    for columns, message in [((), "needs --target"), (("b",), "no column b"), (("a",), "'label' .* is text")]:
        with pytest.raises(InputError, match=message):
            load_dataset(DataSpec(str(tmp_path / "t.csv"), target_columns=columns))
    with pytest.raises(InputError, match="5000 samples asked for, 1000 at hand"):
        load_dataset(DataSpec("mnist", samples=5000))
    with pytest.raises(InputError, match="class 4 has no samples"):
        load_dataset(DataSpec("mnist", classes=(3, 4)))
    with pytest.raises(InputError, match="needs two classes"):
        load_dataset(DataSpec("cifar10", targets="pm1"))


def test_user_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text("import numpy as np\ndef make():\n    return np.eye(3), np.arange(3.0)\n")
    monkeypatch.chdir(tmp_path)
    data = load_dataset(DataSpec("my_data:make"))
    assert data.targets[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="has no 'nope'"):
        load_dataset(DataSpec("my_data:nope"))
    with pytest.raises(InputError, match="cannot import"):
        load_dataset(DataSpec("no_such_module:make"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "www"
    folder.mkdir()
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_download_checks_hashes(tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = served
    write_mnist(folder, packed=True)
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setitem(download_module.REMOTES, "mnist", Remote(url, digests))
    target = tmp_path / "cache"
    data = load_dataset(DataSpec("mnist", data_dir=str(target)), fetch=True)
    assert data.n == 7
    # What a checkpoint stores loads again without the network.
    monkeypatch.setitem(download_module.REMOTES, "mnist", Remote("http://127.0.0.1:1/", digests))
    assert load_dataset(data.spec).fingerprint == data.fingerprint
    wrong = dict.fromkeys(digests, "0" * 64)
    monkeypatch.setitem(download_module.REMOTES, "mnist", Remote(url, wrong))
    with pytest.raises(InputError, match="SHA-256"):
        download("mnist", tmp_path / "other")
    monkeypatch.setitem(download_module.REMOTES, "mnist", Remote("http://127.0.0.1:1/", digests))
    with pytest.raises(InputError, match="cannot fetch"):
        download("mnist", tmp_path / "third")


def test_balanced_order_goes_on_when_a_class_ends() -> None:
    labels = np.array([0, 0, 0, 1])
    assert balanced_order(labels, (0, 1), None).tolist() == [0, 3, 1, 2]
    source = LabelledImages(np.zeros((4, 2, 2), np.uint8), labels, "")
    assert source.labels is labels
