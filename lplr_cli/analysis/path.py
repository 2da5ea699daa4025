"""A locally PL region around the path of a run, of lplr or recorded (docs/theory.md, section 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from lplr_cli.analysis.path_figures import PathFigures, evidence, keep
from lplr_cli.analysis.replay import Agreement, Iterates
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.certificate import (
    CERTIFIED,
    ESTIMATE,
    Aim,
    CertifiedCurvature,
    Curvature,
    NoCertificateError,
    Region,
    Smoothness,
    Walk,
    certify,
)
from lplr_cli.curvature import LossCurvature, basis_size, start_vector
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.linalg import lanczos
from lplr_cli.ntk import DEFAULT_MEMORY, Network
from lplr_cli.runs import RunDirectory

# Balls that an estimate puts along the path; a proof takes as many as it needs.
_ESTIMATED_BALLS = 40
# Products of the Hessian with a vector for each of them.
_PRODUCTS = 40
# Balls that the first, long steps of a run usually need, and by how many first radii the later ones go on.
_FIRST_BALLS, _REACHES = 30, 8
# Seconds for what costs the same at any size, a gradient and a ball; operations a second of one core.
_CALL, _BALL, _FLOPS = 0.0007, 0.03, 3.5e10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class KernelTube:
    """P's own quantity on the tube, at one checkpoint: 2s(σ_min − L_J ρ)² on the ball of radius ρ around it.

    Attributes:
        step: of the checkpoint.
        mu: None where it is not positive.
        lambda_min_lower: proved, of K on all samples.
    """

    step: int
    mu: float | None
    lambda_min_lower: float


@dataclass(frozen=True)
class PathCertificate:
    """What is proved, or estimated, along the path of a run.

    Attributes:
        region: Theorems 9.3 and 9.4.
        agreement: how the path was had.
        loss: the loss that all this is for.
        why_estimate: why there is no proof; empty for one.
        kernel: at each checkpoint; None where the theorem does not speak of this loss, or was not asked.
    """

    region: Region
    agreement: Agreement
    loss: str
    why_estimate: str
    kernel: tuple[KernelTube, ...] | None

    @property
    def figures(self) -> PathFigures:
        """For people and files; a proof and an estimate never share a figure."""
        r = self.region
        own, other = (r, None) if r.kind == CERTIFIED else (None, r)
        return PathFigures(
            kind=r.kind,
            why_estimate=self.why_estimate or None,
            loss=self.loss,
            certified_share=own.certified_share if own else 0.0,
            share=r.certified_share,
            length=r.length,
            first_step=r.first_step,
            last_step=r.last_step,
            steps=r.steps,
            steps_certified=own.steps_certified if own else 0,
            **_mu_and_rate(own, ("mu_path", "mu_path_star", "rate_proved")),
            **_mu_and_rate(other, ("mu_path_estimated", "mu_path_star_estimated", "rate_estimated")),
            measured=r.measured,
            measured_star=r.measured_star,
            radius=r.radius,
            l_star_lower=r.l_star_lower,
            l_star_upper=r.l_star_upper,
            beta_max=r.beta_max,
            eta_beta_max=r.eta_beta_max,
            rate_from_step=r.rate_from_step,
            rate_reason=r.rate_reason or None,
            eta_mu_t=r.eta_mu_t,
            evidence=evidence(r.eta_mu_t),
            pieces=r.pieces,
            balls=r.balls,
            not_certified=tuple({"step": step, "reason": reason} for step, reason in r.not_certified),
            agreement=self.agreement.sentence,
            confirmed=self.agreement.confirmed,
            mu_kernel_tube=self._kernel_mu,
            kernel_tube=None if self.kernel is None else tuple(asdict(k) for k in self.kernel),
        )

    @property
    def _kernel_mu(self) -> float | None:
        """The smallest of the checkpoints; None where one has none."""
        values = [k.mu for k in self.kernel or ()]
        known = [v for v in values if v is not None]
        return min(known) if known and len(known) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
        """The object ``path`` of ``lplr certify RUN --path --format json``."""
        return self.figures.to_dict()

    def to_frame(self) -> pd.DataFrame:
        """A row a step: step, certified, mu, mu_star, beta, eta_beta, factor, length, pieces, reason."""
        return pd.DataFrame([asdict(row) for row in self.region.rows])


def _mu_and_rate(region: Region | None, names: tuple[str, str, str]) -> dict[str, float | None]:
    """μ, μ with L* = 0 and the rate under these names; None where the region is of the other kind."""
    values = (None, None, None) if region is None else (region.mu, region.mu_star, region.rate)
    return dict(zip(names, values, strict=True))


def certify_path(
    run: RunDirectory,
    *,
    first: int = 0,
    last: int | None = None,
    pieces: int | None = None,
    radius: float | None = None,
    source: Source = OWN,
    method: str = "auto",
    memory: int = DEFAULT_MEMORY,
    kernel: bool = True,
    progress: Progress | None = None,
) -> PathCertificate:
    """Walk along a run and prove what can be proved of the loss around its path.

    Args:
        run: of lplr, or recorded with a checkpoint at every step.
        first, last: steps; all by default.
        pieces: at most this many; by default as many as are worth while.
        radius: ρ of the tube; by rule when None.
        source: what the user says of model and data.
        method: of the bounds on balls, see :class:`lplr_cli.certificate.BallBounds`; ``auto`` is tight only where that
            is as cheap.
        memory: bytes for kernels, or for the Lanczos vectors of an estimate.
        kernel: whether to compute the kernel's μ at the checkpoints as well.
        progress: called with (steps done, steps).

    Raises:
        InputError: a loss or path that is not known, or an option out of range.
    """
    path = Iterates(run, first=first, last=last, source=source)
    curvature, why = _curvature(path, method, memory)
    walk = Walk(curvature, path.objective, aim=_aim(path), radius=radius, budget=pieces)

    def visit(step: int, theta: Tensor, loss: float, gradient: Tensor, lr: float | None) -> None:
        walk.add(step, theta, loss, gradient, lr)
        if progress is not None:
            progress(step - path.first, path.steps)

    path.walk(visit)
    region = walk.region()
    scale = path.manifest.loss.squared_scale
    tubes = None
    if kernel and scale is not None and region.kind != ESTIMATE and region.radius is not None:
        tubes = _kernel(path, region.radius, scale, memory)
    return PathCertificate(region, path.agreement, path.manifest.loss.label, why, tubes)


def _aim(path: Iterates) -> Aim:
    """The smallest ratios of the log, where it has exact values of this stretch: they decide what is worth its time."""
    log = path.log
    known = log[log["step"].between(path.first, path.last) & log["loss"].notna() & log["grad_norm_sq"].notna()]
    if not path.manifest.exact or len(known) < path.steps:
        return Aim()
    loss, square = known["loss"].to_numpy(dtype=np.float64), known["grad_norm_sq"].to_numpy(dtype=np.float64)
    floor = float(loss.min())
    above = loss > floor
    if floor <= 0 or not above.any():
        return Aim()
    return Aim(float((square / (2 * loss)).min()), float((square[above] / (2 * (loss[above] - floor))).min()), floor)


def _curvature(path: Iterates, method: str, memory: int) -> tuple[Curvature, str]:
    """A proof where there is one for this network, else an estimate, with the reason."""
    objective = path.objective
    try:
        curvature = CertifiedCurvature(
            objective.module, objective.inputs, objective.targets, objective.loss, method=method, memory=memory
        )
    except NoCertificateError as error:
        return _EstimatedCurvature(path, memory), error.what
    return curvature, ""


@dataclass(frozen=True)
class _FixedBall:
    """The same for every radius."""

    found: Smoothness

    def at(self, radius: float) -> Smoothness:
        """Whatever the radius."""
        return self.found


class _EstimatedCurvature:
    """λ_max and λ_min of ∇²L at the centres, by Lanczos: what the loss does between them is not known."""

    kind = ESTIMATE

    def __init__(self, path: Iterates, memory: int) -> None:
        self._objective, self._memory = path.objective, memory
        log = path.log[path.log["step"].between(path.first, path.last)]
        drift = float(log["drift"].max()) if log["drift"].notna().any() else math.inf
        self.largest = drift / _ESTIMATED_BALLS if 0 < drift < math.inf else math.inf

    def ball(self, centre: Tensor) -> _FixedBall:
        """From the two ends of the spectrum at the centre."""
        objective = self._objective
        objective.flat.theta.copy_(centre)
        network = Network.from_module(objective.module)
        size, half = centre.numel(), self._memory // 2
        curvature = LossCurvature(network, objective.inputs, objective.targets, objective.loss.values, memory=half)
        steps, basis = min(size, _PRODUCTS), basis_size(size, half)
        ritz = lanczos(curvature.hessian, start_vector(size), steps=steps, basis=basis)
        top, bottom = float(ritz.high[-1]), float(ritz.low[0])
        return _FixedBall(Smoothness(max(top, -bottom, 0.0), max(-bottom, 0.0)))


def _kernel(path: Iterates, radius: float, scale: float, memory: int) -> tuple[KernelTube, ...] | None:
    """2s(σ_min − L_J ρ)² around each checkpoint of the stretch."""
    found = []
    objective = path.objective
    for step in path.run.checkpoint_steps():
        if not path.first <= step <= path.last:
            continue
        path.subject.move_to(path.run, step)
        try:
            at = certify(path.subject.module, objective.inputs, objective.targets, radius=radius, memory=memory)
        except (InputError, NumericalError):
            return None
        mu = None if at.given is None or at.given.mu_jacobian is None else scale * at.given.mu_jacobian
        found.append(KernelTube(step, mu, at.lambda_0_lower))
    return tuple(found)


def path_while_cheap(run: RunDirectory, patience: float, source: Source = OWN, progress: Progress | None = None) -> str:
    """Certify and keep the path of a finished run where that takes little time; else why not, and what would do it.

    Args:
        run: of lplr.
        patience: seconds that it may take beyond the training itself, by the estimate.
        source: what the user says of code that the run names.
        progress: see :func:`certify_path`.
    """
    command = f"lplr certify {run.path} --path"
    try:
        expected = _expected(run, source)
        if expected is None:
            return f"not computed: see {command}"
        if expected.certificate > expected.training + patience:
            return f"not computed: {command} takes about {_rounded(expected.certificate)}"
        certificate = certify_path(run, source=source, kernel=False, progress=progress)
        keep(run, certificate.figures, certificate.to_frame())
    except (InputError, NumericalError) as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Expected:
    """Seconds of a core that training and certificate take by the count of their operations.

    Not by a clock: the same run says the same on every machine.
    """

    training: float
    certificate: float


def _expected(run: RunDirectory, source: Source) -> _Expected | None:
    """For a run of lplr by gradient descent on an MLP that has a certificate; None for any other."""
    manifest, log = run.manifest(), run.log()
    if manifest.recorded or not manifest.exact or manifest.optimizer.name != "gd" or manifest.optimizer.momentum:
        return None
    path = Iterates(run, source=source)
    curvature, why = _curvature(path, "auto", DEFAULT_MEMORY)
    if why or not (isinstance(curvature, CertifiedCurvature) and curvature.is_mlp):
        return None
    theta = path.objective.flat.theta.clone()
    length = float((log["lr"] * np.sqrt(log["grad_norm_sq"])).sum())
    reach = Walk(curvature, path.objective).first_reach(theta)
    gradient = _CALL + 6.0 * len(path.objective.inputs) * theta.numel() / _FLOPS
    balls = _FIRST_BALLS + length / (_REACHES * reach)
    return _Expected(path.steps * gradient, balls * (_BALL + 17 * gradient) + 1.2 * path.steps * gradient)


def _rounded(seconds: float) -> str:
    """To two digits, for people."""
    return f"{seconds:.2g} s" if seconds < 120 else f"{seconds / 60:.2g} min"
