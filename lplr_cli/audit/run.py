"""The audit of a run or log: every hypothesis and conclusion of the theory, and the sanity of the run itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.analysis import (
    OWN,
    LogInput,
    Source,
    Summary,
    certificate_of_run,
    open_subject,
    probe_checkpoints,
    read_log,
    recompute_gradients,
    trajectory_of,
)
from lplr_cli.certificate import check_run, estimate_constants
from lplr_cli.diagnostics import (
    MIN_POINTS,
    Convergence,
    LossSeries,
    PLRatio,
    analyse_pl_ratio,
    analyse_rate,
    clean_series,
)
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.factories import UnnamedCodeError
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain

VERIFIED, ESTIMATED, FAILS, UNKNOWN = "holds (verified)", "holds (estimated)", "fails", "unknown"
# A loss this share of its start counts as interpolated.
INTERPOLATION = 1e-3

TITLES = {
    "H1": "positivity: λ_min(K(θ0)) > 0",
    "H2": "Lipschitz kernel: ‖K(θ) − K(θ')‖ ≤ L_K ‖θ − θ'‖ on the ball",
    "H3": "compatibility: L_K R < λ0",
    "H4": "smooth loss and small step: η ≤ 1/β",
    "H5": "containment: every iterate stays in the ball",
    "C1": "the ball is locally PL with μ > 0",
    "C2": "linear rate: L_t − L* ≤ (1 − ημ)^t (L_0 − L*)",
}


@dataclass(frozen=True)
class Finding:
    """What is found of one hypothesis, conclusion or check.

    Attributes:
        key: H1 to H5, C1, C2, or the name of a check of the run.
        title: the statement.
        status: holds (verified), holds (estimated), fails or unknown.
        value: the figure it rests on; None when there is none.
        threshold: what the figure is compared with.
        reason: one line with the figures.
    """

    key: str
    title: str
    status: str
    value: float | None
    threshold: float | None
    reason: str

    @property
    def holds(self) -> bool | None:
        """True, False, or None when unknown."""
        return {FAILS: False, UNKNOWN: None}.get(self.status, True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = asdict(self)
        del record["key"]
        return {**record, "holds": self.holds, "verified": self.status == VERIFIED}


@dataclass(frozen=True)
class Change:
    """A figure beside that of a baseline; ``worse`` is the relative change to the bad side."""

    now: float | None
    before: float | None
    worse: float | None
    failed: bool


@dataclass(frozen=True)
class Audit:
    """Everything that was found.

    Attributes:
        source: the run or log.
        verdict: ``yes``, ``no`` or ``undetermined``: whether the run lies in a locally PL region by this theory.
        explanation: one sentence.
        findings: hypotheses and conclusions, H1 to C2.
        sanity: checks of the run itself.
        figures: PL ratio, rate, drift and constants, nested.
        baseline: comparison with an earlier run, by figure.
        ratio, rate: the series that the findings rest on; None where the log does not tell.
    """

    source: str
    verdict: str
    explanation: str
    findings: tuple[Finding, ...]
    sanity: tuple[Finding, ...]
    figures: dict[str, Any]
    baseline: dict[str, Change] | None
    ratio: PLRatio | None = None
    rate: Convergence | None = None

    def __getitem__(self, key: str) -> Finding:
        """The finding named ``key``, e.g. ``audit["H3"]``."""
        return {f.key: f for f in (*self.findings, *self.sanity)}[key]

    @property
    def regressions(self) -> list[str]:
        """Lines of what became worse than the baseline beyond the tolerance."""
        return [
            f"{name} worse than the baseline by {change.worse:.1%} ({change.now:.6g} against {change.before:.6g})"
            if change.worse is not None
            else f"{name} is missing, the baseline has {change.before:.6g}"
            for name, change in (self.baseline or {}).items()
            if change.failed
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``lplr audit``."""
        cleaned: dict[str, Any] = plain(
            {
                "command": "audit",
                "schema_version": SCHEMA_VERSION,
                "source": self.source,
                "verdict": self.verdict,
                "local_pl": {"yes": True, "no": False}.get(self.verdict),
                "explanation": self.explanation,
                **{f.key: f.to_dict() for f in self.findings},
                "sanity": {f.key: f.to_dict() for f in self.sanity},
                **self.figures,
                "baseline": None if self.baseline is None else {k: asdict(v) for k, v in self.baseline.items()},
            }
        )
        return cleaned

    def to_frame(self) -> pd.DataFrame:
        """A row a finding."""
        rows = [{"key": f.key, **f.to_dict()} for f in (*self.findings, *self.sanity)]
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Evidence:
    """Everything the findings are made from; None where it is not known."""

    series: LossSeries
    ratio: PLRatio | None
    rate: Convergence | None
    probes: pd.DataFrame
    full: bool
    estimates: Any
    certificate: Any
    no_certificate: str
    eta: float | None
    lr: float | None
    why_no_eta: str
    scale: float | None
    check: Any
    why_singular: str


