"""The summary of a run: every figure of the closing table, computed from its logs, typed; and its JSON."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.analysis.noise import NoiseFloor, kept_floor
from lplr_cli.analysis.path_figures import PathFigures, kept_path, kept_rows
from lplr_cli.analysis.predicted_end import PredictedEnd, kept_prediction
from lplr_cli.analysis.trajectory import plain_step
from lplr_cli.certificate import Estimates, estimate_constants
from lplr_cli.diagnostics import (
    MIN_POINTS,
    BatchNoise,
    Convergence,
    Envelope,
    LossSeries,
    PLRatio,
    RateFit,
    RunFacts,
    Window,
    analyse_pl_ratio,
    analyse_rate,
    batch_noise,
    clean_series,
    envelope,
)
from lplr_cli.errors import OutputError
from lplr_cli.runs import KERNEL_GRADIENT, NORMALISATION, SCHEMA_VERSION, Manifest, RunDirectory, plain

_EMPTY = envelope(np.empty(0))


@dataclass(frozen=True)
class Certified:
    """What is proved for the loss of a run on the ball that its drift spans; None where nothing is.

    Attributes:
        mu: of the run's own loss.
        radius: the largest one with a proved μ > 0.
        reason: why there is a μ, or none.
    """

    mu: float | None
    radius: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Its keys in the summary."""
        return {"mu_certified": self.mu, "certified_radius": self.radius, "mu_certified_reason": self.reason}


NOT_ASKED = Certified(None, None, "not computed: see lplr certify")
PATH_NOT_ASKED = "not computed: see lplr certify RUN --path"


@dataclass(frozen=True)
class LossRange:
    """First, last and lowest usable loss of the log."""

    initial: float
    final: float
    min: float


@dataclass(frozen=True)
class ProbeFacts:
    """What the probes took.

    Attributes:
        size: samples; None without probes.
        subset: whether these are not known to be all.
        outputs: block of the kernel.
        count: probes.
    """

    size: int | None
    subset: bool
    outputs: str | None
    count: int


@dataclass(frozen=True)
class LambdaMin:
    """λ_min(K) at the probes; None where it was not measured.

    Attributes:
        initial, final: at the first and last probe.
        lower_initial: the proved lower bound at the first.
        upper_bound_full: of the whole training set, by interlacing (theory.md section 2): n λ_min(K) ≤ m λ_min(K_S) for
            a subset S of m samples.
    """

    initial: float | None
    final: float | None
    lower_initial: float | None
    upper_bound_full: float | None


@dataclass(frozen=True)
class Ends:
    """A figure at the first and last probe."""

    initial: float | None
    final: float | None


@dataclass(frozen=True)
class SharpnessRange:
    """The sharpness at the probes that measured it.

    Attributes:
        initial, final, max: over those probes.
        lr_over_stable: η · max / 2, above 1 beyond the edge of stability.
    """

    initial: float | None
    final: float | None
    max: float | None
    lr_over_stable: float | None


