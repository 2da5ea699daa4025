"""The report as one self-contained HTML page.

Nothing is fetched and no script runs: figures are SVG drawn here, tables stand behind them, and the page follows the
reader's light or dark setting and prints.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lplr_cli import __version__, escape
from lplr_cli.analysis import PathFigures, kept_path
from lplr_cli.audit.telling import Told, checks, statements
from lplr_cli.reporting import figures as draw
from lplr_cli.reporting.path_figure import path_series
from lplr_cli.reporting.report import RunReport
from lplr_cli.reporting.run_figures import all_figures
from lplr_cli.reporting.text import number
from lplr_cli.reporting.thin import thin
from lplr_cli.runs import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lplr_cli.diagnostics import Convergence

_TABLE_ROWS = 40
# Checks of the run by the question that they answer; the others are about its steps.
_CONVERGED, _WHY = ("descent", "interpolation", "window"), ("lambda_min", "lazy")


def _svg(figure: Figure, title: str, description: str) -> str:
    stream = io.StringIO()
    with draw.style():
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    start = text.index("<svg")
    head, rest = text[start:].split(">", 1)
    accessible = f"<title>{escape.html(title)}</title><desc>{escape.html(description)}</desc>"
    return f'{head} role="img" aria-label="{escape.html(title)}: {escape.html(description)}">{accessible}{rest}'


def _panels(figure: Figure, title: str, description: str) -> str:
    """Each panel of a figure as a picture of its own: a narrow screen shows them below each other."""
    panels, whole = figure.axes, figure.add_gridspec(1, 1)[0]
    figure.set_size_inches(draw.WIDTH, draw.HEIGHT)
    drawn = []
    for k, axes in enumerate(panels, 1):
        for shown in figure.axes:
            figure.delaxes(shown)
        figure.add_axes(axes)
        axes.set_subplotspec(whole)
        drawn.append(_svg(figure, f"{title}, {k} of {len(panels)}", description))
    return f'<div class="panels">{"".join(drawn)}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), css: str = "") -> str:
    head = "".join(f'<th scope="col">{escape.html(c)}</th>' for c in columns)

    def cell(i: int, value: Any) -> str:
        css = ' class="n"' if i in numeric else ""
        return f"<td{css}>{value if isinstance(value, _Raw) else escape.html(value)}</td>"

    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


class _Raw(str):
    """Text that is HTML already."""


_MARKS = {
    "holds (verified)": ("verified", "✓"),
    "holds (estimated)": ("estimated", "≈"),
    "fails": ("fails", "✗"),
    "unknown": ("unknown", "?"),
}


def _findings(told: Told) -> str:
    """Rows of those with an answer or a figure, sentences of the others."""
    rows = []
    for f in told.rows:
        css, mark = _MARKS[f.status]
        status = _Raw(
            f'<span class="status {css}"><span aria-hidden="true">{mark}</span> {escape.html(f.status)}</span>'
        )
        rows.append([f.key, f.title, status, number(f.value), f.reason])
    table = _table(("key", "statement", "status", "figure", "reason"), rows, (3,), "findings") if rows else ""
    return table + "".join(f'<p class="aside">{escape.html(sentence)}</p>' for sentence in told.aside)


def _behind(caption: str, frame: pd.DataFrame) -> str:
    """The table behind a figure, thinned, folded away."""
    keep = frame.iloc[thin(len(frame), _TABLE_ROWS)]
    rows = [[number(None if v != v else v, 5) for v in row] for row in keep.to_numpy(dtype=object).tolist()]
    shown = f"{len(keep)} of {len(frame)} rows" if len(keep) < len(frame) else f"{len(frame)} rows"
    table = _table([str(c) for c in frame.columns], rows, range(len(frame.columns)))
    return f"<details><summary>{escape.html(caption)} as a table ({shown})</summary>{table}</details>"


def _figure(svg: str, caption: str, table: str = "", css: str = "") -> str:
    said = f"<figcaption>{escape.html(caption)}</figcaption>"
    return f'<figure class="{css}"><div class="scroll">{svg}</div>{said}{table}</figure>'


def _section(report: RunReport, index: int) -> str:
    a = report.audit
    drawn = all_figures(report)
    parts = [
        f'<section id="run{index}"><h2>{escape.html(report.name)}</h2>',
        f'<p class="verdict {a.along.verdict}"><strong>Locally PL along the run: {a.along.verdict}.</strong> '
        f"{escape.html(_sentence(a.along.explanation))}</p>",
        f'<p class="verdict {a.verdict}"><strong>Local PL regime around its start: {a.verdict}.</strong> '
        f"{escape.html(_sentence(a.explanation))}</p>",
        f'<p class="scope">{escape.html(_sentence(a.scope.line))}</p>',
        "<h3>Did it converge?</h3>",
        _checks(report, _CONVERGED),
        _loss(report, drawn["loss"]),
        "<h3>How fast?</h3>",
        "<p>No rate: the log has too few rows.</p>" if a.rate is None else _rate(a.rate, drawn["rate"]),
        "<h3>Why?</h3>",
        _checks(report, _WHY),
        _ratio(report, drawn.get("ratio")),
        _spectrum(report, drawn.get("spectrum")),
        _prediction(report, drawn.get("prediction")),
        "<h3>Was the step size sane?</h3>",
        _checks(report, [f.key for f in a.sanity if f.key not in (*_CONVERGED, *_WHY)]),
        _curvature(report, drawn.get("curvature")),
        "<h3>What is proved?</h3>",
        "<h4>Hypotheses and conclusions</h4>",
        _findings(statements(a)),
        *([_along(report, drawn["path"])] if "path" in drawn else []),
        _region(drawn.get("region")),
    ]
    if report.source.run is not None:
        record = escape.html(escape.json(plain(report.source.run.config())), keep="\n")
        parts.append(f"<details><summary>Configuration and versions</summary><pre>{record}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _checks(report: RunReport, keys: Sequence[str]) -> str:
    """The checks of these names that were made, in this order."""
    return _findings(checks(report.audit, keys))


def _loss(report: RunReport, figure: Figure) -> str:
    ratio = report.audit.ratio
    window = "" if ratio is None or ratio.window is None else f" Window: {ratio.window.explanation}."
    caption = "The loss" + ("" if ratio is None else " and how far it is above its lowest value") + "." + window
    table = report.source.log if ratio is None else ratio.table.drop(columns="in_window")
    return _figure(_svg(figure, "Loss", caption), caption, _behind("Series", table), "narrow")


def _ratio(report: RunReport, figure: Figure | None) -> str:
    ratio = report.audit.ratio
    if ratio is None or figure is None:
        return "<p>No PL ratio: the log has no gradient norms.</p>"
    low = ratio.pl_ratio.min
    lowest = "at least " + ("" if low is None else f"{number(low)} on the window with L* the lowest loss, ")
    caption = (
        f"The PL ratio ½‖∇L‖²/(L − L*): {lowest}{number(ratio.pl_ratio_star.min)} with L* = 0 ({ratio.facts.bound})."
    )
    return _figure(_svg(figure, "PL ratio", caption), caption, "", "narrow")


def _curvature(report: RunReport, figure: Figure | None) -> str:
    if figure is None:
        return "<p>No curvature was measured along this run.</p>"
    caption = (
        "The curvature of the loss along the run against the largest at which its steps are stable on a quadratic: "
        "2/η for gradient descent, (2 + 2β)/η with momentum β."
    )
    known = report.curvature.dropna(subset=["sharpness", "bound"], how="all")
    return _figure(_svg(figure, "Curvature", caption), caption, _behind("Curvature", known), "narrow")


def _region(figure: Figure | None) -> str:
    if figure is None:
        return "<p>No drift and no eigenvalue of the kernel is known.</p>"
    said = {
        "drift": "how far the parameters moved, against the radius of the ball around the start with a proved μ > 0",
        "λ_min": "the smallest eigenvalue of the kernel",
    }
    shown = [text for name, text in said.items() if any(a.get_ylabel().startswith(name) for a in figure.axes)]
    caption = _sentence("; then ".join(shown))
    return _figure(_panels(figure, "Certified region", caption), caption)


def _along(report: RunReport, figure: Figure) -> str:
    """The region along the path: what is proved in one sentence, the envelope, and the steps that lack a proof."""
    run = report.source.run
    path = None if run is None else kept_path(run)
    assert run is not None
    assert path is not None
    word = "proved" if path.certified else "estimated"
    caption = (
        f"{_proved(path)} Dashed: what is {word}, with L* of the tube, of every point within "
        f"ρ = {number(path.radius)} of the step; solid: what was measured at its iterate. "
        f"{path.agreement[:1].upper()}{path.agreement[1:]}."
    )
    table = _behind("Path", path_series(run, path))
    rows = [[f"{s.first}" if s.first == s.last else f"{s.first} to {s.last}", s.reason] for s in path.without_proof]
    named = ""
    if rows:
        shown = rows[:_TABLE_ROWS]
        more = f"<p>And {len(rows) - len(shown)} stretches more.</p>" if len(rows) > len(shown) else ""
        named = "<h4>Steps without proof</h4>" + _table(("steps", "reason (figures of the first)"), shown) + more
    return _figure(_svg(figure, "Along the run", caption), caption, table, "narrow") + named


def _proved(path: PathFigures) -> str:
    """The theorem of this run in one sentence."""
    mu, word = (path.mu_path, "Certified") if path.certified else (path.mu_path_estimated, "Estimated")
    said = f"{word} on {number(100 * path.share, 4)} % of the path: ½‖∇L‖² ≥ μ (L − L*) with μ = {number(mu)}"
    rate = path.rate_proved if path.certified else path.rate_estimated
    if rate is None:
        return f"{said}; no rate: {path.rate_reason or 'none'}."
    return f"{said}; L − L* shrinks by the factor {number(rate, 7)} or more a step from step {path.rate_from_step} on."


def _rate(rate: Convergence, figure: Figure) -> str:
    fit = rate.fit
    if fit.verdict == "none":
        said = "no rate"
    elif fit.rate is not None:
        ends = fit.between(number(fit.rate_low, 8), number(fit.rate_high, 8))
        said = f"ρ = {number(fit.rate, 8)} a step, {ends}"
    else:
        said = f"α = {number(fit.alpha)}, {fit.between(number(fit.alpha_low), number(fit.alpha_high))}"
    caption = f"Rate: {fit.says}; {said}; floor {number(fit.l_inf)}; {fit.reason}."
    caption += " Below: the effective rate ρ(t) with its band." if len(rate.effective) else ""
    table = _behind("Fit", rate.table[["step", "loss", "fitted", "suboptimality", "effective_rate"]])
    notes = "".join(f"<p>{escape.html(_sentence(n))}</p>" for n in rate.notes)
    return _figure(_svg(figure, "Rate", caption), caption, table, "narrow") + "\n" + notes


def _spectrum(report: RunReport, figure: Figure | None) -> str:
    if figure is None:
        return f"<p>No spectrum: {escape.html(report.note)}.</p>"
    caption = (
        "First: how many eigenvalues of K = JJᵀ/n lie where. Second: the share of the squared residual along their "
        "eigenvectors; what lies at the left end is what gradient descent removes last."
    )
    frame = pd.DataFrame(
        {
            "rank": np.arange(1, len(report.spectra[0].eigenvalues) + 1),
            **{f"eigenvalue, step {s.step}": s.eigenvalues for s in report.spectra},
            **{f"residual share, step {s.step}": s.residual_share for s in report.spectra},
        }
    )
    return _figure(_panels(figure, "Spectrum", caption), caption, _behind("Spectrum", frame))


def _prediction(report: RunReport, figure: Figure | None) -> str:
    prediction = report.audit.prediction
    if prediction is None or figure is None:
        return f"<p>No predicted curve: {escape.html(report.audit.no_prediction)}.</p>"
    answer = {True: "lazy", False: "not lazy", None: "not comparable"}[prediction.lazy]
    caption = (
        f"First: the measured loss beside the one that the kernel at the start predicts; laziness error "
        f"{number(prediction.error)}, {answer} (an estimate). Second: energy of the residual along K's eigenvectors "
        "at the start and at the end."
    )
    return _figure(
        _panels(figure, "Prediction by the kernel", caption), caption, _behind("Prediction", prediction.to_frame())
    )


def _comparison(reports: Sequence[RunReport]) -> str:
    rows = []
    for i, r in enumerate(reports):
        f = r.audit.figures
        rows.append(
            [
                _Raw(f'<a href="#run{i}">{escape.html(r.name)}</a>'),
                r.audit.along.verdict,
                r.audit.verdict,
                number(f.loss.last),
                number(_predicted(r)),
                number(f.pl_ratio.min if f.pl_ratio else None),
                number(f.pl_ratio_star.min if f.pl_ratio_star else None),
                number(f.rate.rate if f.rate else None, 7),
                number(f.drift_max),
                number(f.certified_radius),
                number(f.sharpness.lr_over_stable),
            ]
        )
    verdicts = ("run", "PL along the run", "PL around its start")
    figures = ("loss", "by K_0", "PL min", "PL* min", "rate ρ", "drift", "certified R", "η · sharpness/2")
    return "<h2>Comparison</h2>" + _table((*verdicts, *figures), rows, range(3, 11))


def _predicted(report: RunReport) -> float | None:
    """The last loss that the kernel at the start predicts."""
    prediction = report.audit.prediction
    return None if prediction is None else float(prediction.pieces[0].predicted[-1])


def _counted(verdicts: Sequence[str]) -> str:
    """The verdict of one run, or how many runs have which."""
    counts = {v: verdicts.count(v) for v in ("yes", "no", "undetermined") if v in verdicts}
    return verdicts[0] if len(verdicts) == 1 else ", ".join(f"{n} {v}" for v, n in counts.items())


def html_report(reports: Sequence[RunReport], title: str) -> str:
    """The page: verdicts first, then each run's figures and tables."""
    along = _counted([r.audit.along.verdict for r in reports])
    start = _counted([r.audit.verdict for r in reports])
    body = [
        f"<h1>{escape.html(title)}</h1>",
        f"<p>Locally PL along the run: {along}; local PL regime around its start: {start}. "
        "<em>Verified</em> is proved given the arithmetic used; <em>estimated</em> is measured and proves nothing.</p>",
        _comparison(reports) if len(reports) > 1 else "",
        *(_section(r, i) for i, r in enumerate(reports)),
        f"<footer><p>Made by lplr {__version__}. Framework: Aich, Aich and Wade, arXiv 2507.21429. "
        "Normalisation: L = (s/n) Σ‖f − y‖², K = JJᵀ/n, PL: ½‖∇L‖² ≥ μ (L − L*).</p></footer>",
    ]
    style = files("lplr_cli.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape.html(title)}</title><style>\n{style}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
