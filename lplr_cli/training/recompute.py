"""Loss and gradient norm of checkpoints, computed afresh: for runs whose log has none."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from lplr_cli.errors import InputError
from lplr_cli.models import build_model
from lplr_cli.runs import RunDirectory
from lplr_cli.runs.checkpoint import Checkpoint
from lplr_cli.training.checkpoint_probe import open_checkpoint
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient


def recompute_gradients(
    run: RunDirectory, progress: Callable[[int, int], None] | None = None, micro_batch: int = 1024
) -> pd.DataFrame:
    """Exact full-data loss and ||∇L||² at every checkpoint, in float64: a row a checkpoint (step, loss, grad_norm_sq).

    Args:
        run: with checkpoints.
        progress: called with (done, total) after each.
        micro_batch: samples at a time, which bounds the memory.

    Raises:
        InputError: no checkpoint, or data that have changed.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise InputError(f"{run.path} has neither gradient norms nor checkpoints", "log ||grad L||^2 beside the loss")
    first, dataset = open_checkpoint(run.checkpoint_path(steps[0]))
    module = build_model(first.model, first.input_shape, first.outputs, dtype=torch.float64).eval()
    flat = FlatParameters(module)
    inputs, targets = (torch.from_numpy(a).to(torch.float64) for a in (dataset.inputs, dataset.targets))
    rows = []
    for done, step in enumerate(steps, start=1):
        checkpoint: Checkpoint = first if step == steps[0] else run.load(step)
        flat.load(checkpoint.parameters)
        flat.grad.zero_()
        loss = accumulate_gradient(module, inputs, targets, micro_batch)
        rows.append({"step": step, "loss": loss, "grad_norm_sq": flat.grad_norm_sq()})
        if progress is not None:
            progress(done, len(steps))
    return pd.DataFrame(rows)