@dataclass(frozen=True)
class Summary:
    """All figures of a run.

    Attributes:
        run: its directory, as text.
        manifest: what it is.
        steps, seconds: of its last row.
        loss: its range.
        probe, lambda_min, lambda_max, sharpness: of its probes.
        drift_final: of its last row.
        ntk_drift_percent: ‖K_T − K_0‖/‖K_0‖.
        estimates: L_K, L_J, R and μ from its probes.
        certified: what is proved.
        path: what is proved or estimated along the path; None, with ``path_reason``, where nothing is.
        window, pl_ratio, pl_ratio_star: the PL ratio's window and envelopes; None and empty without gradient norms.
        rate: the fitted law; None where the rows are too few.
        noise: of mini-batch gradients, None where the log tells none; noise_floor: what they predict.
        prediction: the end of the run as the kernel at its start predicts it, where that was kept.
        dropped_rows: rows left out, by reason.
    """

    run: str
    manifest: Manifest
    steps: int
    seconds: float | None
    loss: LossRange
    probe: ProbeFacts
    lambda_min: LambdaMin
    lambda_max: Ends
    drift_final: float | None
    ntk_drift_percent: float | None
    estimates: Estimates
    certified: Certified
    path: PathFigures | None
    path_reason: str
    window: Window | None
    pl_ratio: Envelope
    pl_ratio_star: Envelope
    rate: RateFit | None
    noise: BatchNoise | None
    noise_floor: NoiseFloor | None
    prediction: PredictedEnd | None
    sharpness: SharpnessRange
    dropped_rows: dict[str, int]

    @property
    def parameters(self) -> int | None:
        """P."""
        return self.manifest.parameters

    @property
    def lr(self) -> float | None:
        """η."""
        return self.manifest.optimizer.lr

    @property
    def l_k_r(self) -> float | None:
        """L_K R, with L_K from the probes."""
        l_k = self.estimates.l_k
        return None if l_k is None else l_k * (self.estimates.radius or 0.0)

    @property
    def verdict(self) -> str:
        """One sentence on compatibility (H3)."""
        holds, product, lambda_0 = self.estimates.compatible, self.l_k_r, self.estimates.lambda_0
        where = f"on a subset of {self.probe.size} samples, " if self.probe.subset else ""
        if self.manifest.loss.no_ball:
            return self.manifest.loss.no_ball
        if holds is None or product is None or lambda_0 is None:
            return "compatibility unknown: the probes do not tell λ0 and L_K"
        if not holds:
            by = f"a factor {product / lambda_0:.3g}" if lambda_0 > 0 else "which is not positive"
            return (
                f"{where}the compatibility condition L_K R < λ0 fails ({product:.3g} against {lambda_0:.3g}, "
                f"{by}): the bound μ = 2(λ0 − L_K R) is vacuous for this run"
            )
        return (
            f"{where}compatibility holds with the estimated L_K ({product:.3g} < {lambda_0:.3g}); "
            "as L_K is only bounded from below by the probes, nothing is certified"
        )

    @property
    def verdict_along(self) -> str:
        """One sentence on the region along the path (docs/theory.md, section 9)."""
        path = self.path
        if path is None:
            return f"not certified: {self.path_reason}"
        if not path.certified or path.mu_path is None:
            return f"not certified: {path.why_estimate or 'no piece of the path has a positive bound'}"
        rate = "" if path.rate_proved is None else f", linear rate proved from step {path.rate_from_step} on"
        whose = "" if path.confirmed else " (a path that is not known to be that of the run)"
        return f"{path.covered} is certified locally PL{whose}, μ = {path.mu_path:.4g}{rate}"

    def to_dict(self) -> dict[str, Any]:
        """summary.json, and the JSON of ``lplr train``; a missing value is None."""
        m, e = self.manifest, self.estimates
        cleaned: dict[str, Any] = plain(
            {
                "command": "train",
                "schema_version": SCHEMA_VERSION,
                "run": self.run,
                "status": m.status,
                "normalisation": {
                    "loss": m.loss.formula,
                    "loss_name": m.loss.name,
                    "loss_scale": m.loss.scale,
                    **NORMALISATION,
                },
                "model": dict(m.model),
                "data": {"source": m.data.source, "n": m.data.n, "outputs": m.data.outputs},
                "optimizer": {k: getattr(m.optimizer, k) for k in ("name", "lr", "lr_rule", "momentum", "schedule")},
                "steps": self.steps,
                "seconds": self.seconds,
                "loss": asdict(self.loss),
                "probe": asdict(self.probe),
                "lambda_min": asdict(self.lambda_min),
                "lambda_max": asdict(self.lambda_max),
                "drift": {"max": e.radius, "final": self.drift_final},
                "ntk_drift_percent": self.ntk_drift_percent,
                "lipschitz": {"L_K_estimated": e.l_k, "L_J_estimated": e.l_j},
                "compatibility": {"L_K_R": self.l_k_r, "lambda_0": e.lambda_0, "holds": e.compatible},
                "mu_estimated": e.mu_kernel,
                "mu_estimated_jacobian": e.mu_jacobian,
                **self.certified.to_dict(),
                "path": None if self.path is None else self.path.to_dict(),
                "path_reason": self.path_reason or None,
                "window": None if self.window is None else self.window.to_dict(),
                "pl_ratio": self.pl_ratio.to_dict(),
                "pl_ratio_star": self.pl_ratio_star.to_dict(),
                "rate": None if self.rate is None else self.rate.to_dict(),
                "noise": None if self.noise is None else self.noise.to_dict(),
                "noise_floor": None if self.noise_floor is None else self.noise_floor.to_dict(),
                "prediction": None if self.prediction is None else self.prediction.to_dict(),
                "sharpness": asdict(self.sharpness),
                "dropped_rows": self.dropped_rows,
                "verdict": self.verdict,
                "verdict_along": self.verdict_along,
            }
        )
        return cleaned


