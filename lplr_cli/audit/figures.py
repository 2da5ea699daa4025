"""The figures beside the findings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lplr_cli.audit.evidence import Evidence
from lplr_cli.diagnostics import Envelope, RateFit, Window


@dataclass(frozen=True)
class SharpnessFigures:
    """Largest sharpness of the probes, and η times it over 2."""

    max: float | None
    lr_over_stable: float | None


@dataclass(frozen=True)
class LossFigures:
    """First, last and lowest loss."""

    first: float
    last: float
    min: float


@dataclass(frozen=True)
class Figures:
    """What was measured, estimated and proved; None where it was not.

    Attributes:
        pl_ratio, pl_ratio_star, window: see :class:`lplr_cli.diagnostics.PLRatio`.
        window_sensitivity: relative change of the smallest PL ratio when an end of the window moves.
        rate: the fitted law.
        drift_max: largest ‖θ_t − θ_0‖.
        loss, sharpness: their ranges.
        mu_certified, mu_estimated: of the run's own loss.
        certified_radius: on which λ_min(K) > 0 is proved.
        dropped_rows, reordered_rows: of the log.
    """

    pl_ratio: Envelope | None
    pl_ratio_star: Envelope | None
    window: Window | None
    window_sensitivity: float | None
    rate: RateFit | None
    drift_max: float | None
    loss: LossFigures
    mu_certified: float | None
    mu_estimated: float | None
    certified_radius: float | None
    sharpness: SharpnessFigures
    dropped_rows: dict[str, int]
    reordered_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Their keys in the JSON of ``lplr audit``."""
        return {
            "pl_ratio": None if self.pl_ratio is None else self.pl_ratio.to_dict(),
            "pl_ratio_star": None if self.pl_ratio_star is None else self.pl_ratio_star.to_dict(),
            "window": None if self.window is None else self.window.to_dict(),
            "window_sensitivity": self.window_sensitivity,
            "rate": None if self.rate is None else self.rate.to_dict(),
            "drift": {"max": self.drift_max},
            "loss": asdict(self.loss),
            "mu_certified": self.mu_certified,
            "mu_estimated": self.mu_estimated,
            "certified_radius": self.certified_radius,
            "sharpness": asdict(self.sharpness),
            "dropped_rows": self.dropped_rows,
            "reordered_rows": self.reordered_rows,
        }


def figures_of(e: Evidence) -> Figures:
    """The figures of the evidence."""
    certificate, sharp, loss = None if e.proof is None else e.proof.certificate, e.probes.sharpness, e.series.loss
    given = None if certificate is None else certificate.given
    return Figures(
        pl_ratio=None if e.ratio is None else e.ratio.pl_ratio,
        pl_ratio_star=None if e.ratio is None else e.ratio.pl_ratio_star,
        window=None if e.ratio is None else e.ratio.window,
        window_sensitivity=None if e.ratio is None else e.ratio.window_sensitivity,
        rate=None if e.rate is None else e.rate.fit,
        drift_max=e.drift,
        loss=LossFigures(float(loss[0]), float(loss[-1]), float(loss.min())),
        mu_certified=None if given is None else given.mu_jacobian,
        mu_estimated=None if e.estimates is None else e.estimates.mu_kernel,
        certified_radius=None if certificate is None else certificate.radius_jacobian,
        sharpness=SharpnessFigures(sharp, None if sharp is None or e.lr is None else e.lr * sharp / 2),
        dropped_rows=e.series.dropped,
        reordered_rows=e.series.reordered,
    )
