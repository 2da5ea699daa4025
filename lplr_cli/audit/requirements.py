"""Requirements such as ``pl_ratio.min >= 0.05`` or ``verdict == "linear"`` over the JSON of a command."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lplr_cli.errors import InputError

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(
    r"""\s*(?P<key>[A-Za-z_][\w.]*)\s*(?P<op>>=|<=|==|!=|>|<)\s*"""
    r"""(?:(?P<quote>["'])(?P<text>[^"']*)(?P=quote)|(?P<number>[^\s"']+))\s*"""
)


@dataclass(frozen=True)
class Requirement:
    """A key of the JSON, a comparison, and a number or a text."""

    key: str
    comparison: str
    value: float | str

    def __str__(self) -> str:
        return f"{self.key} {self.comparison} {_shown(self.value, 'g')}"


@dataclass(frozen=True)
class Failure:
    """A requirement that does not hold, with the value found (None for null)."""

    requirement: Requirement
    value: float | str | None

    def __str__(self) -> str:
        return f"{self.requirement} (found {_shown(self.value, '.6g')})"


def _shown(value: float | str | None, digits: str) -> str:
    if value is None:
        return "null"
    return f'"{value}"' if isinstance(value, str) else f"{value:{digits}}"


def parse_requirement(text: str) -> Requirement:
    """Read ``KEY COMPARISON NUMBER`` or ``KEY == "TEXT"``; ``true`` and ``false`` are 1 and 0.

    Raises:
        InputError: it has another form.
    """
    match = _FORM.fullmatch(text)
    if match is not None:
        value = match["text"] if match["quote"] else _number(match["number"])
        if value is not None and (not match["quote"] or match["op"] in ("==", "!=")):
            return Requirement(match["key"], match["op"], value)
    raise InputError(
        f"requirement {text!r} is not understood", "write it like 'pl_ratio.min >= 0.05' or 'verdict == \"linear\"'"
    )


def _number(text: str) -> float | None:
    word = text.lower()
    if word in ("true", "false"):
        return float(word == "true")
    try:
        number = float(word)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def scalar_keys(record: Mapping[str, Any], prefix: str = "") -> dict[str, float | str | None]:
    """Dotted keys of all numbers, truth values, texts and nulls below ``record``."""
    values: dict[str, float | str | None] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            values |= scalar_keys(value, f"{name}.")
        elif value is None or isinstance(value, str):
            values[name] = value
        elif isinstance(value, bool | int | float):
            values[name] = float(value)
    return values


def check_requirements(requirements: Iterable[Requirement], record: Mapping[str, Any]) -> list[Failure]:
    """The requirements that fail; a null fails.

    Raises:
        InputError: a key that the record does not have, listing those it has; a text compared with a number.
    """
    keys = scalar_keys(record)
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
        if value is not None and isinstance(value, str) != isinstance(requirement.value, str):
            kind, example = ("a text", '== "…"') if isinstance(value, str) else ("a number", ">= 0.05")
            raise InputError(f"{requirement.key} is {kind}", f"compare it like {requirement.key} {example}")
        if value is None or not _COMPARISONS[requirement.comparison](value, requirement.value):
            failures.append(Failure(requirement, value))
    return failures
