"""A run as the certificates want it: what was logged, beside what the manifest says of loss, steps and data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.certificate import Trajectory
from lplr_cli.runs import Manifest, RunDirectory


def plain_step(manifest: Manifest, log: pd.DataFrame) -> tuple[float | None, str]:
    """η where every step was θ ← θ − η∇L over all data, and else None with the reason.

    A schedule that nobody declared is constant where every step is logged with the same step size.

    Args:
        manifest: of the run.
        log: with step and lr.
    """
    why = manifest.optimizer.why_not_plain
    if why != "the schedule is not known":
        return manifest.optimizer.plain_step, why
    # The row after the last step has no step size.
    rows = log.iloc[:-1] if len(log) > 1 else log
    lr = rows["lr"].to_numpy(dtype=np.float64)
    every = np.array_equal(log["step"].to_numpy(), np.arange(len(log)))
    if every and len(lr) and np.isfinite(lr).all() and lr.min() == lr.max() > 0:
        return float(lr[0]), ""
    return None, why


def trajectory_of(run: RunDirectory) -> Trajectory:
    """What ``run`` logged and is known to be.

    Raises:
        InputError: a damaged run.
    """
    manifest, log = run.manifest(), run.log()
    eta, why = plain_step(manifest, log)

    def column(name: str) -> NDArray[np.float64]:
        return log[name].to_numpy(dtype=np.float64)

    return Trajectory(
        steps=column("step"),
        loss=column("loss"),
        drift=column("drift"),
        grad_norm_sq=column("grad_norm_sq"),
        lr=column("lr"),
        scale=manifest.loss.squared_scale,
        loss_label=manifest.loss.label,
        exact=manifest.exact,
        eta=eta,
        why_no_eta=why,
        dtype=manifest.dtype,
        # What a recorder was told of its data, nobody compared with what the loop used.
        data_known=not manifest.recorded and manifest.data.sha256 is not None,
        diverged=manifest.status == "diverged",
    )
