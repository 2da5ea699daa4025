"""Charts for terminals, drawn with plotext (extra ``plot``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lplr_cli import escape
from lplr_cli.errors import InputError
from lplr_cli.reporting.text import power_of_ten
from lplr_cli.reporting.thin import thin

_MARKERS = (("braille", "⢕⢕"), ("·", "··"), ("+", "++"))
# Ticks of the logarithmic axis, at most.
_TICKS = 6


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
    names, drawn = [], []
    for (name, values), (marker, sign) in zip(lines, _MARKERS, strict=False):
        at, y = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
        usable = np.isfinite(y) & (y > 0) & np.isfinite(at)
        if usable.any():
            keep = thin(int(usable.sum()), 4 * width)
            plotext.plot(at[usable][keep].tolist(), y[usable][keep].tolist(), marker=marker)
            names.append(f"{sign} {escape.line(name)}")
            drawn += [float(y[usable].min()), float(y[usable].max())]
    if not drawn:
        return f"{escape.line(title)}: nothing positive to draw\n"
    plotext.yscale("log")
    ticks = log_ticks(min(drawn), max(drawn))
    plotext.yticks(ticks, [_named(tick) for tick in ticks])
    text: str = plotext.uncolorize(plotext.build())
    head, *rest = text.splitlines()
    # What is drawn stands below the title, where it covers no curve.
    return "\n".join(line.rstrip() for line in (head, "   ".join(names).center(width), *rest)) + "\n"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, 0 < low <= high: powers of ten, or multiples of 1, 2 or 5 where they are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**k for k in range(first, last + 1, max(1, math.ceil((last - first + 1) / _TICKS)))]
    if len(powers) > 2:
        return powers
    if high > 3 * low:
        between = (m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5))
        inside = [tick for tick in between if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
        if len(inside) > 1:
            return inside
    # The largest step of which two multiples lie in between; none where all is one number.
    top = math.floor(math.log10(high))
    for step in (m * 10.0**k for k in range(top, top - 12, -1) for m in (5, 2, 1)):
        ticks = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) > 1:
            return ticks
    return [low]


def _named(tick: float) -> str:
    power = round(math.log10(tick))
    if 1e-3 <= tick < 1e4 or not math.isclose(tick, 10.0**power):
        return f"{tick:.6g}"
    return power_of_ten(power)
