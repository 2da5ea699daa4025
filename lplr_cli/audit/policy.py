"""Named sets of requirements in a TOML file, so that a pipeline has one line and one place to change.

[default]
require = ["H1.holds == true", "pl_ratio_star.min >= 0.05"]

[strict]
require = ["H3.verified == true"]
"""

from __future__ import annotations

from pathlib import Path

from lplr_cli.errors import InputError
from lplr_cli.reading import read_toml


def read_policy(reference: str) -> list[str]:
    """The requirements of ``FILE.toml`` (its set ``default``) or ``FILE.toml:SET``.

    Raises:
        InputError: an unreadable file, an unknown set, or something other than requirements.
    """
    path, _, name = reference.partition(":")
    name = name or "default"
    sets = read_toml(Path(path), "give a TOML file of requirement sets")
    if name not in sets:
        raise InputError(f"{path} has no set {name!r}", f"it has {', '.join(sets) or 'none'}: write FILE.toml:SET")
    chosen = sets[name]
    lines = chosen.get("require") if isinstance(chosen, dict) else None
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise InputError(
            f"the set {name!r} of {path} has no list of requirements", 'write require = ["H1.holds == true"]'
        )
    unknown = set(chosen) - {"require"}
    if unknown:
        raise InputError(
            f"the set {name!r} of {path} has unknown keys {', '.join(sorted(unknown))}", "only require is known"
        )
    return list(lines)
