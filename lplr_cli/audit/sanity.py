"""Checks of the run itself, beside the theory; one function each, as in :mod:`lplr_cli.audit.judge`.

A check that a run gives no occasion for answers None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lplr_cli.audit.evidence import Evidence
from lplr_cli.audit.findings import Finding, Status
from lplr_cli.audit.judge import positivity

# A loss this share of its start counts as interpolated.
INTERPOLATION = 1e-3


def stable_step(e: Evidence) -> Finding:
    """η below 2/sharpness, the edge of stability of gradient descent."""
    sharp = e.probes.sharpness
    if e.scope.adaptive:
        return Finding("step_size", Status.UNKNOWN, None, 1.0, f"not asked: {e.scope.adaptive}")
    if sharp is None or e.lr is None:
        return Finding("step_size", Status.UNKNOWN, None, 1.0, "no probe measured the sharpness")
    product = e.lr * sharp / 2
    status = Status.ESTIMATED if product < 1 else Status.FAILS
    return Finding("step_size", status, product, 1.0, f"η·sharpness/2 reaches {product:.4g}")


def positive(e: Evidence) -> Finding:
    """H1 again, among the checks."""
    return replace(positivity(e), key="lambda_min")


def window(e: Evidence) -> Finding:
    """A stable window, on which PL ratios are read."""
    if e.ratio is None and e.rate is not None:
        reason = "no gradient norms; see the window of the rate"
        return Finding("window", Status.UNKNOWN, None, None, reason)
    found = None if e.ratio is None else e.ratio.window
    if found is None:
        return Finding("window", Status.FAILS, None, None, "the rule leaves fewer than three rows")
    return Finding("window", Status.ESTIMATED, found.stop - found.start, None, found.explanation)


def interpolation(e: Evidence) -> Finding:
    """A loss near zero, so that L* = 0 may be taken."""
    share = float(e.series.loss.min() / e.series.loss[0])
    status = Status.ESTIMATED if share <= INTERPOLATION else Status.FAILS
    reason = f"the lowest loss is {share:.3g} of the first"
    return Finding("interpolation", status, share, INTERPOLATION, reason)


def descent(e: Evidence) -> Finding:
    """No step raises the loss."""
    loss = e.series.loss
    rises = int((np.diff(loss) > 0).sum())
    status = Status.ESTIMATED if rises == 0 else Status.FAILS
    reason = f"{rises:,} of {max(len(loss) - 1, 0):,} logged steps raise the loss"
    return Finding("descent", status, float(rises), 0.0, reason)


def noise(e: Evidence) -> Finding | None:
    """The signal of mini-batch gradients above their noise; None where the log tells no noise."""
    found = e.noise
    if found is None or found.end.snr is None:
        return None
    status = Status.ESTIMATED if found.end.snr >= 1 else Status.FAILS
    batch = "a batch" if found.batch_size is None else f"a batch of {found.batch_size:,}"
    reason = f"‖∇L‖² is {found.end.snr:.3g} of the noise of {batch} at the end"
    if found.end.scale is not None:
        reason += f", {found.end.scale:.3g} samples make both equal"
    if e.noise_floor is not None:
        reason += f"; the noise keeps the loss about {e.noise_floor:.3g} above L*"
    return Finding("noise", status, found.end.snr, 1.0, reason)


CHECKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    stable_step,
    positive,
    window,
    interpolation,
    descent,
    noise,
)
