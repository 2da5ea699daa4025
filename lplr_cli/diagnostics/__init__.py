"""Diagnostics of a loss series: PL ratio, stable window, convergence rate."""

from lplr_cli.diagnostics.answer import VERDICTS, RateFit, fit_rate
from lplr_cli.diagnostics.batch_noise import BatchNoise, Level, batch_noise
from lplr_cli.diagnostics.convergence import Convergence, analyse_rate
from lplr_cli.diagnostics.facts import NO_FACTS, RunFacts
from lplr_cli.diagnostics.fit_data import MIN_POINTS
from lplr_cli.diagnostics.pl import (
    L_STAR_RULES,
    Envelope,
    PLRatio,
    analyse_pl_ratio,
    envelope,
    pl_ratio,
    rolling_envelope,
)
from lplr_cli.diagnostics.series import CLEANING, LossSeries, clean_series, numbers
from lplr_cli.diagnostics.surges import Surge, surges
from lplr_cli.diagnostics.window import Window, given_window, parse_window, settled_row, stable_window

__all__ = [
    "CLEANING",
    "L_STAR_RULES",
    "MIN_POINTS",
    "NO_FACTS",
    "VERDICTS",
    "BatchNoise",
    "Convergence",
    "Envelope",
    "Level",
    "LossSeries",
    "PLRatio",
    "RateFit",
    "RunFacts",
    "Surge",
    "Window",
    "analyse_pl_ratio",
    "analyse_rate",
    "batch_noise",
    "clean_series",
    "envelope",
    "fit_rate",
    "given_window",
    "numbers",
    "parse_window",
    "pl_ratio",
    "rolling_envelope",
    "settled_row",
    "stable_window",
    "surges",
]
