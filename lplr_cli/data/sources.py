"""Labelled images from where they lie: the embedded subsets, or the original IDX and CIFAR-10 files.

Every source gives ``uint8`` images in file order with their integer labels; choosing and scaling samples is
the business of :mod:`lplr_cli.data.dataset`.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError, first_line
from lplr_cli.reading import BULK, open_regular


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, height, width[, channels]) as ``uint8``, labels (n,) and where they came from."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    origin: str


def _read(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes of a file, gzipped or not; more is refused, so that no gzip bomb unpacks."""
    try:
        with open_regular(path, BULK, "check the file") as stream:
            unpacked: IO[bytes] = gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream  # type: ignore[assignment]
            content = unpacked.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error})", "check the file") from error
    if len(content) > limit:
        raise InputError(f"{path} holds more than {limit} bytes", "give the original file")
    return content


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes (LeCun's format), gzipped or not.

    Raises:
        InputError: the file is no IDX file of unsigned bytes, or is truncated.
    """
    content = _read(path, limit=1 << 28)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 4:
        raise InputError(f"{path} is no IDX file of unsigned bytes", "give the original MNIST files")
    rank = content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise InputError(f"{path} is truncated", "copy the file again")
    shape = struct.unpack(f">{rank}I", content[4:header])
    size = int(np.prod(shape, dtype=object))
    if len(content) != header + size:
        raise InputError(f"{path} declares {size} values but holds {len(content) - header}", "copy the file again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _first_existing(directory: Path, names: list[str]) -> Path | None:
    for folder in (directory, directory / "MNIST" / "raw", directory / "raw"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def read_mnist(directory: Path) -> LabelledImages:
    """The MNIST training set from its two original IDX files in ``directory``, gzipped or not."""
    paths = []
    for stem in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        path = _first_existing(directory, [stem, stem + ".gz", stem.replace("-idx", ".idx")])
        if path is None:
            raise InputError(f"no {stem}[.gz] in {directory}", "point --data-dir at the original MNIST files")
        paths.append(path)
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(
            f"{paths[0]} has shape {images.shape}, {paths[1]} {labels.shape}",
            "give matching image and label files",
        )
    return LabelledImages(images, labels.astype(np.int64), f"IDX files in {directory}")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles the Python version of CIFAR-10: dictionaries of bytes, lists and NumPy arrays, nothing else.

    Arrays have the bytes that the pickle brings: nothing in it can ask for memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return _without_values
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # an argument of the function above; as a function it could ask for any size
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a CIFAR-10 batch")


def _without_values(kind: object, shape: object, dtype: object) -> NDArray[Any]:
    """The array that a pickle then fills: shape, type and values come together."""
    return np.empty(0, np.uint8)


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_PIXELS = 3 * 32 * 32
_CIFAR_RECORD = 1 + _PIXELS
_CIFAR_BATCH_LIMIT = 64 << 20
# The original archives unpack to 178 MB.
_CIFAR_ARCHIVE_LIMIT = 512 << 20


class _Unpacked:
    """A gzipped archive as tarfile reads it: neither a header nor the whole unpacks to more than the original's."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._plain = gzip.GzipFile(fileobj=packed)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CIFAR_BATCH_LIMIT:
            raise tarfile.ReadError(f"a part of {size:,} bytes")
        self._check(self.tell() + size)
        return self._plain.read(size)

    def seek(self, offset: int) -> int:
        self._check(offset)
        return self._plain.seek(offset)

    def tell(self) -> int:
        return self._plain.tell()

    @staticmethod
    def _check(offset: int) -> None:
        if offset > _CIFAR_ARCHIVE_LIMIT:
            raise tarfile.ReadError(f"more than {_CIFAR_ARCHIVE_LIMIT:,} bytes")


def _parse_cifar_binary(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not content or len(content) % _CIFAR_RECORD:
        raise InputError(f"{name} is no CIFAR-10 binary batch", "copy the file again")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _parse_cifar_pickle(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[b"labels"]
        # Lists within lists can say a little so often that nothing holds it.
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError("its labels are no list of whole numbers")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            raise ValueError(f"it has no {len(labels)} images of {_PIXELS} bytes")
        return pixels, np.array(labels, dtype=np.int64)
    except Exception as error:
        raise InputError(f"{name} is no CIFAR-10 batch ({first_line(error)})", "give the original files") from error


_Parser = Callable[[bytes, str], tuple[NDArray[np.uint8], NDArray[np.int64]]]


def _cifar_members(directory: Path) -> list[tuple[str, bytes, _Parser]]:
    """The five training batches as (name, content, parser), from a folder or one of the original archives."""
    for folder in (directory, directory / "cifar-10-batches-py", directory / "cifar-10-batches-bin"):
        for suffix, parser in ((".bin", _parse_cifar_binary), ("", _parse_cifar_pickle)):
            for packed in ("", ".gz"):
                paths = [folder / f"data_batch_{i}{suffix}{packed}" for i in range(1, 6)]
                if all(path.is_file() for path in paths):
                    return [(str(path), _read(path, _CIFAR_BATCH_LIMIT), parser) for path in paths]
    for archive, folder_name, suffix, parser in (
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", "", _parse_cifar_pickle),
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", _parse_cifar_binary),
    ):
        if not (directory / archive).is_file():
            continue
        members: list[tuple[str, bytes, _Parser]] = []
        try:
            with (
                open_regular(directory / archive, BULK) as stream,
                tarfile.open(fileobj=_Unpacked(stream), mode="r:") as tar,  # type: ignore[call-overload]
            ):
                for i in range(1, 6):
                    name = f"{folder_name}/data_batch_{i}{suffix}"
                    member = tar.extractfile(name)
                    if member is None:
                        raise KeyError(f"{name} is no file")
                    members.append((name, member.read(_CIFAR_BATCH_LIMIT), parser))
        except (tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as error:
            raise InputError(f"cannot read {directory / archive} ({error})", "fetch the archive again") from error
        return members
    raise InputError(
        f"no CIFAR-10 training batches in {directory}",
        "point --data-dir at cifar-10-batches-py, cifar-10-batches-bin or the original archive",
    )


def read_cifar10(directory: Path) -> LabelledImages:
    """The CIFAR-10 training set from its five batches (Python or binary version, gzipped, plain or archived).

    The Python version is a pickle: it is read by an unpickler that knows arrays only and runs nothing.
    """
    pixels, labels = [], []
    for name, content, parse in _cifar_members(directory):
        batch_pixels, batch_labels = parse(content, name)
        pixels.append(batch_pixels)
        labels.append(batch_labels)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images), np.concatenate(labels), f"CIFAR-10 batches in {directory}")


def read_embedded(name: str) -> LabelledImages:
    """The subset that the package ships: ``mnist`` (1,000 digits) or ``cifar10`` (5 classes, 500 images)."""
    file = resources.files("lplr_cli.data.embedded") / f"{name}.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images = arrays["images"] if "images" in arrays else from_differences(arrays["differences"])
        return LabelledImages(images, arrays["labels"].astype(np.int64), "embedded subset")


def to_differences(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour images (n, h, w, 3) as planes (3, n, h, w) that deflate packs a third smaller, modulo 256.

    Red and blue are taken against green, then each pixel against its neighbours above and to the left.
    """
    red, green, blue = np.moveaxis(images, -1, 0)
    planes = np.stack([red - green, green, blue - green])
    zero = np.uint8(0)
    return np.diff(np.diff(planes, axis=2, prepend=zero), axis=3, prepend=zero)


def from_differences(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`to_differences`."""
    red, green, blue = planes.cumsum(axis=3, dtype=np.uint8).cumsum(axis=2, dtype=np.uint8)
    return np.stack([red + green, green, blue + green], axis=-1)


def balanced_order(labels: NDArray[np.int64], classes: tuple[int, ...], samples: int | None) -> NDArray[np.int64]:
    """Indices of ``samples`` images, the classes taking turns, each in file order.

    Class k of ``classes`` gives the images k, k + C, k + 2C, … of the result, so any prefix is balanced to
    within one image. Without ``samples``, or once a class is used up, the others go on alone.

    Raises:
        InputError: a class without images, or fewer images than asked for.
    """
    members = [np.flatnonzero(labels == c) for c in classes]
    for c, indices in zip(classes, members, strict=True):
        if len(indices) == 0:
            present = ", ".join(str(v) for v in np.unique(labels))
            raise InputError(f"class {c} has no samples here", f"choose --classes from {present}")
    turn = np.concatenate([np.arange(len(m)) for m in members])
    seat = np.concatenate([np.full(len(m), k) for k, m in enumerate(members)])
    chosen = np.concatenate(members)[np.lexsort((seat, turn))]
    if samples is not None and samples > len(chosen):
        raise InputError(
            f"{samples} samples asked for, {len(chosen)} at hand for classes {','.join(map(str, classes))}",
            "lower --samples, or give the whole set by --data-dir or --download",
        )
    return chosen[:samples]
