"""The table of a region along the path of a run: ball, kernel, gradient and measured ratio side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lplr_cli.reporting.text import Grid, number

if TYPE_CHECKING:
    from lplr_cli.analysis import PathFigures
    from lplr_cli.certificate import AtRadius

# Stretches of steps that are named one by one; more are counted.
_NAMED = 8


def path_grid(p: PathFigures, ball: AtRadius | None = None) -> Grid:
    """The figures of a path.

    Args:
        p: the figures.
        ball: what is proved on the ball of the whole run; None leaves its row out.
    """
    rows = [*_ball_row(ball), *_tube_row(p), *_mu_rows(p), *_extent_rows(p), *_rate_rows(p)]
    title = f"Region along the path, {p.loss}: {p.pieces:,} pieces, {p.balls:,} balls"
    return Grid(title, ("quantity", "value", "kind", "meaning"), rows, right=(1,), note=tuple(_notes(p)))


def _mu_rows(p: PathFigures) -> list[list[str]]:
    mu, star = (p.mu_path, p.mu_path_star) if p.certified else (p.mu_path_estimated, p.mu_path_star_estimated)
    named = "" if p.certified else ", estimate"
    return [
        [
            f"μ along the path{named}",
            number(mu),
            p.kind,
            f"½‖∇L‖² ≥ μ (L − L*) on the tube; measured on the path {number(p.measured)}",
        ],
        [
            f"μ along the path, L* = 0{named}",
            number(star),
            p.kind,
            f"½‖∇L‖² ≥ μ L on the tube; measured on the path {number(p.measured_star)}",
        ],
        ["L* of the tube ≥", number(p.l_star_lower, 8), p.kind, "the loss is nowhere lower on the tube"],
        ["L* of the tube ≤", number(p.l_star_upper, 8), p.kind, "and somewhere this low"],
    ]


def _extent_rows(p: PathFigures) -> list[list[str]]:
    inside = p.steps - sum(s.last - s.first + 1 for s in p.without_proof if not s.inside)
    steps = f"{inside:,} of {p.steps:,} steps, length {number(p.length)}"
    return [
        ["share of the path", number(100 * p.share, 4) + " %", p.kind, steps],
        ["radius ρ of the tube", number(p.radius), p.kind, "every point this near to the path is in the region"],
    ]


def _rate_rows(p: PathFigures) -> list[list[str]]:
    rate = p.rate_proved if p.certified else p.rate_estimated
    if p.rate_from_step is None:
        return [["rate a step", number(rate), p.kind, p.rate_reason or "none"]]
    meaning = f"L − L* shrinks by this or more at every step from step {p.rate_from_step} on"
    return [
        ["η β, largest", number(p.eta_beta_max), p.kind, "below 2 each step descends"],
        ["rate a step", number(rate, 8), p.kind, meaning],
        ["Σ η μ", number(p.eta_mu_t), p.kind, p.evidence or ""],
    ]


def _ball_row(ball: AtRadius | None) -> list[list[str]]:
    if ball is None:
        return []
    meaning = f"2(σ0 − L_J R)² on the ball of the whole run, R = {number(ball.radius)}"
    return [["μ on the ball", number(ball.mu_jacobian), "certified", meaning]]


def _tube_row(p: PathFigures) -> list[list[str]]:
    if p.kernel_tube is None:
        return []
    meaning = (
        f"2(σ_min − L_J ρ)² at {len(p.kernel_tube)} checkpoints: the kernel's worst direction, while the residual lies "
        "in its best ones"
    )
    return [["μ on the tube, kernel", number(p.mu_kernel_tube), p.kind, meaning]]


def _notes(p: PathFigures) -> list[str]:
    notes = [f"Path: {p.agreement}."]
    if p.why_estimate:
        notes.append(f"An estimate and no proof: {p.why_estimate}; curvature by Lanczos at points of the path.")
    stretches = p.without_proof
    notes += [f"{s.sentence[0].upper()}{s.sentence[1:]}." for s in stretches[:_NAMED]]
    if len(stretches) > _NAMED:
        more = sum(s.last - s.first + 1 for s in stretches[_NAMED:])
        notes.append(f"And {more:,} steps more in {len(stretches) - _NAMED:,} stretches.")
    return notes
