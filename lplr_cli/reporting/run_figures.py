"""The figures of a run or log, one for each question of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.reporting import figures as draw
from lplr_cli.reporting.path_figure import path_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lplr_cli.diagnostics import Convergence
    from lplr_cli.reporting.report import RunReport, Spectrum

_BINS_PER_DECADE = 4
# A line this far below the other would lie on the axis of a linear scale.
_ON_THE_AXIS = 0.02


def loss_figure(report: RunReport) -> Figure:
    """Loss and suboptimality, the window shaded."""
    with draw.style():
        figure = draw.new_figure(figsize=(draw.WIDTH, draw.HEIGHT), layout="constrained")
        axes = figure.subplots()
        if report.audit.ratio is not None:
            draw.loss_axes(axes, report.audit.ratio)
            return figure
        log = report.source.log
        known = log[log["loss"] > 0]
        axes.plot(known["step"], known["loss"], color=draw.BLACK, label="L")
        axes.set_ylabel("loss")
        draw.log_axis(axes)
    return figure


def rate_figure(report: RunReport) -> Figure | None:
    """The fitted suboptimality with the band of the rate's 95 % interval, and the effective rate below."""
    rate = report.audit.rate
    if rate is None:
        return None
    told = len(rate.effective) > 0
    with draw.style():
        figure = draw.new_figure(figsize=(draw.WIDTH, (1.5 if told else 1.0) * draw.HEIGHT), layout="constrained")
        axes, *below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2)) if told else (figure.subplots(),)
        draw.rate_axes(axes, rate)
        range_of_rate(axes, rate)
        for panel in below:
            draw.effective_axes(panel, rate)
            draw.legend(panel)
            axes.label_outer()
    return figure


def range_of_rate(axes: Axes, rate: Convergence) -> None:
    """The fitted curve with the ends of the rate's interval, as far as it lies where the losses do."""
    fit, window = rate.fit, rate.window
    table = rate.table[rate.table["in_window"] & rate.table["fitted"].notna()]
    if not (fit.rate and fit.rate_low and fit.rate_high and fit.l_inf is not None and len(table)):
        return
    limits = axes.get_ylim()
    elapsed = table["step"].to_numpy() - window.start
    gap = table["fitted"].to_numpy() - fit.l_inf
    low, high = (gap * (r / fit.rate) ** elapsed for r in (fit.rate_low, fit.rate_high))
    axes.fill_between(table["step"], low, high, color=draw.VERMILION, alpha=0.2, lw=0, label="range of ρ")
    axes.set_ylim(limits)
    draw.legend(axes)


def ratio_figure(report: RunReport) -> Figure | None:
    """The measured PL ratio with what is proved of it; None without gradient norms."""
    if report.audit.ratio is None:
        return None
    with draw.style():
        figure = draw.new_figure(figsize=(draw.WIDTH, 1.15 * draw.HEIGHT), layout="constrained")
        draw.pl_ratio_axes(figure.subplots(), report.audit.ratio)
    return figure