def audit(
    source: str | LogInput,
    *,
    columns: dict[str, str] | None = None,
    window: tuple[float, float] | None = None,
    offline_probe: bool = False,
    probe_size: int | None = None,
    foreign: Source = OWN,
    baseline: str | None = None,
    tolerance: float = 0.1,
    certificate: bool = True,
    memory: int = DEFAULT_MEMORY,
) -> Audit:
    """Judge each hypothesis and conclusion of the theory over a run or log.

    Args:
        source: a run directory, a log of any format, or - for stdin; or a log that is read already.
        columns: names of the log's columns, see :func:`lplr_cli.runs.logs.parse_columns`.
        window: first and last step of the stable window; by rule when None.
        offline_probe: compute from checkpoints what the log lacks: gradient norms and NTK probes.
        probe_size: samples of offline probes; all by default.
        foreign: model and data of a run that does not tell them.
        baseline: an earlier run or log to compare with.
        tolerance: relative worsening against the baseline that still passes.
        certificate: whether to compute the certificate at the start, where the run has a checkpoint of it.
        memory: bytes for kernels.

    Raises:
        InputError: what cannot be read.
        UnnamedCodeError: the certificate or an offline probe needs code that ``foreign`` does not name.
    """
    log = source if isinstance(source, LogInput) else read_log(source, columns)
    evidence = _gather(log, window, offline_probe, probe_size, foreign, certificate, memory)
    findings = _hypotheses(evidence)
    sanity = _sanity(evidence)
    verdict, explanation = _verdict({f.key: f for f in findings})
    figures = _figures(evidence)
    compared = None
    if baseline is not None:
        before = _gather(read_log(baseline, columns), window, offline_probe, probe_size, foreign, False, memory)
        compared = _compare(figures, _figures(before), tolerance)
    series = evidence.ratio, evidence.rate
    return Audit(log.name, verdict, explanation, findings, sanity, figures, compared, *series)


def _gather(
    log: LogInput,
    window: tuple[float, float] | None,
    offline: bool,
    probe_size: int | None,
    foreign: Source,
    with_certificate: bool,
    memory: int,
) -> _Evidence:
    series, facts, run = log.series(), log.facts(), log.run
    if offline and run is None:
        raise InputError(f"{log.name} is a log without checkpoints", "--offline-probe needs a run directory")
    probes, everything = pd.DataFrame() if run is None else run.probes(), False
    if run is not None and offline:
        if probes.empty:
            probes = probe_checkpoints(run, size=probe_size, source=foreign, memory=memory)
            everything = probe_size is None
        if not series.has_gradients:
            series = clean_series(recompute_gradients(run, source=foreign))
    ratio = None
    if series.has_gradients and len(series.loss) > 1:
        ratio = analyse_pl_ratio(series, window=window, facts=facts)
    rate = analyse_rate(series, window=window, facts=facts) if len(series.loss) >= MIN_POINTS else None
    estimates = None
    if run is not None and "drift" in log.log:
        estimates = estimate_constants(log.log, probes, facts.loss_scale)
    summary = log.summary
    n = None if summary is None else summary.manifest.data.n
    # Offline probes take all samples unless told otherwise.
    full = everything or (not probes.empty and n is not None and int(probes["probe_size"].iloc[0]) >= n)
    lr = None if summary is None else summary.lr
    if lr is None and np.isfinite(series.lr).any():
        lr = float(series.lr[np.isfinite(series.lr)].max())
    why = ""
    if facts.eta is None:
        why = "theory speaks of full-batch gradient descent with one step size and no momentum, " + (
            "and the log does not tell" if summary is None else "which this is not"
        )
    found, reason, check = None, "a log alone has no network to certify", None
    if run is not None and with_certificate:
        found, reason = _certificate(run, foreign, memory)
        if found is not None:
            check = _held_against(found, run)
    elif run is not None:
        reason = "not asked for"
    return _Evidence(
        series,
        ratio,
        rate,
        probes,
        full,
        estimates,
        found,
        reason,
        facts.eta,
        lr,
        why,
        facts.loss_scale,
        check,
        _why_singular(run, foreign, summary) if full else "",
    )


