"""Charts for terminals, drawn with plotext (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lplr_cli import escape
from lplr_cli.errors import InputError
from lplr_cli.reporting.thin import thin


def terminal_chart(
    title: str, x: ArrayLike, lines: Sequence[tuple[str, ArrayLike]], *, label: str, width: int = 100, height: int = 16
) -> str:
    """A chart of positive series on a logarithmic axis, as plain text.

    Args:
        title: above the chart.
        x: shape (T,).
        lines: label and values, shape (T,); values that are not positive and finite are left out.
        label: of the horizontal axis.
        width, height: in characters.

    Raises:
        InputError: plotext is not installed.
    """
    try:
        import plotext
    except ImportError as error:
        raise InputError("--plot needs an extra", "pip install 'lplr[plot]'") from error
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plotsize(width, height)
    plotext.title(escape.line(title))
    plotext.xlabel(escape.line(label))
    drawn = False
    for (name, values), marker in zip(lines, ("braille", "·", "+"), strict=False):
        at, y = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
        usable = np.isfinite(y) & (y > 0) & np.isfinite(at)
        if usable.any():
            keep = thin(int(usable.sum()), 4 * width)
            plotext.plot(at[usable][keep].tolist(), y[usable][keep].tolist(), label=escape.line(name), marker=marker)
            drawn = True
    if not drawn:
        return f"{escape.line(title)}: nothing positive to draw\n"
    plotext.yscale("log")
    text: str = plotext.uncolorize(plotext.build())
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
