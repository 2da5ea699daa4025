"""The figures of a region along a path: the JSON object ``path``, and what a run keeps of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd

from lplr_cli.certificate import CERTIFIED, ESTIMATE, EVIDENCE, INSIDE
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory, plain

_FILE, _ROWS = "path.json", "path"


@dataclass(frozen=True)
class Stretch:
    """Steps in a row that lack the same part of the proof.

    Attributes:
        first, last: steps.
        inside: whether they lie in the region, and only their descent is not proved.
        reason: of the first; its figures are that step's.
    """

    first: int
    last: int
    inside: bool
    reason: str

    @property
    def sentence(self) -> str:
        """For people, without a full stop."""
        if self.first == self.last:
            return f"step {self.first}: {self.reason}"
        return f"steps {self.first} to {self.last}: {self.reason} (step {self.first})"


@dataclass(frozen=True)
class PathFigures:
    """What is proved, or estimated, along the path of a run (docs/theory.md, section 9); None where it is not.

    Attributes:
        kind: ``certified`` or ``estimate``; why_estimate: why there is no proof.
        loss: the loss that all this is for.
        certified_share: part of the path's length inside the region, 0 for an estimate; ``share`` for either.
        length: of the path.
        first_step, last_step: first and last iterate in the region.
        steps, steps_certified: of the optimiser.
        mu_path, mu_path_star: μ on the whole region, relative to its own infimum L*_D and with 0 in its place.
        mu_path_estimated, mu_path_star_estimated: the same with estimated curvature.
        measured, measured_star: smallest ratios at the points of the path.
        radius: ρ of the tube.
        l_star_lower, l_star_upper: bracket of L*_D.
        beta_max, eta_beta_max: largest bound of the curvature, and times the step size.
        rate_proved: L − L*_D shrinks by this factor or more at every step from ``rate_from_step`` on.
        rate_estimated: the same with estimated curvature; rate_reason: why there is none.
        eta_mu_t: Σ η μ; evidence: what it says.
        pieces, balls: used.
        not_certified: steps outside the region, or inside without a rate, with the reason.
        agreement: how the path was had; confirmed: whether it is known to be that of the run, to the last bit or to the
            rounding of its own arithmetic.
        mu_kernel_tube: smallest 2s(σ_min − L_J ρ)² over the checkpoints in ``kernel_tube``.
    """

    kind: str
    why_estimate: str | None
    loss: str
    certified_share: float
    share: float
    length: float
    first_step: int | None
    last_step: int | None
    steps: int
    steps_certified: int
    mu_path: float | None
    mu_path_star: float | None
    mu_path_estimated: float | None
    mu_path_star_estimated: float | None
    measured: float | None
    measured_star: float | None
    radius: float | None
    l_star_lower: float | None
    l_star_upper: float | None
    beta_max: float | None
    eta_beta_max: float | None
    rate_proved: float | None
    rate_estimated: float | None
    rate_from_step: int | None
    rate_reason: str | None
    eta_mu_t: float | None
    evidence: str | None
    pieces: int
    balls: int
    not_certified: tuple[Mapping[str, Any], ...]
    agreement: str
    confirmed: bool
    mu_kernel_tube: float | None
    kernel_tube: tuple[Mapping[str, Any], ...] | None

    @property
    def certified(self) -> bool:
        """Whether this is a proof."""
        return self.kind == CERTIFIED

    @property
    def without_proof(self) -> list[Stretch]:
        """What ``not_certified`` has, steps in a row for the same reason together."""
        found: list[Stretch] = []
        for entry in self.not_certified:
            step, reason = entry.get("step"), str(entry.get("reason"))
            if type(step) is not int:
                continue
            last = found[-1] if found else None
            if last is not None and step == last.last + 1 and _kind(reason) == _kind(last.reason):
                found[-1] = replace(last, last=step)
            else:
                found.append(Stretch(step, step, reason.startswith(INSIDE), reason))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The object ``path`` of ``lplr certify RUN --path --format json``."""
        cleaned: dict[str, Any] = plain(asdict(self))
        return cleaned

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], origin: str) -> PathFigures:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a key that is missing or has a value of another type.
        """
        values: dict[str, Any] = {}
        for name, kind in ((f.name, str(f.type)) for f in fields(cls)):
            value = record.get(name)
            if name not in record or not _fits(value, kind):
                raise InputError(f"{origin}: {name} is {repr(value)[:60]}", "compute it again: lplr certify RUN --path")
            values[name] = tuple(value) if isinstance(value, list) else value
        if values["kind"] not in (CERTIFIED, ESTIMATE):
            raise InputError(f"{origin}: kind is {values['kind'][:60]!r}", "compute it again: lplr certify RUN --path")
        return cls(**values)


def _kind(reason: str) -> str:
    """A reason without its figures."""
    return re.split(r"\d", reason, maxsplit=1)[0]


def _fits(value: Any, kind: str) -> bool:
    """Whether a value from a file is of the type that a field has."""
    if value is None:
        return kind.endswith("| None")
    wanted = kind.removesuffix(" | None")
    if wanted == "float":
        return type(value) in (int, float) and math.isfinite(value)
    if wanted.startswith("tuple"):
        return isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return type(value) is {"int": int, "str": str, "bool": bool}[wanted]


def evidence(eta_mu_t: float | None) -> str | None:
    """What Σ η μ says of the rate."""
    if eta_mu_t is None:
        return None
    if eta_mu_t < EVIDENCE:
        return (
            f"sum of eta mu = {eta_mu_t:.3g}, below about {EVIDENCE:g}: by this rate alone linear convergence cannot "
            "be told from 1/t on so short a run"
        )
    return f"sum of eta mu = {eta_mu_t:.3g}: no 1/t law decays like this, convergence along the run is linear"


def keep(run: RunDirectory, figures: PathFigures, rows: pd.DataFrame) -> None:
    """Put the figures into the run, as path.json and path.csv, where audit, pl-ratio and report find them.

    Raises:
        OutputError: the directory cannot be written to.
    """
    run.write_record(_FILE, {"log": log_fingerprint(run), **figures.to_dict()})
    run.write_rows(_ROWS, rows)


def kept_path(run: RunDirectory) -> PathFigures | None:
    """What an earlier call kept of the very same log; None where there is nothing, or of other steps.

    Raises:
        InputError: the file is damaged.
    """
    record = run.record(_FILE)
    if record is None or record.get("log") != log_fingerprint(run):
        return None
    return PathFigures.from_dict(record, str(run.path / _FILE))


def kept_rows(run: RunDirectory) -> pd.DataFrame:
    """The rows beside it, a row a step: step, certified, mu, mu_star, beta, eta_beta, factor, length, pieces, reason.

    Raises:
        InputError: the file is damaged.
    """
    return run.rows(_ROWS, ("step", "certified", "mu", "mu_star", "length"))


def log_fingerprint(run: RunDirectory) -> list[float | None]:
    """Steps, first and last loss of the log."""
    log = run.log()
    loss = log["loss"].dropna()
    ends = [float(loss.iloc[0]), float(loss.iloc[-1])] if len(loss) else [None, None]
    found: list[float | None] = plain([float(log["step"].max()), *ends])
    return found
