"""NTK probes of a run's checkpoints, after the fact."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.errors import InputError
from lplr_cli.linalg.tasks import Here, Tasks
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import RunDirectory
from lplr_cli.training.probes import Prober, ProbeSettings, Row


def probe_checkpoints(
    run: RunDirectory,
    *,
    size: int | None = None,
    source: Source = OWN,
    loss: Loss | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
    tasks: Tasks | None = None,
) -> pd.DataFrame:
    """The probe log that the run would have, a row a checkpoint; the run directory is not changed.

    The sharpness is that of the run's own loss, and missing where nobody tells it.

    Args:
        run: with a checkpoint of its start.
        size: samples, the first ones; all by default.
        source: model and data of a run that does not tell them.
        loss: of a run that does not tell it.
        memory: bytes for kernels, of each task.
        progress: called with (done, total) after each checkpoint.
        tasks: where probes run, a task a checkpoint; in this process by default.

    Raises:
        InputError: no checkpoint of the start, or a model or data that are missing or do not fit.
    """
    steps = run.checkpoint_steps()
    if 0 not in steps:
        raise InputError(f"{run.path} has no checkpoint of its start", "record step 0")
    subject = open_subject(run.path, source, step=0)
    module = subject.module.to(torch.float64)
    count = subject.dataset.n if size is None else min(size, subject.dataset.n)
    inputs, targets = subject.dataset.tensors()
    names = [k for k, p in module.named_parameters() if p.requires_grad]
    prober = Prober(
        module,
        {k: p.detach() for k, p in module.named_parameters()},
        inputs,
        targets,
        ProbeSettings(count, loss=run.manifest().loss.known or loss, memory=memory),
    )
    where = tasks or Here()
    # The kernel of the start is computed once.
    shared = where.submit(_prepared, where.share(prober))
    handles = []
    for step in steps:
        subject.move_to(run, step)
        state = dict(module.named_parameters())
        handles.append(where.submit(_row, shared, step, {k: state[k].detach() for k in names}))
        if tasks is None and progress is not None:
            progress(len(handles), len(steps))
    rows = []
    for handle in handles:
        rows += where.get([handle])
        if tasks is not None and progress is not None:
            progress(len(rows), len(steps))
    return pd.DataFrame(rows)


def _prepared(prober: Prober) -> Prober:
    prober.reference_kernel()
    return prober


def _row(prober: Prober, step: int, values: dict[str, Tensor]) -> Row:
    return prober.measure(step, values)
