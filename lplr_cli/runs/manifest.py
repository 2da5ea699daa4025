"""The manifest of a run, run.json: what was trained, how, on what; written and read in this one place.

Nothing here is guessed: what the writer did not know is None, and a value of the wrong type is refused.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lplr_cli.batches import RESHUFFLED, SAMPLINGS, Batches
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.losses import Loss

SCHEMA_VERSION = 1
STATUSES = ("running", "finished", "interrupted", "diverged")
EXACT, BATCHES = "exact", "mini-batch"
# In the configuration of a recorded run: whether batch normalisation trained with the statistics of each batch.
BATCH_STATISTICS = "batch_statistics"
NORMALISATION = {"ntk": "K = J J^T / n", "pl": "0.5 ||grad L||^2 >= mu (L - L*)"}


@dataclass(frozen=True)
class LossFacts:
    """The loss of a run, as far as it is known.

    Attributes:
        name: ``squared``, or any other; None when unknown.
        formula: for people.
        scale: s of the loss that is named, e.g. L = (s/n) ||r||² (theory.md section 1); None when unknown.
        values: whether the logged loss and gradient norm are ``exact`` (all data) or of a ``mini-batch``, as a loop
            gave them; None when unknown.
    """

    name: str | None = None
    formula: str | None = None
    scale: float | None = None
    values: str | None = None

    @property
    def squared_scale(self) -> float | None:
        """s where this is the squared loss with a known s; None for any other, and for an unknown one."""
        return self.scale if self.name == "squared" else None

    @property
    def known(self) -> Loss | None:
        """The loss as something to compute with, where name and scale are those of one that lplr has."""
        from lplr_cli.losses import LOSSES, Loss

        return Loss(self.name, self.scale) if self.name in LOSSES and self.scale is not None else None

    @property
    def label(self) -> str:
        """For a sentence: ``squared loss, s = 0.5``, ``cross-entropy``, ``unknown loss``."""
        if self.name is None:
            return "unknown loss"
        if self.name != "squared":
            return self.name
        return "squared loss of unknown scale" if self.scale is None else f"squared loss, s = {self.scale:g}"

    @property
    def no_ball(self) -> str:
        """Why the theory of the ball is not of this loss; empty for the squared one, and for one that is not known."""
        known = self.name in (None, "squared")
        return "" if known else f"the theory of the ball is of the squared loss, this is {self.label}"


@dataclass(frozen=True)
class OptimizerFacts:
    """The optimiser of a run, as far as it is known; None where it is not.

    Attributes:
        name: ``gd`` (full batch, θ ← θ − η∇L, or with momentum), ``sgd`` (mini-batches, or batches of unknown size),
            else the optimiser's class.
        lr: step size; the first one, under a schedule.
        momentum: of heavy-ball and Nesterov's.
        schedule: ``constant`` or another.
        weight_decay: coupled or decoupled.
        lr_rule: where the step size came from.
        batch_size: samples of a mini-batch.
        sampling: how batches are drawn, one of :data:`lplr_cli.batches.SAMPLINGS`.
    """

    name: str | None = None
    lr: float | None = None
    momentum: float | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    lr_rule: str | None = None
    batch_size: int | None = None
    sampling: str | None = None

    @property
    def why_not_plain(self) -> str:
        """What tells this from full-batch gradient descent with one step size, or is not known; empty for just that."""
        if self.name is None:
            return "the optimiser is not known"
        if self.name != "gd":
            return f"the optimiser is {self.name}"
        if self.momentum is None or self.momentum > 0:
            return "momentum is not known" if self.momentum is None else f"momentum is {self.momentum:g}"
        if self.weight_decay is None or self.weight_decay > 0:
            return "weight decay is not known" if self.weight_decay is None else "weights decay"
        if self.schedule != "constant":
            return "the schedule is not known" if self.schedule is None else f"the schedule is {self.schedule}"
        return "" if self.lr else "the step size is not known"

    @property
    def plain_step(self) -> float | None:
        """η where every step is θ ← θ − η∇L(θ) over all data; None for anything else, and when unknown."""
        return None if self.why_not_plain else self.lr


@dataclass(frozen=True)
class DataFacts:
    """The training data of a run, as far as they are known.

    Attributes:
        source: name, file or ``module:factory``.
        n: samples.
        outputs: C.
        sha256: fingerprint of inputs and targets; None where a recorder saw no data.
        record: the whole section, for those who load the data again.
    """

    source: str | None = None
    n: int | None = None
    outputs: int | None = None
    sha256: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What run.json says.

    Attributes:
        status: ``running``, ``finished``, ``interrupted`` or ``diverged``.
        recorded: whether another program trained, and a recorder wrote.
        loss, optimizer, data: as far as known.
        config: the configuration that trains the same again; of a recorder, its schedules.
        model: how the network is built, with its ``kind`` and number of ``parameters``.
        dtype: of training; device, threads and versions for the record.
    """

    status: str
    loss: LossFacts
    optimizer: OptimizerFacts
    data: DataFacts
    config: Mapping[str, Any]
    model: Mapping[str, Any]
    dtype: str | None
    device: str | None
    threads: int | None
    versions: Mapping[str, str] = field(default_factory=dict)
    recorded: bool = False

    @property
    def exact(self) -> bool:
        """Whether logged losses and gradient norms are known to be those of all data."""
        return self.loss.values == EXACT

    @property
    def batches(self) -> Batches | None:
        """How mini-batches were drawn, where that is known."""
        o, n = self.optimizer, self.data.n
        return None if o.batch_size is None or o.sampling is None or not n else Batches(n, o.batch_size, o.sampling)

    @property
    def parameters(self) -> int | None:
        """P."""
        count = self.model.get("parameters")
        return None if count is None else int(count)

    @classmethod
    def begin(
        cls,
        *,
        loss: LossFacts,
        optimizer: OptimizerFacts,
        data: DataFacts,
        config: Mapping[str, Any],
        model: Mapping[str, Any],
        dtype: str,
        device: str,
        recorded: bool = False,
    ) -> Manifest:
        """That of a run which starts now, in this process."""
        import torch

        return cls(
            "running",
            _with_values(loss, optimizer),
            optimizer,
            data,
            config,
            model,
            dtype,
            device,
            torch.get_num_threads(),
            versions(),
            recorded,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of run.json."""
        o = self.optimizer
        steps = {"optimizer": o.name, "lr": o.lr, "momentum": o.momentum, "schedule": o.schedule}
        own = {"kind": "recorded"} if self.recorded else {}
        told = {"weight_decay": o.weight_decay, "batch_size": o.batch_size, "sampling": o.sampling}
        decay = {k: v for k, v in told.items() if k == "weight_decay" or v is not None} if self.recorded else {}
        return {
            "schema_version": SCHEMA_VERSION,
            **own,
            "status": self.status,
            "config": {**self.config, **steps, **decay},
            "lr_rule": o.lr_rule,
            "loss": {
                "name": self.loss.name,
                "formula": self.loss.formula,
                "scale": self.loss.scale,
                "values": self.loss.values,
            },
            "normalisation": NORMALISATION,
            "data": {
                **self.data.record,
                "source": self.data.source,
                "n": self.data.n,
                "outputs": self.data.outputs,
                "sha256": self.data.sha256,
            },
            "model": dict(self.model),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], origin: str) -> Manifest:
        """The inverse of :meth:`to_dict`; also reads what earlier versions of schema 1 wrote.

        Args:
            record: the content of run.json.
            origin: its path, for errors.

        Raises:
            InputError: a section that is missing, or a value of the wrong type or out of its range.
        """
        top = _Section(record, origin)
        kind = top.choice("kind", ("recorded",))
        status = top.choice("status", STATUSES)
        if status is None:
            raise InputError(f"{origin} has no status", "the run directory is damaged")
        config, model = top.section("config"), top.section("model")
        for section, key in ((model, "parameters"), (config, "steps"), (config, "epochs"), (config, "batch_size")):
            section.count(key)
        model.text("kind")
        optimizer = _optimizer(config, top.text("lr_rule"), recorded=kind is not None)
        return cls(
            status=status,
            recorded=kind is not None,
            loss=_loss(top.section("loss"), optimizer, recorded=kind is not None),
            optimizer=optimizer,
            data=_data(top.section("data")),
            config=config.record,
            model=model.record,
            dtype=top.text("dtype"),
            device=top.text("device"),
            threads=top.count("threads"),
            versions=_texts(top.section("versions", required=False)),
        )


def described_optimizer(record: Mapping[str, Any]) -> OptimizerFacts:
    """What a user says of an optimiser: name, lr, momentum, schedule, weight_decay, batch_size, sampling.

    Raises:
        InputError: another key, or a value of the wrong type.
    """
    known = ("name", "lr", "momentum", "schedule", "weight_decay", "batch_size", "sampling")
    if set(record) - set(known):
        raise InputError(f"optimizer with keys {sorted(record)}", f"it may have {', '.join(known)}")
    values = dict(record)
    return _optimizer(_Section({"optimizer": values.pop("name", None), **values}, "optimizer"), None, recorded=True)


def _optimizer(config: _Section, lr_rule: str | None, *, recorded: bool) -> OptimizerFacts:
    """Of the configuration; lplr's own optimisers, which a recorder may name too, decay no weights."""
    name = config.text("optimizer")
    decay = config.number("weight_decay", least=0.0)
    own = not recorded or name == "gd"
    sampling = config.choice("sampling", SAMPLINGS)
    return OptimizerFacts(
        name=name,
        lr=config.number("lr", least=0.0),
        momentum=config.number("momentum", least=0.0),
        schedule=config.text("schedule"),
        weight_decay=0.0 if decay is None and own else decay,
        lr_rule=lr_rule,
        batch_size=None if name == "gd" else config.count("batch_size", least=1),
        # lplr's own loop draws a new order each epoch.
        sampling=RESHUFFLED if name == "sgd" and not recorded else sampling,
    )


def _loss(section: _Section, optimizer: OptimizerFacts, *, recorded: bool) -> LossFacts:
    """Of the loss; earlier recorders called one ``given`` that they did not know, or whose scale alone they knew."""
    name, scale = section.text("name"), section.number("scale", above=0.0)
    values = section.choice("values", (EXACT, BATCHES))
    if name == "given":
        # loss_scale was, and is, documented as that of a squared loss.
        name = None if scale is None else "squared"
    # lplr's own loop has always logged values of all data.
    return _with_values(LossFacts(name, section.text("formula"), scale, values if recorded else EXACT), optimizer)


def _with_values(loss: LossFacts, optimizer: OptimizerFacts) -> LossFacts:
    """gd, whoever names it, has no other batches than all data."""
    return replace(loss, values=EXACT) if optimizer.name == "gd" else loss


def _data(section: _Section) -> DataFacts:
    return DataFacts(
        section.text("source"),
        section.count("n", least=1),
        section.count("outputs", least=1),
        section.text("sha256"),
        section.record,
    )


def _texts(section: _Section) -> dict[str, str]:
    return {str(k): section.text(k) or "" for k in section.record}


class _Section:
    """An object of run.json whose values are read by type; a missing one and null are None."""

    def __init__(self, record: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        self.record, self._origin, self._prefix = record, origin, prefix

    def _take(self, key: str, wanted: str, right: Callable[[Any], bool]) -> Any:
        value = self.record.get(key)
        if value is not None and not right(value):
            shown = repr(value)[:60]
            raise InputError(
                f"{self._origin}: {self._prefix}{key} is {shown}, not {wanted}", "the run directory is damaged"
            )
        return value

    def section(self, key: str, *, required: bool = True) -> _Section:
        """The object below ``key``."""
        value = self._take(key, "an object", lambda v: isinstance(v, dict))
        if value is None and required:
            raise InputError(f"{self._origin} lacks {self._prefix}{key}", "the run directory is damaged")
        return _Section(value or {}, self._origin, f"{self._prefix}{key}.")

    def text(self, key: str) -> str | None:
        """A string."""
        value: str | None = self._take(key, "a text", lambda v: isinstance(v, str))
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        """One of some strings."""
        value: str | None = self._take(key, " or ".join(allowed), lambda v: v in allowed)
        return value

    def number(self, key: str, *, above: float = -math.inf, least: float = -math.inf) -> float | None:
        """A finite number > ``above`` and ≥ ``least``."""
        value = self._take(key, "a finite number of its range", lambda v: _is_number(v) and above < v and least <= v)
        return None if value is None else float(value)

    def count(self, key: str, *, least: int = 0) -> int | None:
        """A whole number ≥ ``least``."""
        value = self._take(key, f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)
        return None if value is None else int(value)


def _is_number(value: Any) -> bool:
    """Finite, also as a float64; truth values are no numbers."""
    return type(value) in (int, float) and abs(value) < 1.7e308


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    import numpy
    import scipy
    import torch

    from lplr_cli import __version__

    return {
        "lplr": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "platform": platform.platform(),
    }
