"""Figures for papers and reports: PNG, SVG or PDF, in one colour-blind-safe style."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lplr_cli import escape
from lplr_cli.reporting.text import power_of_ten
from lplr_cli.reporting.thin import thin

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lplr_cli.analysis import HessianProbe, HessianSeries, LazyPrediction
    from lplr_cli.diagnostics import Convergence, PLRatio, Window

# Okabe and Ito's palette, told apart by the colour-blind and in grey.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 200,
    "text.usetex": False,
    "svg.hashsalt": "lplr",
    "pdf.fonttype": 42,
}
# Inches of a figure of one panel, in the report and in files.
WIDTH, HEIGHT = 4.8, 3.1
_POINTS = 4000
# Of a legend: inches that a handle takes with its gaps, and a character.
_HANDLE, _CHARACTER = 0.38, 0.064


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures, without touching the user's settings."""
    with _matplotlib().rc_context(_STYLE):
        yield


def new_figure(**how: Any) -> Figure:
    """An empty figure; within :func:`style`."""
    from matplotlib.figure import Figure

    return Figure(**how)


def _matplotlib() -> Any:
    """The library, without the ``matplotlibrc`` of the current folder, which it would read as it is imported: whose
    folder that is nobody said, and the file may be a pipe, choose a backend by module, or run LaTeX."""
    if "matplotlib" not in sys.modules and os.path.lexists("matplotlibrc"):
        with chdir(Path(__file__).parent):
            return importlib.import_module("matplotlib")
    return importlib.import_module("matplotlib")


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, its format told by the suffix, without a date: the same data give the same file."""
    from lplr_cli.runs.atomic import write_atomically

    stamp: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], metadata=stamp))


def _shade(axes: Axes, window: Window | None) -> None:
    if window is not None:
        axes.axvspan(window.start, window.stop, color=SKY, alpha=0.15, lw=0, label="window")


def curve(axes: Axes, table: pd.DataFrame, column: str, **how: Any) -> None:
    """Draw the positive values of a column against ``step``, thinned; nothing where there are none."""
    y = table[column].to_numpy(dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(y) & (y > 0))
    if len(usable):
        keep = usable[thin(len(usable), _POINTS)]
        axes.plot(table["step"].to_numpy()[keep], y[keep], **how)


def log_axis(axes: Axes) -> None:
    """A logarithmic scale over the steps with ticks that can be read, and a legend."""
    axes.set_yscale("log")
    readable_ticks(axes)
    axes.set_xlabel("step")
    legend(axes)


def readable_ticks(axes: Axes) -> None:
    """Ticks of a y axis, with its label, as plain numbers, a power of ten in the label.

    A logarithmic axis over two decades or more keeps powers of ten; below, these would be one or two, and the minor
    ones between them unreadable.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    if not 0 < max(abs(low), abs(high)) < np.inf or (logarithmic and (low <= 0 or high >= 100 * low)):
        return
    wide = logarithmic and high >= 10 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    power = int(np.floor(np.log10(max(abs(low), abs(high)))))
    power = 0 if -3 < power < 4 else power
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**power:.6g}"))
    if power:
        axes.set_ylabel(f"{axes.get_ylabel()} / {power_of_ten(power)}")


def legend(axes: Axes) -> None:
    """What is drawn, in rows above the axes, where it covers no curve."""
    from matplotlib.figure import Figure

    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    assert isinstance(axes.figure, Figure)
    room = axes.get_position().width * axes.figure.get_size_inches()[0]
    wide = sum(_HANDLE + _CHARACTER * len(label) for label in labels)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(labels) if wide < room else min(len(labels), 2),
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.6,
    )


def loss_axes(axes: Axes, result: PLRatio) -> None:
    """Draw the loss and the suboptimality onto ``axes``."""
    _shade(axes, result.window)
    curve(axes, result.table, "loss", color=BLACK, label="L")
    curve(axes, result.table, "suboptimality", color=BLUE, label="L − L*")
    axes.set_ylabel("loss")
    log_axis(axes)


