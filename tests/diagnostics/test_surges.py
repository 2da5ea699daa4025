"""Norms that jump: planted ones are named with their steps, noise and trends are not."""

from __future__ import annotations

import numpy as np
import pytest

from lplr_cli.diagnostics import surges

STEPS = np.arange(0.0, 600.0, 2.0)


def test_planted_jumps_are_named() -> None:
    values = np.exp(-STEPS / 200 + 0.1 * np.random.default_rng(0).standard_normal(300))
    values[[100, 101, 200]] *= (9.0, 9.0, 20.0)
    found = surges(STEPS, values)
    assert [s.step for s in found] == [200.0, 400.0]
    assert found[1].times == pytest.approx(20, rel=0.4)
    # Rows that are not known, and the rows around them, change nothing.
    values[50::7] = np.nan
    values[[100, 200]] = (5.0, 5.0)
    assert [s.step for s in surges(STEPS, values)] == [200.0, 400.0]


@pytest.mark.parametrize("spread", [0.05, 0.5, 1.0])
def test_noise_and_trends_are_none(spread: float) -> None:
    for seed in range(20):
        noise = spread * np.random.default_rng(seed).standard_normal(300)
        assert len(surges(STEPS, np.exp(-STEPS / 100 + noise))) <= 1
    assert surges(STEPS, np.exp(STEPS / 300)) == ()
    assert surges(STEPS[:5], np.array([1.0, 1.0, 1.0, 1.0, 100.0])) == ()
