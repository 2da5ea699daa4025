"""Audits against runs whose truth is known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lplr_cli as lplr
from lplr_cli.analysis import Source
from lplr_cli.audit import read_policy
from lplr_cli.audit.findings import Status
from lplr_cli.audit.run import Audit, audit
from lplr_cli.audit.telling import checks, statements
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

STEPS = np.arange(300)
VERIFIED, ESTIMATED, FAILS, UNKNOWN = Status.VERIFIED, Status.ESTIMATED, Status.FAILS, Status.UNKNOWN


def statuses(result: Audit) -> dict[str, Status]:
    """Of what is asked around the start; of the path only what a run keeps is judged."""
    along = [f for f in result.findings if f.key.startswith("P")]
    assert [f.status for f in along] == [UNKNOWN] * 3
    return {f.key: f.status for f in result.findings if f not in along}


def log_of(folder: Path, name: str, loss: np.ndarray, **columns: np.ndarray) -> str:
    path = folder / name
    pd.DataFrame({"step": np.arange(len(loss)), "loss": loss, **columns}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified run (a linear model), a lazy one, and one in which compatibility fails."""
    folder = tmp_path_factory.mktemp("audit")
    tall = DataSpec("tests.audit.test_audit:wide_data")
    train(TrainConfig(tall, ModelSpec(depth=0), lr=0.02, steps=400, probe_every=100), folder / "linear")
    digits = DataSpec("mnist", samples=20)
    train(TrainConfig(digits, ModelSpec(width=16, depth=2), steps=60, probe_every=20), folder / "digits")
    return folder


def wide_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples in thirty dimensions: a linear model interpolates them."""
    g = torch.Generator().manual_seed(4)
    return torch.randn(8, 30, generator=g), torch.randn(8, 1, generator=g)


def test_a_linear_model_is_certified_throughout(runs: Path) -> None:
    result = audit(str(runs / "linear"), foreign=Source(data=DataSpec("tests.audit.test_audit:wide_data")))
    assert result.verdict == "yes"
    assert statuses(result) == dict.fromkeys(["H1", "H2", "H3", "H4", "H5", "C1", "C2"], VERIFIED)
    x, _ = wide_data()
    design = torch.cat([x.double(), torch.ones(8, 1, dtype=torch.float64)], dim=1)
    low = float(torch.linalg.eigvalsh(design @ design.T / 8)[0])
    mu = result["C1"].value
    assert mu is not None
    assert mu == pytest.approx(2 * low, rel=0.02)
    assert mu <= 2 * low
    assert result["H2"].value == 0.0
    assert result["descent"].status == ESTIMATED
    assert result["interpolation"].status == ESTIMATED
    assert result["lazy"].status == ESTIMATED
    assert result["lazy"].reason.startswith("yes")
    assert result["lazy"].value == pytest.approx(0.0, abs=1e-4)  # of the float32 run


def test_digits_are_refused_with_the_figures(runs: Path) -> None:
    result = audit(str(runs / "digits"))
    found = statuses(result)
    assert result.verdict == "no"
    assert (found["H1"], found["H2"], found["H3"]) == (VERIFIED, VERIFIED, FAILS)
    assert found["C1"] == UNKNOWN
    h3 = result["H3"]
    assert h3.value is not None
    assert h3.threshold is not None
    assert h3.value > h3.threshold > 0
    without = audit(str(runs / "digits"), certificate=False)
    assert statuses(without)["H2"] == ESTIMATED
    record = result.to_dict()
    assert record["H3"]["holds"] is False
    assert record["local_pl"] is False
    assert len(result.to_frame()) == 17
    assert result["lazy"].status == FAILS
    assert result.prediction is not None
    assert result.prediction.error == pytest.approx(result["lazy"].value)
    assert (without["lazy"].status, without["lazy"].reason) == (UNKNOWN, "not asked for")


def test_a_bare_log_is_undetermined(tmp_path: Path) -> None:
    result = audit(log_of(tmp_path, "l.csv", 0.98**STEPS))
    found = statuses(result)
    assert result.verdict == "undetermined"
    assert [found[k] for k in ("H1", "H2", "H3", "H4", "H5", "C1")] == [UNKNOWN] * 6
    assert found["C2"] == ESTIMATED
    assert result["C2"].value == pytest.approx(0.98, abs=1e-6)
    # A row for what a curve tells; what needs the network in one sentence.
    assert [f.key for f in statements(result).rows] == ["C2"]
    assert statements(result).aside[0] == "H1, H2, H3, H4, H5, P1, P2, P3 not asked: a log alone has no network."
    assert [f.key for f in checks(result).rows] == ["interpolation", "descent"]
    assert checks(result).aside[0] == "step_size unknown: a log alone has no network."
    assert result.explanation == result.along.explanation == "a log alone has no network"


def test_no_row_is_without_an_answer_or_a_figure(tmp_path: Path) -> None:
    """A loop of somebody's that tells nothing: what is not known is said once a reason, outside the tables."""
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with lplr.Recorder(module, tmp_path / "r") as recorder:
        for _ in range(40):
            optimizer.zero_grad()
            loss = module(x).square().mean()
            loss.backward()
            recorder.record(loss, optimizer)
            optimizer.step()
    result = audit(str(tmp_path / "r"))
    for told, found in ((statements(result), result.findings), (checks(result), result.sanity)):
        assert all(f.holds is not None or f.value is not None for f in told.rows)
        named = {key for sentence in told.aside for key in sentence.split(" unknown")[0].split(", ")}
        assert {f.key for f in told.rows} | named | {"lambda_min"} == {f.key for f in found} | {"lambda_min"}
    assert statements(result).aside[0].startswith("H1, H2, H3, H4 unknown: no probe, and no certificate (")


