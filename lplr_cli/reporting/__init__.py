"""Tables and figures for people."""

from lplr_cli.reporting.path import path_grid
from lplr_cli.reporting.summary import summary_grid
from lplr_cli.reporting.terminal import terminal_chart
from lplr_cli.reporting.text import Grid, known, number

__all__ = ["Grid", "known", "number", "path_grid", "summary_grid", "terminal_chart"]
