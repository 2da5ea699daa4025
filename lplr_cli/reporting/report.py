"""The report: one self-contained HTML page, or a folder of figures.

Nothing is fetched and no script runs: figures are SVG drawn here, tables stand behind them, and the page follows the
reader's light or dark setting and prints.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli import __version__, escape
from lplr_cli.analysis import OWN, LogInput, Source, open_subject, read_log
from lplr_cli.audit.run import Audit
from lplr_cli.audit.run import audit as examine
from lplr_cli.diagnostics import Convergence, PLRatio
from lplr_cli.errors import InputError, LplrError
from lplr_cli.ntk import empirical_ntk
from lplr_cli.reporting import figures as draw
from lplr_cli.reporting.text import number
from lplr_cli.reporting.thin import thin
from lplr_cli.runs import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of K up to which the report computes its whole spectrum.
MOST_ROWS = 1500
_TABLE_ROWS = 40
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
    return RunReport(log.name, log, audited, audited.ratio, audited.rate, tuple(spectra), note)


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
            radius = report.audit.figures["certified_radius"]
            if radius is not None and math.isfinite(radius):
                drift.axhline(radius, color=draw.GREEN, label="certified radius")
            drift.legend()
        drift.set_ylabel("drift ‖θ_t − θ_0‖")
        probes = pd.DataFrame() if report.source.run is None else report.source.run.probes()
        if not probes.empty:
            low.plot(probes["step"], probes["lambda_min"], "o-", ms=3, color=draw.BLUE, label="computed")
            lower = probes["lambda_min_lower"]
            if lower.notna().any():
                low.plot(probes["step"], lower, "v--", ms=3, color=draw.GREEN, label="proved lower bound")
            if (probes["lambda_min"] > 0).all():
                low.set_yscale("log")
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
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        draw.rate_axes(axes, report.rate)
        fit, window = report.rate.fit, report.rate.window
        if fit.rate and fit.rate_low and fit.rate_high:
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
        "rate": rate_figure(report),
        "spectrum": spectrum_figure(report),
    }
    return {k: v for k, v in found.items() if v is not None}


def _svg(figure: Figure, title: str, description: str) -> str:
    stream = io.StringIO()
    with draw.style():
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    start = text.index("<svg")
    head, rest = text[start:].split(">", 1)
    accessible = f"<title>{escape.html(title)}</title><desc>{escape.html(description)}</desc>"
    return f'{head} role="img" aria-label="{escape.html(title)}: {escape.html(description)}">{accessible}{rest}'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), css: str = "") -> str:
    head = "".join(f'<th scope="col">{escape.html(c)}</th>' for c in columns)

    def cell(i: int, value: Any) -> str:
        css = ' class="n"' if i in numeric else ""
        return f"<td{css}>{value if isinstance(value, _Raw) else escape.html(value)}</td>"

    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class _Raw(str):
    """Text that is HTML already."""


_MARKS = {
    "holds (verified)": ("verified", "✓"),
    "holds (estimated)": ("estimated", "≈"),
    "fails": ("fails", "✗"),
    "unknown": ("unknown", "?"),
}


def _findings(findings: Sequence[Any]) -> str:
    rows = []
    for f in findings:
        css, mark = _MARKS[f.status]
        status = _Raw(
            f'<span class="status {css}"><span aria-hidden="true">{mark}</span> {escape.html(f.status)}</span>'
        )
        rows.append([f.key, f.title, status, number(f.value), f.reason])
    return _table(("key", "statement", "status", "figure", "reason"), rows, (3,), "findings")


def _behind(caption: str, frame: pd.DataFrame) -> str:
    """The table behind a figure, thinned, folded away."""
    keep = frame.iloc[thin(len(frame), _TABLE_ROWS)]
    rows = [[number(None if v != v else v, 5) for v in row] for row in keep.to_numpy(dtype=object).tolist()]
    shown = f"{len(keep)} of {len(frame)} rows" if len(keep) < len(frame) else f"{len(frame)} rows"
    table = _table([str(c) for c in frame.columns], rows, range(len(frame.columns)))
    return f"<details><summary>{escape.html(caption)} as a table ({shown})</summary>{table}</details>"


def _figure(svg: str, caption: str, table: str = "", css: str = "") -> str:
    return f'<figure class="{css}">{svg}<figcaption>{escape.html(caption)}</figcaption>{table}</figure>'


def _section(report: RunReport, index: int) -> str:
    a = report.audit
    parts = [
        f'<section id="run{index}"><h2>{escape.html(report.name)}</h2>',
        f'<p class="verdict {a.verdict}"><strong>Local PL regime: {a.verdict}.</strong> '
        f"{escape.html(a.explanation)}.</p>",
        "<h3>Hypotheses and conclusions</h3>",
        _findings(a.findings),
        "<h3>The run itself</h3>",
        _findings(a.sanity),
        "<h3>Diagnostics</h3>",
    ]
    drawn = all_figures(report)
    window = (
        "" if report.ratio is None or report.ratio.window is None else f" Window: {report.ratio.window.explanation}."
    )
    description = "Loss, PL ratio, drift and smallest eigenvalue of the NTK against the step." + window
    table = report.source.log if report.ratio is None else report.ratio.table.drop(columns="in_window")
    parts.append(_figure(_svg(drawn["diagnostics"], "Diagnostics", description), description, _behind("Series", table)))
    if report.rate is not None:
        fit = report.rate.fit
        law = fit.verdict.replace("_", " ")
        if fit.rate is not None:
            ends = f"{number(fit.rate_low, 8)} to {number(fit.rate_high, 8)}"
            said = f"ρ = {number(fit.rate, 8)} a step, 95 % interval {ends}"
        else:
            said = f"α = {number(fit.alpha)}, 95 % interval {number(fit.alpha_low)} to {number(fit.alpha_high)}"
        caption = f"Rate: {law}; {said}; floor {number(fit.l_inf)}; {fit.reason}."
        notes = "".join(f"<p>{escape.html(n)}.</p>" for n in report.rate.notes)
        columns = ["step", "loss", "fitted", "suboptimality"]
        parts += [
            "<h3>Rate</h3>",
            _figure(
                _svg(drawn["rate"], "Rate", caption), caption, _behind("Fit", report.rate.table[columns]), "narrow"
            ),
            notes,
        ]
    parts.append("<h3>Spectrum of the NTK</h3>")
    if "spectrum" in drawn:
        caption = (
            "Left: how many eigenvalues of K = JJᵀ/n lie where. Right: the share of the squared residual along their "
            "eigenvectors; what lies at the left end is what gradient descent removes last."
        )
        first = report.spectra[0]
        frame = pd.DataFrame(
            {
                "rank": np.arange(1, len(first.eigenvalues) + 1),
                **{f"eigenvalue, step {s.step}": s.eigenvalues for s in report.spectra},
                **{f"residual share, step {s.step}": s.residual_share for s in report.spectra},
            }
        )
        parts.append(_figure(_svg(drawn["spectrum"], "Spectrum", caption), caption, _behind("Spectrum", frame)))
    else:
        parts.append(f"<p>No spectrum: {escape.html(report.note)}.</p>")
    if report.source.run is not None:
        record = escape.html(escape.json(plain(report.source.run.config())), keep="\n")
        parts.append(f"<details><summary>Configuration and versions</summary><pre>{record}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _comparison(reports: Sequence[RunReport]) -> str:
    rows = []
    for i, r in enumerate(reports):
        f = r.audit.figures
        rate = f["rate"] or {}
        rows.append(
            [
                _Raw(f'<a href="#run{i}">{escape.html(r.name)}</a>'),
                r.audit.verdict,
                number(f["loss"]["last"]),
                number((f["pl_ratio"] or {}).get("min")),
                number((f["pl_ratio_star"] or {}).get("min")),
                number(rate.get("rate"), 7),
                number(f["drift"]["max"]),
                number(f["certified_radius"]),
                number(f["sharpness"]["lr_over_stable"]),
            ]
        )
    columns = ("run", "local PL", "loss", "PL min", "PL* min", "rate ρ", "drift", "certified R", "η·sharpness/2")
    return "<h2>Comparison</h2>" + _table(columns, rows, range(2, 9))


_STYLE = """
:root{--bg:#fff;--fg:#1a1a1a;--soft:#5a5a5a;--line:#d9d9d9;--card:#f6f7f9;--ok:#00603f;--est:#7a5200;
--bad:#a8341c;--link:#00558a}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#ececec;--soft:#b0b3b8;--line:#3a3d43;
--card:#1d2026;--ok:#5fd0a5;--est:#ecb94a;--bad:#ff9277;--link:#7cc4f5}
figure svg{filter:invert(.92) hue-rotate(180deg)}
}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.6rem}
h2{margin-top:2.4rem;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
h3{margin-top:1.6rem}
a{color:var(--link)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.status{white-space:nowrap;font-weight:600}
.verified{color:var(--ok)}
.estimated{color:var(--est)}
.fails{color:var(--bad)}
.unknown{color:var(--soft)}
.verdict{padding:.8rem 1rem;border-left:.35rem solid var(--soft);background:var(--card)}
.verdict.yes{border-color:var(--ok)}
.verdict.no{border-color:var(--bad)}
figure{margin:1rem 0}
figure svg{width:100%;height:auto}
figcaption,footer{color:var(--soft);font-size:.9rem}
details{margin:.5rem 0}
summary{cursor:pointer}
pre{overflow:auto;background:var(--card);padding:.8rem;font-size:.8rem}
figure.narrow svg{max-width:36rem}
@media (max-width:40rem){table.findings thead{display:none}
table.findings tr{display:block;border-bottom:1px solid var(--line);padding:.4rem 0}
table.findings td{display:block;border:0;padding:.1rem 0;text-align:left}
}
@media print{body{max-width:none;font-size:11pt}
section{break-before:page}
figure,tr{break-inside:avoid}
}
"""


def html_report(reports: Sequence[RunReport], title: str) -> str:
    """The page: verdicts first, then each run's figures and tables."""
    counts = {v: sum(r.audit.verdict == v for r in reports) for v in ("yes", "no", "undetermined")}
    lead = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    body = [
        f"<h1>{escape.html(title)}</h1>",
        f"<p>Local PL regime of {len(reports)} run{'s' if len(reports) > 1 else ''}: {lead}. "
        "<em>Verified</em> is proved given the arithmetic used; <em>estimated</em> is measured and proves nothing.</p>",
        _comparison(reports) if len(reports) > 1 else "",
        *(_section(r, i) for i, r in enumerate(reports)),
        f"<footer><p>Made by lplr {__version__}. Framework: Aich, Aich and Wade, arXiv 2507.21429. "
        "Normalisation: L = (s/n) Σ‖f − y‖², K = JJᵀ/n, PL: ½‖∇L‖² ≥ μ (L − L*).</p></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape.html(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
