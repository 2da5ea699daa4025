"""NTK probes of a network during or after training."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli import ntk
from lplr_cli.curvature import (
    LossCurvature,
    OptimizerState,
    PerSample,
    largest,
    per_sample,
    preconditioned,
    sharpness,
)
from lplr_cli.errors import InputError
from lplr_cli.losses import SQUARED, Loss
from lplr_cli.models import logits_alone
from lplr_cli.ntk import Kernel, Network
from lplr_cli.runs import KERNEL_GRADIENT, LARGEST_LOSS, PRECONDITIONED, STABLE

Row = dict[str, Any]
# Samples in one pass for the values of a loss.
_MICRO_BATCH = 4096


@dataclass(frozen=True)
class ProbeSettings:
    """What a probe measures.

    Attributes:
        size: samples, the first ones of the training set.
        outputs: ``full``, ``trace`` or an index.
        engine: see :func:`lplr_cli.ntk.empirical_ntk`.
        verify: whether the lower bound of λ_min is proved as well.
        sharpness: whether the sharpness of the loss over all samples is measured.
        loss: whose sharpness, a known one or values of the samples; None where neither is known, and no sharpness is.
        memory: bytes for work space.
    """

    size: int
    outputs: str | int = "full"
    engine: str = "auto"
    verify: bool = True
    sharpness: bool = True
    loss: Loss | PerSample | None = SQUARED
    memory: int = ntk.DEFAULT_MEMORY


class Prober:
    """Measures K at θ_t against K at the reference θ_0, in float64, on a fixed set of samples.

    Args:
        module: code of the forward pass.
        reference: θ_0 by name.
        inputs: all training inputs (n, …).
        targets: all training targets (n, C).
        settings: what to measure.
        labels: the targets as a loss that is not of lplr takes them; ``targets`` by default.
    """

    def __init__(
        self,
        module: nn.Module,
        reference: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        settings: ProbeSettings,
        labels: Tensor | None = None,
    ) -> None:
        self.module, self.settings = module, settings
        self.inputs, self.targets = inputs, targets
        self._labels = targets if labels is None else labels
        self.subset = inputs[: settings.size]
        # A copy: the module trains on while this stays.
        self._reference = {k: v.detach().to(torch.float64, copy=True) for k, v in reference.items()}
        self._kernel0: Kernel | None = None

    def network(self, values: dict[str, Tensor]) -> Network:
        """The module at θ = ``values`` in float64."""
        return Network.from_module(self.module, values=values, dtype=torch.float64, device=self.inputs.device)

    def _kernel(self, network: Network) -> Kernel:
        s = self.settings
        return ntk.empirical_ntk(
            network,
            self.subset,
            engine=s.engine,
            outputs=s.outputs,
            memory=s.memory,
            bound_rounding=s.verify,
        )

    def reference_kernel(self) -> Kernel:
        """K at θ_0, computed once."""
        if self._kernel0 is None:
            self._kernel0 = self._kernel(self.network(self._reference))
        return self._kernel0

    def measure(self, step: int, values: dict[str, Tensor], stepping: OptimizerState | None = None) -> Row:
        """One row of the probe log for θ = ``values``; of a module that answers with a record, its logits.

        Args:
            step: of the optimiser.
            values: θ by name.
            stepping: the optimiser there; what curvature it bears is then in the row, and the curvature that it sees
                where it is Adam.
        """
        with logits_alone(self.module):
            return self._measured(step, values, stepping)

    def _measured(self, step: int, values: dict[str, Tensor], stepping: OptimizerState | None) -> Row:
        begun = time.perf_counter()
        s = self.settings
        network = self.network(values)
        at_start = all(torch.equal(values[k].to(torch.float64), v) for k, v in self._reference.items())
        kernel = self.reference_kernel() if at_start else self._kernel(network)
        spectrum = ntk.spectrum(kernel.matrix, formation_error=kernel.formation_error)
        ntk_change = jacobian_change = 0.0
        if not at_start:
            ntk_change = ntk.operator_norm(kernel.matrix - self.reference_kernel().matrix)
            change = ntk.jacobian_change_gram(
                network,
                self.network(self._reference),
                self.subset,
                engine=s.engine,
                outputs=s.outputs,
                memory=s.memory,
            )
            jacobian_change = math.sqrt(max(0.0, ntk.operator_norm(change)))
        sharp = self._sharpness(network)
        return {
            "step": step,
            "probe_size": s.size,
            "outputs": str(s.outputs),
            "lambda_min": spectrum.lambda_min,
            "lambda_min_lower": spectrum.lambda_min_lower,
            "lambda_max": spectrum.lambda_max,
            "trace": spectrum.trace,
            "effective_rank": spectrum.effective_rank,
            "ntk_change": ntk_change,
            "jacobian_change": jacobian_change,
            "residual_rayleigh": self._rayleigh(network, kernel),
            KERNEL_GRADIENT: self._kernel_gradient(network, kernel),
            "sharpness": sharp,
            "engine": kernel.engine,
            "dtype": "float64",
            LARGEST_LOSS: self._largest_loss(network),
            **({} if stepping is None else self._as_seen(network, stepping)),
            "seconds": round(time.perf_counter() - begun, 4),
        }

    def _sharpness(self, network: Network) -> float | None:
        """λ_max of the Hessian; None without a loss, or for a function of somebody's that has none in float64."""
        s = self.settings
        if not s.sharpness or s.loss is None:
            return None
        try:
            return sharpness(network, self.inputs, self._labels, loss=s.loss).value
        except (InputError, RuntimeError, ValueError, TypeError):
            if isinstance(s.loss, Loss):
                raise
            return None

    def _as_seen(self, network: Network, stepping: OptimizerState) -> Row:
        """λ_max(P^(−½) H P^(−½)) of an adaptive optimiser, and the largest curvature at which it is stable."""
        row: Row = {STABLE: stepping.rule.threshold}
        loss, moments = self.settings.loss, stepping.second_moments
        if not isinstance(loss, Loss) or moments is None or not self.settings.sharpness:
            return row
        curvature = LossCurvature(network, self.inputs, self._labels, loss.values, memory=self.settings.memory)
        seen = preconditioned(lambda v: curvature.hessian(v) + stepping.shift * v, moments, stepping.epsilon)
        return {**row, PRECONDITIONED: largest(seen, curvature.size).value}

    def _largest_loss(self, network: Network) -> float | None:
        """max ℓ_i for scale 1 under a cross-entropy with hard labels; None for other losses."""
        loss = self.settings.loss
        if not isinstance(loss, Loss) or not loss.classifies:
            return None
        if not bool(((self.targets == 0) | (self.targets == 1)).all()):
            return None
        with torch.no_grad(), ntk.evaluation_mode(self.module):
            parts = zip(*(torch.split(t, _MICRO_BATCH) for t in (self.inputs, self.targets)), strict=True)
            values = [loss.values(network.forward(network.cast(x)), y.to(network.dtype)).max() for x, y in parts]
        return float(torch.stack(values).max()) / loss.scale

    def _kernel_gradient(self, network: Network, kernel: Kernel) -> float | None:
        """q̃ᵀK q̃ = ||∇L||² of the loss over the probe's samples (theory.md section 14), q̃ = ∇_f ℓ/√n; None unless
        outputs are full, and for a loss that is not known, or fails in float64.
        """
        loss = self.settings.loss
        if kernel.outputs != "full" or loss is None:
            return None
        with torch.no_grad(), ntk.evaluation_mode(self.module):
            f = network.forward(network.cast(self.subset))
        labels = self._labels[: len(f)].to(f.device)
        labels = labels.to(f.dtype) if labels.is_floating_point() else labels
        leaf = f.requires_grad_()
        try:
            with torch.enable_grad():
                total = per_sample(loss)(leaf, labels).sum()
                (q,) = torch.autograd.grad(total, leaf, materialize_grads=True)
        except (RuntimeError, ValueError, TypeError):
            if isinstance(loss, Loss):
                raise
            return None
        q = q.reshape(-1)
        return float(q @ (kernel.matrix @ q)) / len(f)

    def _rayleigh(self, network: Network, kernel: Kernel) -> float | None:
        """rᵀK r / ||r||² of the residual on the probe's samples; None unless outputs are full, the loss squared."""
        loss = self.settings.loss
        other = not isinstance(loss, Loss) or loss.name != "squared"
        if kernel.outputs != "full" or other:
            return None
        with torch.no_grad(), ntk.evaluation_mode(self.module):
            f = network.forward(network.cast(self.subset))
        targets = self.targets[: len(f)].to(f)
        if targets.shape != f.shape:
            return None
        r = (f - targets).reshape(-1)
        square = float(r @ r)
        return float(r @ (kernel.matrix @ r)) / square if square > 0 else None