def _why_singular(run: RunDirectory | None, foreign: Source, summary: Summary | None) -> str:
    """Why K of all samples must be singular: more rows than parameters, or equal inputs where the data can be had."""
    if summary is not None and summary.parameters is not None:
        rows, parameters = (summary.manifest.data.n or 0) * (summary.manifest.data.outputs or 1), summary.parameters
        if rows > parameters:
            return f"K has {rows:,} rows and the network {parameters:,} parameters, so that it must be singular"
    if run is None or not run.checkpoint_steps():
        return ""
    try:
        pair = open_subject(run.path, foreign).dataset.duplicate()
    except (InputError, NumericalError):
        return ""
    return "" if pair is None else f"samples {pair[0]} and {pair[1]} have equal inputs"


def _certificate(run: RunDirectory, foreign: Source, memory: int) -> tuple[Any, str]:
    if 0 not in run.checkpoint_steps():
        return None, "no checkpoint of the start"
    try:
        return certificate_of_run(run, foreign, memory), ""
    except UnnamedCodeError as error:
        raise UnnamedCodeError(error.what, f"{error.remedy}, or --no-certificate") from error
    except (InputError, NumericalError) as error:
        return None, error.what


def _held_against(certificate: Any, run: RunDirectory) -> Any:
    return check_run(certificate, trajectory_of(run))


def _hypotheses(e: _Evidence) -> tuple[Finding, ...]:
    h1, h2, h3 = _positivity(e), _lipschitz(e), _compatibility(e)
    h5 = _containment(e)
    return (h1, h2, h3, _step_size(e), h5, _local_pl(e, h3), _linear_rate(e))


def _finding(key: str, status: str, value: float | None, threshold: float | None, reason: str) -> Finding:
    return Finding(key, TITLES[key], status, value, threshold, reason)


def _positivity(e: _Evidence) -> Finding:
    if e.certificate is not None and e.certificate.lambda_0_lower > 0:
        low = e.certificate.lambda_0_lower
        return _finding("H1", VERIFIED, low, 0.0, f"λ0 ≥ {low:.4g} proved on all {e.certificate.n:,} samples")
    if e.probes.empty:
        return _finding("H1", UNKNOWN, None, 0.0, "no NTK probe: see --offline-probe")
    first = e.probes.sort_values("step").iloc[0]
    if int(first["step"]) != 0:
        return _finding("H1", UNKNOWN, None, 0.0, "no probe of the start")
    value, lower = float(first["lambda_min"]), first.get("lambda_min_lower")
    where = "all samples" if e.full else f"a subset of {int(first['probe_size']):,} samples"
    if not e.full:
        status = ESTIMATED if value > 0 else FAILS
        return _finding("H1", status, value, 0.0, f"λ_min = {value:.4g} on {where}, which can refute, not certify")
    if lower is not None and lower == lower and lower > 0:
        return _finding("H1", VERIFIED, float(lower), 0.0, f"λ_min ≥ {lower:.4g} proved for the computed K on {where}")
    resolution = 10 * np.finfo(np.float64).eps * float(first["lambda_max"]) * math.sqrt(float(first["probe_size"]))
    if value > resolution:
        return _finding("H1", ESTIMATED, value, 0.0, f"λ_min = {value:.4g} on {where}, positivity not proved")
    reason = f"λ_min = {value:.4g} on {where} is zero within rounding ({resolution:.1g})"
    if e.why_singular:
        reason += f": {e.why_singular}"
    return _finding("H1", FAILS, value, 0.0, reason)


