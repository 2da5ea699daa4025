"""What a report says of a run or log, and its figures; :mod:`lplr_cli.reporting.page` puts them on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.analysis import OWN, LazyPrediction, LogInput, Source, open_subject, predict_run, read_log
from lplr_cli.audit.run import Audit
from lplr_cli.audit.run import audit as examine
from lplr_cli.diagnostics import Convergence, PLRatio
from lplr_cli.errors import InputError, LplrError
from lplr_cli.ntk import empirical_ntk
from lplr_cli.reporting import figures as draw
from lplr_cli.reporting.path_figure import path_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of K up to which the report computes its whole spectrum.
MOST_ROWS = 1500
_BINS_PER_DECADE = 4


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of K at a checkpoint, descending, and the share of ||r||² along each eigenvector."""

    step: int | None
    eigenvalues: NDArray[np.float64]
    residual_share: NDArray[np.float64]


@dataclass(frozen=True)
class RunReport:
    """Everything that the page shows of one run or log."""

    name: str
    source: LogInput
    audit: Audit
    ratio: PLRatio | None
    rate: Convergence | None
    spectra: tuple[Spectrum, ...]
    note: str
    prediction: LazyPrediction | None
    no_prediction: str


def gather(
    source: str | LogInput,
    foreign: Source = OWN,
    *,
    window: tuple[float, float] | None = None,
    certificate: bool = True,
) -> RunReport:
    """Audit a run or log and compute what the figures need.

    Args:
        source: a run or log, or one that is read already.
        foreign: model and data of a run that does not tell them.
        window: first and last step of the stable window; by rule when None.
        certificate: whether to compute the certificate at the start.

    Raises:
        InputError: it cannot be read.
    """
    log = source if isinstance(source, LogInput) else read_log(source)
    audited = examine(log, window=window, foreign=foreign, certificate=certificate)
    spectra: list[Spectrum] = []
    note = "a log alone has no network"
    if log.run is not None:
        steps = log.run.checkpoint_steps()
        try:
            spectra = [_spectrum(log, step, foreign) for step in dict.fromkeys((steps[0], steps[-1]))] if steps else []
            note = "" if steps else "the run has no checkpoints"
        except LplrError as error:
            note = error.what
    prediction, why = _predict(log, foreign) if spectra else (None, note)
    return RunReport(log.name, log, audited, audited.ratio, audited.rate, tuple(spectra), note, prediction, why)


def _predict(log: LogInput, foreign: Source) -> tuple[LazyPrediction | None, str]:
    """The loss that the kernels predict, or why there is no prediction."""
    assert log.run is not None
    try:
        return predict_run(log.run.path, source=foreign), ""
    except LplrError as error:
        return None, error.what


def _spectrum(log: LogInput, step: int, foreign: Source) -> Spectrum:
    import torch

    assert log.run is not None
    subject = open_subject(log.run.path, foreign, step=step)
    rows = subject.dataset.n * subject.dataset.outputs
    if rows > MOST_ROWS:
        raise InputError(f"K has {rows:,} rows, the report draws spectra up to {MOST_ROWS:,}", "see lplr probe-ntk")
    inputs, targets = subject.dataset.tensors()
    network = subject.network(torch.float64, torch.device("cpu"))
    kernel = empirical_ntk(network, inputs).matrix
    with torch.no_grad():
        residual = (network.forward(inputs) - targets).reshape(-1)
    values, vectors = torch.linalg.eigh(kernel)
    share = (vectors.T @ residual).square() / residual.square().sum().clamp_min(1e-300)
    return Spectrum(subject.step, values.flip(0).numpy(), share.flip(0).numpy())


