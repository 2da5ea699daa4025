"""What an audit finds: statements, their status, the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Of a finding; its value is what people read."""

    VERIFIED = "holds (verified)"
    ESTIMATED = "holds (estimated)"
    FAILS = "fails"
    UNKNOWN = "unknown"

    @property
    def holds(self) -> bool | None:
        """True, False, or None when unknown."""
        return None if self is Status.UNKNOWN else self is not Status.FAILS


class Verdict(StrEnum):
    """Whether a run lies in a locally PL region by this theory."""

    YES = "yes"
    NO = "no"
    UNDETERMINED = "undetermined"


TITLES = {
    "H1": "positivity: λ_min(K(θ0)) > 0",
    "H2": "Lipschitz kernel: ‖K(θ) − K(θ')‖ ≤ L_K ‖θ − θ'‖ on the ball",
    "H3": "compatibility: L_K R < λ0",
    "H4": "smooth loss and small step: η ≤ 1/β",
    "H5": "containment: every iterate stays in the ball",
    "C1": "the ball is locally PL with μ > 0",
    "C2": "linear rate: L_t − L* ≤ (1 − ημ)^t (L_0 − L*)",
    "CE1": "Łojasiewicz with exponent 1: ½‖∇L‖² ≥ c L²",
    "CE2": "the loss falls like 1/t",
    "P1": "smooth along the path: η β < 2 on every step",
    "P2": "the tube around the path is locally PL with μ > 0",
    "P3": "linear rate proved along the path",
    "step_size": "curvature below what the step size bears",
    "lambda_min": "λ_min positive",
    "window": "a stable window exists",
    "interpolation": "the loss comes near zero",
    "descent": "the loss never rises",
    "spikes": "no spike of gradient or update",
    "noise": "gradient above the noise of its batch",
    "lazy": "the kernel at the start predicts every loss within 10 %",
}


@dataclass(frozen=True)
class Finding:
    """What is found of one hypothesis, conclusion or check.

    Attributes:
        key: H1 to H5, C1, C2, CE1 and CE2, P1 to P3, or the name of a check of the run.
        status: holds (verified), holds (estimated), fails or unknown.
        value: the figure it rests on; None when there is none.
        threshold: what the figure is compared with.
        reason: one line with the figures.
    """

    key: str
    status: Status
    value: float | None
    threshold: float | None
    reason: str

    @property
    def title(self) -> str:
        """The statement."""
        return TITLES[self.key]

    @property
    def holds(self) -> bool | None:
        """True, False, or None when unknown."""
        return self.status.holds

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = asdict(self)
        del values["key"], values["status"]
        verified = self.status is Status.VERIFIED
        return {"title": self.title, "status": str(self.status), **values, "holds": self.holds, "verified": verified}
