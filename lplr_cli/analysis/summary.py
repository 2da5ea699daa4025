"""The summary of a run: every figure of the closing table, computed from its logs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lplr_cli.certificate import estimate_constants
from lplr_cli.diagnostics import (
    MIN_POINTS,
    NO_FACTS,
    RunFacts,
    analyse_pl_ratio,
    analyse_rate,
    clean_series,
    envelope,
)
from lplr_cli.runs import SCHEMA_VERSION, RunDirectory, plain

_EMPTY = envelope(np.empty(0))
NOT_ASKED = {
    "mu_certified": None,
    "certified_radius": None,
    "mu_certified_reason": "not computed: see lplr certify",
}


def _value(frame: pd.DataFrame, column: str, row: int) -> float | None:
    if frame.empty or column not in frame.columns:
        return None
    value = frame[column].iloc[row]
    return None if pd.isna(value) else float(value)


def _pairs(probes: pd.DataFrame, column: str) -> list[tuple[float, float]]:
    if probes.empty or column not in probes.columns:
        return []
    known = probes[["step", column]].dropna()
    return [(float(step), float(value)) for step, value in known.itertuples(index=False)]


def _kept_certificate(run: RunDirectory, log: pd.DataFrame) -> dict[str, Any]:
    """What an earlier summary of the very same steps had proved."""
    kept = run.summary()
    if kept is None or not len(log) or kept.get("steps") != int(log["step"].iloc[-1]):
        return NOT_ASKED
    return {key: kept.get(key, value) for key, value in NOT_ASKED.items()}


def run_facts(run: RunDirectory, summary: dict[str, Any] | None) -> RunFacts:
    """What diagnostics want to know of a run beside its log; unknown where the run does not tell."""
    if summary is None:
        return NO_FACTS
    probes, optimizer = run.probes(), run.manifest().optimizer
    return RunFacts(
        loss_scale=summary["normalisation"]["loss_scale"],
        mu_estimated=summary["mu_estimated"],
        mu_certified=summary["mu_certified"],
        mu_certified_reason=summary["mu_certified_reason"],
        certified_radius=summary["certified_radius"],
        sharpness=_pairs(probes, "sharpness"),
        # The identity holds for the kernel of all samples and outputs.
        residual_rayleigh=[] if summary["probe"]["subset"] else _pairs(probes, "residual_rayleigh"),
        eta=optimizer.plain_step,
        momentum=optimizer.momentum,
    )


def summarize(run: RunDirectory, certified: dict[str, Any] | None = None) -> dict[str, Any]:
    """All figures of a run with at least one logged step, with stable keys; a missing value is None.

    Args:
        run: the run.
        certified: from :func:`lplr_cli.analysis.certified_columns`; None keeps what summary.json has for the same
            steps.

    Raises:
        InputError: no readable log.
    """
    manifest = run.manifest()
    log, probes = run.log(), run.probes()
    scale, n, optimizer = manifest.loss.squared_scale, manifest.data.n, manifest.optimizer
    lr = optimizer.lr
    series = clean_series(log)
    facts = RunFacts(loss_scale=scale, sharpness=_pairs(probes, "sharpness"))
    ratio = analyse_pl_ratio(series, facts=facts) if series.has_gradients and len(series.loss) > 1 else None
    enough = len(series.loss) >= MIN_POINTS
    rate = analyse_rate(series, facts=facts) if enough else None
    estimates = estimate_constants(log, probes, scale or 1.0)
    probe_size = None if probes.empty else int(probes["probe_size"].iloc[0])
    subset = probe_size is not None and (n is None or probe_size < n)
    initial = _value(probes, "lambda_min", 0)
    change = _value(probes, "ntk_change", -1)
    top = _value(probes, "lambda_max", 0)
    sharp = [v for v in (probes["sharpness"].tolist() if "sharpness" in probes else []) if v == v]
    # μ speaks of squared loss.
    reached = None if scale is None else estimates.mu_kernel
    summary: dict[str, Any] = {
        "command": "train",
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "status": manifest.status,
        "normalisation": {
            "loss": manifest.loss.formula,
            "loss_scale": scale,
            "ntk": "K = J J^T / n",
            "pl": "0.5 ||grad L||^2 >= mu (L - L*)",
        },
        "model": dict(manifest.model),
        "data": {
            "source": manifest.data.source,
            "n": n,
            "outputs": manifest.data.outputs,
        },
        "optimizer": {
            "name": optimizer.name,
            "lr": lr,
            "lr_rule": optimizer.lr_rule,
            "momentum": optimizer.momentum,
            "schedule": optimizer.schedule,
        },
        "steps": int(log["step"].iloc[-1]) if len(log) else 0,
        "seconds": _value(log, "seconds", -1),
        "loss": {"initial": float(series.loss[0]), "final": float(series.loss[-1]), "min": float(series.loss.min())},
        "probe": {
            "size": probe_size,
            "subset": subset,
            "outputs": None if probes.empty else str(probes["outputs"].iloc[0]),
            "count": len(probes),
        },
        "lambda_min": {
            "initial": initial,
            "final": _value(probes, "lambda_min", -1),
            "lower_initial": _value(probes, "lambda_min_lower", 0),
            # Interlacing (theory.md section 2): n λ_min(K) ≤ m λ_min(K_S) for a subset S of m samples.
            "upper_bound_full": None if initial is None or probe_size is None or not n else initial * probe_size / n,
        },
        "lambda_max": {"initial": top, "final": _value(probes, "lambda_max", -1)},
        "drift": {"max": estimates.radius, "final": _value(log, "drift", -1)},
        "ntk_drift_percent": None if change is None or not top else 100 * change / top,
        "lipschitz": {"L_K_estimated": estimates.l_k, "L_J_estimated": estimates.l_j},
        "compatibility": {
            "L_K_R": None if estimates.l_k is None else estimates.l_k * (estimates.radius or 0.0),
            "lambda_0": estimates.lambda_0,
            "holds": estimates.compatible,
        },
        "mu_estimated": reached,
        "mu_estimated_jacobian": None if scale is None else estimates.mu_jacobian,
        **(certified or _kept_certificate(run, log)),
        "window": None if ratio is None or ratio.window is None else ratio.window.to_dict(),
        "pl_ratio": _EMPTY.to_dict() if ratio is None else ratio.pl_ratio.to_dict(),
        "pl_ratio_star": _EMPTY.to_dict() if ratio is None else ratio.pl_ratio_star.to_dict(),
        "rate": None if rate is None else rate.fit.to_dict(),
        "sharpness": {
            "initial": sharp[0] if sharp else None,
            "final": sharp[-1] if sharp else None,
            "max": max(sharp) if sharp else None,
            "lr_over_stable": lr * max(sharp) / 2 if sharp and lr is not None else None,
        },
        "dropped_rows": series.dropped,
    }
    summary["verdict"] = _verdict(summary)
    cleaned: dict[str, Any] = plain(summary)
    return cleaned


def _verdict(s: dict[str, Any]) -> str:
    holds = s["compatibility"]["holds"]
    where = f"on a subset of {s['probe']['size']} samples, " if s["probe"]["subset"] else ""
    if holds is None:
        return "compatibility unknown: the probes do not tell lambda_0 and L_K"
    product, lambda_0 = s["compatibility"]["L_K_R"], s["compatibility"]["lambda_0"]
    if not holds:
        times = product / lambda_0 if lambda_0 > 0 else math.inf
        return (
            f"{where}the compatibility condition L_K R < lambda_0 fails ({product:.3g} against {lambda_0:.3g}, "
            f"a factor {times:.3g}): the bound mu = 2(lambda_0 - L_K R) is vacuous for this run"
        )
    return (
        f"{where}compatibility holds with the estimated L_K ({product:.3g} < {lambda_0:.3g}); "
        "as L_K is only bounded from below by the probes, nothing is certified"
    )