def _lipschitz(e: _Evidence) -> Finding:
    at = None if e.certificate is None else e.certificate.given
    if at is not None:
        return _finding("H2", VERIFIED, at.l_k, None, f"L_K ≤ {at.l_k:.4g} proved on the ball R = {at.radius:.4g}")
    if e.estimates is not None and e.estimates.l_k is not None:
        reason = f"L_K ≥ {e.estimates.l_k:.4g} seen between probes; no bound: {e.no_certificate}"
        return _finding("H2", ESTIMATED, e.estimates.l_k, None, reason)
    return _finding("H2", UNKNOWN, None, None, e.no_certificate)


def _compatibility(e: _Evidence) -> Finding:
    at = None if e.certificate is None else e.certificate.given
    if at is not None and at.mu_kernel is not None:
        lam = e.certificate.lambda_0_lower
        return _finding("H3", VERIFIED, at.l_k * at.radius, lam, f"L_K R ≤ {at.l_k * at.radius:.4g} < {lam:.4g} ≤ λ0")
    c = e.estimates
    if c is None or c.compatible is None:
        reason = "no probes tell L_K and λ0"
        if at is not None:
            lam = e.certificate.lambda_0_lower
            reason = f"undecided: the proved L_K R ≤ {at.l_k * at.radius:.4g} is not below λ0 ≥ {lam:.4g}"
        return _finding("H3", UNKNOWN, None, None, reason)
    product = c.l_k * c.radius
    if not c.compatible:
        reason = f"L_K R ≥ {product:.4g} against λ0 = {c.lambda_0:.4g}, with R = {c.radius:.4g} the drift of the run"
        return _finding("H3", FAILS, product, c.lambda_0, reason)
    reason = f"L_K R = {product:.4g} < λ0 = {c.lambda_0:.4g} with L_K from probes, which is one from below"
    return _finding("H3", ESTIMATED, product, c.lambda_0, reason)


def _step_size(e: _Evidence) -> Finding:
    sharp = _sharpness(e)
    if e.lr is None:
        return _finding("H4", UNKNOWN, None, 1.0, "the step size is not known")
    beta = None if e.certificate is None or e.certificate.given is None else e.certificate.given.beta
    if e.eta is not None and beta is not None and e.eta * beta <= 1:
        return _finding("H4", VERIFIED, e.eta * beta, 1.0, f"η β ≤ {e.eta * beta:.4g} with β proved on the ball")
    if sharp is None:
        return _finding("H4", UNKNOWN, None, 1.0, "no probe measured the sharpness")
    product = e.lr * sharp
    # Sharpness at a point is a lower bound of β: above 1 it refutes, below it does not prove.
    if product > 1 + 1e-6:
        return _finding("H4", FAILS, product, 1.0, f"η·sharpness reaches {product:.4g}: η > 1/β")
    if e.eta is None:
        return _finding("H4", UNKNOWN, product, 1.0, f"η·sharpness = {product:.4g} at the probes, but {e.why_no_eta}")
    return _finding("H4", ESTIMATED, product, 1.0, f"η·sharpness ≤ {product:.4g} at the probes")


def _containment(e: _Evidence) -> Finding:
    c = None if e.certificate is None else e.certificate.containment
    if c is not None and c.holds and e.check is not None and e.check.applies:
        if e.check.violations:
            return _finding("H5", FAILS, c.at.radius, None, f"{e.check.violations} logged steps break the certificate")
        reason = f"proved before the first step: every iterate stays within R = {c.at.radius:.4g}"
        return _finding("H5", VERIFIED, c.at.radius, None, reason)
    drift = e.series.drift[np.isfinite(e.series.drift)]
    if not len(drift):
        return _finding("H5", UNKNOWN, None, None, "the log has no drift")
    top = float(drift.max())
    radius = None if e.certificate is None else e.certificate.radius_jacobian
    if radius is not None and top <= radius:
        reason = f"drift {top:.4g} of the logged steps ≤ certified radius {radius:.4g}"
        return _finding("H5", ESTIMATED, top, radius, reason)
    if radius is not None:
        return _finding("H5", FAILS, top, radius, f"drift {top:.4g} exceeds the certified radius {radius:.4g}")
    reason = f"the logged steps stay within R = {top:.4g}; no certified radius to compare with"
    return _finding("H5", ESTIMATED, top, None, reason)


