"""Import of code that the user names as ``module:factory``; nothing else in lplr runs user code."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lplr_cli.errors import InputError

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_factory_reference(text: str) -> bool:
    """Whether ``text`` has the form ``module:factory``."""
    return _REFERENCE.fullmatch(text) is not None


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