def pl_ratio_axes(axes: Axes, result: PLRatio) -> None:
    """Draw the bracket of the PL ratio, its rolling envelope and the positive μ onto ``axes``."""
    _shade(axes, result.window)
    table = result.table
    curve(axes, table, "pl_ratio", color=ORANGE, lw=0.9, label=f"½‖∇L‖²/(L − L*), L* {result.l_star_rule}")
    _certified_path(axes, table)
    curve(axes, table, "pl_ratio_star", color=BLUE, label="½‖∇L‖²/L")
    curve(axes, table, "pl_ratio_envelope", color=VERMILION, label="rolling 5 % envelope")
    lines = (("μ certified", result.facts.mu_certified, "-"), ("μ estimated", result.facts.mu_estimated, "--"))
    for name, mu, dash in lines:
        if mu is not None and mu > 0:
            axes.axhline(mu, color=GREEN, ls=dash, label=name)
    axes.set_ylabel("PL ratio")
    log_axis(axes)


def _certified_path(axes: Axes, table: pd.DataFrame) -> None:
    """What is proved of ½‖∇L‖²/L around each step, broad, as it lies near what is measured; the rest shaded."""
    if "mu_path_star" not in table:
        return
    known = table.dropna(subset=["mu_path_star"])
    proved = known.assign(mu_path_star=known["mu_path_star"].where(known["mu_path_star"] > 0))
    curve(axes, proved, "mu_path_star", color=GREEN, lw=4, alpha=0.4, label="certified around the step")
    for step in known.loc[known["mu_path_star"] <= 0, "step"]:
        axes.axvspan(step, step + 1, color=VERMILION, alpha=0.2, lw=0)


def rate_axes(axes: Axes, result: Convergence) -> None:
    """Draw the suboptimality with the fitted curve onto ``axes``."""
    _shade(axes, result.window)
    floor = result.fit.l_inf
    table = result.table.assign(fitted_gap=result.table["fitted"] - (floor or 0.0))
    curve(axes, table, "suboptimality", color=BLUE, label="L" if floor is None else "L − L_∞")
    curve(axes, table, "fitted_gap", color=VERMILION, ls="--", label=f"fit: {result.fit.verdict.replace('_', ' ')}")
    axes.set_ylabel("suboptimality")
    log_axis(axes)


def effective_axes(axes: Axes, result: Convergence) -> None:
    """Draw the effective rate with its band onto ``axes``."""
    series = result.effective
    low, high = series["effective_rate_low"], series["effective_rate_high"]
    axes.fill_between(series["step"], low, high, color=BLUE, alpha=0.2, lw=0)
    curve(axes, series, "effective_rate", color=BLUE, label="ρ(t), local slope")
    if result.fit.rate is not None:
        axes.axhline(result.fit.rate, color=VERMILION, ls="--", label="ρ")
    # A band that noise blows up would hide the rest.
    if len(series):
        middle = series["effective_rate"]
        margin = 0.5 * max(float(middle.max() - middle.min()), 1e-6)
        axes.set_ylim(max(0.0, float(middle.min()) - margin), float(middle.max()) + margin)
    axes.set_ylabel("effective rate")
    axes.set_xlabel("step")
    readable_ticks(axes)


