"""Which runs left the local regime, and the run that follows them with a smaller step.

A run has *left* when one of three measured things happened:

- its drift jumped: a later step moved the drift by more than twice what the first step did. In the local regime steps
  are η ||∇L||, which shrinks as the loss falls;
- its kernel is another one: ||K_T − K_0|| / ||K_0|| above :data:`NTK_DRIFT` at a probe;
- its step size exceeded 2/sharpness at a probe: the edge of stability.

The step of the run that follows is 1/sharpness, with the largest sharpness that the probes saw, and at most half of
the former.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

JUMP = 2.0
NTK_DRIFT = 0.25


def departures(log: pd.DataFrame, probes: pd.DataFrame, lr: float | None) -> list[str]:
    """What says that the run left the local regime, with its figures; empty when nothing does.

    Args:
        log: with step and drift.
        probes: with ntk_change, lambda_max and sharpness; may be empty.
        lr: step size.
    """
    found = []
    known = log[log["drift"].notna()]
    drift, step = known["drift"].to_numpy(dtype=np.float64), known["step"].to_numpy()
    if len(drift) > 2 and drift[1] > 0:
        moves = np.abs(np.diff(drift))
        worst = int(np.argmax(moves[1:])) + 1
        if not np.isfinite(moves).all() or moves[worst] > JUMP * moves[0]:
            found.append(
                f"drift jump at step {int(step[worst + 1])} ({moves[worst]:.3g}, the first step moved {moves[0]:.3g})"
            )
    if not probes.empty:
        share = float((probes["ntk_change"] / probes["lambda_max"].iloc[0]).max())
        if share > NTK_DRIFT:
            found.append(f"NTK drift {share:.0%}, above {NTK_DRIFT:.0%}")
        sharp = probes["sharpness"].dropna() if "sharpness" in probes else pd.Series(dtype=float)
        if lr is not None and len(sharp) and lr * float(sharp.max()) > 2:
            found.append(f"step size {lr:.3g} above 2/sharpness = {2 / float(sharp.max()):.3g}")
    return found


def smaller_step(lr: float | None, sharp: float | None) -> float | None:
    """The step size of the run that follows one with ``lr`` and the largest sharpness ``sharp``; None without lr."""
    if lr is None:
        return None
    if sharp is None or not math.isfinite(sharp) or sharp <= 0:
        return float(lr / 2)
    return float(min(1.0 / sharp, lr / 2))
