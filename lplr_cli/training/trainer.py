"""Gradient descent and mini-batch SGD on flat parameters, one point of the path after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lplr_cli.data import Dataset
from lplr_cli.errors import InputError, first_line
from lplr_cli.losses import Loss
from lplr_cli.models import DTYPES, build_model, check_outputs
from lplr_cli.ntk import Network
from lplr_cli.runs.checkpoint import Checkpoint
from lplr_cli.training.config import TrainConfig
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient, share_of_loss
from lplr_cli.training.noise import MAX_PARTS, MIN_PARTS, trace_of_noise

# Splits for the noise are drawn apart from the epochs' orders.
_SPLIT = 1 << 31


def resolve_device(name: str) -> torch.device:
    """The torch device, checked to exist.

    Raises:
        InputError: unknown or absent device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} is not there", "use cpu, or cuda where torch sees a GPU") from error
    return device


@dataclass(frozen=True)
class Point:
    """Where the path stands before the update of ``step``.

    Attributes:
        step: updates made.
        epoch: passes over the data made.
        loss: L over all samples, where it was computed.
        grad_norm_sq: ||∇L||² over all samples, likewise.
        accuracy: share of samples classified right, likewise; None where the loss is of no classes.
        drift: ||θ - θ_0||.
        lr: step size of the update to come; None after the last one.
        noise_trace: tr Σ of single samples' gradients, where mini-batches train and L was computed.
    """

    step: int
    epoch: int
    loss: float | None
    grad_norm_sq: float | None
    accuracy: float | None
    drift: float
    lr: float | None
    noise_trace: float | None = None

    @property
    def is_last(self) -> bool:
        """Whether no update follows."""
        return self.lr is None


@dataclass(frozen=True)
class End:
    """Why the path ends: ``finished``, ``interrupted`` or ``diverged``, and what happened, for the last two."""

    status: str
    message: str = ""


# What is told of each point, in order; the first that gives an End ends the run there.
Observer = Callable[[Point], End | None]


