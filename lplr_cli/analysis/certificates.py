"""Certificates of a checkpoint or of a run from its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    Estimates,
    RunCheck,
    Sampled,
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


@dataclass(frozen=True)
class Followed:
    """A run held against the certificate of its start.

    Attributes:
        path: of the run.
        drift: the largest ||θ_t − θ_0||.
        over_radius: the drift in certified radii; None where none is certified.
        lr: the first known step size.
        check: of containment and rate.
        measured: constants that the probes of the run tell.
    """

    path: Path
    drift: float
    over_radius: float | None
    lr: float | None
    check: RunCheck
    measured: Estimates

    def to_dict(self) -> dict[str, Any]:
        """``run`` in the record of ``certify``."""
        return {
            "path": str(self.path),
            "drift_max": self.drift,
            "drift_over_radius_jacobian": self.over_radius,
            "lr": self.lr,
            "check": asdict(self.check),
            "L_J_probes": self.measured.l_j,
            "L_K_probes": self.measured.l_k,
            "mu_estimated": self.measured.mu_kernel,
        }


@dataclass(frozen=True)
class StartCertificate:
    """A certificate at a checkpoint, with what it is held against.

    Attributes:
        checkpoint: its file. step: of the optimiser; None where the file does not tell.
        assumptions: what was read off the file or assumed, for the output.
        loss: that the numbers are for. scale: s; None for a loss that the certificate does not speak of.
        certificate: in units of that loss.
        estimates: sampled constants; None where they were left out.
        run: held against it; None without one.
    """

    checkpoint: Path
    step: int | None
    assumptions: tuple[str, ...]
    loss: str
    scale: float | None
    certificate: Certificate
    estimates: Sampled | None
    run: Followed | None

    @property
    def unbounded(self) -> bool:
        """Whether every ball is certified, as of a linear model."""
        return math.isinf(self.certificate.radius_jacobian)

    def to_dict(self) -> dict[str, Any]:
        """The record of ``certify --format json``; infinite radii become null with ``unbounded`` true."""
        record = {
            "command": "certify",
            "schema_version": SCHEMA_VERSION,
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "assumptions": self.assumptions,
            "normalisation": {"loss": self.loss, "loss_scale": self.scale, **NORMALISATION},
            **asdict(self.certificate),
            "unbounded": self.unbounded,
            "constants": _CONSTANTS,
            "estimates": None if self.estimates is None else self.estimates.to_dict(),
            "run": None if self.run is None else self.run.to_dict(),
        }
        cleaned: dict[str, Any] = plain(record)
        return cleaned


@dataclass(frozen=True)
class RunCertificate:
    """What is proved of a run: around its start, and along its path.

    Attributes:
        path: of the run.
        start: None where there is no certificate.
        why_not: the reason then.
        along: the region along the path.
    """

    path: Path
    start: StartCertificate | None
    why_not: str
    along: PathCertificate

    def to_dict(self) -> dict[str, Any]:
        """The record of ``certify --path --format json``."""
        if self.start is not None:
            record = self.start.to_dict()
        else:
            record = {"command": "certify", "schema_version": SCHEMA_VERSION, "checkpoint": str(self.path)}
            record["verdict"] = self.why_not
        return {**record, "path": self.along.to_dict()}


def certify_start(
    path: Path,
    *,
    run: Path | None = None,
    radius: float | None = None,
    method: str = "auto",
    directions: int = 4,
    memory: int = DEFAULT_MEMORY,
    source: Source = OWN,
) -> StartCertificate:
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
    certificate = certify(subject.module, x, y, radius=radius, method=method, memory=memory)
    reach = radius if radius else certificate.radius_jacobian
    estimates = None
    if directions > 0 and 0 < reach < math.inf:
        estimates = sampled_constants(subject.module, x, reach, directions=directions, memory=memory)
    own, scale, assumed = _for_its_loss(certificate, subject, trajectory)
    return StartCertificate(
        checkpoint=path,
        step=subject.step,
        assumptions=(*subject.assumptions, *assumed),
        loss=_formula(scale, "" if trajectory is None else trajectory.loss_label),
        scale=scale,
        certificate=own,
        estimates=estimates,
        run=None if other is None or trajectory is None else _against(certificate, trajectory, other),
    )


def _for_its_loss(
    certificate: Certificate, subject: Subject, trajectory: Trajectory | None
) -> tuple[Certificate, float | None, tuple[str, ...]]:
    """The certificate in the loss of its run, of its file, or else in one that is assumed and named; its s."""
    if trajectory is not None:
        return own_certificate(certificate, trajectory), trajectory.scale, ()
    if subject.loss_scale is not None:
        return scaled(certificate, subject.loss_scale), subject.loss_scale, ()
    # Of a file that tells no loss the numbers are those of the squared one with s = 1, which is said.
    return certificate, 1.0, ("the squared loss with s = 1",)


def certify_run(
    run: RunDirectory,
    *,
    radius: float | None = None,
    method: str = "auto",
    directions: int = 4,
    memory: int = DEFAULT_MEMORY,
    source: Source = OWN,
    stretch: Mapping[str, Any] | None = None,
) -> RunCertificate:
    """The certificate at the start of a run, as far as there is one, and the region along its path beside it.

    Args:
        run: the run.
        radius, method, directions, memory, source: see :func:`certify_start`.
        stretch: options of :func:`lplr_cli.analysis.certify_path`.

    Raises:
        InputError: see there.
    """
    along = certify_path(run, memory=memory, source=source, **(stretch or {}))
    try:
        start = certify_start(
            run.path, radius=radius, method=method, directions=directions, memory=memory, source=source
        )
    except (InputError, NumericalError) as error:
        # The ball has no certificate; the path has at least an estimate.
        return RunCertificate(run.path, None, error.what, along)
    return RunCertificate(run.path, start, "", along)


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


def _against(certificate: Certificate, trajectory: Trajectory, run: RunDirectory) -> Followed:
    drift = largest_drift(trajectory)
    lr = trajectory.lr[np.isfinite(trajectory.loss) & np.isfinite(trajectory.lr)]
    return Followed(
        path=run.path,
        drift=drift,
        over_radius=drift / certificate.radius_jacobian if certificate.radius_jacobian > 0 else None,
        lr=float(lr[0]) if len(lr) else None,
        check=check_run(certificate, trajectory),
        measured=estimate_constants(run.log(), run.probes(), trajectory.scale),
    )
