"""Everything that findings are made from, gathered once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lplr_cli.analysis import (
    MOST_ROWS,
    OWN,
    LazyPrediction,
    LogInput,
    PathFigures,
    Source,
    certificate_of_run,
    kept_path,
    open_subject,
    plain_step,
    predict_run,
    probe_checkpoints,
    probe_pairs,
    recompute_gradients,
    trajectory_of,
    why_no_path,
)
from lplr_cli.audit.scope import Scope, scope_of
from lplr_cli.certificate import (
    Certificate,
    Estimates,
    RatioCheck,
    RunCheck,
    check_ratio,
    check_run,
    data_confirmed,
    estimate_constants,
    own_certificate,
    why_not_of,
)
from lplr_cli.curvature import StepRule
from lplr_cli.data import Dataset
from lplr_cli.diagnostics import (
    MIN_POINTS,
    BatchNoise,
    Convergence,
    LossSeries,
    PLRatio,
    RunFacts,
    analyse_pl_ratio,
    analyse_rate,
    batch_noise,
    clean_series,
    numbers,
)
from lplr_cli.errors import InputError, LplrError, NumericalError
from lplr_cli.factories import UnnamedCodeError
from lplr_cli.linalg.tasks import Tasks
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import KERNEL_GRADIENT, PRECONDITIONED, STABLE, LossFacts, Manifest, RunDirectory

# Parts of the names of losses with kinks: absolute values and hinges.
_KINKS = ("l1", "hinge", "margin", "absolute")


@dataclass(frozen=True)
class Examination:
    """How to examine a run.

    Attributes:
        window: first and last step of the stable window; by rule when None.
        offline: compute from checkpoints what the log lacks.
        probe_size: samples of offline probes; all by default.
        foreign: model and data of a run that does not tell them.
        certificate: whether to compute the certificate at the start.
        pieces: checkpoints to predict the loss from; 0 for no prediction.
        memory: bytes for kernels.
        tasks: where offline probes run; in this process by default.
    """

    window: tuple[float, float] | None = None
    offline: bool = False
    probe_size: int | None = None
    foreign: Source = OWN
    certificate: bool = True
    pieces: int = 1
    memory: int = DEFAULT_MEMORY
    tasks: Tasks | None = None


@dataclass(frozen=True)
class Proof:
    """The certificate of a run's start, and the run held against it.

    Attributes:
        certificate: in units of the run's own loss; without μ and β where it does not speak of that loss.
        why_not: why it does not; empty where it does.
        confirmed: whether its data are known to be those of the run.
        check: of containment and rate. ratio: of the PL ratio on the ball.
        dtype: of the run's arithmetic.
    """

    certificate: Certificate
    why_not: str
    confirmed: bool
    check: RunCheck
    ratio: RatioCheck
    dtype: str | None


@dataclass(frozen=True)
class Probes:
    """Rows of the probes, by step.

    Attributes:
        table: empty when there are none.
        full: whether they took all samples.
        own: whether the run itself measured them, on its own data.
    """

    table: pd.DataFrame
    full: bool
    own: bool

    @property
    def sharpness(self) -> float | None:
        """The largest sharpness, of the run's own loss."""
        if self.table.empty or "sharpness" not in self.table:
            return None
        known = self.table["sharpness"].dropna()
        return float(known.max()) if len(known) else None

    def stability(self, *, adaptive: bool) -> tuple[float, bool] | None:
        """Largest curvature in parts of what the optimiser bears, where a recorder saw both, and whether that is the
        preconditioned one.

        Args:
            adaptive: whether only the curvature as the optimiser sees it counts.
        """
        if self.table.empty or not {STABLE, PRECONDITIONED} <= set(self.table.columns):
            return None
        stable, seen, sharp = (numbers(self.table[k]) for k in (STABLE, PRECONDITIONED, "sharpness"))
        ratio = (seen if adaptive else sharp) / np.where(stable > 0, stable, np.nan)
        known = ratio[np.isfinite(ratio)]
        return (float(known.max()), adaptive) if len(known) else None


