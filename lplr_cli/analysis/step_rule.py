"""How the optimiser of a run steps, as far as the run tells, and the curvature that its steps bear in words."""

from __future__ import annotations

import math
from dataclasses import replace

from lplr_cli.curvature import StepRule
from lplr_cli.runs import Manifest, RunDirectory


def unit_rule(manifest: Manifest) -> StepRule | str:
    """The rule of a run's optimiser with a step size of 1, or why it is not known."""
    optimizer = manifest.optimizer
    if optimizer.name not in ("gd", "sgd"):
        return f"the optimiser is {optimizer.name or 'not known'}"
    if optimizer.momentum is None or optimizer.weight_decay is None:
        return "momentum or weight decay is not known"
    if manifest.recorded and optimizer.momentum > 0:
        return "a recorded momentum may be heavy-ball or Nesterov's"
    return StepRule(1.0, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)


def rule_of_run(run: RunDirectory | None, step: int | None) -> StepRule | str:
    """How the optimiser steps at ``step``, or why that is not known."""
    if run is None:
        return "the checkpoint does not tell its optimiser"
    manifest = run.manifest()
    rule = unit_rule(manifest)
    if isinstance(rule, str):
        return rule
    optimizer = manifest.optimizer
    lr = optimizer.lr if optimizer.schedule == "constant" else _lr_at(run, step)
    if lr is None or not 0 < lr < math.inf:
        return "the step size is not known"
    return replace(rule, lr=lr)


def _lr_at(run: RunDirectory, step: int | None) -> float | None:
    """The step size that was logged at ``step``, or last before it: the end of a run has none."""
    log = run.log()
    known = log[log["lr"].notna()]
    before = known if step is None else known[known["step"] <= step]
    return float(before["lr"].iloc[-1]) if len(before) else None


def rule_name(run: RunDirectory | None) -> str:
    """The threshold of a run's steps in words, or why it is not known."""
    rule = rule_of_run(run, None)
    if isinstance(rule, str):
        return f"unknown: {rule}"
    return formula(rule)


def formula(rule: StepRule) -> str:
    """The threshold of :mod:`lplr_cli.curvature.stability` in words."""
    if rule.adaptive:
        decay = f" (2 − ηw)/2, w = {rule.weight_decay:g}" if rule.weight_decay else ""
        return f"(2 + 2β)/((1 − β)η){decay}, β = {rule.momentum:g}"
    decay = f" - {rule.weight_decay:g}" if rule.weight_decay else ""
    if rule.momentum == 0:
        return f"2/η{decay}"
    if rule.nesterov:
        return f"(2 + 2β)/((1 + 2β)η){decay}, β = {rule.momentum:g}"
    damped = f"((1 − {rule.dampening:g})η)" if rule.dampening else "η"
    return f"(2 + 2β)/{damped}{decay}, β = {rule.momentum:g}"
