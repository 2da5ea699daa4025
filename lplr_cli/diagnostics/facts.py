"""What is known of a run beside its log: the constants of the theory and its probes, where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Facts that a log alone does not tell; all unknown by default.

    Attributes:
        loss_scale: s of the squared loss (theory.md section 1); None for another loss, or an unknown one.
        loss_name: ``squared`` or another; None when unknown.
        exact: whether losses and gradient norms are known to be those of all data; None when nothing is known.
        mu_estimated: 2s(λ0 − L_K R) with constants measured along the run.
        mu_certified: proved for the ball that the run stays in.
        mu_certified_reason: why there is none.
        mu_path, mu_path_star: proved along the path of the run, relative to the infimum of its tube and with L* = 0.
        rate_path: L − L* of that tube is proved to shrink by this at every step from ``rate_path_from`` on.
        path: (step, μ with L* = 0 that is proved around this step, 0 where nothing is) for each step of the path.
        certified_radius: largest radius with a proved μ > 0.
        sharpness: (step, largest eigenvalue of the Hessian) a probe.
        residual_rayleigh: (step, r'Kr/r'r) a probe on all samples.
        kernel_gradient: (step, q̃ᵀKq̃) a probe on all samples, q̃ the gradient of any loss in the outputs over √n.
        eta: constant step size of full-batch gradient descent without momentum, else None: theory's rate is for that.
        momentum: of the optimiser, None when unknown.
        batch_size: of mini-batches. batch_variance: of a batch's gradient, in multiples of tr Σ.
        neighbour_share: the variance of a batch's gradient in parts of what two neighbouring batches tell of it: 1 −
            b/n in reshuffled epochs (theory.md section 13), 1 where n is not known.
        noise_floor: predicted E[L − L*] that the noise of the batches keeps up. noise_read_at: for which losses.
    """

    loss_scale: float | None = None
    loss_name: str | None = None
    exact: bool | None = None
    mu_estimated: float | None = None
    mu_certified: float | None = None
    mu_certified_reason: str | None = "a log alone has no network to certify"
    mu_path: float | None = None
    mu_path_star: float | None = None
    rate_path: float | None = None
    rate_path_from: int | None = None
    path: Sequence[tuple[float, float]] = ()
    certified_radius: float | None = None
    sharpness: Sequence[tuple[float, float]] = ()
    residual_rayleigh: Sequence[tuple[float, float]] = ()
    kernel_gradient: Sequence[tuple[float, float]] = ()
    eta: float | None = None
    momentum: float | None = None
    batch_size: int | None = None
    batch_variance: float | None = None
    neighbour_share: float = 1.0
    noise_floor: float | None = None
    noise_read_at: str | None = None

    @property
    def other_loss(self) -> str | None:
        """The name of a loss that is known, and no squared one."""
        return None if self.loss_name == "squared" else self.loss_name

    @property
    def bound(self) -> str:
        """What ½||∇L||²/L along the log is to the ratio on the region: it takes gradients of all data to bound it."""
        if self.exact is False:
            return "gradients of mini-batches: estimate, biased upward by noise, no bound"
        where = "" if self.exact else ", where the log has gradients of all data"
        return f"valid from below, whatever L* is{where}"


NO_FACTS = RunFacts()
