"""The recorder inside other people's trainers: thin shells, imported only when they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    Gradient norms are taken before each optimiser step. The trainer tells callbacks its loss only where it logs, as a
    mean since the last time, so set ``logging_steps=1`` to have every step.

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

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.recorder is not None
            self.recorder.hold(kwargs.get("optimizer"))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.recorder is not None and logs and "loss" in logs:
                self.recorder.release(float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.recorder is not None
            self.recorder.close()

    return LplrCallback()