def test_a_power_law_is_no_linear_rate(tmp_path: Path) -> None:
    """C2 fails only where the inequality itself is seen broken (theory.md section 12)."""
    result = audit(log_of(tmp_path, "l.csv", (1 + STEPS / 5) ** -1.0))
    assert result["C2"].status == UNKNOWN
    assert "sublinear" in result["C2"].reason
    assert result["C2"].value == pytest.approx(1.0, rel=1e-3)


def test_the_sanity_of_a_run(tmp_path: Path) -> None:
    rising = 0.98**STEPS
    rising[[20, 90]] *= 1.5
    result = audit(log_of(tmp_path, "l.csv", rising))
    assert result["descent"].status == FAILS
    assert result["descent"].value == 2
    # A gradient that jumps is named; the loss need not tell.
    norms = 0.98**STEPS
    norms[60] *= 30
    frame = pd.DataFrame({"step": STEPS, "loss": 0.98**STEPS, "grad_norm": norms})
    frame.to_csv(tmp_path / "g.csv", index=False)
    jumped = audit(str(tmp_path / "g.csv"))["spikes"]
    assert (jumped.status, jumped.value) == (FAILS, 1.0)
    assert "step 60 (2" in jumped.reason
    floor = audit(log_of(tmp_path, "f.csv", 0.5 + 0.98**STEPS))
    assert floor["interpolation"].status == FAILS
    assert floor["step_size"].status == UNKNOWN
    # A log has no network to predict from: a row without a use is left out.
    assert "lazy" not in {f.key for f in floor.sanity}


def test_a_subset_can_refute_and_never_certify(tmp_path: Path) -> None:
    config = TrainConfig(DataSpec("mnist", samples=20), ModelSpec(width=8, depth=1), steps=20, probe_size=5)
    train(config, tmp_path / "r")
    result = audit(str(tmp_path / "r"), certificate=False)
    assert result["H1"].status == ESTIMATED
    assert "subset" in result["H1"].reason


def test_offline_probes_fill_what_the_log_lacks(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec("mnist", samples=16),
        ModelSpec(width=8, depth=1),
        steps=30,
        lr=0.02,
        probe_every=5,
        checkpoint_every=5,
    )
    train(config, tmp_path / "r")
    logged = audit(str(tmp_path / "r"), certificate=False)
    (tmp_path / "r" / "probes.csv").unlink()
    (tmp_path / "r" / "probes.parquet").unlink()
    bare = audit(str(tmp_path / "r"), certificate=False)
    assert bare["H3"].status == UNKNOWN
    assert bare.ratio != logged.ratio  # whose window begins where the sharpness has jumped
    offline = audit(str(tmp_path / "r"), certificate=False, offline_probe=True)
    assert statuses(offline) == statuses(logged)
    assert offline["H3"].value == pytest.approx(logged["H3"].value, rel=1e-6)
    for which in (offline, logged):
        assert which.ratio is not None
        assert which.ratio.window is not None
        assert "jump of the sharpness" in which.ratio.window.explanation
    assert [f.reason for f in offline.sanity if f.key == "window"] == [
        f.reason for f in logged.sanity if f.key == "window"
    ]
    with pytest.raises(InputError, match="needs a run directory"):
        audit(log_of(tmp_path, "l.csv", 0.98**STEPS), offline_probe=True)


