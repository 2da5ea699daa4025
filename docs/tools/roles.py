"""Cross-references of docstrings (:class:`a.B`) as plain code in the generated reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod):`~?([^`]+)`")


class Roles(griffe.Extension):  # type: ignore[misc, unused-ignore]
    """Rewrites every docstring that griffe reads."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Called by griffe for each object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
