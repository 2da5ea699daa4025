"""What every reader of logs keeps to; a test of a reader inherits it and says only what its files are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from lplr_cli.diagnostics import clean_series
from lplr_cli.errors import InputError
from lplr_cli.runs.logs import READERS, Choice, Reader, read_foreign_log, sniff
from lplr_cli.runs.logs.place import Place, opened

SAMPLES = Path(__file__).with_name("samples")
# Damaged files of each reader.
DAMAGED = 20


def expected_of(library: str) -> pd.DataFrame:
    """What the library was told, in the terms of diagnostics."""
    return pd.DataFrame(json.loads((SAMPLES / library / "expected.json").read_text(encoding="utf-8")))


class ReaderContract:
    """Inherited by the tests of each reader.

    Attributes:
        reader: under test.
        files: names of samples, each written by :meth:`write`.
        run: the run to choose where a sample holds several.
        tolerance: relative, of numbers that the format rounds.
    """

    reader: ClassVar[type[Reader]]
    files: ClassVar[tuple[str, ...]] = ("log",)
    run: ClassVar[str | None] = None
    tolerance: ClassVar[float] = 1e-12

    def write(self, name: str, folder: Path) -> Path:
        """Write one sample and say where; a fresh folder is given."""
        raise NotImplementedError

    def expected(self, name: str) -> pd.DataFrame:
        """Columns step and loss, and others that are there."""
        raise NotImplementedError

    def test_it_is_told_by_its_content(self, tmp_path: Path) -> None:
        for name in self.files:
            with opened(self.write(name, tmp_path / name)) as place:
                assert isinstance(sniff(place), self.reader)

    def test_no_flag_is_needed(self, tmp_path: Path) -> None:
        for name in self.files:
            reading = read_foreign_log(self.write(name, tmp_path / name), run=self.run)
            rows = reading.log[np.isfinite(reading.log["loss"])].reset_index(drop=True)
            expected = self.expected(name)
            for column in expected:
                np.testing.assert_allclose(rows[column], expected[column], rtol=self.tolerance, err_msg=str(column))
            assert len(clean_series(reading.log).loss) == len(expected)

    def test_a_column_that_is_missing_is_answered_by_those_present(self, tmp_path: Path) -> None:
        path = self.write(self.files[0], tmp_path / "log")
        with pytest.raises(InputError, match=r"nowhere|tells a loss") as caught:
            read_foreign_log(path, {"loss": "nowhere"}, run=self.run)
        assert "\n" not in str(caught.value)
        assert "tells a loss" in str(caught.value) or "it has " in str(caught.value)

    def test_sniffing_other_files_is_quiet(self, tmp_path: Path) -> None:
        others = {
            b"",
            b"\0",
            b"{",
            b"[",
            b"PK\x03\x04",
            b"SQLite format 3\0",
            b":W&B",
            b"PAR1",
            b"\x93NUMPY",
            b"\xff" * 99,
        }
        for content in sorted(others):
            path = tmp_path / "other"
            path.write_bytes(content)
            with opened(path) as place:
                assert self.reader().sniff(place) in (True, False)
        with opened(tmp_path) as place:
            assert not self.reader().sniff(place)

    def test_damage_is_a_log_or_one_line(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        for attempt in range(DAMAGED):
            path = self.write(self.files[attempt % len(self.files)], tmp_path / str(attempt))
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            victim = files[int(random.integers(len(files)))]
            victim.write_bytes(damaged(victim.read_bytes(), random))
            with opened(path) as place:
                for reader in (self.reader(), sniff(place)):
                    assert "\n" not in complaint(reader, place, Choice(run=self.run))


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, or cut, or both."""
    bytes_of = bytearray(content)
    for _ in range(int(random.integers(5)) if content else 0):
        bytes_of[int(random.integers(len(bytes_of)))] = int(random.integers(256))
    return bytes(bytes_of[: int(random.integers(len(bytes_of) + 1))] if random.random() < 0.5 else bytes_of)


def complaint(reader: Reader | None, place: Place, choice: Choice) -> str:
    """What is said of a log that cannot be used; any other exception than an input error is a failure."""
    try:
        if reader is not None:
            clean_series(choice.select(reader.read(place, choice), "log").log)
    except InputError as error:
        return str(error)
    return ""


class SampleContract(ReaderContract):
    """Of a reader whose samples a library wrote."""

    library: ClassVar[str]

    def write(self, name: str, folder: Path) -> Path:
        """A copy of the library's folder; ``name`` is the path in it."""
        shutil.copytree(SAMPLES / self.library, folder)
        (folder / "expected.json").unlink()
        return folder / name if name != "log" else folder

    def expected(self, name: str) -> pd.DataFrame:
        """What the library was told."""
        return expected_of(self.library)


def readers_tested(module: dict[str, object]) -> set[type[Reader]]:
    """Readers whose contract a test module inherits."""
    kinds = [v for v in module.values() if isinstance(v, type) and issubclass(v, ReaderContract)]
    return {kind.reader for kind in kinds if hasattr(kind, "reader")}


ALL = {type(reader) for reader in READERS}
