"""One check of records against the annotations of their dataclasses: what a file or a call says has the type it should.

Numbers are finite and bounded, text is short and free of NUL, so that nothing behind the check has to expect
anything else. Ranges that mean something to a layer are that layer's.
"""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from lplr_cli.errors import InputError

# Of whole numbers: what float64 counts exactly. Of characters in one text, of entries in one list or table.
MOST = 2**53
LONGEST = 4096
# The order of an epoch is drawn from (seed << 32) + epoch, which torch takes up to 64 bits.
MOST_SEED = 2**32 - 1
MANY = 100_000
_DEEPEST = 32
_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}


def check_fields(record: Any, what: str, remedy: str = "correct it") -> None:
    """Refuse a dataclass instance with a field of another type than its annotation.

    Args:
        record: the instance. Its annotations may be int, float, str, bool, None, tuples of one type, dictionaries
            with text as keys, unions of these, and Any.
        what: what it is, for the message.
        remedy: what to do.

    Raises:
        InputError: the first field that is wrong, and what it should be.
    """
    kind: type = type(record)
    hints = _hints(kind)
    for field in fields(record):
        value = getattr(record, field.name)
        if not matches(value, hints[field.name]):
            shown = repr(value)[:60]
            raise InputError(f"{field.name} of {what} is {shown}, not {describe(hints[field.name])}", remedy)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def matches(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the annotated type, finite and within the bounds of this module."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and len(value) <= MANY and all(matches(v, get_args(hint)[0]) for v in value)
    if origin in (dict, Mapping):
        inner = get_args(hint)[1]
        return (
            isinstance(value, Mapping)
            and len(value) <= MANY
            and all(matches(k, str) and matches(v, inner) for k, v in value.items())
        )
    return _is_scalar(value, hint)


def _is_scalar(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, numbers.Integral) and abs(int(value)) <= MOST
    if kind is float:
        return isinstance(value, numbers.Real) and _is_finite(value)
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST and "\0" not in value
    return isinstance(value, kind)


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_plain(value: Any) -> bool:
    """Whether a value is what JSON could hold, and small however often its parts are repeated."""
    left, level = MANY, [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                if not all(matches(k, str) for k in item):
                    return False
            elif isinstance(item, list):
                below += item
            elif item is not None and not any(matches(item, kind) for kind in (bool, int, float, str)):
                return False
            if len(below) > left:
                return False
        if not below:
            return True
        left, level = left - len(below), below
    return False


def describe(hint: Any) -> str:
    """An annotation in words."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(hint))
    if origin is tuple:
        return f"a list, each {describe(get_args(hint)[0])}"
    if origin in (dict, Mapping):
        return "a table"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
