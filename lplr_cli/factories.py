"""User code named as ``module:factory``: who may name it, and its import; nothing else in lplr runs user code.

A reference is data until the user says it on this command line or in this call. Specifications that were read from a
file remember it (``told_by``), and are refused here until the user's :class:`Word` says the same.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lplr_cli.errors import InputError

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_WORDS = {"true": True, "false": False, "null": None}


class UnnamedCodeError(InputError):
    """A file names code that the user has not named."""


@dataclass(frozen=True)
class Word:
    """What the user says of code that a file names; only what is said here may run.

    Attributes:
        model: ``module:factory`` of the network.
        arguments: keyword arguments of that factory.
        data: ``module:factory`` of the data set.
    """

    model: str | None = None
    arguments: Mapping[str, Any] | None = None
    data: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": self.model,
            "arguments": None if self.arguments is None else dict(self.arguments),
            "data": self.data,
        }


SILENT = Word()


def is_factory_reference(text: str) -> bool:
    """Whether ``text`` has the form ``module:factory``."""
    return _REFERENCE.fullmatch(text) is not None


def model_options(kind: str, arguments: Mapping[str, Any]) -> str:
    """The options that name this factory with these arguments, as a shell takes them."""
    pairs = [f"--model-arg {shlex.quote(f'{k}={show_argument(v)}')}" for k, v in arguments.items()]
    return " ".join([f"--model {kind}", *pairs])


def refuse_unnamed(told_by: str | None, *options: str) -> None:
    """Refuse code that a file names.

    Args:
        told_by: the file; None where the user named the code.
        options: what the user would have to type, one for each piece of code.

    Raises:
        UnnamedCodeError: with these options.
    """
    if told_by is not None and options:
        raise UnnamedCodeError(
            f"{told_by} names code, which runs only when you name it", f"where you trust it, add {' '.join(options)}"
        )


def parse_argument(text: str) -> Any:
    """A value of ``--model-arg``: a number, true, false, null, JSON in brackets or quotes, else text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--model-arg {text!r} is no JSON", "close its brackets and quotes") from error
    return text


def show_argument(value: Any) -> str:
    """The inverse of :func:`parse_argument` for all values that JSON has."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        plain = parse_argument(value) == value
    except InputError:
        plain = False
    return value if plain else json.dumps(value)


def import_factory(reference: str) -> Callable[..., Any]:
    """The callable named by ``module:factory``, looked up in the current directory, then the environment.

    Raises:
        InputError: the reference is malformed, or the module or attribute does not exist or fails to import.
    """
    if not is_factory_reference(reference):
        raise InputError(f"{reference!r} is no factory reference", "write it as module:factory")
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"cannot import {module_name!r} ({type(error).__name__}: {error})",
            "run lplr from the directory that holds the module, or install it",
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputError(f"module {module_name!r} has no {attribute!r}", "check the name after the colon")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(f"{reference!r} is not callable", "name a function or class")
    factory: Callable[..., Any] = target
    return factory
