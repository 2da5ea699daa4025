"""What is no log: said kindly, with the command that takes it."""

from __future__ import annotations

from pathlib import Path

from lplr_cli import reading
from lplr_cli.errors import InputError
from lplr_cli.runs.logs import sqlite
from lplr_cli.runs.logs.place import Place

FORMATS = "CSV, JSON, Parquet, NumPy, text, TensorBoard, Hugging Face, Lightning, MLflow, W&B or trackio"
_PROBE = "probe them: lplr probe-ntk FILE --model MODULE:FACTORY --data DATA"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".h5", ".keras", ".pt2")
_SIGNATURES = (
    (b"\x89HDF\r\n", "holds HDF5, which Keras writes weights in", "save its history: json.dump(history.history, …)"),
    (b"GGUF", "holds weights, no log", "probe the network that they were made from with lplr probe-ntk"),
    (b"\x89PNG", "is a picture", "give the numbers that were drawn"),
    (b"\xff\xd8\xff", "is a picture", "give the numbers that were drawn"),
    (b"%PDF", "is a PDF document", "give the numbers that were drawn"),
    (b"\xfd7zXZ", "is compressed by xz", "unpack it first"),
    (b"7z\xbc\xaf", "is an archive", "unpack it first"),
    (b"Rar!", "is an archive", "unpack it first"),
)


def holds_weights(source: str | Path) -> bool:
    """Whether a path is that of a file which torch, safetensors or a pickle wrote."""
    try:
        with reading.open_regular(Path(source), remedy="give a checkpoint") as stream:
            return _are_weights(stream.read(512))
    except (InputError, OSError):
        return False


def refuse(place: Place) -> InputError:
    """Why this is no log that is known."""
    if place.folder is not None:
        return _of_folder(place.folder)
    what, remedy = _of_file(place)
    return InputError(f"{place.name} {what}", remedy)


def _of_file(place: Place) -> tuple[str, str]:
    head = place.head
    for magic, what, remedy in _SIGNATURES:
        if head.startswith(magic):
            return what, remedy
    if _are_weights(head):
        return "holds weights, no log", _PROBE
    if head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar":
        return "is compressed or an archive", "unpack it first"
    if head.lstrip()[:5].lower() in (b"<html", b"<!doc", b"<?xml"):
        return "is a page of markup", f"give {FORMATS}"
    if place.endless:
        return f"begins with a line of more than {len(head):,} bytes", "write a row a line, with fewer columns"
    database = sqlite.describe(place)
    if database is not None:
        return f"is {database}", "databases of MLflow and trackio are read; or export a CSV"
    return "is no log that lplr knows" + ("" if place.binary else ": nothing in it names a loss"), f"give {FORMATS}"


def _are_weights(head: bytes) -> bool:
    """Whether torch, safetensors or a pickle wrote it."""
    zipped = head.startswith(b"PK\x03\x04") and (b"/data.pkl" in head[:400] or b"archive_format" in head[:400])
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    tensors = head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32
    return zipped or pickled or tensors


def _of_folder(folder: Path) -> InputError:
    names = sorted(p.name for p in folder.glob("*"))[:1000]
    if ".aim" in names or folder.name == ".aim":
        return InputError(f"{folder} is a repository of Aim", "export the run's metrics as CSV, with step and loss")
    if any(name.endswith(_WEIGHTS) for name in names):
        return InputError(f"{folder} holds weights, and no log", _PROBE)
    return InputError(f"{folder} holds neither a run of lplr nor a log", f"give {FORMATS}")
