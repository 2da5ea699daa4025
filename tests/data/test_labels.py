"""Targets of user data: numbers or classes, by names that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lplr_cli.data import Dataset, DataSpec, load_dataset
from lplr_cli.errors import InputError

INPUTS = np.arange(24.0).reshape(12, 2)
INTEGERS = np.arange(12) % 3
SPECIES = np.array(["setosa", "versicolor", "virginica"])[INTEGERS]


def archive(folder: Path, options: dict[str, Any], **arrays: Any) -> Dataset:
    np.savez(folder / "d.npz", **arrays)
    return load_dataset(DataSpec(str(folder / "d.npz"), **options))


def table(folder: Path, column: str, values: Any, **options: Any) -> Dataset:
    frame = pd.DataFrame({"a": INPUTS[:, 0], "b": INPUTS[:, 1], column: values})
    frame.to_csv(folder / "d.csv", index=False)
    return load_dataset(DataSpec(str(folder / "d.csv"), target_columns=(column,), **options))


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [("X", "y"), ("x", "y"), ("x_train", "y_train"), ("inputs", "labels"), ("data", "target"), ("inputs", "targets")],
)
def test_the_usual_names_of_arrays(inputs: str, targets: str, tmp_path: Path) -> None:
    found = archive(tmp_path, {}, **{inputs: INPUTS, targets: INTEGERS + 0.5, "x_test": INPUTS[:1]})
    assert np.array_equal(found.inputs, INPUTS)
    assert found.targets[:, 0].tolist() == (INTEGERS + 0.5).tolist()


@pytest.mark.parametrize(
    "text",
    ["a;b;y\n0,5;1;2,25\n-1,5;3;4\n", "a;b;y\n0.5;1;2.25\n-1.5;3;4\n", "a\tb\ty\n0.5\t1\t2.25\n-1.5\t3\t4\n"],
)
def test_tables_of_semicolons_and_tabs(text: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    found = load_dataset(DataSpec(str(tmp_path / "d.csv"), target_columns=("y",), task="regression"))
    assert found.inputs.tolist() == [[0.5, 1.0], [-1.5, 3.0]]
    assert found.targets[:, 0].tolist() == [2.25, 4.0]


def test_text_is_classes_whatever_the_column_is_called(tmp_path: Path) -> None:
    found = table(tmp_path, "anything", SPECIES)
    assert found.targets.tolist() == np.eye(3)[INTEGERS].tolist()
    assert found.note == "3 classes of anything (setosa, versicolor, virginica), as onehot"
    assert archive(tmp_path, {}, X=INPUTS, y=SPECIES).fingerprint == found.fingerprint
    two = table(tmp_path, "anything", SPECIES, classes=("virginica", "setosa"))
    assert two.n == 8
    assert two.targets[:, 0].tolist() == [0.0, 1.0] * 4  # the classes take turns, in the order that was asked for
    with pytest.raises(InputError, match=r"class rose has no samples in .*choose --classes from setosa"):
        table(tmp_path, "anything", SPECIES, classes=("rose",))
    with pytest.raises(InputError, match="are text"):
        table(tmp_path, "anything", SPECIES, task="regression")
    with pytest.raises(InputError, match="13 samples asked for, 12 at hand; lower --samples"):
        table(tmp_path, "anything", SPECIES, samples=13)


@pytest.mark.parametrize("name", ["label", "class", "species", "target", "Labels", "y"])
def test_few_whole_numbers_under_such_a_name_are_classes(name: str, tmp_path: Path) -> None:
    found = table(tmp_path, name, INTEGERS)
    assert found.outputs == 3
    assert "--task regression takes them as numbers" in found.note
    numbers = table(tmp_path, name, INTEGERS, task="regression")
    assert numbers.targets[:, 0].tolist() == INTEGERS.tolist()
    assert numbers.note == ""


@pytest.mark.parametrize(
    ("name", "values"),
    [("count", INTEGERS), ("label", INTEGERS + 0.25), ("y", np.arange(12)), ("y", np.where(INTEGERS > 0, 1, -1))],
)
def test_other_numbers_are_numbers(name: str, values: Any, tmp_path: Path) -> None:
    found = table(tmp_path, name, values)
    assert found.targets[:, 0].tolist() == values.tolist()
    assert found.spec.task == "regression"


def test_a_task_overrules_and_agrees_with_targets(tmp_path: Path) -> None:
    assert table(tmp_path, "count", INTEGERS, task="classification").outputs == 3
    assert table(tmp_path, "count", INTEGERS, targets="onehot").outputs == 3
    assert table(tmp_path, "y", INTEGERS, targets="raw").outputs == 1
    assert table(tmp_path, "flag", INTEGERS > 0).targets[:, 0].tolist() == [0.0, 1.0] * 4 + [1.0] * 4
    with pytest.raises(InputError, match="--targets raw does not go with --task classification"):
        table(tmp_path, "y", INTEGERS, targets="raw", task="classification")
    with pytest.raises(InputError, match="no integer labels"):
        table(tmp_path, "y", INTEGERS + 0.5, task="classification")
    with pytest.raises(InputError, match="--task 'guess' is unknown"):
        table(tmp_path, "y", INTEGERS, task="guess")
    with pytest.raises(InputError, match="--task does not go with mnist"):
        load_dataset(DataSpec("mnist", task="regression"))


def test_what_was_decided_is_kept_and_older_records_mean_numbers(tmp_path: Path) -> None:
    found = table(tmp_path, "label", INTEGERS)
    assert found.spec.task == "classification"
    assert load_dataset(DataSpec.from_dict(found.spec.to_dict())).fingerprint == found.fingerprint
    record = found.spec.to_dict()
    del record["task"]
    assert load_dataset(DataSpec.from_dict(record)).targets[:, 0].tolist() == INTEGERS.tolist()


def test_a_row_without_a_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'label' of .* has no value in row 5"):
        table(tmp_path, "label", [None if i == 4 else v for i, v in enumerate(SPECIES)])
