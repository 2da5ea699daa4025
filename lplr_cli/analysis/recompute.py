"""Loss and gradient norm of checkpoints, computed afresh: for runs whose log has none."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.errors import InputError
from lplr_cli.runs import RunDirectory
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import accumulate_gradient


def recompute_gradients(
    run: RunDirectory,
    progress: Callable[[int, int], None] | None = None,
    micro_batch: int = 1024,
    source: Source = OWN,
) -> pd.DataFrame:
    """Exact full-data loss and ||∇L||² at every checkpoint, in float64: a row a checkpoint (step, loss, grad_norm_sq).

    Of the loss that the run had, which must be known.

    Args:
        run: with checkpoints.
        progress: called with (done, total) after each.
        micro_batch: samples at a time, which bounds the memory.
        source: what the user says of a run that does not tell its model or data.

    Raises:
        InputError: no checkpoint, a loss that is not known, or data that have changed.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise InputError(f"{run.path} has neither gradient norms nor checkpoints", "log ||grad L||^2 beside the loss")
    facts = run.manifest().loss
    loss = facts.known
    if loss is None:
        raise InputError(
            f"{run.path} has no gradient norms, and those of its loss cannot be computed ({facts.label})",
            "log ||grad L||^2 beside the loss",
        )
    subject = open_subject(run.path, source, step=steps[0])
    module = subject.module.to(torch.float64)
    flat = FlatParameters(module)
    inputs, targets = subject.dataset.tensors()
    rows = []
    for done, step in enumerate(steps, start=1):
        subject.move_to(run, step)
        flat.grad.zero_()
        value = accumulate_gradient(loss, module, inputs, targets, micro_batch).loss
        rows.append({"step": step, "loss": value, "grad_norm_sq": flat.grad_norm_sq()})
        if progress is not None:
            progress(done, len(steps))
    return pd.DataFrame(rows)