def curvature_figure(report: RunReport) -> Figure | None:
    """Measured and proved curvature beside the largest that the steps are stable at; None where none is known."""
    table = report.curvature
    if table[["sharpness", "bound"]].isna().all(axis=None):
        return None
    with draw.style():
        figure = draw.new_figure(figsize=(draw.WIDTH, draw.HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw.curve(axes, table, "threshold", color=draw.VERMILION, ls="--", label="largest stable curvature")
        draw.curve(axes, table, "bound", color=draw.GREEN, label="proved bound around the step")
        draw.curve(axes, table, "sharpness", color=draw.BLUE, marker="o", ms=3, label="λ_max(H), computed")
        axes.set_ylabel("curvature")
        draw.log_axis(axes)
    return figure


def region_figure(report: RunReport) -> Figure | None:
    """The drift against the certified radius, and λ_min(K) with its proved bound, where they are known."""
    log, run = report.source.log, report.source.run
    drift = log[log["drift"].notna()] if "drift" in log else log[:0]
    probes = pd.DataFrame() if run is None else run.probes()
    count = (not drift.empty) + (not probes.empty)
    if not count:
        return None
    with draw.style():
        figure = draw.new_figure(figsize=(count * draw.WIDTH, draw.HEIGHT), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        if not drift.empty:
            _drift_axes(panels[0], drift, report.audit.figures.certified_radius)
        if not probes.empty:
            _lambda_axes(panels[-1], probes)
        for axes in panels:
            axes.set_xlabel("step")
            draw.readable_ticks(axes)
            draw.legend(axes)
    return figure


def _drift_axes(axes: Axes, known: pd.DataFrame, radius: float | None) -> None:
    axes.set_ylabel("drift ‖θ_t − θ_0‖")
    if radius is not None and math.isfinite(radius):
        axes.axhline(radius, color=draw.GREEN, label="certified radius")
        if 0 < radius < _ON_THE_AXIS * known["drift"].max():
            known = known[known["drift"] > 0]
            axes.set_yscale("log")
            axes.set_ylim(radius / 3, 2 * max(known["drift"].max(), radius))
    axes.plot(known["step"], known["drift"], color=draw.BLUE, label="measured")


def _lambda_axes(axes: Axes, probes: pd.DataFrame) -> None:
    axes.set_ylabel("λ_min(K)")
    axes.plot(probes["step"], probes["lambda_min"], "o-", ms=3, color=draw.BLUE, label="computed")
    lower = probes["lambda_min_lower"]
    if lower.notna().any():
        axes.plot(probes["step"], lower, "v--", ms=3, color=draw.GREEN, label="proved lower bound")
    if (probes["lambda_min"] > 0).all() and probes["lambda_min"].max() > 10 * probes["lambda_min"].min():
        axes.set_yscale("log")


def binned_spectra(
    spectra: Sequence[Spectrum],
) -> tuple[NDArray[np.float64], list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Eigenvalues and residual shares in bins of equal ratio, the same for all spectra.

    Returns:
        The edges (b + 1,), :data:`_BINS_PER_DECADE` a decade, and for each spectrum the number of eigenvalues and the
        share of ||r||² in each bin, (b,). What rounding made zero or negative counts in the lowest bin.
    """
    positive = np.concatenate([s.eigenvalues[s.eigenvalues > 0] for s in spectra])
    if not len(positive):
        positive = np.ones(1)
    low, high = (np.log10(v) * _BINS_PER_DECADE for v in (positive.min(), positive.max()))
    first, last = math.floor(low), math.floor(high) + 1
    edges = 10.0 ** (np.arange(first, last + 1) / _BINS_PER_DECADE)
    spans = []
    for s in spectra:
        place = np.clip(np.searchsorted(edges, s.eigenvalues, side="right") - 1, 0, last - first - 1)
        counts = np.bincount(place, minlength=last - first).astype(np.float64)
        shares = np.bincount(place, weights=s.residual_share, minlength=last - first).astype(np.float64)
        spans.append((counts, shares))
    return edges, spans


def spectrum_figure(report: RunReport) -> Figure | None:
    """The density of K's eigenvalues at the first and last checkpoint, and where among them the residual lies."""
    if not report.spectra:
        return None
    with draw.style():
        figure = draw.new_figure(figsize=(2 * draw.WIDTH, draw.HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        edges, counts = binned_spectra(report.spectra)
        looks = ((draw.BLUE, "-"), (draw.VERMILION, "--"))
        for spectrum, binned, (colour, line) in zip(report.spectra, counts, looks, strict=False):
            for axes, values in zip((left, right), binned, strict=True):
                axes.stairs(values, edges, color=colour, fill=True, alpha=0.25)
                axes.stairs(values, edges, color=colour, linestyle=line, label=f"step {spectrum.step}")
        left.set_ylabel("eigenvalues of K in the bin")
        right.set_ylabel("share of ‖r‖² along them")
        right.set_ylim(0, 1.02)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("eigenvalue")
            draw.legend(axes)
    return figure


def all_figures(report: RunReport) -> dict[str, Figure]:
    """The figures of a run by name, in the order of the report, those that can be drawn."""
    prediction = report.audit.prediction
    found = {
        "loss": loss_figure(report),
        "rate": rate_figure(report),
        "ratio": ratio_figure(report),
        "spectrum": spectrum_figure(report),
        "prediction": None if prediction is None else draw.prediction_figure(prediction),
        "curvature": curvature_figure(report),
        "path": None if report.source.run is None else path_figure(report.source.run),
        "region": region_figure(report),
    }
    return {k: v for k, v in found.items() if v is not None}