def pl_ratio_figure(result: PLRatio, title: str) -> Figure:
    """Loss and PL ratio side by side."""
    with style():
        figure = new_figure(figsize=(2 * WIDTH, HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        loss_axes(left, result)
        pl_ratio_axes(right, result)
        figure.suptitle(escape.figure(title), fontsize=10)
    return figure


def density_figure(probe: HessianProbe) -> Figure:
    """The density of the Hessian's eigenvalues with its band, and the extreme ones as ticks on the axis."""
    curve, ends = probe.density, probe.survey.extremes
    with style():
        figure = new_figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        floor = float(curve["density"].max()) * 1e-7 if len(curve) else 1.0
        at, kept = curve["eigenvalue"], curve.clip(lower=floor)
        axes.fill_between(at, kept["low"], kept["high"], color=SKY, alpha=0.4, lw=0, label="95 % band")
        axes.plot(at, curve["density"].where(curve["density"] > floor), color=BLUE, label="density")
        axes.set_ylim(bottom=floor)
        extremes = [*ends.low, *ends.high[::-1]]
        axes.plot(
            extremes,
            [0.02] * len(extremes),
            "|",
            color=VERMILION,
            ms=10,
            transform=axes.get_xaxis_transform(),
            label="extremes (Lanczos)",
        )
        axes.set_yscale("log")
        axes.set_xlabel("eigenvalue of H")
        axes.set_ylabel("density")
        legend(axes)
    return figure


def sharpness_figure(series: HessianSeries) -> Figure:
    """Largest eigenvalues of H and of G along a run, beside the largest stable curvature."""
    table = series.table
    with style():
        figure = new_figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        if table["threshold"].notna().any():
            axes.plot(table["step"], table["threshold"], "--", color=VERMILION, label="largest stable curvature")
        # G is near H where the residual is small: broad and pale it is seen below it.
        if table["gauss_newton"].notna().any():
            axes.plot(table["step"], table["gauss_newton"], color=ORANGE, lw=5, alpha=0.4, label="λ_max(G)")
        axes.plot(table["step"], table["sharpness"], "o-", ms=3, color=BLUE, label="λ_max(H)")
        axes.set_ylabel("curvature")
        log_axis(axes)
    return figure


def prediction_axes(axes: Axes, prediction: LazyPrediction) -> None:
    """Draw measured and predicted loss onto ``axes``."""
    table = prediction.to_frame()
    curve(axes, table, "loss", color=BLACK, label="L measured")
    curve(axes, table, "predicted", color=VERMILION, ls="--", label="predicted from K_0")
    if len(prediction.pieces) > 1:
        curve(axes, table, "predicted_piecewise", color=BLUE, ls=":", label="from the last of the kernels")
    axes.set_ylabel("loss")
    log_axis(axes)


def prediction_figure(prediction: LazyPrediction) -> Figure:
    """Measured and predicted loss; the residual's energy beside the eigenvalues, at the start and end."""
    with style():
        figure = new_figure(figsize=(2 * WIDTH, HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        prediction_axes(left, prediction)
        looks = (
            (prediction.start, "start", BLUE, "o"),
            (prediction.end, f"step {prediction.parameters_step}", VERMILION, "v"),
        )
        for modes, name, colour, marker in looks:
            energy = modes.residual**2
            seen = (modes.eigenvalues > 0) & (energy > 0)
            right.plot(modes.eigenvalues[seen], energy[seen], marker, ms=3, mew=0, color=colour, alpha=0.45, label=name)
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel("eigenvalue of K")
        right.set_ylabel("energy of the residual")
        legend(right)
    return figure


def rate_figure(results: list[tuple[str, Convergence]], title: str) -> Figure:
    """Suboptimality with its fit for one log, or the suboptimalities of several."""
    with style():
        one = len(results) == 1
        figure = new_figure(figsize=(5.2, 4.8 if one else 3.4), layout="constrained")
        axes = figure.add_subplot(2, 1, 1) if one else figure.subplots()
        if one:
            rate_axes(axes, results[0][1])
            effective_axes(figure.add_subplot(2, 1, 2, sharex=axes), results[0][1])
            axes.label_outer()
        else:
            colours = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
            for (name, result), colour in zip(results, colours * (len(results) // 7 + 1), strict=False):
                curve(axes, result.table, "suboptimality", color=colour, label=escape.figure(name))
            axes.set_ylabel("suboptimality")
            log_axis(axes)
        figure.suptitle(escape.figure(title), fontsize=10)
    return figure
