from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError, OutputError
from lplr_cli.models import ModelSpec
from lplr_cli.runs import LOG_COLUMNS, Appender, RunDirectory, plain, truncate_before
from lplr_cli.runs.atomic import write_atomically, write_text
from lplr_cli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lplr_cli.runs.tables import KERNEL_GRADIENT, PRECONDITIONED, PROBE_COLUMNS, TEXT_COLUMNS, checked, read_csv

COLUMNS = ("step", "loss")


def checkpoint() -> Checkpoint:
    return Checkpoint(
        ModelSpec(),
        DataSpec("mnist"),
        "abc",
        (7,),
        1,
        "float64",
        0,
        3,
        {"w": torch.eye(2)},
        {"momentum": torch.ones(4)},
    )


def test_rows_survive_with_full_precision(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    values = [0.1 + 0.2, 1e-300, 3.0, None]
    with Appender(path, COLUMNS) as log:
        for step, value in enumerate(values):
            log.append({"step": step, "loss": value})
    assert read_csv(path)["loss"].tolist()[:3] == values[:3]
    with path.open("a") as stream:
        stream.write("4,0.12")  # torn by a crash
    assert read_csv(path)["step"].tolist() == [0, 1, 2, 3]
    truncate_before(path, COLUMNS, 2)
    assert path.read_text() == "step,loss\n0,0.30000000000000004\n1,1e-300\n"


def test_a_table_of_an_older_version_goes_on_in_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "probes.csv"
    path.write_text("step,loss\n1,2.0\n")
    with Appender(path, ("step", "new", "loss")) as rows:
        rows.append({"step": 2, "new": 9.0, "loss": 3.0})
    assert path.read_text() == "step,loss\n1,2.0\n2,3.0\n"


@pytest.mark.parametrize("column", [*PROBE_COLUMNS, KERNEL_GRADIENT, PRECONDITIONED])
def test_columns_of_numbers_hold_numbers(column: str, tmp_path: Path) -> None:
    """Also those that only some runs have (found by fuzzing)."""
    path = tmp_path / "probes.csv"
    names = [*PROBE_COLUMNS, KERNEL_GRADIENT, PRECONDITIONED]
    path.write_text(",".join(names) + "\n" + ",".join("0.2e9;c" if n == column else "1" for n in names) + "\n")
    if column in TEXT_COLUMNS:
        checked(read_csv(path), PROBE_COLUMNS, path)
    else:
        with pytest.raises(InputError, match=f"something else than numbers in {column}"):
            checked(read_csv(path), PROBE_COLUMNS, path)


def test_atomic_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "missing" / "a.txt", "x")


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    found = load_checkpoint(path)
    assert found.model == ModelSpec()
    assert found.data == DataSpec("mnist")
    assert found.step == 3
    assert torch.equal(found.parameters["w"], torch.eye(2))
    assert torch.equal(found.optimizer["momentum"], torch.ones(4))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_hostile_and_broken_checkpoints(tmp_path: Path) -> None:
    target = tmp_path / "made"
    torch.save({"format": "lplr-checkpoint", "x": Evil(target)}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(target)))
    save_checkpoint(tmp_path / "good.pt", checkpoint())
    whole = (tmp_path / "good.pt").read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut{cut}.pt").write_bytes(whole[:cut])
    torch.save({"w": torch.eye(2)}, tmp_path / "other.pt")
    torch.save({"format": "lplr-checkpoint", "schema_version": 99}, tmp_path / "newer.pt")
    torch.save({"format": "lplr-checkpoint", "schema_version": 1}, tmp_path / "empty.pt")
    for path in [p for p in tmp_path.glob("*.pt") if p.name != "good.pt"] + [tmp_path / "none.pt"]:
        with pytest.raises(InputError):
            load_checkpoint(path)
    assert not target.exists()


def test_run_directory_guards(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r")
    run.write_config({"schema_version": 1, "status": "running", "x": float("nan")})
    assert RunDirectory.open(tmp_path / "r").config()["x"] is None
    with pytest.raises(InputError, match="exists already"):
        RunDirectory.create(tmp_path / "r")
    run.write_config({"schema_version": 7})
    with pytest.raises(InputError, match="schema version 7"):
        RunDirectory.open(tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="no valid JSON"):
        RunDirectory.open(tmp_path / "r")
    with pytest.raises(InputError, match="no run directory"):
        RunDirectory.open(tmp_path / "none")


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r")
    code = (
        "import sys; from pathlib import Path; from lplr_cli.runs import RunDirectory\n"
        "try:\n    RunDirectory(Path(sys.argv[1])).lock(); print('locked')\n"
        "except Exception as e:\n    print('refused', e)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    held = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "in use by another process" in held.stdout
    run.unlock()
    # The first command's process died holding nothing; the next one locks although .lock still lies there.
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "locked\n"


def test_parquet_only_logs_come_back_as_csv(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r")
    with Appender(run.log_path, LOG_COLUMNS) as log:
        log.append({"step": 0, "loss": 0.1 + 0.2})
    run.finish_tables("parquet")
    assert not run.log_path.exists()
    assert run.log()["loss"].tolist() == [0.1 + 0.2]
    run.restore_csv()
    assert run.log_path.read_text() == ",".join(LOG_COLUMNS) + "\n0,,0.30000000000000004,,,,\n"


def test_plain_values() -> None:
    assert plain({"a": float("inf"), "b": (torch.tensor(2.0), [float("nan")])}) == {"a": None, "b": [2.0, [None]]}
