"""The Polyak-Łojasiewicz ratio of a loss series (theory.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lplr_cli.diagnostics.batch_noise import BatchNoise, batch_noise, corrected_ratio
from lplr_cli.diagnostics.facts import NO_FACTS, RunFacts
from lplr_cli.diagnostics.rate import read
from lplr_cli.diagnostics.series import LossSeries
from lplr_cli.diagnostics.window import Window, given_window, settled_row, stable_window
from lplr_cli.errors import InputError
from lplr_cli.shown import Shown

L_STAR_RULES = ("min", "terminal", "zero", "fit")


def pl_ratio(loss: ArrayLike, grad_norm_sq: ArrayLike, l_star: float) -> NDArray[np.float64]:
    """½ ||∇L||² / (L - L*) a step; NaN where L ≤ L*.

    Args:
        loss: L_t, shape (T,).
        grad_norm_sq: ||∇L_t||², shape (T,).
        l_star: the minimum L*, in the units of the loss. 0 gives the left end of the bracket of theory.md section 1,
            min L_t (or the terminal loss) its right end.
    """
    gap = np.asarray(loss, dtype=np.float64) - l_star
    ratio = np.full(gap.shape, np.nan)
    # A gap below the smallest normal number has no correct digit left.
    usable = gap > np.finfo(np.float64).tiny
    np.divide(0.5 * np.asarray(grad_norm_sq, dtype=np.float64), gap, out=ratio, where=usable)
    return ratio


@dataclass(frozen=True)
class Envelope:
    """Lower envelope of a ratio on a window: minimum, 5 % quantile and median, with the number of values."""

    min: float | None
    q05: float | None
    median: float | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def envelope(ratio: NDArray[np.float64]) -> Envelope:
    """Minimum, 5 % quantile and median of the finite values."""
    finite = ratio[np.isfinite(ratio)]
    if len(finite) == 0:
        return Envelope(None, None, None, 0)
    q05, median = np.quantile(finite, [0.05, 0.5])
    return Envelope(float(finite.min()), float(q05), float(median), len(finite))


def rolling_envelope(ratio: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """5 % quantile over ``rows`` neighbouring rows, centred: a lower envelope that no single row pulls down."""
    rolled = pd.Series(np.where(np.isfinite(ratio), ratio, np.nan)).rolling(rows, min_periods=1, center=True)
    return rolled.quantile(0.05).to_numpy()


@dataclass(frozen=True, repr=False)
class PLRatio(Shown):
    """PL ratio of a series, its envelope on a window, and the bracket that needs no L*.

    Attributes:
        l_star, l_star_rule: the L* of ``pl_ratio`` and how it was chosen.
        window: None when the rule leaves hardly a row; the envelopes of ``pl_ratio`` and ``pl_ratio_proxy`` are then
            empty.
        pl_ratio: envelope of ½||∇L||²/(L − L*) on the window.
        pl_ratio_star: of ½||∇L||²/L, the left end of the bracket, which is valid at every row whatever L* is: over all
            rows, or those of a window that was given. A minimum over the window alone would lie above the constant
            where the ratio falls on behind it.
        pl_ratio_proxy: of ½||∇L||²/(L − min L) on the window, its right end: min L takes the place of L*, and the
            smallest ratio of some rows is no less than that of all.
        pl_ratio_corrected: of ½(||g||² − tr Cov(g))/L over moving windows, for gradients g of mini-batches whose noise
            the log tells; empty for others. An estimate, as all three are of such gradients.
        noise: of mini-batch gradients; None where the log tells none.
        sensitivity: minimum of ``pl_ratio`` with an end of the window moved by 20 % of its length, by which end; and
            ``relative``, the largest relative change.
        undefined: rows of the window where L ≤ L*.
        identity_probes, identity_error: probes on all samples where ||∇L||² is compared with q̃ᵀKq̃, which it equals
            (theory.md section 14; section 1 for the squared loss), and the largest relative difference.
        rolling_rows: rows of the rolling envelope.
        facts: what is known of the run beside its log.
        table: step, loss, suboptimality, pl_ratio_star, pl_ratio, pl_ratio_envelope, in_window a row; and
            mu_path_star, proved around the step, where the path has a certificate; pl_ratio_corrected where there is
            one.
    """

    l_star: float
    l_star_rule: str
    window: Window | None
    pl_ratio: Envelope
    pl_ratio_star: Envelope
    pl_ratio_proxy: Envelope
    pl_ratio_corrected: Envelope
    noise: BatchNoise | None
    sensitivity: dict[str, float | None]
    undefined: int
    identity_probes: int
    identity_error: float | None
    rolling_rows: int
    facts: RunFacts
    table: pd.DataFrame

    def over(self, mu: float | None) -> float | None:
        """The minimum of ``pl_ratio`` in multiples of a positive μ."""
        return self.pl_ratio.min / mu if mu is not None and mu > 0 and self.pl_ratio.min is not None else None

    @property
    def window_sensitivity(self) -> float | None:
        """The largest relative change of the minimum when an end of the window moves."""
        return self.sensitivity["relative"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "l_star": {"rule": self.l_star_rule, "value": self.l_star},
            "window": self.window.to_dict() if self.window else None,
            "pl_ratio": self.pl_ratio.to_dict(),
            "pl_ratio_star": self.pl_ratio_star.to_dict(),
            "pl_ratio_proxy": self.pl_ratio_proxy.to_dict(),
            "pl_ratio_corrected": self.pl_ratio_corrected.to_dict(),
            "noise": None if self.noise is None else self.noise.to_dict(),
            "sensitivity": self.sensitivity,
            "undefined_rows": self.undefined,
            "mu_estimated": self.facts.mu_estimated,
            "mu_certified": self.facts.mu_certified,
            "mu_certified_reason": self.facts.mu_certified_reason,
            "mu_path": self.facts.mu_path,
            "mu_path_star": self.facts.mu_path_star,
            "certified_radius": self.facts.certified_radius,
            "pl_ratio_over_mu_estimated": self.over(self.facts.mu_estimated),
            "pl_ratio_over_mu_certified": self.over(self.facts.mu_certified),
            "identity": {"probes": self.identity_probes, "largest_relative_error": self.identity_error},
            "rolling_rows": self.rolling_rows,
        }

    def to_frame(self) -> pd.DataFrame:
        """The series."""
        return self.table


def analyse_pl_ratio(
    series: LossSeries,
    *,
    l_star: str | float = "min",
    window: tuple[float, float] | None = None,
    rolling: int | None = None,
    facts: RunFacts = NO_FACTS,
) -> PLRatio:
    """PL ratio of a clean series.

    Args:
        series: with gradient norms.
        l_star: one of :data:`L_STAR_RULES` or a number: the lowest loss, the last, 0, the L_∞ of the best curve.
        window: first and last step; None for the stable window.
        rolling: rows of the rolling envelope; None for a fiftieth of the rows, five at least.
        facts: what is known of the run beside its log.

    Raises:
        InputError: no gradient norms, an unknown rule, an L* that no loss exceeds, a window without rows.
    """
    if not series.has_gradients:
        raise InputError(
            "the log has no finite gradient norm", "log ||grad L||^2 and name it: --column grad_norm_sq=NAME"
        )
    steps, loss = series.steps, series.loss
    first, cause = settled_row(steps, loss, series.drift, facts.sharpness)
    reading = read(steps[first:], loss[first:])
    lowest = float(loss.min())
    # L* lies at or below every loss that was seen.
    floor = min(reading.floor, lowest) if reading else 0.0
    value, rule = _l_star(l_star, loss, floor)
    chosen = given_window(steps, window, floor) if window else stable_window(steps, loss, floor, first, cause)
    ratio = pl_ratio(loss, series.grad_norm_sq, value)
    star = pl_ratio(loss, series.grad_norm_sq, 0.0)
    proxy = pl_ratio(loss, series.grad_norm_sq, lowest)
    if not np.isfinite(ratio).any():
        raise InputError(f"no loss with a gradient norm exceeds L* = {value:g}", "choose a smaller --l-star")
    rows = chosen.rows if chosen else slice(0, 0)
    count = rolling or max(5, len(loss) // 50)
    corrected = corrected_ratio(series, facts)
    table = pd.DataFrame(
        {
            "step": steps,
            "loss": loss,
            "suboptimality": loss - value,
            "pl_ratio_star": star,
            "pl_ratio": ratio,
            "pl_ratio_envelope": rolling_envelope(ratio, count),
            "in_window": _marked(len(loss), rows),
            **_optional_columns(corrected, steps, facts),
        }
    )
    undefined = int((np.isfinite(series.grad_norm_sq[rows]) & ~np.isfinite(ratio[rows])).sum())
    return PLRatio(
        value,
        rule,
        chosen,
        envelope(ratio[rows]),
        envelope(star[rows] if window else star),
        envelope(proxy[rows]),
        envelope(corrected[rows] if chosen else corrected),
        batch_noise(series, facts),
        _sensitivity(ratio, chosen),
        undefined,
        *_identity(steps, series.grad_norm_sq, star, facts),
        count,
        facts,
        table,
    )


def _marked(count: int, rows: slice) -> NDArray[np.bool_]:
    marks = np.zeros(count, dtype=bool)
    marks[rows] = True
    return marks


def _optional_columns(
    corrected: NDArray[np.float64], steps: NDArray[np.float64], facts: RunFacts
) -> dict[str, NDArray[np.float64] | pd.Series[float]]:
    """Those of the table that are left out where nothing is known of them."""
    found: dict[str, NDArray[np.float64] | pd.Series[float]] = {}
    if np.isfinite(corrected).any():
        found["pl_ratio_corrected"] = corrected
    if facts.path:
        found["mu_path_star"] = pd.Series(steps).map(dict(facts.path))
    return found


def _identity(
    steps: NDArray[np.float64], square: NDArray[np.float64], star: NDArray[np.float64], facts: RunFacts
) -> tuple[int, float | None]:
    """Probes that the log's gradient can be held against, and the largest relative difference; none of mini-batches."""
    errors: list[float] = []
    if facts.exact is False:
        return 0, None
    measured, pairs = square, list(facts.kernel_gradient)
    if not pairs and facts.loss_scale is not None:
        measured, pairs = star, [(step, 2 * facts.loss_scale * value) for step, value in facts.residual_rayleigh]
    for step, expected in pairs:
        row = int(np.searchsorted(steps, step))
        if row < len(steps) and steps[row] == step and np.isfinite(measured[row]) and expected > 0:
            errors.append(abs(float(measured[row]) / expected - 1))
    return len(errors), max(errors) if errors else None


def _l_star(choice: str | float, loss: NDArray[np.float64], floor: float) -> tuple[float, str]:
    values = {"min": float(loss.min()), "terminal": float(loss[-1]), "zero": 0.0, "fit": floor}
    if isinstance(choice, str):
        if choice in values:
            return values[choice], choice
        try:
            choice = float(choice)
        except ValueError as error:
            raise InputError(
                f"--l-star {choice!r} is unknown", f"choose from {', '.join(L_STAR_RULES)} or give a number"
            ) from error
    if not np.isfinite(choice):
        raise InputError("--l-star is not finite", f"choose from {', '.join(L_STAR_RULES)} or give a number")
    return float(choice), "given"


def _sensitivity(ratio: NDArray[np.float64], window: Window | None) -> dict[str, float | None]:
    if window is None:
        return {"start_earlier": None, "start_later": None, "stop_earlier": None, "stop_later": None, "relative": None}
    here = envelope(ratio[window.rows]).min
    moved: dict[str, float | None] = {k: envelope(ratio[rows]).min for k, rows in window.moved(len(ratio)).items()}
    changes = [abs(v / here - 1) for v in moved.values() if v is not None] if here else []
    return {**moved, "relative": max(changes) if changes else None}
