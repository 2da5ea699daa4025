"""The figures of a region along a path: the JSON object ``path``, and what a run keeps of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_type_hints

import numpy as np
import pandas as pd

from lplr_cli.certificate import CERTIFIED, ESTIMATE, EVIDENCE, INSIDE
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory, plain
from lplr_cli.schema import matches

_FILE, _ROWS = "path.json", "path"
# Columns of the rows; what is wrong with a step is told in words.
_NUMBERS = ("step", "certified", "mu", "mu_star", "beta", "eta_beta", "factor", "length", "pieces")
# Fields of a file that hold a row each step or checkpoint.
_LISTS = ("not_certified", "kernel_tube")
_AGAIN = "compute it again: lplr certify RUN --path"
# What logged numbers may be off: the path is exact where the log has the rounding of the run.
_SLACK = 1e-6


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
    def covered(self) -> str:
        """What part of the run lies in the certified region, for people."""
        return "the whole run" if self.certified_share == 1 else f"{100 * self.certified_share:.3g} % of the run's path"

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
        for name, hint in get_type_hints(cls).items():
            value = record.get(name)
            if name in _LISTS and isinstance(value, list):
                # A step or a checkpoint each: as many as the run has.
                value, fits = tuple(value), all(matches(v, Mapping[str, Any]) for v in value)
            else:
                fits = name in record and matches(value, hint)
            if not fits:
                raise InputError(f"{origin}: {name} is {repr(value)[:60]}", _AGAIN)
            values[name] = value
        if values["kind"] not in (CERTIFIED, ESTIMATE):
            raise InputError(f"{origin}: kind is {values['kind'][:60]!r}", _AGAIN)
        return cls(**values)


def _kind(reason: str) -> str:
    """A reason without its figures."""
    return re.split(r"\d", reason, maxsplit=1)[0]


def evidence(eta_mu_t: float | None) -> str | None:
    """What Σ η μ says of the rate."""
    if eta_mu_t is None:
        return None
    if eta_mu_t < EVIDENCE:
        return (
            f"Σ ημ = {eta_mu_t:.3g}, below about {EVIDENCE:g}: by this rate alone linear convergence cannot "
            "be told from 1/t on so short a run"
        )
    return f"Σ ημ = {eta_mu_t:.3g}: no 1/t law decays like this, convergence along the run is linear"


def keep(run: RunDirectory, figures: PathFigures, rows: pd.DataFrame) -> None:
    """Put the figures into the run, as path.json and path.csv, where audit, pl-ratio and report find them.

    Raises:
        OutputError: the directory cannot be written to.
    """
    run.write_record(_FILE, {"log": log_fingerprint(run), **figures.to_dict()})
    run.write_rows(_ROWS, rows)


def kept_path(run: RunDirectory) -> PathFigures | None:
    """What an earlier call kept of the very same log; None where there is nothing, or of another one.

    Raises:
        InputError: the file is damaged, or claims more than the log shows.
    """
    record = run.record(_FILE)
    if record is None or record.get("log") != log_fingerprint(run):
        return None
    figures = PathFigures.from_dict(record, str(run.path / _FILE))
    why = _refuted(figures, run)
    if why:
        raise InputError(f"{run.path / _FILE} is not of this run: {why}", _AGAIN)
    return figures


def _refuted(figures: PathFigures, run: RunDirectory) -> str:
    """What of a file that calls itself a proof of the whole path is false of the log; empty where nothing is."""
    manifest, log = run.manifest(), run.log()
    if not (figures.certified and manifest.exact and manifest.dtype == "float64"):
        return ""
    loss, square = (log[c].to_numpy(dtype=float) for c in ("loss", "grad_norm_sq"))
    floor, mu, rate = figures.l_star_lower, figures.mu_path_star, figures.rate_proved
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = float(np.nanmin(square / (2 * loss), initial=math.inf))
    if mu is not None and figures.certified_share == 1 and mu > lowest * (1 + _SLACK):
        return f"it claims μ ≥ {mu:.4g}, where the log has a ratio of {lowest:.4g}"
    if rate is not None and floor is not None and figures.rate_from_step is not None:
        step = log["step"].to_numpy(dtype=float)
        near = (np.diff(step) == 1) & (step[:-1] >= figures.rate_from_step)
        above = loss - floor
        allowed = _SLACK * (np.abs(loss[:-1]) + _SLACK * abs(loss[0]))
        broken = near & (above[1:] > rate * above[:-1] + allowed)
        if broken.any():
            return f"it claims a rate of {rate:.6g}, which step {int(step[:-1][broken][0])} of the log is above"
    return ""


def kept_rows(run: RunDirectory) -> pd.DataFrame:
    """The rows beside it, a row a step: step, certified, mu, mu_star, beta, eta_beta, factor, length, pieces, reason.

    Raises:
        InputError: the file is damaged.
    """
    return run.rows(_ROWS, _NUMBERS)


def log_fingerprint(run: RunDirectory) -> str:
    """Of what figures of a run are about: every step of its log, and the loss, steps and data that run.json names."""
    record, log = run.manifest().to_dict(), run.log()
    about = [record["loss"], record["config"], record["data"].get("sha256"), record["dtype"]]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    for column in ("step", "loss", "grad_norm_sq"):
        digest.update(log[column].to_numpy(dtype=np.float64, na_value=math.nan).tobytes())
    return digest.hexdigest()
