"""The closing table of a run: μ beside the PL ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lplr_cli.reporting.noise import floor_meaning, noise_row
from lplr_cli.reporting.text import Grid, number

if TYPE_CHECKING:
    from lplr_cli.analysis import Summary
    from lplr_cli.diagnostics import RateFit

# Quantity, value, kind, meaning.
Row = tuple[str, Any, str, str]


def summary_grid(s: Summary) -> Grid:
    """The closing table of ``lplr train``."""
    m = s.manifest
    loss = "loss" if m.loss.name == "squared" else m.loss.label
    parameters = "?" if s.parameters is None else f"{s.parameters:,}"
    title = (
        f"{m.data.source}, {m.model.get('kind')}, {parameters} parameters, "
        f"{m.optimizer.name} with step size {number(m.optimizer.lr)}, {s.steps:,} steps: "
        f"{loss} {number(s.loss.initial)} → {number(s.loss.final)}"
    )
    rows = [
        [
            name,
            number(value, 8 if name.startswith("rate") else 4)
            + (" %" if name == "NTK drift" and value is not None else ""),
            kind,
            meaning,
        ]
        for name, value, kind, meaning in (
            *_path_rows(s),
            *_measured_rows(s),
            *_kernel_rows(s),
            *_mu_rows(s),
            *_step_rows(s),
        )
    ]
    notes = [f"Along the run: {s.verdict_along}.", f"Around its start: {s.verdict}."]
    if s.window:
        notes.append(f"Window: {s.window.explanation}.")
    notes.append(f"Run: {s.run} ({m.status}).")
    return Grid(title, ("quantity", "value", "kind", "meaning"), rows, right=(1,), note=tuple(notes))


def _kernel_rows(s: Summary) -> list[Row]:
    """λ_min(K) at both ends of the run."""
    probe, low = s.probe, s.lambda_min
    where = f"{probe.size:,} of {number(s.manifest.data.n)} samples (subset)" if probe.subset else "all samples"
    proved = number(low.lower_initial)
    rows: list[Row] = [
        ("λ0 = λ_min(K) at start", low.initial, "computed", f"on {where}; proved lower bound {proved}"),
    ]
    if probe.subset:
        note = "interlacing: a subset can only refute"
        rows.append(("upper bound of the full λ0", low.upper_bound_full, "computed", note))
    rows.append(("λ_min(K) at end", low.final, "computed", "positive at both ends is needed, not sufficient"))
    return rows


def _mu_rows(s: Summary) -> list[Row]:
    """Compatibility and μ, estimated and certified; of a loss that they do not speak of, the constants alone."""
    e, fails = s.estimates, s.estimates.compatible is False
    seen = "largest ‖K_t − K_0‖/‖θ_t − θ_0‖ seen: a lower bound of the true constant"
    constants: list[Row] = [
        ("L_K", e.l_k, "estimate", seen),
        ("R", e.radius, "measured", "largest drift ‖θ_t − θ_0‖ of the run"),
    ]
    if s.manifest.loss.name not in (None, "squared"):
        return constants
    if e.compatible is None:
        compatible = "unknown without probes"
    else:
        outcome = "fails, the bound is vacuous" if fails else "holds with the estimated L_K"
        compatible = f"L_K·R = {number(s.l_k_r)}: compatibility {outcome}"
    if s.manifest.loss.squared_scale is None:
        meaning = f"the formula is for the squared loss: {s.manifest.loss.label}"
    else:
        meaning = "not positive: says nothing" if fails else "an upper estimate, as L_K is one from below"
    proved = s.certified.reason if s.certified.mu is None else "proved"
    return [
        *constants,
        ("L_K·R < λ0", e.compatible, "estimate", compatible),
        ("μ estimated = 2(λ0 − L_K·R)", e.mu_kernel, "estimate", meaning),
        ("μ certified on that ball", s.certified.mu, "certified", proved),
    ]


def _path_rows(s: Summary) -> list[Row]:
    """μ and rate along the path, beside what is measured there."""
    p = s.path
    if p is None:
        return [("μ certified along the path", None, "certified", s.path_reason)]
    if not p.certified:
        meaning = f"no proof: {p.why_estimate}; measured {number(p.measured)}"
        return [("μ along the path, estimate", p.mu_path_estimated, "estimate", meaning)]
    rows: list[Row] = [
        (
            "μ certified along the path",
            p.mu_path,
            "certified",
            f"½‖∇L‖² ≥ μ (L − L*) within {number(p.radius, 2)} of {p.covered}; measured {number(p.measured)}",
        ),
        ("the same with L* = 0", p.mu_path_star, "certified", f"½‖∇L‖² ≥ μ L; measured {number(p.measured_star)}"),
    ]
    if p.rate_proved is None:
        return [*rows, ("rate proved 1 − ημ", None, "certified", p.rate_reason or "none")]
    where = f"L − L* shrinks by this or more at every step from step {p.rate_from_step} on"
    return [*rows, ("rate proved 1 − ημ", p.rate_proved, "certified", where)]


def _measured_rows(s: Summary) -> list[Row]:
    """PL ratio and rate."""
    # Batches that differ from row to row have gradients of their own, larger than that of L where L is small.
    kind = "measured" if s.manifest.exact else "estimate, biased upward by noise"
    bound = "at most this much μ holds there" if s.manifest.exact else "gradients of mini-batches: no bound of μ"
    valid = "valid without knowing L*" if s.manifest.exact else "gradients of mini-batches: no bound of μ"
    if s.manifest.loss.name == "squared":
        valid += ": twice a Rayleigh quotient of K" if s.manifest.exact else ""
    same = "the same with its typical size"
    ratio: list[Row] = [("PL ratio, minimum", None, kind, "no stable window")]
    if s.window:
        ratio = [
            ("PL ratio, minimum", s.pl_ratio.min, kind, f"½‖∇L‖²/(L − min L) on the window; {bound}"),
            ("PL ratio, median", s.pl_ratio.median, kind, same),
        ]
    return [
        *ratio,
        ("PL ratio*, minimum", s.pl_ratio_star.min, kind, f"½‖∇L‖²/L, {valid}"),
        ("PL ratio*, median", s.pl_ratio_star.median, kind, same),
        *_noise_rows(s),
        _rate_row(s.rate),
    ]


def _step_rows(s: Summary) -> list[Row]:
    """The prediction and the drift of the kernel, and the step size against the curvature."""
    edge = "above 1 the step size exceeds 2/sharpness: the edge of stability"
    p, lazy = s.prediction, list[Row]()
    if p is not None:
        before = f"{p.directions_start:,} at the start: the fewest eigendirections of K with 90 % of ‖r‖²"
        lazy = [
            ("last loss that K_0 predicts", p.predicted, "estimate", p.meaning),
            ("directions of the residual", p.directions_end, "computed", before),
        ]
    return [
        *lazy,
        ("NTK drift", s.ntk_drift_percent, "measured", "‖K_T − K_0‖/‖K_0‖ in per cent"),
        ("η·sharpness/2", s.sharpness.lr_over_stable, "estimate", edge),
    ]


def _noise_rows(s: Summary) -> list[Row]:
    """Signal, noise and floor of mini-batches."""
    rows: list[Row] = []
    if s.noise is not None:
        name, value, meaning = noise_row(s.noise)
        rows.append((name, value, "estimate", meaning))
    if s.noise_floor is not None:
        rows.append(("noise floor above L*", s.noise_floor.floor, "estimate", floor_meaning(s.noise_floor)))
    return rows


def _rate_row(rate: RateFit | None) -> Row:
    if rate is None:
        return ("rate ρ a step", None, "fit", "too few rows to fit")
    return ("rate ρ a step", rate.rate, "fit", _rate_meaning(rate))


def _rate_meaning(rate: RateFit) -> str:
    law = {"linear": "linear", "two_rate": "linear, slower of two modes", "sublinear": "sublinear"}
    if rate.verdict == "none":
        return f"no offered law holds: the loss {rate.looks_like}"
    if rate.rate is None:
        return f"{law['sublinear']}: L − L_∞ ~ t^-{number(rate.alpha, 3)}, floor {number(rate.l_inf, 3)}"
    low, high = number(rate.rate_low, 7), number(rate.rate_high, 7)
    name = law.get(rate.verdict, "undecided whether linear or sublinear")
    if rate.part is not None:
        name += f" from step {number(rate.part.start)} on"
    fitted = "" if rate.r_squared is None else f", R² {number(rate.r_squared)}"
    return f"{name}; {rate.between(low, high)}{fitted}, floor {number(rate.l_inf, 3)}"