def summarize(run: RunDirectory, certified: Certified | None = None, path_reason: str = PATH_NOT_ASKED) -> Summary:
    """All figures of a run with at least one logged step.

    Args:
        run: the run.
        certified: from :func:`lplr_cli.analysis.certified_columns`; None keeps what summary.json has for the same
            steps.
        path_reason: why the path has no certificate, where it has none.

    Raises:
        InputError: no readable log or manifest.
    """
    manifest, log, probes, path = run.manifest(), run.log(), run.probes(), kept_path(run)
    series, floor = clean_series(log), kept_floor(run)
    facts = RunFacts(
        loss_scale=manifest.loss.squared_scale,
        exact=manifest.exact,
        sharpness=probe_pairs(probes, "sharpness"),
        **_noise_facts(manifest, floor),
    )
    ratio, rate = _diagnosed(series, facts)
    steps = int(log["step"].iloc[-1]) if len(log) else 0
    return Summary(
        run=str(run.path),
        manifest=manifest,
        steps=steps,
        seconds=_value(log, "seconds", -1),
        loss=LossRange(float(series.loss[0]), float(series.loss[-1]), float(series.loss.min())),
        probe=_probe_facts(probes, manifest.data.n),
        lambda_min=_lambda_min(probes, manifest.data.n),
        lambda_max=Ends(_value(probes, "lambda_max", 0), _value(probes, "lambda_max", -1)),
        drift_final=_value(log, "drift", -1),
        ntk_drift_percent=_ntk_drift(probes),
        estimates=estimate_constants(log, probes, manifest.loss.squared_scale),
        certified=certified or _kept_certificate(run, manifest, steps),
        path=path,
        path_reason="" if path is not None else path_reason,
        window=None if ratio is None else ratio.window,
        pl_ratio=_EMPTY if ratio is None else ratio.pl_ratio,
        pl_ratio_star=_EMPTY if ratio is None else ratio.pl_ratio_star,
        rate=None if rate is None else rate.fit,
        noise=batch_noise(series, facts),
        noise_floor=floor,
        prediction=kept_prediction(run),
        sharpness=_sharpness([v for _, v in facts.sharpness], manifest.optimizer.lr),
        dropped_rows=series.dropped,
    )


def summary_of(run: RunDirectory) -> Summary:
    """The figures of a run, made from its logs, and kept in summary.json where a run that has ended lacks them.

    A process that is killed after the last row writes no summary, and a recorder never does: whoever reads the run next
    does it for them, where the directory may be written.

    Raises:
        InputError: as :func:`summarize`.
    """
    summary = summarize(run)
    if summary.manifest.status != "running":
        with contextlib.suppress(OutputError):
            run.write_summary(summary.to_dict(), replace=False)
    return summary


def run_facts(run: RunDirectory, summary: Summary) -> RunFacts:
    """What diagnostics want to know of a run beside its log; unknown where the run does not tell."""
    probes, manifest = run.probes(), summary.manifest
    eta, _ = plain_step(manifest, run.log())
    return RunFacts(
        loss_scale=manifest.loss.squared_scale,
        loss_name=manifest.loss.name,
        exact=manifest.exact,
        mu_estimated=summary.estimates.mu_kernel,
        mu_certified=summary.certified.mu,
        mu_certified_reason=summary.certified.reason,
        certified_radius=summary.certified.radius,
        **_path_facts(run, summary),
        sharpness=probe_pairs(probes, "sharpness"),
        # The identities hold for the kernel of all samples and outputs.
        residual_rayleigh=[] if summary.probe.subset else probe_pairs(probes, "residual_rayleigh"),
        kernel_gradient=[] if summary.probe.subset else probe_pairs(probes, KERNEL_GRADIENT),
        eta=eta,
        momentum=manifest.optimizer.momentum,
        **_noise_facts(manifest, summary.noise_floor),
    )


