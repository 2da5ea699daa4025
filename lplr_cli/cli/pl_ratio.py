"""``lplr pl-ratio``."""

from __future__ import annotations

from typing import Any

from lplr_cli.cli import output as out_
from lplr_cli.cli.logs import Source, read_log
from lplr_cli.errors import InputError


def pl_ratio(
    run: Source,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """PL ratio of a run and its lower envelope on the stable window.

    CSV and Parquet hold the series, JSON and the table its envelope.

    [bold]lplr pl-ratio runs/mnist-mlp64-s0 --require 'pl_ratio.min >= 0.05'[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    source = read_log(run)
    import pandas as pd

    from lplr_cli import diagnostics
    from lplr_cli.reporting import Grid, number
    from lplr_cli.runs import SCHEMA_VERSION, plain

    series = diagnostics.clean_series(source.log)
    if not series.has_gradients:
        raise InputError(f"{source.name} has no finite grad_norm_sq", "log ||grad L||^2 beside the loss")
    window = diagnostics.stable_window(series.steps, series.loss)
    lowest = float(series.loss.min())
    proxy = diagnostics.pl_ratio(series.loss, series.grad_norm_sq, lowest)
    star = diagnostics.pl_ratio(series.loss, series.grad_norm_sq, 0.0)
    inside = window.rows if window else slice(0, 0)
    summary = source.summary or {}
    record: dict[str, Any] = plain(
        {
            "command": "pl-ratio",
            "schema_version": SCHEMA_VERSION,
            "source": source.name,
            "normalisation": {
                "pl": "0.5 ||grad L||^2 >= mu (L - L*)",
                "loss_scale": (summary.get("normalisation") or {}).get("loss_scale"),
            },
            "l_star": {"low": 0.0, "proxy": lowest},
            "rows": len(series.loss),
            "dropped_rows": series.dropped,
            "window": window.to_dict() if window else None,
            "pl_ratio": diagnostics.envelope(proxy[inside]).to_dict(),
            "pl_ratio_star": diagnostics.envelope(star[window.rows] if window else star).to_dict(),
            "mu_estimated": summary.get("mu_estimated"),
            "mu_certified": summary.get("mu_certified"),
            "certified_radius": summary.get("certified_radius"),
            "mu_certified_reason": summary.get("mu_certified_reason", "a log alone has no network to certify"),
        }
    )
    frame = pd.DataFrame(
        {
            "step": series.steps,
            "loss": series.loss,
            "suboptimality": series.loss - lowest,
            "pl_ratio_star": star,
            "pl_ratio": proxy,
            "in_window": [bool(window and window.first <= i <= window.last) for i in range(len(series.loss))],
        }
    )
    low, high = record["pl_ratio_star"], record["pl_ratio"]
    rows = [
        [
            "pl_ratio_star",
            *(number(low[k]) for k in ("min", "q05", "median")),
            "½‖∇L‖²/L: always valid from below",
        ],
        [
            "pl_ratio",
            *(number(high[k]) for k in ("min", "q05", "median")),
            "½‖∇L‖²/(L − min L): from above, on the window",
        ],
        ["μ estimated", number(record["mu_estimated"]), "", "", "2(λ0 − L_K·R), estimate from probes"],
        ["μ certified", number(record["mu_certified"]), "", "", str(record["mu_certified_reason"])],
    ]
    note = [f"Window: {window.explanation}." if window else "No stable window: pl_ratio_star is over all rows."]
    lost = {k: v for k, v in series.dropped.items() if v}
    if lost:
        note.append("Rows left out: " + ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in lost.items()) + ".")
    grid = Grid(
        f"PL ratio of {source.name}",
        ("quantity", "min", "5 %", "median", "meaning"),
        rows,
        (1, 2, 3),
        tuple(note),
    )
    sink.emit(out_.Result(record, frame, [grid]))
