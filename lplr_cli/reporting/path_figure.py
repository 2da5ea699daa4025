"""The certified envelope under the measured PL ratio, over a whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lplr_cli.analysis import PathFigures, kept_path, kept_rows
from lplr_cli.errors import InputError
from lplr_cli.reporting import figures as draw
from lplr_cli.runs import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stretches whose steps stand above them; with more, their texts would lie on one another.
_NAMED = 6
# A stretch is drawn at least this wide, of the whole axis.
_LEAST = 0.004


def path_series(run: RunDirectory, path: PathFigures) -> pd.DataFrame:
    """A row a step: the ratios measured there, and the μ that is proved or estimated on the tube around it.

    Columns: step, measured_star ½‖∇L‖²/L, measured ½‖∇L‖²/(L − L*) with L* the proved lower bound over the tube,
    mu_star and mu, the same of every point within ρ of the step's segment; NaN where nothing is known.
    """
    rows, log = kept_rows(run), run.log()
    floor = path.l_star_lower or 0.0
    known = log.loc[log["loss"].notna(), ["step", "loss", "grad_norm_sq"]]
    table = rows[["step", "mu", "mu_star"]].merge(known, on="step", how="left")
    half = table["grad_norm_sq"] / 2
    gap = (table["loss"] - floor).where(table["loss"] > floor)
    measured = table[["step"]].assign(measured_star=half / table["loss"], measured=half / gap)
    for column in ("mu_star", "mu"):
        measured[column] = table[column].where(table[column] > 0)
    return measured


def path_figure(run: RunDirectory) -> Figure | None:
    """The ratios over the run with what is proved around each step below them; None without a kept path.

    Steps outside the region are shaded and named, and those inside it whose descent is not proved, hatched.
    """
    try:
        path = kept_path(run)
        series = None if path is None else path_series(run, path)
    except InputError:
        return None
    if path is None or series is None:
        return None
    with draw.style():
        from matplotlib.ticker import MaxNLocator

        figure = draw.new_figure(figsize=(draw.WIDTH, 1.25 * draw.HEIGHT), layout="constrained")
        axes = figure.subplots()
        _ratios(axes, series, path)
        _without_proof(axes, path, series)
        axes.set_ylabel("PL ratio")
        axes.set_xlim(float(series["step"].min()), float(series["step"].max()) + 1)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        draw.readable_ticks(axes)
        draw.legend(axes)
    return figure


def _ratios(axes: Axes, series: pd.DataFrame, path: PathFigures) -> None:
    said = "certified" if path.certified else "estimated"
    pairs = (
        ("measured", "mu", draw.ORANGE, "½‖∇L‖²/(L − L*)"),
        ("measured_star", "mu_star", draw.BLUE, "½‖∇L‖²/L"),
    )
    bottom = float(np.nanmin(series[["mu", "mu_star"]].to_numpy())) if series["mu_star"].notna().any() else None
    for measured, proved, colour, name in pairs:
        draw.curve(axes, series, measured, color=colour, lw=0.9, label=name)
        draw.curve(axes, series, proved, color=colour, ls="--", lw=1.2, label=f"{said}, around the step")
    if bottom is not None:
        low = 0.8 * bottom
        axes.fill_between(series["step"], low, series["mu_star"], color=draw.GREEN, alpha=0.15, lw=0, step=None)
        axes.set_ylim(bottom=low)


def _without_proof(axes: Axes, path: PathFigures, series: pd.DataFrame) -> None:
    """Shade the stretches without proof, and name those that there is room for."""
    width = _LEAST * float(series["step"].max() + 1 - series["step"].min())
    looks: dict[bool, dict[str, Any]] = {
        False: {"color": draw.VERMILION, "alpha": 0.3, "label": "outside the region"},
        True: {
            "facecolor": "none",
            "edgecolor": draw.VERMILION,
            "alpha": 0.5,
            "hatch": "////",
            "label": "no descent proved",
        },
    }
    stretches = path.without_proof
    for s in stretches:
        axes.axvspan(s.first, max(s.last + 1, s.first + width), lw=0, **looks[s.inside])
        looks[s.inside] = {**looks[s.inside], "label": None}
        if len(stretches) <= _NAMED:
            name = f"{s.first}" if s.first == s.last else f"{s.first}–{s.last}"
            axes.annotate(
                f"step {name}" if s.first == s.last else f"steps {name}",
                (s.last + 1, 1.0), xytext=(3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                rotation=90, va="top", fontsize=7, color=draw.VERMILION,
            )  # fmt: skip
