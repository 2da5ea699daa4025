"""How results look at a prompt and in a notebook."""

from __future__ import annotations

from typing import Any

from lplr_cli import escape

# Rows of a short table.
MOST = 30


def flatten(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and scalar values of a nested record, in order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            pairs.append((f"{prefix}{key}", value))
    return pairs


class Shown:
    """A result that prints as a short table of keys and values, and is one in a notebook.

    For classes with ``to_dict``. A dataclass needs ``repr=False``, as its own would list whole arrays.
    """

    def short(self) -> list[tuple[str, str]]:
        """What the table shows: the scalars of ``to_dict``, four digits each, without what is missing."""
        record: dict[str, Any] = self.to_dict()  # type: ignore[attr-defined]
        known = [(key, value) for key, value in flatten(record) if value is not None]
        return [(key, f"{value:.4g}" if isinstance(value, float) else str(value)) for key, value in known]

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(escape.line(key), escape.line(value)) for key, value in self.short()]
        if len(rows) > MOST:
            rows = [*rows[: MOST - 1], ("…", f"{len(rows) - MOST + 1} more in to_dict()")]
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        width = max((len(key) for key, _ in rows), default=0)
        return "\n".join([type(self).__name__, *(f"  {key:<{width}}  {value}" for key, value in rows)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape.html(key)}</th><td>{escape.html(value)}</td></tr>" for key, value in self._rows()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
