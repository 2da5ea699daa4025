"""A run of a residual network, certified along its path as `lplr certify RUN --path` does it."""

from __future__ import annotations

from pathlib import Path

from lplr_cli.analysis.path import certify_path, path_while_cheap
from lplr_cli.analysis.subject import Source
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

NET, DATA = "tests.certificate.graph_cases:residual_net", "tests.certificate.graph_cases:images"
SOURCE = Source(model=NET, data=DataSpec(DATA))


def test_the_path_of_a_residual_network(tmp_path: Path) -> None:
    config = TrainConfig(
        DataSpec(DATA), ModelSpec(NET), optimizer="sgd", batch_size=2, lr=0.02, steps=4, probe_every=0,
        probe_sharpness=False,
    )  # fmt: skip
    run = train(config, tmp_path / "run").run
    figures = certify_path(run, source=SOURCE, kernel=False).figures
    assert figures.kind == "certified"
    assert figures.certified_share == 1.0
    assert figures.measured is not None
    assert figures.mu_path is not None
    assert 0.5 * figures.measured <= figures.mu_path <= figures.measured


def test_training_does_not_end_with_it(tmp_path: Path) -> None:
    """What it takes for such a net is not known beforehand."""
    config = TrainConfig(DataSpec(DATA), ModelSpec(NET), lr=0.02, steps=2, probe_every=0, probe_sharpness=False)
    run = train(config, tmp_path / "run").run
    assert path_while_cheap(run, 1e6, SOURCE).startswith("not computed: see lplr certify")
