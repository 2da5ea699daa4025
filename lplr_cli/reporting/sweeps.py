"""Figures of sweeps: the four diagnostics of every run, or bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli import escape
from lplr_cli.analysis import LogInput, read_log
from lplr_cli.errors import InputError
from lplr_cli.reporting.figures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    legend,
    new_figure,
    readable_ticks,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lplr_cli.diagnostics import PLRatio

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
_DASHES = ("-", "--", "-.", ":")


def _analysed(source: LogInput) -> PLRatio | None:
    from lplr_cli.diagnostics import analyse_pl_ratio

    try:
        return analyse_pl_ratio(source.series(), facts=source.facts())
    except InputError:
        return None


def sweep_figure(folder: Path, runs: Sequence[str], title: str) -> Figure:
    """Suboptimality, PL ratio, drift and λ_min of the runs of a sweep, on four panels.

    On the panel of the PL ratio the part outside the stable window, where the proxy of L* spoils the ratio, is thin.
    """
    logs = [(name, read_log(folder / name)) for name in runs if (folder / name / "run.json").exists()]
    if not logs:
        raise InputError(f"{folder} has no runs to draw", "run the sweep first")
    with style():
        figure = new_figure(figsize=(8.4, 6.0), layout="constrained")
        panels = figure.subplots(2, 2)
        for index, (name, source) in enumerate(logs):
            how: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)], "ls": _DASHES[index // len(_COLOURS) % 4]}
            _draw(panels.ravel().tolist(), name, source, how)
        labels = ("suboptimality L − min L", "PL ratio ½‖∇L‖²/(L − min L)", "drift ‖θ_t − θ_0‖", "λ_min of the probe")
        for axes, label, mark in zip(panels.ravel(), labels, "abcd", strict=True):
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.set_title(f"({mark})", loc="right", fontsize=9)
            if label != labels[2]:
                axes.set_yscale("log")
            readable_ticks(axes)
        # One legend of the runs for all panels.
        handles, names = panels[1, 0].get_legend_handles_labels()
        thin = panels[0, 1].plot([], [], color=BLACK, lw=0.6, alpha=0.5)
        names += ["thin in (b): outside the window, a proxy artefact"]
        figure.legend([*handles, *thin], names, loc="outside lower center", ncols=min(len(names), 4))
        figure.suptitle(escape.figure(title), fontsize=10)
    return figure


def _draw(panels: list[Axes], name: str, source: LogInput, how: dict[str, Any]) -> None:
    top, ratio, drift, low = panels
    log = source.log
    result = _analysed(source)
    if result is not None:
        table = result.table
        positive = table[table["suboptimality"] > 0]
        top.plot(positive["step"], positive["suboptimality"], label=escape.figure(name), **how)
        inside = table["in_window"]
        ratio.plot(table["step"], table["pl_ratio"], lw=0.6, alpha=0.5, color=how["color"])
        ratio.plot(table["step"], table["pl_ratio"].where(inside), **how)
    known = log[log["drift"].notna()]
    drift.plot(known["step"], known["drift"], label=escape.figure(name), **how)
    probes = None if source.run is None else source.run.probes()
    if probes is not None and not probes.empty:
        low.plot(probes["step"], probes["lambda_min"].where(probes["lambda_min"] > 0), marker="o", ms=3, **how)


def seeds_figure(folder: Path, runs: Sequence[str], title: str) -> Figure:
    """Suboptimality, PL ratio and drift over seeds: mean and range as a band, on three panels; windows shaded.

    Runs whose name does not begin with ``seed`` are drawn as dashed lines beside the band.
    """
    sources = {name: read_log(folder / name) for name in runs}
    seeds = {k: v for k, v in sources.items() if k.startswith("seed")} or sources
    results = [r for r in map(_analysed, seeds.values()) if r is not None]
    if not results:
        raise InputError(f"{folder} has no runs to draw", "run the sweep first")
    with style():
        figure = new_figure(figsize=(10.0, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _seed_band(left, results, "suboptimality", "suboptimality L − min L")
        _seed_band(middle, results, "pl_ratio", "PL ratio ½‖∇L‖²/(L − min L)")
        logs = [s.log[s.log["drift"].notna()] for s in seeds.values()]
        steps = logs[0]["step"].to_numpy()
        _band(right, steps, np.array([np.interp(steps, g["step"], g["drift"]) for g in logs]), "drift ‖θ_t − θ_0‖")
        for name, source in sources.items():
            if name not in seeds:
                _beside((left, middle, right), name, source)
        for axes in (left, middle, right):
            axes.set_xlabel("step")
            readable_ticks(axes)
            legend(axes)
        figure.suptitle(escape.figure(title), fontsize=10)
    return figure


def _beside(panels: Sequence[Axes], name: str, source: LogInput) -> None:
    """One run as a dashed line on each panel."""
    how: dict[str, Any] = {"color": VERMILION, "ls": "--", "lw": 1.0, "label": escape.figure(name)}
    result = _analysed(source)
    if result is not None:
        for axes, column in zip(panels, ("suboptimality", "pl_ratio"), strict=False):
            table = result.table[result.table[column] > 0]
            axes.plot(table["step"], table[column], **how)
    known = source.log[source.log["drift"].notna()]
    panels[-1].plot(known["step"], known["drift"], **how)


def _seed_band(axes: Axes, results: Sequence[PLRatio], column: str, label: str) -> None:
    """What is positive of a column, over the steps of the first seed; where all have a window, it is shaded."""
    steps = results[0].table["step"].to_numpy()
    positive = [r.table[r.table[column] > 0] for r in results]
    _band(axes, steps, np.array([np.interp(steps, t["step"], t[column], right=np.nan) for t in positive]), label)
    axes.set_yscale("log")
    windows = [r.window for r in results if r.window is not None]
    if windows:
        first, last = max(w.start for w in windows), min(w.stop for w in windows)
        axes.axvspan(first, last, color=SKY, alpha=0.15, lw=0, label="window")


def _band(axes: Axes, steps: NDArray[np.float64], stack: NDArray[np.float64], label: str) -> None:
    known = np.isfinite(stack).any(axis=0)
    steps, stack = steps[known], stack[:, known]
    axes.fill_between(
        steps, np.nanmin(stack, axis=0), np.nanmax(stack, axis=0), color=BLUE, alpha=0.2, lw=0, label="range"
    )
    axes.plot(steps, np.nanmean(stack, axis=0), color=BLUE, label=f"mean of {len(stack)} seeds")
    axes.set_ylabel(label)
