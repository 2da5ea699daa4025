"""Grids and the rule that says which runs left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lplr_cli.ablation import departures, grid_cells, read_grid, smaller_step
from lplr_cli.errors import InputError


def test_the_product_of_axes() -> None:
    cells = grid_cells({"width": [4, 8], "lr": [None, 1e-3], "activation": ["tanh"]})
    assert [c.name for c in cells] == [
        "width4-lrauto-activationtanh",
        "width4-lr0.001-activationtanh",
        "width8-lrauto-activationtanh",
        "width8-lr0.001-activationtanh",
    ]
    assert cells[1].values == {"width": 4, "lr": 1e-3, "activation": "tanh"}
    for axes, match in (
        ({"widht": [1]}, "grid over widht"),
        ({"width": []}, "no values"),
        ({"width": [3, 3]}, "names a value twice"),
        ({"source": ["mnist"]}, "grid over source"),
    ):
        with pytest.raises(InputError, match=match):
            grid_cells(axes)


def test_grids_of_very_many_runs_are_refused_before_they_are_made(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"seed": list(range(90_000)), "lr": [1e-9 * i for i in range(1, 90_000)]}
    with pytest.raises(InputError, match="8,099,910,000 runs"):
        grid_cells(axes)
    assert len(grid_cells({"seed": range(100), "width": range(1, 101)})) == 10_000
    path = tmp_path / "grid.toml"
    for text in (".".join(["a"] * 200_000) + " = 1", "[" + ".".join(["a"] * 200_000) + "]"):
        path.write_text(text)
        with pytest.raises(InputError, match="more than 100 parts"):
            read_grid(path)
    path.write_text("[grid]\nlr = [\n" + "0.1, " * 200 + "\n]\n")
    assert len(read_grid(path)[1]["lr"]) == 200


def test_grid_files(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text(
        "[base]\nsteps = 3\n[grid]\nwidth = [4, 8]\nlr = ['auto', 1]\nclasses = [[3, 8]]\n"
        "[[run]]\nwidth = 16\nlr = 2.5e-4\n"
    )
    base, axes, single = read_grid(path)
    assert base == {"steps": 3}
    assert axes == {"width": [4, 8], "lr": [None, 1.0], "classes": [(3, 8)]}
    assert [(c.name, c.values) for c in single] == [("width16-lr0.00025", {"width": 16, "lr": 2.5e-4})]
    for text, match in (
        ("[grid]\nwidht = [1]", "unknown options widht"),
        ("[grid\n", "no valid TOML"),
        ("", "has no runs"),
        ("[other]\na = 1", "has other"),
        ("[grid]\nlr = ['much']", "no step size"),
        ("run = [1]", "is no table"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            read_grid(path)
    with pytest.raises(InputError, match="cannot read"):
        read_grid(tmp_path / "none.toml")


def log(drift: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(drift)), "drift": drift})


def probes(change: float, sharpness: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": [0, 9], "ntk_change": [0.0, change], "lambda_max": [10.0, 11.0], "sharpness": [20.0, sharpness]}
    )


@pytest.mark.parametrize(
    ("drift", "change", "sharpness", "lr", "expected"),
    [
        ([0, 1.0, 1.6, 2.0, 2.2], 0.5, 21.0, 0.05, []),
        ([0, 1.0, 1.6, 4.0, 4.1], 0.5, 21.0, 0.05, ["drift jump at step 3"]),
        ([0, 1.0, 1.6, 2.0, 2.2], 4.0, 21.0, 0.05, ["NTK drift 40%"]),
        ([0, 1.0, 1.6, 2.0, 2.2], 0.5, 50.0, 0.05, ["step size 0.05 above 2/sharpness = 0.04"]),
        ([0, 1.0, 9.0, 2.0, 2.2], 4.0, 50.0, 0.05, ["drift jump at step 2", "NTK drift", "step size"]),
    ],
)
def test_the_rule_of_departure(
    drift: list[float], change: float, sharpness: float, lr: float, expected: list[str]
) -> None:
    found = departures(log(drift), probes(change, sharpness), lr)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_departures_without_probes() -> None:
    assert departures(log([0, 1, 1.5]), pd.DataFrame(), None) == []
    assert departures(log([0]), pd.DataFrame(), 0.1) == []


def test_the_smaller_step() -> None:
    assert smaller_step(1.0, 10.0) == 0.1
    assert smaller_step(0.1, 10.0) == 0.05
    assert smaller_step(1.0, None) == 0.5
    assert smaller_step(None, 10.0) is None
