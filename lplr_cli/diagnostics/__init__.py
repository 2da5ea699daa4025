"""Diagnostics of a loss series: PL ratio, stable window, convergence rate."""

from lplr_cli.diagnostics.pl import Envelope, envelope, pl_ratio
from lplr_cli.diagnostics.rate import LinearFit, fit_linear, loss_floor
from lplr_cli.diagnostics.series import LossSeries, clean_series
from lplr_cli.diagnostics.window import Window, stable_window

__all__ = [
    "Envelope",
    "LinearFit",
    "LossSeries",
    "Window",
    "clean_series",
    "envelope",
    "fit_linear",
    "loss_floor",
    "pl_ratio",
    "stable_window",
]
