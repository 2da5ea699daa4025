"""Estimates of the constants of the certificates, from probes along a run and from ascent (theory.md section 3, end).

Changes measured between two points are lower bounds of the Lipschitz constants, so the μ made from them is an
estimate from above and never a certificate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lplr_cli.ntk import (
    DEFAULT_MEMORY,
    Network,
    empirical_ntk,
    evaluation_mode,
    jacobian_change_gram,
    operator_norm,
)


@dataclass(frozen=True)
class Estimates:
    """Estimated constants of a run; None where the probes do not tell.

    Attributes:
        lambda_0: λ_min(K(θ_0)) on the probe's samples.
        l_k: largest ||K_t - K_0||_op / ||θ_t - θ_0||, a lower bound of L_K.
        l_j: largest ||J̃_t - J̃_0||_op / ||θ_t - θ_0||, a lower bound of L_J.
        radius: R, the largest drift of the run.
        mu_kernel: 2s(λ_0 - L_K R), P's μ with these constants; negative when compatibility (H3) fails. None where s is
            not known, or the loss is no squared one.
        mu_jacobian: 2s(σ_0 - L_J R)², None also when L_J R ≥ σ_0.
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


def estimate_constants(log: pd.DataFrame, probes: pd.DataFrame, loss_scale: float | None) -> Estimates:
    """Constants from the logs of a run.

    Args:
        log: with columns step and drift.
        probes: with columns step, lambda_min, ntk_change, jacobian_change.
        loss_scale: s of theory.md section 1, by which μ is scaled; None for another loss, or an unknown one.
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
        mu_kernel=None if loss_scale is None else 2 * loss_scale * (lambda_0 - l_k * radius),
        mu_jacobian=None if loss_scale is None or slack <= 0 else 2 * loss_scale * slack * slack,
        compatible=l_k * radius < lambda_0,
    )


@dataclass(frozen=True)
class Sampled:
    """Estimated constants of a ball, from below.

    Attributes:
        l_j, l_k: of L_J and L_K.
        radius: of the ball.
        directions, ascents: random directions, and power steps from each.
    """

    l_j: float
    l_k: float
    radius: float
    directions: int
    ascents: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "L_J_sampled": self.l_j,
            "L_K_sampled": self.l_k,
            "radius": self.radius,
            "directions": self.directions,
            "ascents": self.ascents,
        }


def sampled_constants(
    module: nn.Module,
    inputs: Tensor,
    radius: float,
    *,
    names: list[str] | None = None,
    directions: int = 4,
    ascents: int = 4,
    samples: int = 256,
    memory: int = DEFAULT_MEMORY,
) -> Sampled:
    """Lower bounds of L_J and L_K on a ball, maximised over directions: estimates, for comparison with the bounds.

    From each random direction u power steps u ← ΔJᵀw / ||ΔJᵀw||, with ΔJ = J(θ_0 + R u) − J(θ_0) and w its largest
    left singular vector. For small R, where ΔJ is linear in u with a symmetric tensor, no step makes ||ΔJ|| smaller.

    Args:
        module: the network at θ_0.
        inputs: training inputs (n, …); the first ``samples`` of them are used, and a block of J̃ or K never changes by
            more than the whole.
        radius: how far to go in each direction.
        names: trained parameters.
        directions: how many random directions to start from.
        ascents: power steps from each.
        samples: see above.
        memory: bytes for the kernels.
    """
    base = Network.from_module(module, names=names)
    x = base.cast(inputs[:samples])
    share = len(x) / len(inputs)
    k0 = empirical_ntk(base, x, memory=memory).matrix
    generator = torch.Generator().manual_seed(20250729)
    l_j = l_k = 0.0
    for _ in range(directions):
        step = {k: torch.randn(p.shape, generator=generator, dtype=torch.float64) for k, p in base.params.items()}
        for ascent in range(ascents + 1):
            size = math.sqrt(sum(float(s.square().sum()) for s in step.values()))
            if not 0 < size < math.inf:
                break  # the Jacobian does not change along this direction
            moved = {k: p.detach() + radius / size * step[k].to(p) for k, p in base.params.items()}
            there = Network.from_module(module, values=moved, names=names)
            gram = jacobian_change_gram(there, base, x, memory=memory)
            values, vectors = torch.linalg.eigh(gram)
            l_j = max(l_j, math.sqrt(max(0.0, float(values[-1])) * share) / radius)
            l_k = max(l_k, operator_norm(empirical_ntk(there, x, memory=memory).matrix - k0) * share / radius)
            if ascent == ascents:
                break
            ahead, behind = (_weighted_gradient(network, x, vectors[:, -1]) for network in (there, base))
            step = {k: ahead[k] - behind[k] for k in step}
    return Sampled(l_j, l_k, radius, directions, ascents)


def _weighted_gradient(network: Network, x: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Jᵀw by parameter, for one number a row of J."""
    with torch.enable_grad(), evaluation_mode(network.module):
        leaves = {k: p.detach().requires_grad_() for k, p in network.params.items()}
        outputs = network.forward(x, leaves)
        found = torch.autograd.grad(outputs, list(leaves.values()), w.view_as(outputs), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