@dataclass(frozen=True)
class Evidence:
    """What is known; None where it is not.

    Attributes:
        manifest: of the run; None for a log. scope: what the run is.
        series: the usable rows of the log.
        ratio, rate: PL ratio and fitted law.
        probes: of the kernel.
        estimates: constants from probes.
        proof: the certificate; no_proof: why there is none.
        eta: of plain full-batch gradient descent. lr: of any optimiser. stable: the largest curvature that it bears,
            where name, step size and momentum tell it.
        scale: s of the squared loss.
        exact: whether losses and gradient norms are those of all data; None for a log, which does not tell.
        why_singular: why K of all samples must be singular; empty where nothing says so.
        path: what was proved along the path, as the run keeps it; why_no_path: why nothing can be.
        noise: of mini-batch gradients. noise_floor: what they keep the loss above L*.
        prediction: the loss that the kernel at the start predicts; no_prediction: why there is none.
    """

    manifest: Manifest | None
    scope: Scope
    series: LossSeries
    ratio: PLRatio | None
    rate: Convergence | None
    probes: Probes
    estimates: Estimates | None
    proof: Proof | None
    no_proof: str
    eta: float | None
    lr: float | None
    stable: float | None
    scale: float | None
    exact: bool | None
    why_singular: str
    path: PathFigures | None
    why_no_path: str
    noise: BatchNoise | None
    noise_floor: float | None
    prediction: LazyPrediction | None
    no_prediction: str

    @property
    def kinks(self) -> str | None:
        """The name of a loss that is not differentiable where it is smallest; None for others."""
        name = None if self.manifest is None else self.manifest.loss.name
        smooth = name is None or "smooth" in name or "soft" in name
        return name if not smooth and name is not None and any(part in name for part in _KINKS) else None

    @property
    def drift(self) -> float | None:
        """The largest logged ‖θ_t − θ_0‖."""
        known = self.series.drift[np.isfinite(self.series.drift)]
        return float(known.max()) if len(known) else None


def gather(log: LogInput, how: Examination, loss: Loss | None = None) -> Evidence:
    """Read, compute and prove what ``how`` asks for.

    Args:
        log: a run, or anybody's log.
        how: what to read, compute and prove.
        loss: of a run or log that does not tell it; nothing is proved for it.

    Raises:
        InputError: a damaged run; checkpoints asked of a log that has none; a loss that is not the one of the run.
        UnnamedCodeError: the certificate or an offline probe needs code that the user does not name.
    """
    run, facts = log.run, log.facts()
    if how.offline and run is None:
        raise InputError(f"{log.name} is a log without checkpoints", "--offline-probe needs a run directory")
    manifest, loss = _as_told(log, loss)
    series, exact = _series(log, manifest, how)
    probes = _probes(run, manifest, how)
    eta, why = (None, "the optimiser is not known") if manifest is None else plain_step(manifest, log.log)
    scale = None if manifest is None else manifest.loss.squared_scale
    proof, no_proof = _proof(run, how)
    if loss is not None:
        facts = replace(facts, loss_scale=scale, loss_name=loss.name)
    estimates = None
    if run is not None and "drift" in log.log:
        estimates = estimate_constants(log.log, probes.table, scale)
    if how.offline:
        facts = _as_probed(facts, probes, estimates)
    return Evidence(
        manifest,
        scope_of(manifest, eta, why, loss),
        series,
        _ratio(series, facts, how),
        analyse_rate(series, window=how.window, facts=facts) if len(series.loss) >= MIN_POINTS else None,
        probes,
        estimates,
        proof,
        no_proof,
        eta,
        _step_size(manifest, series),
        _stable(manifest, series),
        scale,
        exact,
        _why_singular(run, manifest, how.foreign) if probes.full else "",
        None if run is None else kept_path(run),
        "" if run is None else why_no_path(run),
        batch_noise(series, facts),
        facts.noise_floor,
        *_prediction(run, how),
    )


def _as_told(log: LogInput, loss: Loss | None) -> tuple[Manifest | None, Loss | None]:
    """The manifest with the loss that the user tells, and that loss where the run does not tell it itself."""
    manifest = None if log.run is None else log.run.manifest()
    if manifest is None or loss is None:
        return manifest, loss
    known = manifest.loss
    if known.known == loss:
        return manifest, None
    if known.name not in (None, loss.name) or known.scale not in (None, loss.scale):
        raise InputError(f"{log.name} tells its own loss, {known.label}", "leave out --loss")
    return replace(manifest, loss=LossFacts(loss.name, loss.formula, loss.scale, known.values)), loss


def _series(log: LogInput, manifest: Manifest | None, how: Examination) -> tuple[LossSeries, bool | None]:
    """The log, and whether its values are of all data.

    Where the log has no gradients and checkpoints were asked for, those of the checkpoints, if the loss is known.
    """
    series = log.series()
    if log.run is None or manifest is None:
        return series, None
    if not how.offline or series.has_gradients or log.run.manifest().loss.known is None:
        return series, manifest.exact
    return clean_series(recompute_gradients(log.run, source=how.foreign)), True


