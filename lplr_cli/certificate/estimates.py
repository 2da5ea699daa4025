"""Estimates of the constants of the certificates from probes along a run (theory.md section 3, end).

Changes measured between two points are lower bounds of the Lipschitz constants, so the μ made from them is an
estimate from above and never a certificate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Estimates:
    """Estimated constants of a run; None where the probes do not tell.

    Attributes:
        lambda_0: λ_min(K(θ_0)) on the probe's samples.
        l_k: largest ||K_t - K_0||_op / ||θ_t - θ_0||, a lower bound of L_K.
        l_j: largest ||J̃_t - J̃_0||_op / ||θ_t - θ_0||, a lower bound of L_J.
        radius: R, the largest drift of the run.
        mu_kernel: 2(λ_0 - L_K R), P's μ with these constants; negative when compatibility (H3) fails.
        mu_jacobian: 2(σ_0 - L_J R)², None when L_J R ≥ σ_0.
        compatible: whether L_K R < λ_0.
    """

    lambda_0: float | None
    l_k: float | None
    l_j: float | None
    radius: float | None
    mu_kernel: float | None
    mu_jacobian: float | None
    compatible: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def estimate_constants(log: pd.DataFrame, probes: pd.DataFrame, loss_scale: float = 1.0) -> Estimates:
    """Constants from the logs of a run.

    Args:
        log: with columns step and drift.
        probes: with columns step, lambda_min, ntk_change, jacobian_change.
        loss_scale: s of theory.md section 1; μ is scaled by it.
    """
    drift = log["drift"].to_numpy(dtype=np.float64)
    finite = drift[np.isfinite(drift)]
    radius = float(finite.max()) if len(finite) else None
    if probes.empty or not (probes["step"] == 0).any():
        return Estimates(None, None, None, radius, None, None, None)
    lambda_0 = float(probes.loc[probes["step"] == 0, "lambda_min"].iloc[0])
    at = probes.merge(log[["step", "drift"]], on="step")
    moved = at[at["drift"] > 0]
    if moved.empty or radius is None:
        return Estimates(lambda_0, None, None, radius, None, None, None)
    l_k = float((moved["ntk_change"] / moved["drift"]).max())
    l_j = float((moved["jacobian_change"] / moved["drift"]).max())
    sigma_0 = math.sqrt(lambda_0) if lambda_0 > 0 else 0.0
    slack = sigma_0 - l_j * radius
    return Estimates(
        lambda_0=lambda_0,
        l_k=l_k,
        l_j=l_j,
        radius=radius,
        mu_kernel=2 * loss_scale * (lambda_0 - l_k * radius),
        mu_jacobian=2 * loss_scale * slack * slack if slack > 0 else None,
        compatible=l_k * radius < lambda_0,
    )
