"""NTK probes of a run's checkpoints, after the fact."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.errors import InputError
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import RunDirectory
from lplr_cli.training.probes import Prober, ProbeSettings


def probe_checkpoints(
    run: RunDirectory,
    *,
    size: int | None = None,
    source: Source = OWN,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The probe log that the run would have, a row a checkpoint; the run directory is not changed.

    The sharpness is that of the run's own loss, and missing where that is not known.

    Args:
        run: with a checkpoint of its start.
        size: samples, the first ones; all by default.
        source: model and data of a run that does not tell them.
        memory: bytes for kernels.
        progress: called with (done, total) after each checkpoint.

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
        ProbeSettings(count, loss=run.manifest().loss.known, memory=memory),
    )
    rows = []
    for done, step in enumerate(steps, start=1):
        subject.move_to(run, step)
        state = dict(module.named_parameters())
        rows.append(prober.measure(step, {k: state[k].detach() for k in names}))
        if progress is not None:
            progress(done, len(steps))
    return pd.DataFrame(rows)
