"""Grids: which runs a sweep consists of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.factories import is_factory_reference, refuse_unnamed
from lplr_cli.models import ModelSpec
from lplr_cli.reading import read_toml
from lplr_cli.training import TrainConfig

# What a grid may vary: every option of train but where its data and results lie.
OPTIONS = frozenset(f.name for kind in (TrainConfig, ModelSpec, DataSpec) for f in fields(kind)) - {
    "data",
    "model",
    "source",
    "data_dir",
    "target_columns",
}

# Runs of one grid.
_MOST = 10_000
Table = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its directory name and what is special about it.

    Attributes:
        name: of the run directory.
        values: changes to the configuration that all cells share.
        follows: name of the run that this one recovers, empty for the runs of the grid.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    follows: str = ""


def grid_cells(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """The product of all axes, the last one varying fastest; names like ``width128-lr0.0005-seed0``.

    Raises:
        InputError: an unknown option, an empty axis, too many runs, or a value named twice.
    """
    unknown = set(axes) - OPTIONS
    if unknown:
        raise InputError(f"a grid over {', '.join(sorted(unknown))}", f"known are {', '.join(sorted(OPTIONS))}")
    if any(not values for values in axes.values()):
        raise InputError("an axis of the grid has no values", "give each at least one")
    count = math.prod(len(values) for values in axes.values())
    if count > _MOST:
        raise InputError(f"a grid of {count:,} runs", f"give at most {_MOST:,}")
    names = list(axes)
    cells = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(names, combination, strict=True))
        cells.append(Cell(cell_name(values), values))
    return distinct(cells)


def cell_name(values: Mapping[str, Any]) -> str:
    """A directory name from the values of a cell."""
    parts = []
    for key, value in values.items():
        shown = "auto" if value is None else "x".join(map(str, value)) if isinstance(value, list | tuple) else value
        parts.append(f"{key}{shown}")
    return "-".join(parts).replace("/", "_").replace(":", "_") or "run"


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, whose names must differ."""
    if len({c.name for c in cells}) < len(cells):
        raise InputError("the grid names a value twice", "list each value once")
    return list(cells)


def read_grid(path: Path, model: str = "mlp") -> tuple[dict[str, Any], dict[str, list[Any]], list[Cell]]:
    """A grid file.

        [base]            # options that all runs share
        steps = 300
        [grid]            # the product of these lists
        width = [64, 128]
        [[run]]           # or single runs, with what is special about them
        width = 512
        lr = 2.5e-4

    Args:
        path: of the file.
        model: what the user names as the model on this line; where the file names code, it must be the same.

    Returns:
        Shared options, axes, and the single runs.

    Raises:
        InputError: unreadable, something that is no option of train, or code that the user does not name.
    """
    base, axes, single = _tables(path)
    unknown = {k for t in (base, axes, *single) for k in t} - OPTIONS
    if unknown:
        raise InputError(
            f"{path} has unknown options {', '.join(sorted(unknown))}", f"known are {', '.join(sorted(OPTIONS))}"
        )
    lists = {k: v if isinstance(v, list) else [v] for k, v in axes.items()}
    _refuse_code(path, [*lists.get("kind", ()), *(t.get("kind") for t in (base, *single))], model)
    return (
        _options(base),
        {k: [_value(k, x) for x in v] for k, v in lists.items()},
        [Cell(cell_name(t), _options(t)) for t in single],
    )


def _tables(path: Path) -> tuple[Table, Table, list[Table]]:
    """[base], [grid] and each [[run]], their keys spelled as in Python."""
    record = read_toml(path, "give a TOML file with [grid]")
    base, axes, single = record.pop("base", {}), record.pop("grid", {}), record.pop("run", [])
    if record or not isinstance(base, dict) or not isinstance(axes, dict) or not isinstance(single, list):
        raise InputError(
            f"{path} has {', '.join(record) or 'tables of another form'}", "use [base], [grid] and [[run]]"
        )
    if not axes and not single:
        raise InputError(f"{path} has no runs", "add [grid] with lists, or [[run]]")
    if not all(isinstance(t, dict) for t in single):
        raise InputError(f"{path}: a [[run]] is no table", "write [[run]] and options below it")
    return _spelled(base), _spelled(axes), [_spelled(t) for t in single]


def _spelled(table: Table) -> Table:
    """As on the command line, where words are joined by hyphens."""
    return {k.replace("-", "_"): v for k, v in table.items()}


def _refuse_code(path: Path, kinds: list[Any], named: str) -> None:
    """Code that a grid file names is data until the user names it, too."""
    code = [k for k in kinds if isinstance(k, str) and is_factory_reference(k) and k != named]
    refuse_unnamed(str(path), *(f"--model {k}" for k in code[:1]))


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _value(k, v) for k, v in table.items()}


def _value(name: str, value: Any) -> Any:
    if name == "lr":
        if value == "auto":
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise InputError(f"lr = {value!r} is no step size", "give a positive number or 'auto'")
    return tuple(value) if isinstance(value, list) else value
