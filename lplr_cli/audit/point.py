"""A checkpoint alone, of lplr or of anyone: one θ of which no path is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from lplr_cli.analysis import Subject, open_subject
from lplr_cli.audit.evidence import Evidence, Examination, Probes, equal_inputs
from lplr_cli.audit.scope import ENTROPIES, Scope
from lplr_cli.curvature import OptimizerState, optimizer_state
from lplr_cli.diagnostics import LossSeries, RunFacts, analyse_pl_ratio
from lplr_cli.errors import InputError
from lplr_cli.losses import Loss
from lplr_cli.models import parameter_count
from lplr_cli.runs import EXACT, DataFacts, LossFacts, Manifest, OptimizerFacts
from lplr_cli.runs.foreign_weights import read_file
from lplr_cli.training import Prober, ProbeSettings
from lplr_cli.training.objective import Objective

_NO_PATH = "a checkpoint has no path: record the run, or give its log"


def gather_point(path: Path, how: Examination, loss: Loss | None) -> Evidence:
    """Loss, gradient, kernel and curvature at one θ.

    Args:
        path: of the file.
        how: with what the user says of it.
        loss: what the file does not tell; without one, loss, gradient and curvature are not known.

    Raises:
        InputError: what cannot be opened; a loss that is not that of the file.
    """
    subject = open_subject(path, how.foreign)
    loss = _loss(subject, loss)
    found = optimizer_state(read_file(path), subject.module)
    state = None if isinstance(found, str) else found
    probes = _probe(subject, how, loss, state)
    series = _series(subject, loss)
    manifest = _manifest(subject, loss, state)
    facts = RunFacts(loss_scale=manifest.loss.squared_scale, loss_name=manifest.loss.name, exact=True)
    return Evidence(
        manifest=manifest,
        scope=_scope(manifest),
        series=series,
        ratio=analyse_pl_ratio(series, l_star="zero", facts=facts) if loss is not None else None,
        rate=None,
        probes=probes,
        estimates=None,
        proof=None,
        no_proof=_NO_PATH,
        eta=None,
        lr=manifest.optimizer.lr,
        stable=None,
        scale=manifest.loss.squared_scale,
        exact=True,
        why_singular=equal_inputs(subject.dataset),
        path=None,
        why_no_path=_NO_PATH,
        noise=None,
        noise_floor=None,
        prediction=None,
        no_prediction="one point makes no steps to predict",
    )


def _loss(subject: Subject, given: Loss | None) -> Loss | None:
    """That of the file, else the given one."""
    if subject.loss_scale is None:
        return given
    told = Loss("squared", subject.loss_scale)
    if given not in (None, told):
        raise InputError(f"{subject.path} tells its own loss, {told.formula}", "leave out --loss")
    return told


def _probe(subject: Subject, how: Examination, loss: Loss | None, state: OptimizerState | None) -> Probes:
    """One row; the module becomes float64."""
    n = subject.dataset.n
    size = min(how.probe_size or n, n)
    trained = {k: p.detach().double() for k, p in subject.module.named_parameters() if p.requires_grad}
    settings = ProbeSettings(size, loss=loss, memory=how.memory)
    prober = Prober(subject.module.double(), trained, *subject.dataset.tensors(), settings)
    return Probes(pd.DataFrame([prober.measure(0, trained, state)]), size == n, own=False)


def _series(subject: Subject, loss: Loss | None) -> LossSeries:
    """One row."""
    value = square = math.nan
    if loss is not None:
        objective = Objective(subject.module, *subject.dataset.tensors(), loss)
        value, gradient = objective(objective.flat.theta.clone())
        square = float(gradient.double().square().sum())
    unknown = np.full(1, np.nan)
    return LossSeries(
        np.zeros(1), np.array([value]), np.array([square]), unknown, unknown, unknown, unknown, unknown, {}, 0
    )


def _manifest(subject: Subject, loss: Loss | None, state: OptimizerState | None) -> Manifest:
    """What is known of a run of which this is a checkpoint."""
    facts = LossFacts(values=EXACT) if loss is None else LossFacts(loss.name, loss.formula, loss.scale, EXACT)
    optimizer = OptimizerFacts()
    if state is not None:
        rule = state.rule
        name = ("adamw" if rule.decoupled else "adam") if rule.adaptive else "sgd"
        optimizer = OptimizerFacts(name, rule.lr, rule.momentum, weight_decay=rule.weight_decay)
    model = {"kind": "checkpoint", "parameters": parameter_count(subject.module)}
    data = DataFacts(None, subject.dataset.n, subject.dataset.outputs)
    return Manifest("finished", facts, optimizer, data, {}, model, None, None, None, recorded=True)


def _scope(manifest: Manifest) -> Scope:
    loss = manifest.loss
    optimizer = manifest.optimizer.name or "unknown optimiser"
    return Scope(
        f"a checkpoint, {optimizer}",
        loss.label,
        "exact values",
        other_loss=loss.no_ball,
        unknown_loss="the loss is not known: see --loss" if loss.name is None else "",
        adaptive=f"a step of {optimizer} is not η∇L" if optimizer.startswith("adam") else "",
        no_path=_NO_PATH,
        entropy=loss.name in ENTROPIES,
    )