def _as_probed(facts: RunFacts, probes: Probes, estimates: Estimates | None) -> RunFacts:
    """What is known beside the log with probes of the checkpoints, as the run would know it that had logged them."""
    full = probes.table if probes.full else pd.DataFrame()
    return replace(
        facts,
        mu_estimated=facts.mu_estimated if estimates is None else estimates.mu_kernel,
        sharpness=probe_pairs(probes.table, "sharpness"),
        residual_rayleigh=probe_pairs(full, "residual_rayleigh"),
        kernel_gradient=probe_pairs(full, KERNEL_GRADIENT),
    )


def _ratio(series: LossSeries, facts: RunFacts, how: Examination) -> PLRatio | None:
    if not series.has_gradients or len(series.loss) < 2:
        return None
    return analyse_pl_ratio(series, window=how.window, facts=facts)


def _probes(run: RunDirectory | None, manifest: Manifest | None, how: Examination) -> Probes:
    if run is None or manifest is None:
        return Probes(pd.DataFrame(), False, False)
    table = run.probes()
    if table.empty and how.offline:
        found = probe_checkpoints(
            run,
            size=how.probe_size,
            source=how.foreign,
            loss=manifest.loss.known,
            memory=how.memory,
            tasks=how.tasks,
        )
        n = manifest.data.n
        full = how.probe_size is None or (n is not None and how.probe_size >= n)
        return Probes(found.sort_values("step"), full, not manifest.recorded)
    if table.empty:
        return Probes(table, False, False)
    size, n = int(table["probe_size"].iloc[0]), manifest.data.n
    return Probes(table.sort_values("step"), n is not None and size >= n, True)


def _step_size(manifest: Manifest | None, series: LossSeries) -> float | None:
    if manifest is not None and manifest.optimizer.lr is not None:
        return manifest.optimizer.lr
    known = series.lr[np.isfinite(series.lr)]
    return float(known.max()) if len(known) else None


def _stable(manifest: Manifest | None, series: LossSeries) -> float | None:
    """2/η, or what heavy-ball momentum makes of it; None where a momentum may be another one."""
    lr = _step_size(manifest, series)
    momentum = (None if manifest is None else manifest.optimizer.momentum) or 0.0
    if not lr or (momentum and (manifest is None or manifest.recorded)):
        return None
    return StepRule(lr, momentum).threshold if momentum < 1 else None


def _proof(run: RunDirectory | None, how: Examination) -> tuple[Proof | None, str]:
    if run is None:
        return None, "a log alone has no network to certify"
    if not how.certificate:
        return None, "not asked for"
    if 0 not in run.checkpoint_steps():
        return None, "no checkpoint of the start"
    try:
        found, followed = certificate_of_run(run, how.foreign, how.memory), trajectory_of(run)
    except UnnamedCodeError as error:
        raise UnnamedCodeError(error.what, f"{error.remedy}, or --no-certificate") from error
    except (InputError, NumericalError) as error:
        return None, error.what
    why = why_not_of(found, followed)
    proof = Proof(
        own_certificate(found, followed),
        why,
        data_confirmed(found, followed),
        check_run(found, followed),
        RatioCheck(0, None, 0) if why else check_ratio(found, followed),
        followed.dtype,
    )
    return proof, ""


def _prediction(run: RunDirectory | None, how: Examination) -> tuple[LazyPrediction | None, str]:
    if run is None:
        return None, "a log alone has no network to predict from"
    if how.pieces < 1:
        return None, "not asked for"
    try:
        return predict_run(run.path, source=how.foreign, pieces=how.pieces, memory=how.memory, most_rows=MOST_ROWS), ""
    except LplrError as error:
        return None, error.what


def _why_singular(run: RunDirectory | None, manifest: Manifest | None, foreign: Source) -> str:
    """More rows than parameters, or equal inputs where the data can be had."""
    if run is None or manifest is None:
        return ""
    n, outputs, parameters = manifest.data.n, manifest.data.outputs, manifest.parameters
    if n is not None and outputs is not None and parameters is not None and n * outputs > parameters:
        return f"K has {n * outputs:,} rows and the network {parameters:,} parameters, so that it must be singular"
    if not run.checkpoint_steps():
        return ""
    try:
        return equal_inputs(open_subject(run.path, foreign).dataset)
    except (InputError, NumericalError):
        return ""


def equal_inputs(dataset: Dataset) -> str:
    """Which samples have equal inputs, so that K is singular; empty where none have."""
    pair = dataset.duplicate()
    return "" if pair is None else f"samples {pair[0]} and {pair[1]} have equal inputs"
