"""Checks of the run itself, beside the theory; one function each, as in :mod:`lplr_cli.audit.judge`.

A check that a run gives no occasion for answers None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lplr_cli.analysis import LAZY
from lplr_cli.audit.evidence import Evidence
from lplr_cli.audit.findings import Finding, Status
from lplr_cli.audit.judge import positivity
from lplr_cli.diagnostics import surges
from lplr_cli.runs import BATCH_STATISTICS

# A loss this share of its start counts as interpolated.
INTERPOLATION = 1e-3
# Optimisers whose second moments tell what curvature they see.
_ADAM = ("adam", "adamw")
# Norms that tell whether one jumps, and spikes that are named.
FEWEST, MOST_SPIKES = 20, 5


def stable_step(e: Evidence) -> Finding:
    """The curvature against the largest one at which the optimiser is stable (theory.md section 13)."""
    elsewhere = _other_curvature(e)
    if elsewhere:
        return Finding("step_size", Status.UNKNOWN, None, 1.0, elsewhere)
    recorded = e.probes.stability(adaptive=bool(e.scope.adaptive))
    if recorded is not None:
        ratio, seen = recorded
        how = "λ_max(P^−½ H P^−½), as Adam sees it," if seen else "the sharpness"
        moving = "; an indicator, as P moves" if seen else ""
        return _stable(ratio, f"{how} reaches {ratio:.4g} of what the optimiser bears{moving}")
    if e.scope.no_path and e.scope.unknown_loss:
        return Finding("step_size", Status.UNKNOWN, None, 1.0, e.scope.unknown_loss)
    if e.scope.adaptive:
        return Finding("step_size", Status.UNKNOWN, None, 1.0, _unseen(e))
    sharp = e.probes.sharpness
    if sharp is None or e.lr is None:
        what = e.scope.no_network or "no probe measured the sharpness"
        if sharp is not None:
            bears = f"gradient descent is stable up to η = {2 / sharp:.4g}"
            what = f"the sharpness is {sharp:.4g}: {bears}; the step size is not known"
        return Finding("step_size", Status.UNKNOWN, None, 1.0, what)
    if e.stable is None:
        reason = "the momentum may be heavy-ball or Nesterov's, which bear different curvatures"
        return Finding("step_size", Status.UNKNOWN, None, 1.0, reason)
    ratio = sharp / e.stable
    plain = math.isclose(e.stable, 2 / e.lr)
    what = "η·sharpness/2 reaches" if plain else "with momentum, η·sharpness/(2 + 2β) reaches"
    return _stable(ratio, f"{what} {ratio:.4g}")


def _other_curvature(e: Evidence) -> str:
    """Why the Hessian of single samples is not what the steps meet; empty where it is."""
    if e.kinks:
        return f"{e.kinks} has kinks, where a step is too large whatever the Hessian says"
    if e.manifest is not None and e.manifest.config.get(BATCH_STATISTICS) is True:
        return "batch normalisation trains with the statistics of each batch, which no probe of single samples sees"
    return ""


def _unseen(e: Evidence) -> str:
    """Why nothing is known of the curvature that an adaptive optimiser sees; a probe tells that of Adam alone."""
    if e.manifest is None or e.manifest.optimizer.name not in _ADAM:
        return f"{e.scope.adaptive}, and what curvature it bears is not known here"
    return f"{e.scope.adaptive}, and no probe tells the curvature that it sees: record with data and probe_every"


def _stable(ratio: float, reason: str) -> Finding:
    return Finding("step_size", Status.ESTIMATED if ratio < 1 else Status.FAILS, ratio, 1.0, reason)


def positive(e: Evidence) -> Finding:
    """H1 again, among the checks."""
    return replace(positivity(e), key="lambda_min")


def window(e: Evidence) -> Finding | None:
    """A stable window, on which PL ratios are read."""
    if e.scope.no_path:
        return None
    if e.ratio is None and e.rate is not None:
        reason = "no gradient norms; see the window of the rate"
        return Finding("window", Status.UNKNOWN, None, None, reason)
    found = None if e.ratio is None else e.ratio.window
    if found is None:
        return Finding("window", Status.FAILS, None, None, "the rule leaves hardly a row")
    return Finding("window", Status.ESTIMATED, found.stop - found.start, None, found.explanation)


def interpolation(e: Evidence) -> Finding | None:
    """A loss near zero, so that L* = 0 may be taken."""
    if e.scope.no_path:
        return None
    share = float(e.series.loss.min() / e.series.loss[0])
    status = Status.ESTIMATED if share <= INTERPOLATION else Status.FAILS
    reason = f"the lowest loss is {share:.3g} of the first"
    return Finding("interpolation", status, share, INTERPOLATION, reason)


def descent(e: Evidence) -> Finding | None:
    """No step raises the loss; None for losses of mini-batches, which rise with the batch."""
    if e.exact is False or e.scope.no_path:
        return None
    loss, lost = e.series.loss, e.series.lost_from
    rises = int((np.diff(loss) > 0).sum())
    status = Status.ESTIMATED if rises == 0 else Status.FAILS
    reason = f"{rises:,} of {max(len(loss) - 1, 0):,} logged steps raise the loss"
    if lost is not None:
        reason += f"; the log ends without a finite loss, from step {lost:g} on"
        status = status if rises else Status.UNKNOWN
    return Finding("descent", status, float(rises), 0.0, reason)


def spikes(e: Evidence) -> Finding | None:
    """Gradient and update norms that jump, with their steps; None where too few are logged to tell."""
    parts, total = [], 0
    told = False
    for name, values in (("gradient", np.sqrt(e.series.grad_norm_sq)), ("update", e.series.update_norm)):
        found = surges(e.series.steps, values)
        told = told or int(np.isfinite(values).sum()) >= FEWEST
        total += len(found)
        if found:
            shown = ", ".join(f"{s.step:g} ({s.times:.2g} times)" for s in found[:MOST_SPIKES])
            more = f" and {len(found) - MOST_SPIKES} more" if len(found) > MOST_SPIKES else ""
            parts.append(f"{name} norm at step{'s' if len(found) > 1 else ''} {shown}{more}")
    if not told:
        return None
    if not total:
        reason = "no norm is thrice what it was before, beyond its scatter"
        return Finding("spikes", Status.ESTIMATED, 0.0, 0.0, reason)
    return Finding("spikes", Status.FAILS, float(total), 0.0, "; ".join(parts))


def noise(e: Evidence) -> Finding | None:
    """The signal of mini-batch gradients above their noise; None where the log tells no noise."""
    found = e.noise
    if found is None or found.end.snr is None:
        return None
    status = Status.ESTIMATED if found.end.snr >= 1 else Status.FAILS
    batch = "a batch" if found.batch_size is None else f"a batch of {found.batch_size:,}"
    reason = f"‖∇L‖² is {found.end.snr:.3g} of the noise of {batch} at the end"
    if found.end.snr == 0:
        reason = f"no signal is resolved above the noise of {batch} at the end"
    if found.end.scale is not None:
        reason += f", {found.end.scale:.3g} samples make both equal"
    if e.noise_floor is not None:
        reason += f"; the noise keeps the loss about {e.noise_floor:.3g} above L*"
    return Finding("noise", status, found.end.snr, 1.0, reason)


def lazy(e: Evidence) -> Finding | None:
    """The laziness error of the loss that the kernel at the start predicts (theory.md section 11).

    None where nothing predicts it: for a log or a checkpoint alone, another loss, Adam and mini-batches.
    """
    found = e.prediction
    scope = e.scope
    if found is None and (e.manifest is None or scope.no_path or scope.other_loss or scope.adaptive):
        return None
    if found is None or found.error is None:
        return Finding("lazy", Status.UNKNOWN, None, LAZY, e.no_prediction or "no finite loss to compare")
    answer, status = ("yes", Status.ESTIMATED) if found.lazy else ("no", Status.FAILS)
    reason = f"{answer}: the loss that K_0 predicts is off by up to a factor {math.exp(min(found.error, 700.0)):.4g}"
    if found.kernel_change is not None:
        reason += f"; K changes by {found.kernel_change:.2%}"
    return Finding("lazy", status, found.error, LAZY, reason)


CHECKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    stable_step,
    positive,
    window,
    interpolation,
    descent,
    spikes,
    noise,
    lazy,
)
