"""The time that a sweep is told to take, against a clock whose costs are known, and one real trial."""

from pathlib import Path

import pytest

from lplr_cli.ablation import Cell, expected, expected_seconds, preset
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig

BASE = TrainConfig(
    DataSpec("mnist", samples=60),
    ModelSpec(width=4, depth=1),
    optimizer="sgd",
    batch_size=6,
    lr=1e-3,
    steps=None,
    epochs=7,
)


def test_what_every_run_costs_once_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    now, begun = [0.0], list[Path]()

    def clock() -> float:
        return now[0]

    def train(config: TrainConfig, out: Path) -> None:
        assert config.data.samples is not None
        assert config.epochs is not None
        once = 50.0 if not begun else 4.0
        begun.append(out)
        now[0] += once + 0.25 * config.data.samples * config.epochs

    monkeypatch.setattr(expected, "train", train)
    monkeypatch.setattr("time.perf_counter", clock)
    runs = [Cell("a"), Cell("b", {"seed": 1}), Cell("c", {"epochs": 3})]
    assert expected_seconds(BASE, runs) == pytest.approx(0.25 * 60 * (7 + 7 + 3))
    assert not any(out.exists() for out in begun)


def test_a_real_trial() -> None:
    fast = preset("paper-cnn", fast=True)
    assert expected_seconds(fast.base, fast.cells) > 0
