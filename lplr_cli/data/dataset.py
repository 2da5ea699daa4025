"""A data set as every layer above sees it: inputs, targets, and the specification that loads it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.data import files, labels, sources
from lplr_cli.data.download import download
from lplr_cli.errors import InputError
from lplr_cli.factories import Word, import_factory, is_factory_reference, refuse_unnamed
from lplr_cli.schema import check_fields

if TYPE_CHECKING:
    import torch

TARGETS = ("pm1", "01", "onehot", "raw")

_CLASSES = {"mnist": (3, 8), "cifar10": (0, 1, 2, 3, 4)}
IMAGES = tuple(_CLASSES)
_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}

# Channel statistics of the CIFAR-10 training set, on the scale 0 to 1 (Krizhevsky 2009).
_CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465])
_CIFAR_STD = np.array([0.2470, 0.2435, 0.2616])


@dataclass(frozen=True)
class DataSpec:
    """Everything needed to load a data set again; stored in run.json and in every checkpoint.

    Attributes:
        source: ``mnist``, ``cifar10``, the absolute path of a file, or ``module:factory``.
        classes: labels to keep, in the order of the targets; None means the default of the source.
        samples: how many samples, the classes taking turns; None means all at hand.
        targets: ``pm1`` (-1, +1), ``01``, ``onehot``, ``raw`` (as they are), or None for the default of the
            source: ``01`` for two classes, ``onehot`` for more, ``raw`` for numbers.
        target_columns: target columns of a table.
        task: ``regression`` or ``classification`` for the user's own targets; None decides by
            :mod:`lplr_cli.data.labels`.
        data_dir: directory of the original IDX or CIFAR-10 files, or None for the embedded subset.
        told_by: the file that this was read from; code that it names does not run until :meth:`vouched`.
    """

    source: str
    classes: tuple[int | str, ...] | None = None
    samples: int | None = None
    targets: str | None = None
    target_columns: tuple[str, ...] = ()
    data_dir: str | None = None
    task: str | None = None
    told_by: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Lists, as JSON has them, become tuples.

        Raises:
            InputError: a value of another type than it should have.
        """
        for name in ("classes", "target_columns"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, "the data")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = asdict(self)
        del record["told_by"]
        record["classes"] = None if self.classes is None else list(self.classes)
        record["target_columns"] = list(self.target_columns)
        return record

    @classmethod
    def from_dict(cls, record: Any, told_by: str = "a file") -> DataSpec:
        """The inverse of :meth:`to_dict`; unknown keys and values of the wrong type are refused.

        Code that the record names does not run before the user has named it, too: see :meth:`vouched`.
        """
        known = {f.name for f in fields(cls)} - {"told_by"}
        if not isinstance(record, Mapping) or not set(record) <= known or "source" not in record:
            keys = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise InputError(f"data specification with keys {keys}", "it comes from another version")
        # Before there were tasks, the user's own targets were numbers unless --targets said otherwise.
        old = "classification" if record.get("targets") not in (None, "raw") else "regression"
        return cls(**{"task": None if record["source"] in IMAGES else old, **record}, told_by=told_by)

    @property
    def code(self) -> str | None:
        """The option that names the code of these data; None where they need none of the user's."""
        is_code = is_factory_reference(self.source) and not Path(self.source).exists()
        return f"--data {self.source}" if is_code else None

    def differing(self, said: DataSpec) -> str | None:
        """The first detail that ``said`` gives otherwise; what it leaves at its default may have been settled here."""
        blank = DataSpec(self.source)
        for name in (f.name for f in fields(DataSpec) if f.name not in ("source", "data_dir", "told_by")):
            if getattr(said, name) not in (getattr(blank, name), getattr(self, name)):
                return name
        return None

    def vouched(self, word: Word) -> DataSpec:
        """These data as the user's, where the user says the same; unchanged where the user says nothing.

        Raises:
            InputError: the user says something else.
        """
        if word.data is None:
            return self
        if word.data != self.source and str(Path(word.data).resolve()) != self.source:
            raise InputError(
                f"{self.told_by or 'the run'} knows its own data: --data {self.source}, not --data {word.data}",
                "give the same",
            )
        return replace(self, told_by=None)


