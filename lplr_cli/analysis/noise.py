"""The noise floor of a run with mini-batches, predicted at its last checkpoint (theory.md section 13)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lplr_cli.analysis.path_figures import log_fingerprint
from lplr_cli.analysis.step_rule import rule_of_run
from lplr_cli.analysis.subject import OWN, Source, open_subject
from lplr_cli.batches import REPLACEMENT, SAMPLINGS, Batches
from lplr_cli.curvature import EPOCHS, OWN_BATCH, STEPS, GradientNoise, StepRule
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.models import DTYPES
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import Manifest, RunDirectory, plain
from lplr_cli.schema import matches
from lplr_cli.training import resolve_device

_FILE = "noise.json"
# Parameters times samples up to which the end of a run is worth some hundred passes: seconds on one core.
_CHEAP = 2e8


@dataclass(frozen=True)
class NoiseFloor:
    """E[L − L*] that the noise of the batches keeps up, for the quadratic that the loss is near the last checkpoint.

    L* is the loss of the limit that the run would have without noise; with weight decay that is no minimum of L.

    An estimate: Σ and H are those of one θ, seen through random vectors; a momentum's and sampling's effect is exact
    for a quadratic.

    Attributes:
        floor: of the losses that are logged; infinite beyond the threshold of stability.
        at: where these are read: at the ends of ``epochs``, at ``steps``, or of a batch before its own step
            (``own-batch``).
        trace: tr Σ.
        batch_size, sampling: of the run. steps: that it made.
    """

    floor: float | None
    at: str
    trace: float
    batch_size: int
    sampling: str
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        cleaned: dict[str, Any] = plain(asdict(self))
        return cleaned


def noise_floor(run: RunDirectory, source: Source = OWN, memory: int = DEFAULT_MEMORY) -> NoiseFloor:
    """Predict the floor of a run, and keep it in the run.

    Args:
        run: with a checkpoint.
        source: what the user says of a run that does not tell its model or data.
        memory: bytes for graphs.

    Raises:
        InputError: a run whose batches, optimiser or loss are not known, or steps that have no such floor.
    """
    manifest = run.manifest()
    batches, rule, loss = manifest.batches, _rule(run, manifest), manifest.loss.known
    if batches is None:
        raise InputError(
            f"{run.path} does not tell how its mini-batches are drawn",
            'record it with optimizer={"batch_size": …, "sampling": "reshuffled"} and its data',
        )
    if loss is None:
        raise InputError(f"{run.path} has no loss that is known ({manifest.loss.label})", "record it with loss=…")
    if rule.weight_decay and batches.sampling != REPLACEMENT:
        raise InputError(
            "no noise floor for weights that decay in reshuffled epochs", "their order moves the end of the run itself"
        )
    subject = open_subject(run.path, source)
    network = subject.network(DTYPES["float64"], resolve_device("cpu"))
    inputs, targets = subject.dataset.tensors()
    noise = GradientNoise(network, inputs, targets, loss.values, memory=memory)
    steps, at = int(run.log()["step"].iloc[-1]), _read_at(manifest, batches)
    floor = noise.floor(rule, batches, at=at, steps=steps)
    result = NoiseFloor(floor, at, noise.trace(), batches.size, batches.sampling, steps)
    run.write_record(_FILE, {"log": log_fingerprint(run), **result.to_dict()})
    return result


def floor_while_cheap(run: RunDirectory, source: Source = OWN) -> NoiseFloor | None:
    """That of a run of mini-batches with so few parameters and samples that it costs seconds; None for others."""
    manifest = run.manifest()
    size = (manifest.parameters or math.inf) * (manifest.data.n or math.inf)
    if manifest.batches is None or size > _CHEAP:
        return None
    try:
        return noise_floor(run, source)
    except (InputError, NumericalError):
        return None


def kept_floor(run: RunDirectory) -> NoiseFloor | None:
    """What was kept of the very same log; None where there is nothing that can be read."""
    record = run.record(_FILE)
    if record is None or record.get("log") != log_fingerprint(run):
        return None
    return read_kept(record)


def read_kept(record: Mapping[str, Any]) -> NoiseFloor | None:
    def number(key: str) -> float | None:
        value: Any = record.get(key)
        return float(value) if matches(value, float) else None

    def count(key: str) -> int | None:
        value: Any = record.get(key)
        return int(value) if matches(value, int) and value > 0 else None

    trace, size, steps, sampling = number("trace"), count("batch_size"), count("steps"), record.get("sampling")
    at = record.get("at")
    if trace is None or size is None or steps is None:
        return None
    if sampling not in SAMPLINGS or at not in (EPOCHS, STEPS, OWN_BATCH):
        return None
    return NoiseFloor(number("floor"), at, trace, size, sampling, steps)


def _rule(run: RunDirectory, manifest: Manifest) -> StepRule:
    """Steps that have a floor: the same all along."""
    rule = rule_of_run(run, None)
    if isinstance(rule, str):
        raise InputError(f"no noise floor is predicted for {run.path}: {rule}", "it is known for SGD")
    if manifest.optimizer.schedule not in (None, "constant"):
        raise InputError(
            f"no noise floor for the schedule {manifest.optimizer.schedule}", "it falls with the step size"
        )
    return rule


def _read_at(manifest: Manifest, batches: Batches) -> str:
    if not manifest.exact:
        return OWN_BATCH
    every = manifest.config.get("exact_every") if manifest.recorded else batches.count
    return EPOCHS if isinstance(every, int) and every and every % batches.count == 0 else STEPS