def diagnostics_figure(report: RunReport) -> Figure:
    """Loss, PL ratio, drift and λ_min, the window shaded; certified, estimated and measured lines told apart."""
    from matplotlib.figure import Figure

    with draw.style():
        figure = Figure(figsize=(8.4, 5.8), layout="constrained")
        (top, ratio), (drift, low) = figure.subplots(2, 2)
        log = report.source.log
        if report.ratio is not None:
            draw.loss_axes(top, report.ratio)
            draw.pl_ratio_axes(ratio, report.ratio)
        else:
            known = log[log["loss"] > 0]
            top.plot(known["step"], known["loss"], color=draw.BLACK, label="L")
            top.set_yscale("log")
            top.set_ylabel("loss")
            ratio.text(0.5, 0.5, "no gradient norms", ha="center", transform=ratio.transAxes)
        if "drift" in log and log["drift"].notna().any():
            known = log[log["drift"].notna()]
            drift.plot(known["step"], known["drift"], color=draw.BLUE, label="measured")
            radius = report.audit.figures.certified_radius
            if radius is not None and math.isfinite(radius):
                drift.axhline(radius, color=draw.GREEN, label="certified radius")
                # A radius far below the drift would lie on the axis of a linear scale.
                if 0 < radius < 0.02 * known["drift"].max():
                    drift.set_yscale("log")
            drift.legend()
        drift.set_ylabel("drift ‖θ_t − θ_0‖")
        probes = pd.DataFrame() if report.source.run is None else report.source.run.probes()
        if not probes.empty:
            low.plot(probes["step"], probes["lambda_min"], "o-", ms=3, color=draw.BLUE, label="computed")
            lower = probes["lambda_min_lower"]
            if lower.notna().any():
                low.plot(probes["step"], lower, "v--", ms=3, color=draw.GREEN, label="proved lower bound")
            # Below a decade a logarithmic axis has no readable ticks.
            if (probes["lambda_min"] > 0).all() and probes["lambda_min"].max() > 10 * probes["lambda_min"].min():
                low.set_yscale("log")
            else:
                low.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
            low.legend()
        else:
            low.text(0.5, 0.5, "no NTK probes", ha="center", transform=low.transAxes)
        low.set_ylabel("λ_min(K)")
        for axes in (top, ratio, drift, low):
            axes.set_xlabel("step")
    return figure


def rate_figure(report: RunReport) -> Figure | None:
    """The fitted suboptimality with the band of the rate's 95 % interval."""
    from matplotlib.figure import Figure

    if report.rate is None:
        return None
    with draw.style():
        figure = Figure(figsize=(5.6, 5.0), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        draw.rate_axes(axes, report.rate)
        draw.effective_axes(below, report.rate)
        fit, window = report.rate.fit, report.rate.window
        if fit.rate and fit.rate_low and fit.rate_high and fit.l_inf is not None:
            table = report.rate.table[report.rate.table["in_window"]]
            elapsed = table["step"].to_numpy() - window.start
            gap = table["fitted"].to_numpy() - fit.l_inf
            low, high = (gap * (r / fit.rate) ** elapsed for r in (fit.rate_low, fit.rate_high))
            axes.fill_between(table["step"], low, high, color=draw.VERMILION, alpha=0.2, lw=0, label="95 % of ρ")
            axes.legend()
    return figure


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
    found = []
    for s in spectra:
        place = np.clip(np.searchsorted(edges, s.eigenvalues, side="right") - 1, 0, last - first - 1)
        counts = np.bincount(place, minlength=last - first).astype(np.float64)
        shares = np.bincount(place, weights=s.residual_share, minlength=last - first).astype(np.float64)
        found.append((counts, shares))
    return edges, found


def spectrum_figure(report: RunReport) -> Figure | None:
    """The density of K's eigenvalues at the first and last checkpoint, and where among them the residual lies."""
    from matplotlib.figure import Figure

    if not report.spectra:
        return None
    with draw.style():
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        edges, found = binned_spectra(report.spectra)
        looks = ((draw.BLUE, "-"), (draw.VERMILION, "--"))
        for spectrum, binned, (colour, line) in zip(report.spectra, found, looks, strict=False):
            for axes, values in zip((left, right), binned, strict=True):
                axes.stairs(values, edges, color=colour, fill=True, alpha=0.25)
                axes.stairs(values, edges, color=colour, linestyle=line, label=f"step {spectrum.step}")
        left.set_ylabel("eigenvalues of K in the bin")
        right.set_ylabel("share of ‖r‖² along them")
        right.set_ylim(0, 1.02)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("eigenvalue")
            axes.legend()
    return figure


def all_figures(report: RunReport) -> dict[str, Figure]:
    """The figures of a run by name, those that can be drawn."""
    found = {
        "diagnostics": diagnostics_figure(report),
        "path": None if report.source.run is None else path_figure(report.source.run),
        "rate": rate_figure(report),
        "spectrum": spectrum_figure(report),
        "prediction": None if report.prediction is None else draw.prediction_figure(report.prediction),
    }
    return {k: v for k, v in found.items() if v is not None}
