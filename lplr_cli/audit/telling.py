"""How an audit is told: findings that apply in rows, then the others, each reason once (docs/theory.md, section 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lplr_cli.audit.findings import Finding

if TYPE_CHECKING:
    from lplr_cli.audit.run import Audit


@dataclass(frozen=True)
class Told:
    """Findings in the order in which people read them.

    Attributes:
        rows: with an answer or a figure.
        aside: a sentence for each reason why the others have neither.
    """

    rows: tuple[Finding, ...]
    aside: tuple[str, ...]


def statements(result: Audit) -> Told:
    """Hypotheses and conclusions; first among the others those that the run cannot be asked."""
    refused = result.scope.not_asked
    cannot = [f for f in result.findings if f.key in refused]
    # What a curve without a law looks like is an answer.
    curves = () if result.rate is None else ("C2", "CE2")
    asked = _told([f for f in result.findings if f.key not in refused], curves)
    return Told(asked.rows, (*_sentences(cannot, ""), *asked.aside))


def checks(result: Audit, keys: Sequence[str] | None = None) -> Told:
    """Checks of the run itself, all or those of these names in this order.

    What H1 does not know the check of the same name does not either.
    """
    made = {f.key: f for f in result.sanity if f.key != "lambda_min" or f.holds is not None}
    return _told([made[key] for key in (made if keys is None else keys) if key in made])


def _told(findings: Sequence[Finding], always: Sequence[str] = ()) -> Told:
    bare = [f for f in findings if f.holds is None and f.value is None and f.key not in always]
    return Told(tuple(f for f in findings if f not in bare), _sentences(bare, "unknown: "))


def _sentences(findings: Sequence[Finding], word: str) -> tuple[str, ...]:
    groups: dict[str, list[str]] = {}
    for finding in findings:
        groups.setdefault(finding.reason, []).append(finding.key)
    return tuple(f"{', '.join(keys)} {word}{why}." for why, keys in groups.items())
