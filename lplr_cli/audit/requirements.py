"""Requirement expressions such as ``pl_ratio.min >= 0.05`` over the JSON of a command."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lplr_cli.errors import InputError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(r"\s*(?P<key>[A-Za-z_][\w.]*)\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<number>\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A key of the JSON, a comparison and a number."""

    key: str
    comparison: str
    number: float

    def __str__(self) -> str:
        return f"{self.key} {self.comparison} {self.number:g}"


@dataclass(frozen=True)
class Failure:
    """A requirement that does not hold, with the value found (None for null)."""

    requirement: Requirement
    value: float | None

    def __str__(self) -> str:
        found = "null" if self.value is None else f"{self.value:.6g}"
        return f"{self.requirement} (found {found})"


def parse_requirement(text: str) -> Requirement:
    """Read ``KEY COMPARISON NUMBER``; ``true`` and ``false`` are 1 and 0.

    Raises:
        InputError: it has another form.
    """
    match = _FORM.fullmatch(text)
    if match is not None:
        word = match["number"].lower()
        try:
            number = {"true": 1.0, "false": 0.0}.get(word)
            number = float(word) if number is None else number
        except ValueError:
            number = math.nan
        if not math.isnan(number):
            return Requirement(match["key"], match["op"], number)
    raise InputError(f"requirement {text!r} is not understood", "write it like 'pl_ratio.min >= 0.05'")


def numeric_keys(record: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Dotted keys of all numbers, truth values and nulls below ``record``."""
    found: dict[str, float | None] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= numeric_keys(value, f"{name}.")
        elif value is None:
            found[name] = None
        elif isinstance(value, bool | int | float):
            found[name] = float(value)
    return found


def check_requirements(requirements: Iterable[Requirement], record: Mapping[str, Any]) -> list[Failure]:
    """The requirements that fail; a null fails.

    Raises:
        InputError: a key that the record does not have, listing those it has.
    """
    keys = numeric_keys(record)
    failures = []
    for requirement in requirements:
        if requirement.key not in keys:
            # A group that is null as a whole (no window, no fit) makes what lies below it null, not unknown.
            parents = requirement.key.split(".")[:-1]
            above = [".".join(parents[:i]) for i in range(1, len(parents) + 1)]
            if any(name in keys and keys[name] is None for name in above):
                failures.append(Failure(requirement, None))
                continue
            raise InputError(f"no key {requirement.key!r}", f"the keys are {', '.join(keys)}")
        value = keys[requirement.key]
        if value is None or not _COMPARISONS[requirement.comparison](value, requirement.number):
            failures.append(Failure(requirement, value))
    return failures
