"""The recorder inside other people's trainers: thin shells, imported only when they are named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lplr_cli.errors import InputError
from lplr_cli.training.recorder import Recorder


def lightning_callback(out: str | Path, **options: Any) -> Any:
    """A ``lightning.pytorch`` callback that records the run (extra ``lightning``).

    Every optimiser step is a row: the loss that ``training_step`` returned (of the last micro-batch under gradient
    accumulation) and the gradient norm before clipping.

    Args:
        out: the run directory.
        **options: of :class:`lplr_cli.training.Recorder`.

    Raises:
        InputError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise InputError("the Lightning callback needs an extra", "pip install 'lplr[lightning]'") from error

    class LplrCallback(Callback):  # type: ignore[misc, unused-ignore]
        """Records a run of lplr."""

        recorder: Recorder | None = None
        loss: Any = None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.recorder = Recorder(pl_module, out, **options)

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            # Under accumulation Lightning has divided the loss already.
            self.loss = loss.detach() * trainer.accumulate_grad_batches

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            assert self.recorder is not None
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.recorder.record(self.loss, optimizer, scaler=scaler)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            assert self.recorder is not None
            self.recorder.close()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            if self.recorder is not None:
                self.recorder.__exit__(type(exception), exception, exception.__traceback__)

    return LplrCallback()


def transformers_callback(out: str | Path, **options: Any) -> Any:
    """A callback for Hugging Face's ``Trainer`` that records the run (extra ``transformers``).

    Every optimiser step is a row with its loss, whatever ``logging_steps`` is: the loss that the model returned, as it
    went into the gradient, summed over the micro-batches of an accumulated step. Gradient norm and drift are in every
    ``norms_every``-th row, beside that loss. Where the trainer clips the gradient, the norm before clipping is known
    only where it logs; it is missing elsewhere.

    A loss that the model does not return (label smoothing, a ``compute_loss`` of one's own, float16 scaling, a compiled
    model) is known only where the trainer logs, as a mean since the last time; gradient norm and drift are then in
    these rows, so set ``logging_steps=1`` to have them of the same parameters.

    Args:
        out: the run directory.
        **options: of :class:`lplr_cli.training.Recorder`.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError("the Trainer callback needs an extra", "pip install 'lplr[transformers]'") from error

    class LplrCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Records a run of lplr."""

        recorder: Recorder | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.recorder = Recorder(model, out, **options)
            self.losses = _ReturnedLosses(model)
            self.loss: float | None = None
            self.clipped = False

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.recorder is not None
            self.settle({})
            self.loss = None if args.fp16 else self.losses.take()
            norm = self.recorder.hold(kwargs.get("optimizer"), norms=self.loss is None)
            limit = args.max_grad_norm
            self.clipped = norm is not None and bool(limit) and norm >= (1 - 1e-3) * limit

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.recorder is not None and logs and "loss" in logs:
                self.settle(logs)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.recorder is not None
            self.settle({})
            self.losses.remove()
            self.recorder.close()

        def settle(self, logs: Any) -> None:
            """Write the row of the step that is held."""
            assert self.recorder is not None
            loss = float(logs["loss"]) if self.loss is None and "loss" in logs else self.loss
            known = float(logs["grad_norm"]) if logs.get("grad_norm") is not None else math.nan
            self.recorder.release(loss, grad_norm=known if self.clipped else None)
            self.loss, self.clipped = None, False

    return LplrCallback()


class _ReturnedLosses:
    """What a model that returns its own loss contributes to a step.

    The gradient that arrives at that loss says with which weight the trainer took it: one over the number of
    micro-batches, one where the model has normalised it already. None arrives where another loss is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._hook = model.register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
            value = loss.detach()
            loss.register_hook(lambda weight: self._parts.append((value, weight.detach())))  # type: ignore[no-untyped-call]

    def take(self) -> float | None:
        """The loss of the step that ends here; None where the model's own was not trained."""
        parts, self._parts = self._parts, []
        return sum(float(value * weight) for value, weight in parts) if parts else None

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()