@dataclass(frozen=True)
class Dataset:
    """n samples in memory.

    Attributes:
        inputs: float64, shape (n, …): (n, features) or (n, channels, height, width); int64 where a factory gave
            integers of 64 bits, which are token indices.
        targets: float64, shape (n, C).
        spec: how to load it again.
        fingerprint: SHA-256 of shapes, inputs and targets.
        origin: where the samples came from, for people.
        note: what was decided of the targets, for people; "" where nothing was to decide.
    """

    inputs: NDArray[np.float64] | NDArray[np.int64]
    targets: NDArray[np.float64]
    spec: DataSpec
    fingerprint: str
    origin: str
    note: str = ""

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    @property
    def outputs(self) -> int:
        """Number of outputs C per sample."""
        return int(self.targets.shape[1])

    def duplicate(self) -> tuple[int, int] | None:
        """The first pair of samples with equal inputs, which makes λ_min(K) exactly 0; None when all differ."""
        rows = np.ascontiguousarray(self.inputs.reshape(self.n, -1))
        seen: dict[bytes, int] = {}
        for index, row in enumerate(rows):
            first = seen.setdefault(row.tobytes(), index)
            if first != index:
                return first, index
        return None

    def tensors(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets as tensors; floating-point ones in ``dtype`` (float64 by default)."""
        import torch

        inputs, targets = torch.from_numpy(self.inputs), torch.from_numpy(self.targets)
        kind = dtype or torch.float64
        return inputs.to(device, kind if inputs.is_floating_point() else inputs.dtype), targets.to(device, kind)

    def describe(self) -> dict[str, Any]:
        """The data section of run.json."""
        return {
            **self.spec.to_dict(),
            "n": self.n,
            "input_shape": list(self.inputs.shape[1:]),
            "outputs": self.outputs,
            "sha256": self.fingerprint,
            "origin": self.origin,
        }


def load_dataset(spec: DataSpec, *, fetch: bool = False) -> Dataset:
    """Load the data set that ``spec`` describes.

    Args:
        spec: what to load.
        fetch: download the whole set first (``mnist`` and ``cifar10`` only).

    Raises:
        InputError: the source is unknown or unreadable, holds NaN or text, has mismatched shapes, or fewer
            samples than asked for.
    """
    if spec.targets is not None and spec.targets not in TARGETS:
        raise InputError(f"targets {spec.targets!r} are unknown", f"choose from {', '.join(TARGETS)}")
    if spec.samples is not None and spec.samples < 1:
        raise InputError(f"{spec.samples} samples asked for", "ask for at least 1")
    if spec.source in IMAGES:
        if spec.task is not None:
            raise InputError(f"--task does not go with {spec.source}, whose targets are classes", "choose --targets")
        return _load_images(spec, fetch)
    if fetch or spec.data_dir is not None:
        raise InputError(f"--data-dir and --download do not go with {spec.source}", "they serve mnist and cifar10 only")
    return _load_user(spec)


def _load_images(spec: DataSpec, fetch: bool) -> Dataset:
    if fetch:
        directory = download(spec.source, Path(spec.data_dir) if spec.data_dir else None)
        spec = replace(spec, data_dir=str(directory.resolve()))
    if spec.data_dir is None:
        source = sources.read_embedded(spec.source)
    else:
        reader = sources.read_mnist if spec.source == "mnist" else sources.read_cifar10
        source = reader(Path(spec.data_dir))
    classes = tuple(_numbered(c, spec.source) for c in spec.classes or _CLASSES[spec.source])
    if len(set(classes)) < len(classes):
        raise InputError(f"{spec.source}: a class is named twice", "name each once in --classes")
    order = sources.balanced_order(source.labels, classes, spec.samples)
    scaled = source.images[order].astype(np.float64) / 255.0
    if spec.source == "mnist":
        inputs = scaled.reshape(len(order), -1)
    else:
        inputs = ((scaled - _CIFAR_MEAN) / _CIFAR_STD).transpose(0, 3, 1, 2)
    kind = spec.targets or ("01" if len(classes) == 2 else "onehot")
    targets = encode_targets(source.labels[order], kind, classes)
    return _finish(inputs, targets, spec, source.origin)


def _numbered(label: int | str, source: str) -> int:
    """The number of a class, which CIFAR-10 has names for."""
    if isinstance(label, int):
        return label
    names = _NAMES.get(source, ())
    if label.strip().lower() in names:
        return names.index(label.strip().lower())
    known = f"from {', '.join(names)} or their numbers" if names else "numbers, such as 3,8"
    raise InputError(f"{source} has no class {label!r}", f"choose --classes {known}")


def _load_user(spec: DataSpec) -> Dataset:
    spec, held, origin = _held(spec)
    # Whole numbers of 64 bits from a factory are token indices.
    tokens = held.name is None and held.inputs.dtype == np.int64
    inputs: NDArray[Any] = held.inputs if tokens else _numeric(held.inputs, "inputs", origin)
    if not inputs.size or not held.targets.size:
        raise InputError(f"{origin} holds no samples", "give at least one")
    if inputs.ndim < 2:
        raise InputError(f"inputs of {origin} have shape {inputs.shape}", "give them as (n, features) or (n, …)")
    if held.targets.ndim not in (1, 2) or len(held.targets) != len(inputs):
        raise InputError(
            f"targets of {origin} have shape {held.targets.shape}, inputs {inputs.shape}",
            "give targets as (n,) or (n, C) with the same n",
        )
    if _as_classes(held, spec):
        return _classified(inputs, held, spec, origin)
    targets = _numeric(held.targets, "targets", origin)
    if spec.classes is not None:
        raise InputError("--classes needs targets that are labels", "add --targets pm1, 01 or onehot")
    keep = slice(None, spec.samples)
    if spec.samples is not None and spec.samples > len(inputs):
        raise InputError(f"{spec.samples} samples asked for, {len(inputs)} at hand", "lower --samples")
    encoded = targets[keep].reshape(len(targets[keep]), -1)
    return _finish(inputs[keep], encoded, replace(spec, task="regression"), origin)


def _held(spec: DataSpec) -> tuple[DataSpec, files.Arrays, str]:
    """What a factory makes or a file holds, with the specification made absolute, and where it is from."""
    if spec.code is not None:
        refuse_unnamed(spec.told_by, spec.code)
        produced = import_factory(spec.source)()
        try:
            inputs, targets = (_to_numpy(part) for part in produced)
        except (TypeError, ValueError) as error:
            raise InputError(f"{spec.source} returned no pair (inputs, targets)", "return two arrays") from error
        return spec, files.Arrays(inputs, targets, None), f"factory {spec.source}"
    path = Path(spec.source)
    if not path.is_file():
        raise InputError(
            f"no data set {spec.source!r}",
            "name mnist, cifar10, an existing .npz, .csv or .parquet file, or module:factory",
        )
    path = path.resolve()
    if path.suffix == ".npz":
        held = files.read_npz(path)
    elif path.suffix in (".csv", ".parquet"):
        held = files.read_table(path, spec.target_columns)
    else:
        raise InputError(f"{path} is no .npz, .csv or .parquet file", "convert it to one of these")
    return replace(spec, source=str(path)), held, str(path)


def _as_classes(held: files.Arrays, spec: DataSpec) -> bool:
    """Whether targets are classes: by ``--targets`` or ``--task``, else by what they are."""
    asked = None if spec.targets is None else "regression" if spec.targets == "raw" else "classification"
    if None not in (asked, spec.task) and asked != spec.task:
        raise InputError(f"--targets {spec.targets} does not go with --task {spec.task}", "leave out one of them")
    return labels.are_classes(held.targets, held.name or "", spec.task or asked)


def _classified(inputs: NDArray[Any], held: files.Arrays, spec: DataSpec, origin: str) -> Dataset:
    """Samples whose targets encode their classes, which take turns."""
    naming = labels.find_labels(held.targets, spec.classes, origin)
    at_hand = int((naming.index >= 0).sum())
    if spec.samples is not None and spec.samples > at_hand:
        raise InputError(f"{spec.samples} samples asked for, {at_hand} at hand", "lower --samples")
    every = tuple(range(len(naming.classes)))
    order = sources.balanced_order(naming.index, every, spec.samples)
    kind = spec.targets or ("01" if len(every) == 2 else "onehot")
    note = "" if spec.targets else f"{naming.describe(held.name)}, as {kind}"
    if note and spec.task is None and not isinstance(naming.classes[0], str):
        note += "; --task regression takes them as numbers"
    encoded = encode_targets(naming.index[order], kind, every)
    return _finish(inputs[order], encoded, replace(spec, task="classification"), origin, note)


def _to_numpy(part: Any) -> NDArray[Any]:
    return np.asarray(part.detach().cpu().numpy() if hasattr(part, "detach") else part)


def _numeric(array: NDArray[Any], name: str, origin: str) -> NDArray[np.float64]:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} of {origin} have dtype {array.dtype}", "encode them as numbers")
    return array.astype(np.float64)


def encode_targets(labels: NDArray[np.int64], kind: str, classes: tuple[int, ...]) -> NDArray[np.float64]:
    """Targets (n, C) from labels: ``pm1`` and ``01`` for two classes (the second is 1), ``onehot`` for any."""
    index = np.argmax(labels[:, None] == np.array(classes)[None, :], axis=1)
    if kind in ("01", "pm1") and len(classes) != 2:
        raise InputError(f"--targets {kind} needs two classes, not {len(classes)}", "use --targets onehot")
    encoded: NDArray[np.float64]
    if kind == "raw":
        encoded = labels.astype(np.float64)[:, None]
    elif kind == "onehot":
        encoded = np.eye(len(classes))[index]
    elif kind == "01":
        encoded = index.astype(np.float64)[:, None]
    else:
        encoded = 2.0 * index[:, None] - 1.0
    return encoded


def _finish(inputs: NDArray[Any], targets: NDArray[np.float64], spec: DataSpec, origin: str, note: str = "") -> Dataset:
    if len(inputs) == 0 or inputs.size == 0:
        raise InputError(f"{origin} holds no samples", "give at least one")
    for name, array in (("inputs", inputs), ("targets", targets)):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{name} of {origin} hold NaN or infinity in {int(bad.sum())} samples (first: {row})",
                "remove them",
            )
    inputs, targets = np.ascontiguousarray(inputs), np.ascontiguousarray(targets)
    digest = hashlib.sha256()
    for array in (inputs, targets):
        digest.update(repr(array.shape).encode())
        digest.update(array.astype("<i8" if array.dtype.kind == "i" else "<f8", copy=False).tobytes())
    return Dataset(inputs, targets, spec, digest.hexdigest(), origin, note)
