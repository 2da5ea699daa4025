"""What a run is, and which statements can therefore be asked of it (theory.md sections 2 and 12)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lplr_cli.losses import Loss
from lplr_cli.runs import BATCH_STATISTICS, LossFacts, Manifest

STATEMENTS = ("H1", "H2", "H3", "H4", "H5", "C1", "C2")
ENTROPY = ("CE1", "CE2")
ALONG = ("P1", "P2", "P3")
# Losses that have statements of their own.
ENTROPIES = ("cross-entropy", "bce")
# What needs the network, at the start or along the path.
_OF_NETWORK = ("H1", "H2", "H3", "H4", "H5", *ALONG)


@dataclass(frozen=True)
class Scope:
    """The run in three facts, each with what it rules out; a reason is empty where it rules out nothing.

    Attributes:
        optimizer, loss, values: for people.
        other_loss: the loss is known, and no squared one: what is said of the ball around the start is of that.
        unknown_loss: the loss, or its scale, is not known.
        other_steps: the steps are known to be something else than full-batch gradient descent with one η.
        unknown_steps: whether they are is not known.
        adaptive: the step is no multiple of a gradient, so that η against the curvature says nothing.
        other_steps_short: the same in few words.
        no_path: this is a checkpoint alone, of which only one point is known.
        no_network: this is a log alone.
        entropy: the loss is a cross-entropy, which has statements of its own.
        unknown_values: losses and gradient norms are not known to be those of all data.
    """

    optimizer: str
    loss: str
    values: str
    other_loss: str = ""
    unknown_loss: str = ""
    other_steps: str = ""
    unknown_steps: str = ""
    adaptive: str = ""
    unknown_values: str = ""
    other_steps_short: str = ""
    no_path: str = ""
    no_network: str = ""
    entropy: bool = False

    @property
    def not_asked(self) -> dict[str, str]:
        """Statements that this run cannot be asked, with the reason."""
        ball = dict.fromkeys(("H2", "H3", "H4", "H5", "C1", "C2"), self.other_loss)
        steps = {"H4": self.adaptive, "C2": self.other_steps, "P1": self.adaptive, "P3": self.adaptive}
        reasons = ball if self.other_loss else {}
        reasons = {**{k: v for k, v in steps.items() if v}, **reasons}
        if self.no_path:
            reasons |= dict.fromkeys(("H2", "H3", "H4", "H5", "C1", "C2", *ALONG), self.no_path)
            reasons |= {"CE2": self.no_path} if self.entropy else {}
        if self.no_network:
            reasons |= dict.fromkeys(_OF_NETWORK, self.no_network)
        return {key: reason for key, reason in reasons.items() if reason}

    @property
    def open(self) -> tuple[str, ...]:
        """What is not known of the run, for a sentence."""
        return tuple(v for v in (self.unknown_loss, self.unknown_steps, self.unknown_values) if v)

    @property
    def line(self) -> str:
        """What the run is, which statements can be asked of it, and which cannot."""
        what = f"{self.optimizer}; {self.loss}; {self.values}"
        refused = self.not_asked
        if not refused:
            return f"{what}. All statements can be asked" + ("" if not self.open else f", but {', '.join(self.open)}")
        asked, why = ", ".join(self.asked), "; ".join(dict.fromkeys(refused.values()))
        cannot = ", ".join(k for k in self._of_the_loss if k in refused)
        open_ = f"; {', '.join(self.open)}" if self.no_network else ""
        return f"{what}. {asked} can be asked; {cannot} cannot: {why}{open_}"

    @property
    def asked(self) -> list[str]:
        """Statements that can be asked."""
        return [k for k in self._of_the_loss if k not in self.not_asked]

    @property
    def _of_the_loss(self) -> tuple[str, ...]:
        return (*STATEMENTS, *(ENTROPY if self.entropy else ()), *ALONG)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "optimizer": self.optimizer,
            "loss": self.loss,
            "values": self.values,
            "asked": self.asked,
            "not_asked": self.not_asked,
            "unknown": list(self.open),
        }


UNKNOWN_SCOPE = Scope(
    "unknown optimiser",
    "unknown loss",
    "values of all data or of mini-batches, unknown",
    unknown_loss="the loss is not known",
    unknown_steps="the optimiser is not known",
    unknown_values="whether its values are of all data is not known",
    no_network="a log alone has no network",
)


def scope_of(manifest: Manifest | None, eta: float | None, why_no_eta: str, told: Loss | None = None) -> Scope:
    """The scope of a run; of a log alone nothing is known but what the user tells.

    Args:
        manifest: of the run; None for a log.
        eta: step size of plain full-batch gradient descent, else None.
        why_no_eta: what the run is instead, or what is not known.
        told: the loss, by the user.
    """
    if manifest is None:
        return UNKNOWN_SCOPE if told is None else _of_log(LossFacts(told.name, told.formula, told.scale))
    loss, others = manifest.loss, _is_other_descent(manifest)
    other_loss, unknown_loss = loss.no_ball, ""
    if not other_loss and loss.scale is None:
        unknown_loss = "the loss is not known" if loss.name is None else "the scale of the loss is not known"
    return Scope(
        _optimizer(manifest, eta),
        loss.label if told is None else f"{loss.label}, as told",
        _values(manifest),
        other_loss,
        unknown_loss,
        f"the theorem is of full-batch gradient descent with one step size, and {why_no_eta}" if others else "",
        "" if others or eta is not None else why_no_eta,
        _adaptive(manifest),
        "" if manifest.exact else "its values are those of mini-batches",
        why_no_eta if others else "",
        entropy=loss.name in ENTROPIES,
    )


def _values(manifest: Manifest) -> str:
    evaluated = ", of the network in evaluation mode" if manifest.config.get(BATCH_STATISTICS) is True else ""
    return f"exact values{evaluated}" if manifest.exact else "values of mini-batches"


def _of_log(loss: LossFacts) -> Scope:
    """Of a log whose loss the user tells."""
    return replace(
        UNKNOWN_SCOPE,
        loss=f"{loss.label}, as told",
        other_loss=loss.no_ball,
        unknown_loss="",
        entropy=loss.name in ENTROPIES,
    )


def _optimizer(manifest: Manifest, eta: float | None) -> str:
    o = manifest.optimizer
    if eta is not None:
        return f"full-batch gradient descent, η = {eta:.4g}"
    if o.name is None:
        return "unknown optimiser"
    parts = [o.name]
    if o.momentum:
        parts.append(f"momentum {o.momentum:g}")
    if o.weight_decay:
        parts.append(f"weight decay {o.weight_decay:g}")
    if o.schedule not in (None, "constant"):
        parts.append(f"{o.schedule} schedule")
    return ", ".join(parts)


def _is_other_descent(manifest: Manifest) -> bool:
    """Whether the steps are known to be others; a recorded ``sgd`` may well have had all data in each batch."""
    o = manifest.optimizer
    batches = o.name == "sgd" and not manifest.recorded
    changed = bool(o.momentum) or bool(o.weight_decay) or o.schedule not in (None, "constant")
    return bool(_adaptive(manifest)) or batches or (o.name is not None and changed)


def _adaptive(manifest: Manifest) -> str:
    name = manifest.optimizer.name
    return "" if name in (None, "gd", "sgd") else f"a step of {name} is not η∇L"