def _local_pl(e: _Evidence, h3: Finding) -> Finding:
    at = None if e.certificate is None else e.certificate.given
    if at is not None and at.mu_jacobian is not None:
        mu = at.mu_jacobian * (e.scale or 1.0)
        reason = f"μ ≥ {mu:.4g} proved on the ball of the run (Jacobian-Weyl)"
        return _finding("C1", VERIFIED, mu, 0.0, reason)
    lowest = None if e.ratio is None else e.ratio.pl_ratio.min
    star = None if e.ratio is None else e.ratio.pl_ratio_star.min
    seen = "" if star is None else f"; along the run ½‖∇L‖²/L is at least {star:.4g}"
    mu = None if e.estimates is None or e.scale is None else e.estimates.mu_kernel
    if mu is not None and mu > 0:
        if lowest is not None and lowest < mu * (1 - 1e-9):
            return _finding("C1", FAILS, lowest, mu, f"the PL ratio falls to {lowest:.4g}, below μ = {mu:.4g}")
        return _finding("C1", ESTIMATED, mu, 0.0, f"μ = 2s(λ0 − L_K R) = {mu:.4g} with L_K from probes{seen}")
    if h3.holds is False:
        return _finding("C1", UNKNOWN, star, 0.0, f"does not follow, as H3 fails{seen}")
    return _finding("C1", UNKNOWN, star, 0.0, f"μ is not known{seen}")


def _linear_rate(e: _Evidence) -> Finding:
    if e.check is not None and e.check.applies:
        status = FAILS if e.check.violations else VERIFIED
        reason = (
            f"proved, and {e.check.steps:,} logged steps obey it"
            if not e.check.violations
            else (f"{e.check.violations} of {e.check.steps:,} logged steps break the proved rate")
        )
        return _finding("C2", status, None, None, reason)
    if e.rate is None:
        return _finding("C2", UNKNOWN, None, None, "too few rows to fit a rate")
    fit = e.rate.fit
    if fit.verdict in ("linear", "two_rate"):
        predicted = max((v for k, v in e.rate.theory.items() if k.startswith("rate_") and v is not None), default=None)
        beside = "" if predicted is None else f"; 1 − ημ = {predicted:.6g} with the smallest known μ"
        return _finding("C2", ESTIMATED, fit.rate, predicted, f"linear, ρ = {fit.rate:.6g}, {fit.reason}{beside}")
    if fit.verdict == "sublinear":
        return _finding("C2", FAILS, fit.alpha, None, f"sublinear, exponent {fit.alpha:.3g}: {fit.reason}")
    return _finding("C2", UNKNOWN, fit.rate, None, fit.reason)


def _sharpness(e: _Evidence) -> float | None:
    if e.probes.empty or "sharpness" not in e.probes:
        return None
    known = e.probes["sharpness"].dropna()
    return float(known.max()) if len(known) else None


def _sanity(e: _Evidence) -> tuple[Finding, ...]:
    def item(key: str, title: str, status: str, value: float | None, threshold: float | None, reason: str) -> Finding:
        return Finding(key, title, status, value, threshold, reason)

    sharp, loss = _sharpness(e), e.series.loss
    found = []
    title = "step size below 2/sharpness"
    if sharp is None or e.lr is None:
        found.append(item("step_size", title, UNKNOWN, None, 1.0, "no probe measured the sharpness"))
    else:
        product = e.lr * sharp / 2
        status = ESTIMATED if product < 1 else FAILS
        found.append(item("step_size", title, status, product, 1.0, f"η·sharpness/2 reaches {product:.4g}"))
    positive = _positivity(e)
    found.append(item("lambda_min", "λ_min positive", positive.status, positive.value, 0.0, positive.reason))
    title = "a stable window exists"
    window = None if e.ratio is None else e.ratio.window
    if e.ratio is None and e.rate is not None:
        found.append(item("window", title, UNKNOWN, None, None, "no gradient norms; see the window of the rate"))
    elif window is None:
        found.append(item("window", title, FAILS, None, None, "the rule leaves fewer than three rows"))
    else:
        found.append(item("window", title, ESTIMATED, window.stop - window.start, None, window.explanation))
    share = float(loss.min() / loss[0])
    found.append(
        item(
            "interpolation",
            "the loss comes near zero",
            ESTIMATED if share <= INTERPOLATION else FAILS,
            share,
            INTERPOLATION,
            f"the lowest loss is {share:.3g} of the first",
        )
    )
    rises = int((np.diff(loss) > 0).sum())
    found.append(
        item(
            "descent",
            "the loss never rises",
            ESTIMATED if rises == 0 else FAILS,
            float(rises),
            0.0,
            f"{rises:,} of {max(len(loss) - 1, 0):,} logged steps raise the loss",
        )
    )
    return tuple(found)


