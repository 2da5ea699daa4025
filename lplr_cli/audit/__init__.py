"""Verdicts: the audit of a run, requirement expressions over a command's JSON, named sets of them.

The package is callable, as :func:`lplr_cli.audit.run.audit`: ``import lplr_cli as lplr; lplr.audit("runs/mine")`` works
whether or not this package was imported before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from lplr_cli.audit.policy import read_policy
from lplr_cli.audit.requirements import Failure, Requirement, check_requirements, parse_requirement

__all__ = ["Failure", "Requirement", "check_requirements", "parse_requirement", "read_policy"]


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from lplr_cli.audit.run import audit

        return audit(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
