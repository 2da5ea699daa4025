"""The report: complete, self-contained, well-formed, accessible; and the views of runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from lplr_cli.analysis import conclude
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.diagnostics import Convergence
from lplr_cli.models import ModelSpec
from lplr_cli.reporting import figures as draw
from lplr_cli.reporting.look import sparkline
from lplr_cli.reporting.page import html_report
from lplr_cli.reporting.path_figure import path_figure, path_series
from lplr_cli.reporting.report import Spectrum, gather
from lplr_cli.reporting.run_figures import all_figures, binned_spectra, range_of_rate
from lplr_cli.training import TrainConfig, train

FIGURES = ("loss", "rate", "ratio", "spectrum", "prediction", "curvature", "region")
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a reader and a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("report")
    config = TrainConfig(DataSpec("mnist", samples=12), ModelSpec(width=5, depth=1), steps=30, probe_every=10)
    train(config, where / "runs" / "one")
    train(config.with_(seed=1), where / "runs" / "two <b>&")
    pd.DataFrame({"step": range(50), "loss": [0.9**i for i in range(50)]}).to_csv(where / "log.csv", index=False)
    return where


def made(folder: Path, *sources: str) -> Page:
    out = folder / "page.html"
    assert run(["report", *sources, "-o", str(out), "--force", "--format", "json"]) == 0
    return Page(out.read_text(encoding="utf-8"))


def test_spectra_are_binned_whole() -> None:
    """Counts and shares add up, and each eigenvalue lies between the edges of its bin."""
    values = np.array([300.0, 10.0, 0.99, 1e-3, 0.0, -1e-17])
    share = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    edges, found = binned_spectra([Spectrum(0, values, share), Spectrum(5, values[:4] / 2, share[:4])])
    assert np.allclose(np.diff(np.log10(edges)), 0.25)
    assert edges[0] <= 5e-4 < edges[1]
    assert edges[-2] <= 300 < edges[-1]
    for (counts, shares), n, total in zip(found, (6, 4), (1.0, 0.9), strict=True):
        assert counts.sum() == n
        assert shares.sum() == pytest.approx(total)
    bin_of = int(np.searchsorted(edges, 10.0, side="right")) - 1
    assert found[0][0][bin_of] == 1
    assert found[0][1][bin_of] == pytest.approx(0.2)
    # What rounding made zero or negative is in the lowest bin.
    assert found[0][0][0] == 2
    assert found[0][1][0] == pytest.approx(0.1)


def test_the_page_is_self_contained_and_accessible(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = made(folder, str(folder / "runs" / "one"))
    record = json.loads(capsys.readouterr().out)
    for tag, attributes in page.tags:
        assert tag != "script"
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in page.text
    figures = [a for t, a in page.tags if t == "svg"]
    # Panels stand apart: a phone shows them below each other.
    assert len(figures) == 10
    assert all(a.get("role") == "img" and len(str(a.get("aria-label"))) > 20 for a in figures)
    assert sum(t == "details" for t, _ in page.tags) == 6
    assert ("html", {"lang": "en"}) in page.tags
    # Verdicts first, then every hypothesis with its status.
    text = re.sub(r"\s+", " ", page.text)
    (verdict,) = record["verdicts"].values()
    questions = ("Did it converge?", "How fast?", "Why?", "Was the step size sane?", "What is proved?")
    order = [
        "Locally PL along the run: ",
        f"regime around its start: {verdict}.",
        *questions,
        "Hypotheses and conclusions",
        "H5",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    for word in ("eigenvalues of K", "laziness error", "Configuration and versions", "sha256", "torch"):
        assert word in text


def test_several_runs_are_compared_and_names_escaped(folder: Path) -> None:
    page = made(folder, str(folder / "runs" / "one"), str(folder / "runs" / "two <b>&"), str(folder / "log.csv"))
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert links == ["#run0", "#run1", "#run2"]
    assert {"run0", "run1", "run2"} <= {str(a.get("id")) for t, a in page.tags if t == "section"}
    assert "two <b>&" in page.text
    assert not any(t == "b" for t, _ in page.tags)
    assert "a log alone has no network" in page.text


def test_a_log_alone_has_no_empty_axes(folder: Path) -> None:
    assert list(all_figures(gather(str(folder / "log.csv")))) == ["loss", "rate"]


def test_a_wide_range_of_the_rate_does_not_set_the_axes() -> None:
    step = np.arange(100)
    table = pd.DataFrame({"step": step, "fitted": 0.99**step, "in_window": True})
    fit = SimpleNamespace(rate=0.99, rate_low=0.3, rate_high=0.999, l_inf=0.0)
    with draw.style():
        axes = draw.new_figure().subplots()
        axes.plot(step, table["fitted"])
        axes.set_yscale("log")
        before = axes.get_ylim()
        range_of_rate(axes, cast(Convergence, SimpleNamespace(fit=fit, table=table, window=SimpleNamespace(start=0))))
        assert axes.get_ylim() == before
        assert np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1].min() < 1e-50


def test_ticks_read_as_numbers_and_legends_cover_no_curve() -> None:
    """A power of ten goes into the label; two decades and more keep powers of ten."""
    from matplotlib.figure import Figure

    shown = {}
    for name, values, scale in (
        ("small", [1.8e-5, 2.5e-5], "linear"),
        ("narrow", [800.0, 1900.0], "log"),
        ("decade", [0.09, 4.0], "log"),
        ("wide", [1e-4, 2.0], "log"),
    ):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], values, label="a")
        axes.set_yscale(scale)
        axes.set_ylabel("y")
        draw.readable_ticks(axes)
        draw.legend(axes)
        figure.canvas.draw()
        low, high = axes.get_ylim()
        inside = [
            t.get_text() for t, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low <= at <= high
        ]
        shown[name] = (axes.get_ylabel(), inside)
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y0 >= axes.get_window_extent().y1
    assert shown["small"][0] == "y / 10⁻⁵"
    assert "2" in shown["small"][1]
    assert {"1000", "1500"} <= set(shown["narrow"][1])
    assert shown["decade"][1] == ["0.1", "0.2", "0.5", "1", "2"]
    assert shown["wide"][0] == "y"
    assert "$" in shown["wide"][1][0]


def test_figures_in_a_folder(folder: Path, tmp_path: Path) -> None:
    one = str(folder / "runs" / "one")
    assert run(["report", one, "-o", str(tmp_path / "f"), "--formats", "svg,pdf"]) == 0
    names = {p.name for p in (tmp_path / "f").iterdir()}
    assert names == {f"one-{k}.{s}" for k in FIGURES for s in ("svg", "pdf")}
    assert run(["report", one, "-o", str(tmp_path / "f"), "--formats", "svg"]) == 2
    assert run(["report", one, "-o", str(tmp_path / "f.txt")]) == 2
    assert run(["report", one, "-o", str(tmp_path / "f"), "--formats", "gif"]) == 2
    assert run(["report", one, one, "-o", str(tmp_path / "g.html")]) == 2


def test_chromium_renders_it_without_a_word(folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    made(folder, str(folder / "runs" / "one"))
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1400",
            f"--screenshot={picture}", (folder / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr


def test_list_filters_and_survives_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = folder / "runs" / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "run.json").write_text("{")
    assert run(["list", str(folder), "--format", "json"]) == 0
    rows = {Path(r["run"]).name: r for r in json.loads(capsys.readouterr().out)["runs"]}
    assert set(rows) == {"one", "two <b>&", "damaged"}
    assert rows["one"]["steps"] == 30
    assert rows["one"]["status"] == "finished"
    assert "no valid JSON" in rows["damaged"]["error"]
    assert run(["list", str(folder), "--status", "finished", "--name", "one", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 1
    assert run(["list", str(folder), "--require", "count >= 3"]) == 0
    assert run(["list", str(folder / "none")]) == 2
    assert run(["list", str(folder), "--status", "odd"]) == 2


def test_watch_looks_at_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(folder / "runs" / "one"), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("finished  step 30 of 30")
    assert [line.split()[0] for line in lines[1:]] == ["loss", "PL", "drift", "λ_min"]
    assert run(["watch", str(folder)]) == 2


def test_sparklines() -> None:
    assert sparkline([1, 10, 100]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▅▅"
    assert sparkline([0.0, 1.0, float("nan")])[1] in "▁▅█"
    assert sparkline([]) == ""
    assert sparkline([-1.0]) == ""
    assert len(sparkline([1.1**i for i in range(1000)])) == 48


def test_the_certified_envelope_lies_under_the_measured_ratio(tmp_path: Path) -> None:
    config = TrainConfig(DataSpec("mnist", samples=8), ModelSpec(width=4, depth=1), lr=0.004, steps=9, probe_every=0)
    own = train(config, tmp_path / "r").run
    assert path_figure(own) is None
    found = conclude(own).path
    assert found is not None
    series = path_series(own, found)
    assert len(series) == 9
    assert (series["mu_star"] <= series["measured_star"]).all()
    assert (series["mu"] <= series["measured"]).all()
    assert (series["mu"] >= series["mu_star"]).all()
    # Steps that lack a proof are shaded in stretches, named in the figure and, escaped, on the page.
    record = json.loads((own.path / "path.json").read_text())
    inside = "in the region, but descent is not proved: eta beta = "
    reasons = {0: f"{inside}2.3", 1: f"{inside}2.1", 5: "<b>beyond</b>"}
    record["not_certified"] = [{"step": k, "reason": v} for k, v in reasons.items()]
    (own.path / "path.json").write_text(json.dumps(record))
    figure = path_figure(own)
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.patches) == 2
    assert [t.get_text() for t in axes.texts] == ["steps 0–1", "step 5"]
    page = Page(html_report([gather(str(own.path), certificate=False)], "t"))
    assert "Along the run" in page.text
    assert "0 to 1" in page.text
    assert "<b>beyond</b>" in page.text