def _verdict(found: dict[str, Finding]) -> tuple[str, str]:
    if found["C1"].status == VERIFIED and found["H1"].status == VERIFIED:
        return "yes", f"certified: {found['C1'].reason}"
    failing = [k for k in ("H1", "H3", "C1") if found[k].holds is False]
    if failing:
        return "no", "; ".join(f"{k} fails: {found[k].reason}" for k in failing)
    needed = [found[k] for k in ("H1", "H2", "H3", "C1")]
    if all(f.holds for f in needed):
        return "yes", "by estimates, not by proof: " + "; ".join(f"{f.key}: {f.reason}" for f in needed)
    open_ = [f.key for f in needed if f.holds is None]
    return "undetermined", f"{', '.join(open_)} cannot be decided from what is logged"


def _figures(e: _Evidence) -> dict[str, Any]:
    fit = None if e.rate is None else e.rate.fit
    drift = e.series.drift[np.isfinite(e.series.drift)]
    certificate, estimates, sharp = e.certificate, e.estimates, _sharpness(e)
    given = None if certificate is None else certificate.given
    return {
        "pl_ratio": None if e.ratio is None else e.ratio.pl_ratio.to_dict(),
        "pl_ratio_star": None if e.ratio is None else e.ratio.pl_ratio_star.to_dict(),
        "window": None if e.ratio is None or e.ratio.window is None else e.ratio.window.to_dict(),
        "rate": None if fit is None else fit.to_dict(),
        "drift": {"max": float(drift.max()) if len(drift) else None},
        "loss": {"first": float(e.series.loss[0]), "last": float(e.series.loss[-1]), "min": float(e.series.loss.min())},
        "mu_certified": None if given is None or given.mu_jacobian is None else given.mu_jacobian * (e.scale or 1.0),
        "mu_estimated": None if estimates is None or e.scale is None else estimates.mu_kernel,
        "certified_radius": None if certificate is None else certificate.radius_jacobian,
        "sharpness": {"max": sharp, "lr_over_stable": None if sharp is None or e.lr is None else e.lr * sharp / 2},
        "dropped_rows": e.series.dropped,
        "reordered_rows": e.series.reordered,
    }


def _compare(now: dict[str, Any], before: dict[str, Any], tolerance: float) -> dict[str, Change]:
    """PL ratio and decay rate must not fall, drift must not grow, by more than ``tolerance`` of the baseline's."""

    def decay(figures: dict[str, Any]) -> float | None:
        rate = (figures["rate"] or {}).get("rate")
        return -math.log(rate) if rate is not None and 0 < rate < 1 else None

    def ratio(figures: dict[str, Any]) -> float | None:
        value: float | None = (figures["pl_ratio"] or {}).get("min")
        return value

    pairs = {
        "pl_ratio_min": (ratio(now), ratio(before), -1.0),
        "decay_rate": (decay(now), decay(before), -1.0),
        "drift_max": (now["drift"]["max"], before["drift"]["max"], 1.0),
    }
    changes = {}
    for name, (new, old, sign) in pairs.items():
        worse = None if new is None or old is None or old == 0 else sign * (new / old - 1)
        failed = (worse is not None and worse > tolerance) or (new is None and old is not None)
        changes[name] = Change(new, old, worse, failed)
    return changes