@pytest.mark.parametrize(
    ("rate", "gradient", "failing"),
    [
        (0.98, 1.0, []),
        (0.985, 1.0, ["decay_rate"]),
        (0.98, 0.5, ["pl_ratio_min"]),
        (0.985, 0.5, ["pl_ratio_min", "decay_rate"]),
    ],
)
def test_regressions_against_a_baseline(rate: float, gradient: float, failing: list[str], tmp_path: Path) -> None:
    good = 0.98**STEPS
    before = log_of(tmp_path, "before.csv", good, grad_norm_sq=good)
    loss = rate**STEPS
    now = log_of(tmp_path, "now.csv", loss, grad_norm_sq=gradient * loss)
    result = audit(now, baseline=before)
    assert result.baseline is not None
    assert [name for name, change in result.baseline.items() if change.failed] == failing
    assert len(result.regressions) == len(failing)
    assert audit(now, baseline=before, tolerance=0.9).regressions == []


def test_policies_are_named_sets(tmp_path: Path) -> None:
    path = tmp_path / "ci.toml"
    path.write_text(
        '[default]\nrequire = ["H1.holds == true"]\n[strict]\nrequire = ["H3.verified == true", "drift.max < 1"]\n'
    )
    assert read_policy(str(path)) == ["H1.holds == true"]
    assert read_policy(f"{path}:strict") == ["H3.verified == true", "drift.max < 1"]
    for text, match in (
        ("[other]\nrequire = ['a > 1']", "has no set 'default'"),
        ("[default]\n", "no list of requirements"),
        ("[default]\nrequire = [1]", "no list of requirements"),
        ("[default]\nrequire = ['a > 1']\nrequired = []", "unknown keys required"),
        ("nonsense", "no valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            read_policy(str(path))
    with pytest.raises(InputError, match="cannot read"):
        read_policy(str(tmp_path / "none.toml"))


def test_the_package_is_the_function(tmp_path: Path) -> None:
    source = log_of(tmp_path, "l.csv", 0.98**STEPS)
    assert lplr.audit(source).to_dict() == audit(source).to_dict()


def test_text_that_no_encoding_holds_is_spelled_in_tables(tmp_path: Path) -> None:
    result = audit(log_of(tmp_path, "a.csv", np.exp(-0.1 * STEPS)))
    odd = replace(result.findings[0], reason="a loss called \ud800")
    assert replace(result, findings=(odd,)).to_frame()["reason"][0] == r"a loss called \ud800"


@pytest.mark.parametrize(("factor", "status"), [(0.5, VERIFIED), (1.0, VERIFIED), (1.01, ESTIMATED), (1e6, ESTIMATED)])
def test_a_bound_above_its_own_value_is_not_believed(runs: Path, tmp_path: Path, factor: float, status: Status) -> None:
    path = tmp_path / "digits"
    shutil.copytree(runs / "digits", path)
    table = pd.read_csv(path / "probes.csv")
    assert 0 < table["lambda_min_lower"][0] < table["lambda_min"][0]
    table["lambda_min_lower"] = factor * table["lambda_min"]
    table.to_csv(path / "probes.csv", index=False)
    found = audit(str(path), certificate=False)["H1"]
    assert (found.status, found.value) == (status, (factor if status is VERIFIED else 1.0) * table["lambda_min"][0])


def test_a_change_within_the_uncertainty_of_the_window_is_no_regression(tmp_path: Path) -> None:
    """A PL ratio that differs by as much as other windows make of it; a clear loss fails all the same."""
    ratio = 0.5 * (1 + 0.6 * STEPS / 300)
    before = log_of(tmp_path, "b.csv", 0.98**STEPS, grad_norm_sq=2 * ratio * 0.98**STEPS)
    own = audit(before).figures.window_sensitivity
    assert own is not None
    assert 0.02 < own < 0.3
    for factor, fails in ((1 - 0.8 * own, False), (1 - 1.5 * own, True)):
        now = log_of(tmp_path, "n.csv", 0.98**STEPS, grad_norm_sq=2 * factor * ratio * 0.98**STEPS)
        result = audit(now, baseline=before, tolerance=0.01)
        assert result.baseline is not None
        change = result.baseline["pl_ratio_min"]
        assert change.worse == pytest.approx(1 - factor, rel=1e-6)
        assert change.uncertainty == pytest.approx(own, rel=1e-6)
        assert change.failed is fails
