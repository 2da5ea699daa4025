"""What a report says of a run or log; its figures are :mod:`lplr_cli.reporting.run_figures`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.analysis import MOST_ROWS, OWN, LogInput, Source, kept_path, kept_rows, open_subject, read_log, unit_rule
from lplr_cli.audit.run import Audit
from lplr_cli.audit.run import audit as examine
from lplr_cli.errors import InputError, LplrError
from lplr_cli.ntk import empirical_ntk

# Checkpoints that the loss is predicted from.
PIECES = 5


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of K at a checkpoint, descending, and the share of ||r||² along each eigenvector."""

    step: int | None
    eigenvalues: NDArray[np.float64]
    residual_share: NDArray[np.float64]


@dataclass(frozen=True)
class RunReport:
    """Everything that the page shows of one run or log.

    Attributes:
        name: of the run or log.
        source: what was read.
        audit: what was found.
        spectra: of K at the first and last checkpoint; note: why there is none.
        curvature: step, sharpness, threshold (the largest stable curvature) and bound (a proved bound of the curvature
            around the step), NaN where unknown.
    """

    name: str
    source: LogInput
    audit: Audit
    spectra: tuple[Spectrum, ...]
    note: str
    curvature: pd.DataFrame


def gather(
    source: str | LogInput,
    foreign: Source = OWN,
    *,
    window: tuple[float, float] | None = None,
    certificate: bool = True,
) -> RunReport:
    """Audit a run or log and compute what the figures need.

    Args:
        source: a run or log, or one that is read already.
        foreign: model and data of a run that does not tell them.
        window: first and last step of the stable window; by rule when None.
        certificate: whether to compute the certificate at the start.

    Raises:
        InputError: it cannot be read.
    """
    log = source if isinstance(source, LogInput) else read_log(source)
    audited = examine(log, window=window, foreign=foreign, certificate=certificate, pieces=PIECES)
    spectra: list[Spectrum] = []
    note = "a log alone has no network"
    if log.run is not None:
        steps = log.run.checkpoint_steps()
        try:
            spectra = [_spectrum(log, step, foreign) for step in dict.fromkeys((steps[0], steps[-1]))] if steps else []
            note = "" if steps else "the run has no checkpoints"
        except LplrError as error:
            note = error.what
    return RunReport(log.name, log, audited, tuple(spectra), note, _curvature(log))


def _curvature(log: LogInput) -> pd.DataFrame:
    """Curvature of a run along its steps, as far as its probes and its path tell it."""
    table = pd.DataFrame({"step": log.log["step"], "threshold": _thresholds(log)})
    for name, rows, column in (("sharpness", _probes(log), "sharpness"), ("bound", _path_rows(log), "beta")):
        known = rows[["step", column]].rename(columns={column: name}) if column in rows else None
        table = table.assign(**{name: np.nan}) if known is None else table.merge(known, on="step", how="left")
    return table


def _probes(log: LogInput) -> pd.DataFrame:
    return pd.DataFrame() if log.run is None else log.run.probes()


def _path_rows(log: LogInput) -> pd.DataFrame:
    path = None if log.run is None else kept_path(log.run)
    return pd.DataFrame() if log.run is None or path is None or not path.certified else kept_rows(log.run)


def _thresholds(log: LogInput) -> NDArray[np.float64]:
    """The largest curvature at which each step is stable on a quadratic; NaN for a rule that is not known."""
    nothing = np.full(len(log.log), np.nan)
    if log.run is None or "lr" not in log.log:
        return nothing
    rule = unit_rule(log.run.manifest())
    if isinstance(rule, str):
        return nothing
    steps = log.log["lr"].to_numpy(dtype=np.float64)
    known = np.isfinite(steps) & (steps > 0)
    nothing[known] = [replace(rule, lr=lr).threshold or np.nan for lr in steps[known].tolist()]
    return nothing


def _spectrum(log: LogInput, step: int, foreign: Source) -> Spectrum:
    import torch

    assert log.run is not None
    subject = open_subject(log.run.path, foreign, step=step)
    rows = subject.dataset.n * subject.dataset.outputs
    if rows > MOST_ROWS:
        raise InputError(f"K has {rows:,} rows, the report draws spectra up to {MOST_ROWS:,}", "see lplr probe-ntk")
    inputs, targets = subject.dataset.tensors()
    network = subject.network(torch.float64, torch.device("cpu"))
    kernel = empirical_ntk(network, inputs).matrix
    with torch.no_grad():
        residual = (network.forward(inputs) - targets).reshape(-1)
    values, vectors = torch.linalg.eigh(kernel)
    share = (vectors.T @ residual).square() / residual.square().sum().clamp_min(1e-300)
    return Spectrum(subject.step, values.flip(0).numpy(), share.flip(0).numpy())
