"""Certificates of a checkpoint or of a run from its start."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.certificate import Certificate, certify, check_run, estimate_constants, sampled_constants
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain

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
    log = None
    if run is not None:
        other = RunDirectory.open(run)
        if subject.step != 0:
            raise InputError(f"{path} is not the start of a run", "give the run, or its step-000000.pt")
        log = other.log()
        radius = float(log["drift"].max()) if radius is None else radius
    module = subject.module
    x, y = subject.dataset.tensors()
    certificate = certify(module, x, y, radius=radius, method=method, memory=memory)
    estimates: dict[str, Any] | None = None
    scale = radius if radius else certificate.radius_jacobian
    if directions > 0 and 0 < scale < float("inf"):
        estimates = sampled_constants(module, x, scale, directions=directions, memory=memory)
    record: dict[str, Any] = {
        "command": "certify",
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(path),
        "step": subject.step,
        "assumptions": list(subject.assumptions),
        "normalisation": {
            "loss": "L = (1/n) ||r||^2",
            "ntk": "K = J J^T / n",
            "pl": "0.5 ||grad L||^2 >= mu (L - L*)",
        },
        **_record(certificate),
        "estimates": estimates,
        "run": None,
    }
    if log is not None and run is not None:
        record["run"] = _against(certificate, RunDirectory.open(run))
    cleaned: dict[str, Any] = plain(record)
    return cleaned


def certificate_of_run(run: RunDirectory, source: Source = OWN, memory: int = DEFAULT_MEMORY) -> Certificate:
    """The certificate at the start of a run, reported on the ball of its largest drift.

    Raises:
        InputError: no certificate for this network, no drift in the log, or a start that cannot be opened.
    """
    drift = float(run.log()["drift"].max())
    if not math.isfinite(drift):
        raise InputError("the log has no drift", "certify the checkpoint with --radius")
    subject = open_subject(run.checkpoint_path(0), source)
    return certify(subject.module, *subject.dataset.tensors(), radius=drift, memory=memory)


def certified_columns(run: RunDirectory, source: Source = OWN) -> dict[str, Any]:
    """What the closing table of a run says of its certificate: μ on the ball that the run used, or why there is none.

    Only where the probes took all samples: whoever probes a subset saves the cost of the full kernel.
    """
    probes, log = run.probes(), run.log()
    n = run.manifest().data.n
    empty: dict[str, Any] = {"mu_certified": None, "certified_radius": None}
    if n is None or probes.empty or int(probes["probe_size"].iloc[0]) < n or str(probes["outputs"].iloc[0]) != "full":
        return {**empty, "mu_certified_reason": "a subset certifies nothing: see lplr certify"}
    drift = float(log["drift"].max())
    try:
        certificate = certificate_of_run(run, source)
    except (InputError, NumericalError) as error:
        return {**empty, "mu_certified_reason": str(error)}
    given = certificate.given
    assert given is not None  # a radius was given
    reason = (
        f"proved on the ball of radius {drift:.4g}, the largest drift of the run"
        if given.mu_jacobian is not None
        else f"certified radius {certificate.radius_jacobian:.3g}, the run drifts {drift:.3g}"
    )
    return {
        "mu_certified": given.mu_jacobian,
        "certified_radius": certificate.radius_jacobian if math.isfinite(certificate.radius_jacobian) else None,
        "mu_certified_reason": reason,
    }


def _record(certificate: Certificate) -> dict[str, Any]:
    """JSON of a certificate; infinite radii of linear models become null with ``unbounded`` true."""
    values = asdict(certificate)
    values["unbounded"] = certificate.radius_jacobian == float("inf")
    values["constants"] = _CONSTANTS
    return values


def _against(certificate: Certificate, run: RunDirectory) -> dict[str, Any]:
    manifest = run.manifest()
    log = run.log()
    finite = log[log["loss"].notna()]
    lr = float(finite["lr"].iloc[0])
    check = check_run(
        certificate,
        [int(s) for s in finite["step"]],
        [float(v) for v in finite["loss"]],
        [float(v) for v in finite["drift"]],
        lr,
        manifest.optimizer.plain_step is not None,
        tolerance=1e-9 if manifest.dtype == "float64" else 1e-4,
    )
    drift = float(log["drift"].max())
    measured = estimate_constants(log, run.probes())
    return {
        "path": str(run.path),
        "drift_max": drift,
        "drift_over_radius_jacobian": drift / certificate.radius_jacobian if certificate.radius_jacobian > 0 else None,
        "lr": lr,
        "check": asdict(check),
        "L_J_probes": measured.l_j,
        "L_K_probes": measured.l_k,
        "mu_estimated": measured.mu_kernel,
    }
