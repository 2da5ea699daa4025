"""MLflow's folders: a file a metric, lines of ``timestamp value step``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lplr_cli.errors import InputError
from lplr_cli.runs.logs.columns import Choice, Table, pick_run
from lplr_cli.runs.logs.folder import walk
from lplr_cli.runs.logs.place import Place, opened
from lplr_cli.runs.logs.reader import Reader
from lplr_cli.runs.logs.sqlite import joined

_LINE = re.compile(rb"\d{12,14} \S{1,40} -?\d{1,18}(?: [^\n]{0,400})?")
_NAME_BYTES, _LONGEST_LINE = 1000, 4096


class MlflowFile(Reader):
    """One metric of a run; the file's name is the column, and is the loss whatever it is called."""

    kind = "MLflow metric file"

    def sniff(self, place: Place) -> bool:
        """Every line of the head fits."""
        if place.folder is not None or not place.head.strip():
            return False
        lines = place.head.splitlines()
        whole = lines if place.complete else lines[:-1]
        return bool(whole) and all(_LINE.fullmatch(line) for line in whole[:50])

    def read(self, place: Place, choice: Choice) -> Table:
        """The last value of each step."""
        name = place.path.name if place.path is not None else "values"
        return joined({name: _series(place)}, [name])


class MlflowFolder(Reader):
    """A run's folder, or one that holds runs: an experiment, or ``mlruns``."""

    kind = "MLflow folder"

    def sniff(self, place: Place) -> bool:
        """A folder ``metrics`` beside ``meta.yaml``."""
        return place.folder is not None and bool(_runs(place.folder))

    def read(self, place: Place, choice: Choice) -> Table:
        """One run's metrics, joined on their steps."""
        assert place.folder is not None
        runs = {path.name: path for path in _runs(place.folder)}
        key = pick_run({name: _name(path) for name, path in runs.items()}, choice, place.name)
        metrics = runs[key] / "metrics"
        files = {str(p.relative_to(metrics)).replace("\\", "/"): p for p in walk(metrics)}
        series = {}
        for name in choice.pick(["step", *files]):
            if name in files:
                with opened(files[name]) as file:
                    series[name] = _series(file)
        return joined(series, list(files))


def _runs(folder: Path) -> list[Path]:
    bases = [folder, folder / "mlruns"]
    candidates = [p for base in bases for p in (base, *sorted(base.glob("*")), *sorted(base.glob("*/*")))]
    return [p for p in candidates if (p / "metrics").is_dir() and (p / "meta.yaml").is_file()]


def _name(run: Path) -> str:
    path = run / "tags" / "mlflow.runName"
    if not path.is_file():
        return run.name
    with opened(path) as tag:
        return tag.head[:_NAME_BYTES].decode("utf-8", "replace").strip()


def _series(place: Place) -> Mapping[int, float]:
    values: dict[int, float] = {}
    stream = place.open()
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE), b""), start=1):
        if not _LINE.fullmatch(line.rstrip(b"\r\n")):
            if line.endswith(b"\n"):
                raise InputError(f"cannot read {place.name} (line {number})", "lines are: timestamp value step")
            break  # torn by a crash
        _, value, step = line.split(b" ")[:3]
        try:
            values[int(step)] = float(value)
        except ValueError as error:
            raise InputError(f"cannot read {place.name} (line {number})", "lines are: timestamp value step") from error
    return values