class Trainer:
    """State of one run in memory: data, module, flat parameters, momentum.

    Args:
        config: with the step size settled before :meth:`descend`.
        dataset: as ``config`` names it.

    Raises:
        InputError: a device that is not there, or a model that does not fit the data.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self.loss = Loss(config.loss)
        self.device = resolve_device(config.device)
        dtype = DTYPES[config.dtype]
        self.inputs, self.targets = dataset.tensors(dtype, self.device)
        self.loss.check_targets(self.targets)
        shape = dataset.inputs.shape[1:]
        self.module: nn.Module = build_model(config.model, shape, dataset.outputs, seed=config.seed, dtype=dtype)
        # Training and probing see one deterministic function of one sample: no dropout, fixed running statistics.
        self.module.to(self.device).eval()
        check_outputs(self.module, dataset)
        self.flat = FlatParameters(self.module)
        self.momentum = torch.zeros_like(self.flat.theta) if config.momentum else None
        self.steps_per_epoch = config.steps_per_epoch(dataset.n)
        self.total = config.total_steps(dataset.n)
        self._reference = self.flat.theta.clone()
        self.accuracy: float | None = None

    def network(self) -> Network:
        """The module at the present θ, for curvature computations in float64."""
        return Network.from_module(self.module, dtype=torch.float64, device=self.device)

    def descend(self, first: int, observers: Iterable[Observer]) -> tuple[int, End]:
        """From ``first`` to the last step, or to the one where an observer ends it; every point is told to all.

        Returns:
            The step at which it ended, and why.
        """
        watching = list(observers)
        for step in range(first, self.total + 1):
            point = self.point(step)
            for observe in watching:
                end = observe(point)
                if end is not None:
                    return step, end
            if point.lr is not None:
                if self.config.optimizer == "sgd":
                    self.batch_gradient(step)
                self.update(point.lr)
        return self.total, End("finished")

    def point(self, step: int) -> Point:
        """Where the path stands: exact values at each step of gradient descent, and at each epoch's end of SGD."""
        last = step == self.total
        exact = self.config.optimizer == "gd" or step % self.steps_per_epoch == 0 or last
        loss = self.full_gradient() if exact else None
        square = self.flat.grad_norm_sq() if exact else None
        return Point(
            step=step,
            epoch=step // self.steps_per_epoch,
            loss=loss,
            drift=self.flat.drift(self._reference),
            grad_norm_sq=square,
            accuracy=self.accuracy if exact else None,
            lr=None if last else self.lr_at(step),
            noise_trace=None if square is None or self.steps_per_epoch == 1 else self.noise_trace(step, square),
        )

    def noise_trace(self, step: int, square: float) -> float:
        """tr Σ from the gradients of disjoint random batches at the present θ, unbiased; see :func:`trace_of_noise`.

        Args:
            step: of the point; the split follows from it and the seed alone.
            square: ||∇L||² over all samples.
        """
        n = self.dataset.n
        count = min(n, max(MIN_PARTS, min(self.steps_per_epoch, MAX_PARTS)))
        order = torch.randperm(n, generator=torch.Generator().manual_seed((self.config.seed << 32) + _SPLIT + step))
        sizes, squares = [], []
        for chosen in order.to(self.device).chunk(count):
            self.flat.grad.zero_()
            share = share_of_loss(self.loss, self.module, self.inputs[chosen], self.targets[chosen], len(chosen))
            share.backward()  # type: ignore[no-untyped-call]
            sizes.append(len(chosen))
            squares.append(self.flat.grad_norm_sq())
        return trace_of_noise(sizes, squares, square)

    def full_gradient(self) -> float:
        """∇L over all samples into ``flat.grad``; returns L. Micro-batches bound the memory."""
        self.flat.grad.zero_()
        total = accumulate_gradient(self.loss, self.module, self.inputs, self.targets, self.config.micro_batch)
        self.accuracy = total.accuracy
        return total.loss

    def batch_gradient(self, step: int) -> None:
        """The gradient of the mini-batch of ``step`` into ``flat.grad``.

        The order of an epoch follows from seed and epoch alone, so that a resumed run repeats it.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed((self.config.seed << 32) + epoch)
        order = torch.randperm(self.dataset.n, generator=generator)
        size = self.config.batch_size
        chosen = order[position * size : (position + 1) * size].to(self.device)
        self.flat.grad.zero_()
        loss = share_of_loss(self.loss, self.module, self.inputs[chosen], self.targets[chosen], len(chosen))
        loss.backward()  # type: ignore[no-untyped-call]

    def lr_at(self, step: int) -> float:
        """Step size of the update of ``step``."""
        lr = self.config.lr
        assert lr is not None
        if self.config.schedule == "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * step / self.total))
        return lr

    def update(self, lr: float) -> None:
        """θ ← θ - lr g, or with momentum v ← m v + g, θ ← θ - lr v."""
        with torch.no_grad():
            if self.momentum is None:
                self.flat.theta.add_(self.flat.grad, alpha=-lr)
            else:
                self.momentum.mul_(self.config.momentum).add_(self.flat.grad)
                self.flat.theta.add_(self.momentum, alpha=-lr)

    def checkpoint(self, step: int) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            model=self.config.model,
            data=self.dataset.spec,
            data_sha256=self.dataset.fingerprint,
            input_shape=tuple(self.dataset.inputs.shape[1:]),
            outputs=self.dataset.outputs,
            dtype=self.config.dtype,
            seed=self.config.seed,
            step=step,
            parameters=self.flat.state(),
            optimizer={} if self.momentum is None else {"momentum": self.momentum},
            rng=torch.get_rng_state(),
            loss_scale=self.loss.scale if self.loss.name == "squared" else None,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``.

        Raises:
            InputError: it belongs to another model, or is damaged.
        """
        self.flat.load(checkpoint.parameters)
        try:
            if self.momentum is not None and "momentum" in checkpoint.optimizer:
                self.momentum.copy_(checkpoint.optimizer["momentum"])
            if checkpoint.rng is not None:
                torch.set_rng_state(checkpoint.rng)
        except RuntimeError as error:
            raise InputError(
                f"the checkpoint of step {checkpoint.step} does not fit ({first_line(error)})",
                "it belongs to another run",
            ) from error

    def begin_at(self, start: dict[str, Tensor]) -> None:
        """Measure the drift from θ_0 = ``start``."""
        self._reference = self.flat.flattened(start).clone()
