"""A run in progress as a few lines of text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lplr_cli import escape
from lplr_cli.diagnostics import clean_series, pl_ratio
from lplr_cli.errors import InputError
from lplr_cli.reporting.text import number
from lplr_cli.reporting.thin import thin
from lplr_cli.runs import RunDirectory

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 48) -> str:
    """A line of bars on a logarithmic scale; what is not positive and finite is a space."""
    if not values:
        return ""
    kept = np.array(values, dtype=np.float64)[thin(len(values), width)]
    with np.errstate(all="ignore"):
        logs = np.where((kept > 0) & np.isfinite(kept), np.log(kept), np.nan)
    if np.isnan(logs).all():
        return ""
    low, high = np.nanmin(logs), np.nanmax(logs)
    scaled = (logs - low) / (high - low) if high > low else np.where(np.isnan(logs), np.nan, 0.5)
    return "".join(" " if v != v else _BARS[min(int(v * len(_BARS)), len(_BARS) - 1)] for v in scaled)


def view(run: RunDirectory) -> str:
    """The text of one look."""
    log = run.log()
    if log.empty:
        raise InputError(f"{run.path} has no rows yet", "look again in a moment")
    rows = _series(run, log)
    width = max(10, *(len(name) for name, _ in rows))
    lines = [_headline(run, log)]
    for name, values in rows:
        if values:
            lines.append(f"{name:<{width}} {number(float(values[-1])):>11}  {sparkline(values)}")
    return "".join(f"{escape.line(line)}\n" for line in lines)


def _headline(run: RunDirectory, log: pd.DataFrame) -> str:
    """Where the run stands, and how long it has still to go where that can be told."""
    manifest = run.manifest()
    config = manifest.config
    step, seconds = int(log["step"].iloc[-1]), float(log["seconds"].iloc[-1])
    total = config.get("steps")
    if total is None and config.get("epochs") and (log["epoch"] > 0).any():
        per_epoch = (log["epoch"] == 0).sum()
        total = int(config["epochs"] * per_epoch)
    line = f"{run.path}  {manifest.status}  step {step:,}" + (f" of {total:,}" if total else "")
    if total and step and manifest.status == "running":
        line += f"  about {seconds / step * (total - step):,.0f} s left"
    return line


def _series(run: RunDirectory, log: pd.DataFrame) -> list[tuple[str, list[float]]]:
    """What is drawn, by name."""
    rows: list[tuple[str, list[float]]] = []
    loss = run.manifest().loss.name
    try:
        series = clean_series(log)
        ratio = pl_ratio(series.loss, series.grad_norm_sq, 0.0)
        name = "loss" if loss in (None, "squared") else loss
        rows = [(str(name), series.loss.tolist()), ("PL ratio*", ratio.tolist())]
    except InputError:
        pass  # no gradient norms yet
    rows.append(("drift", log["drift"].dropna().tolist()))
    probes = run.probes()
    if not probes.empty:
        rows.append(("λ_min", probes["lambda_min"].tolist()))
    return rows
