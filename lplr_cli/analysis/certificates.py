"""Certificates of a checkpoint or of a run from its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lplr_cli.analysis.path import PathCertificate, certify_path
from lplr_cli.analysis.subject import OWN, Source, Subject, open_subject
from lplr_cli.analysis.summary import Certified
from lplr_cli.analysis.trajectory import trajectory_of
from lplr_cli.certificate import (
    Certificate,
    Trajectory,
    certify,
    check_run,
    estimate_constants,
    own_certificate,
    sampled_constants,
    scaled,
    why_not_of,
)
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.models import DTYPES
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import NORMALISATION, SCHEMA_VERSION, RunDirectory, plain

# Kind of each number in the record, and the section of docs/theory.md that has its formula.
_CONSTANTS = {
    key: {"kind": kind, "section": section}
    for key, kind, section in (
        ("lambda_0", "computed", 7),
        ("lambda_0_lower", "verified", 7),
        ("sigma_0_lower", "verified", 3),
        ("norm_upper", "verified", 7),
        ("sqrt_loss_upper", "verified", 4),
        ("jacobian_error", "verified", 7),
        ("l_j_start", "bound", 5),
        ("l_j", "bound", 5),
        ("l_k", "bound", 3),
        ("beta", "bound", 4),
        ("radius_kernel", "verified", 3),
        ("radius_jacobian", "verified", 3),
        ("mu_kernel", "verified", 3),
        ("mu_jacobian", "verified", 3),
        ("eta_max", "verified", 4),
        ("L_J_sampled", "estimate", 3),
        ("L_K_sampled", "estimate", 3),
        ("L_J_probes", "estimate", 3),
        ("L_K_probes", "estimate", 3),
        ("mu_estimated", "estimate", 3),
    )
}


def certify_checkpoint(
    path: Path,
    *,
    run: Path | None = None,
    radius: float | None = None,
    method: str = "auto",
    directions: int = 4,
    memory: int = DEFAULT_MEMORY,
    source: Source = OWN,
) -> dict[str, Any]:
    """Certificate at a checkpoint, on its full training set, in float64.

    Args:
        path: a checkpoint, or a run directory, of which step 0 is taken.
        run: a run from this checkpoint; its largest drift becomes the radius, and its log is held against the
            certificate. A run directory given as ``path`` is its own run.
        radius: the ball to report on, instead of the run's.
        method: see :class:`lplr_cli.certificate.BallBounds`.
        directions: random directions for the estimates; 0 leaves them out.
        memory: bytes for kernels.
        source: what the user says of a file that is not of lplr.

    Raises:
        NoCertificateError: no bound is proved for this network.
        InputError: what cannot be read, or a run that did not start from this checkpoint.
    """
    if path.is_dir():
        directory = RunDirectory.open(path)
        run = run or path
        path = directory.checkpoint_path(0)
    subject = open_subject(path, source)
    trajectory = None
    other = None if run is None else RunDirectory.open(run)
    if other is not None:
        if subject.step != 0:
            raise InputError(f"{path} is not the start of a run", "give the run, or its step-000000.pt")
        trajectory = trajectory_of(other)
        radius = largest_drift(trajectory) if radius is None else radius
    x, y = _training_data(subject, trajectory)
    found = certify(subject.module, x, y, radius=radius, method=method, memory=memory)
    reach = radius if radius else found.radius_jacobian
    estimates: dict[str, Any] | None = None
    if directions > 0 and 0 < reach < math.inf:
        estimates = sampled_constants(subject.module, x, reach, directions=directions, memory=memory)
    record = {
        "command": "certify",
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(path),
        "step": subject.step,
        **_for_its_loss(found, subject, trajectory),
        "estimates": estimates,
        "run": None if other is None or trajectory is None else _against(found, trajectory, other),
    }
    cleaned: dict[str, Any] = plain(record)
    return cleaned


def _for_its_loss(found: Certificate, subject: Subject, trajectory: Trajectory | None) -> dict[str, Any]:
    """The certificate in the loss of its run, of its file, or else in one that is assumed and named."""
    scale = subject.loss_scale if trajectory is None else trajectory.scale
    assumed: tuple[str, ...] = ()
    if trajectory is not None:
        own = own_certificate(found, trajectory)
    elif scale is not None:
        own = scaled(found, scale)
    else:
        # Of a file that tells no loss the numbers are those of the squared one with s = 1, which is said.
        own, scale, assumed = found, 1.0, ("the squared loss with s = 1",)
    return {
        "assumptions": [*subject.assumptions, *assumed],
        "normalisation": {
            "loss": _formula(scale, "" if trajectory is None else trajectory.loss_label),
            "loss_scale": scale,
            **NORMALISATION,
        },
        **_record(own),
    }


def certify_run(
    run: RunDirectory,
    *,
    radius: float | None = None,
    method: str = "auto",
    directions: int = 4,
    memory: int = DEFAULT_MEMORY,
    source: Source = OWN,
    stretch: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], PathCertificate]:
    """The certificate at the start of a run, as far as there is one, and the region along its path beside it.

    Args:
        run: the run.
        radius, method, directions, memory, source: see :func:`certify_checkpoint`.
        stretch: options of :func:`lplr_cli.analysis.certify_path`.

    Raises:
        InputError: see there.
    """
    along = certify_path(run, memory=memory, source=source, **(stretch or {}))
    try:
        record = certify_checkpoint(
            run.path, radius=radius, method=method, directions=directions, memory=memory, source=source
        )
    except (InputError, NumericalError) as error:
        # The ball has no certificate; the path has at least an estimate.
        record = {"command": "certify", "schema_version": SCHEMA_VERSION, "checkpoint": str(run.path)}
        record["verdict"] = error.what
    return {**record, "path": along.to_dict()}, along


def _formula(scale: float | None, label: str) -> str:
    """The loss that the numbers are for."""
    return label if scale is None else f"L = ({scale:g}/n) ||r||^2"


def _training_data(subject: Subject, trajectory: Trajectory | None) -> tuple[Tensor, Tensor]:
    """Inputs and targets as the run saw them: rounded to its dtype, which the certificate takes as exact."""
    dtype = None if trajectory is None or trajectory.dtype is None else DTYPES.get(trajectory.dtype)
    return subject.dataset.tensors(dtype)


def largest_drift(trajectory: Trajectory) -> float:
    """Of the logged steps.

    Raises:
        InputError: the log has none.
    """
    known = trajectory.drift[np.isfinite(trajectory.drift)]
    if not len(known):
        raise InputError("the log has no drift", "certify the checkpoint with --radius")
    return float(known.max())


def certificate_of_run(run: RunDirectory, source: Source = OWN, memory: int = DEFAULT_MEMORY) -> Certificate:
    """The certificate at the start of a run on the ball of its largest drift, for L = (1/n) ||r||².

    What it says of the run's own loss, if anything, is that of :mod:`lplr_cli.certificate.against`. Of MLPs alone:
    what it takes for others is not known beforehand.

    Raises:
        InputError: no certificate for this network, no drift in the log, or a start that cannot be opened.
    """
    trajectory = trajectory_of(run)
    radius = largest_drift(trajectory)
    subject = open_subject(run.checkpoint_path(0), source)
    data = _training_data(subject, trajectory)
    return certify(subject.module, *data, radius=radius, memory=memory, graphs=False)


def certified_columns(run: RunDirectory, source: Source = OWN) -> Certified:
    """What the closing table of a run says of its certificate: μ on the ball that the run used, or why there is none.

    Only where the probes took all samples: whoever probes a subset saves the cost of the full kernel.
    """
    probes, manifest = run.probes(), run.manifest()
    if manifest.loss.squared_scale is None:
        return Certified(None, None, f"the theorem speaks of the squared loss, not of {manifest.loss.label}")
    n = manifest.data.n
    if n is None or probes.empty or int(probes["probe_size"].iloc[0]) < n or str(probes["outputs"].iloc[0]) != "full":
        return Certified(None, None, "a subset certifies nothing: see lplr certify")
    try:
        found, trajectory = certificate_of_run(run, source), trajectory_of(run)
    except (InputError, NumericalError) as error:
        return Certified(None, None, str(error))
    why = why_not_of(found, trajectory)
    if why:
        return Certified(None, None, why)
    given = own_certificate(found, trajectory).given
    assert given is not None  # a radius was given
    reason = (
        f"proved on the ball of radius {given.radius:.4g}, the largest drift of the run"
        if given.mu_jacobian is not None
        else f"certified radius {found.radius_jacobian:.3g}, the run drifts {given.radius:.3g}"
    )
    radius = found.radius_jacobian if math.isfinite(found.radius_jacobian) else None
    return Certified(given.mu_jacobian, radius, reason)


def _record(certificate: Certificate) -> dict[str, Any]:
    """JSON of a certificate; infinite radii of linear models become null with ``unbounded`` true."""
    values = asdict(certificate)
    values["unbounded"] = certificate.radius_jacobian == float("inf")
    values["constants"] = _CONSTANTS
    return values


def _against(certificate: Certificate, trajectory: Trajectory, run: RunDirectory) -> dict[str, Any]:
    drift = largest_drift(trajectory)
    lr = trajectory.lr[np.isfinite(trajectory.loss) & np.isfinite(trajectory.lr)]
    measured = estimate_constants(run.log(), run.probes(), trajectory.scale)
    return {
        "path": str(run.path),
        "drift_max": drift,
        "drift_over_radius_jacobian": drift / certificate.radius_jacobian if certificate.radius_jacobian > 0 else None,
        "lr": float(lr[0]) if len(lr) else None,
        "check": asdict(check_run(certificate, trajectory)),
        "L_J_probes": measured.l_j,
        "L_K_probes": measured.l_k,
        "mu_estimated": measured.mu_kernel,
    }
