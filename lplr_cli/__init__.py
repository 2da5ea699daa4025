"""lplr: audit neural-network training runs against local Polyak-Łojasiewicz theory."""

from __future__ import annotations

__version__ = "0.1.0"
