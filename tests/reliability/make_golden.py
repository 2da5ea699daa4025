"""Makes tests/reliability/golden-v1, once for each schema version; never run again for a version that is out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lplr_cli.analysis import certified_columns, summarize
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    folder = Path("golden-v1")
    shutil.rmtree(folder, ignore_errors=True)
    config = TrainConfig(
        DataSpec("mnist", samples=5),
        ModelSpec(width=2, depth=2),
        lr=0.05,
        steps=20,
        probe_every=10,
        checkpoint_every=10,
    )
    outcome = train(config, folder)
    outcome.run.write_summary(summarize(outcome.run, certified_columns(outcome.run)).to_dict())
    (folder / ".lock").unlink()