def _noise_facts(manifest: Manifest, floor: NoiseFloor | None) -> dict[str, Any]:
    """What is known of the mini-batches and of their noise."""
    batches, size = manifest.batches, manifest.optimizer.batch_size
    variance = None if size is None else 1 / size
    return {
        "batch_size": size,
        "batch_variance": variance if batches is None else batches.variance,
        "neighbour_share": 1.0 if batches is None else batches.neighbour_share,
        "noise_floor": None if floor is None else floor.floor,
        "noise_read_at": None if floor is None else floor.at,
    }


def _path_facts(run: RunDirectory, summary: Summary) -> dict[str, Any]:
    """What is proved along the path; nothing for an estimate, or for a path that is not known to be the run's."""
    path = summary.path
    if path is None or not (path.certified and path.confirmed):
        return {}
    rows = kept_rows(run)
    around = [(float(s), float(m)) for s, m in zip(rows["step"], rows["mu_star"], strict=True)]
    return {
        "mu_path": path.mu_path,
        "mu_path_star": path.mu_path_star,
        "path": around,
        "rate_path": path.rate_proved,
        "rate_path_from": path.rate_from_step,
    }


def _diagnosed(series: LossSeries, facts: RunFacts) -> tuple[PLRatio | None, Convergence | None]:
    ratio = analyse_pl_ratio(series, facts=facts) if series.has_gradients and len(series.loss) > 1 else None
    rate = analyse_rate(series, facts=facts) if len(series.loss) >= MIN_POINTS else None
    return ratio, rate


def _value(frame: pd.DataFrame, column: str, row: int) -> float | None:
    if frame.empty or column not in frame.columns:
        return None
    value = frame[column].iloc[row]
    return None if pd.isna(value) else float(value)


def probe_pairs(probes: pd.DataFrame, column: str) -> list[tuple[float, float]]:
    """(step, value) of each probe that has one."""
    if probes.empty or column not in probes.columns:
        return []
    known = probes[["step", column]].dropna()
    return [(float(step), float(value)) for step, value in known.itertuples(index=False)]


def _probe_facts(probes: pd.DataFrame, n: int | None) -> ProbeFacts:
    if probes.empty:
        return ProbeFacts(None, False, None, 0)
    size = int(probes["probe_size"].iloc[0])
    return ProbeFacts(size, n is None or size < n, str(probes["outputs"].iloc[0]), len(probes))


def _lambda_min(probes: pd.DataFrame, n: int | None) -> LambdaMin:
    initial = _value(probes, "lambda_min", 0)
    upper = None if initial is None or n is None else initial * int(probes["probe_size"].iloc[0]) / n
    return LambdaMin(initial, _value(probes, "lambda_min", -1), _value(probes, "lambda_min_lower", 0), upper)


def _ntk_drift(probes: pd.DataFrame) -> float | None:
    change, top = _value(probes, "ntk_change", -1), _value(probes, "lambda_max", 0)
    return None if change is None or not top else 100 * change / top


def _sharpness(values: Sequence[float], lr: float | None) -> SharpnessRange:
    if not values:
        return SharpnessRange(None, None, None, None)
    top = max(values)
    return SharpnessRange(values[0], values[-1], top, None if lr is None else lr * top / 2)


def _kept_certificate(run: RunDirectory, manifest: Manifest, steps: int) -> Certified:
    """What an earlier summary of the very same steps had proved, for a loss that it can be proved for."""
    kept = run.summary() or {}
    mu, radius, reason = (kept.get(key) for key in NOT_ASKED.to_dict())
    right = all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in (mu, radius))
    if manifest.loss.squared_scale is None or kept.get("steps") != steps or not right or not isinstance(reason, str):
        return NOT_ASKED
    return Certified(mu, radius, reason)
