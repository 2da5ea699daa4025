"""Logs as the libraries themselves write them.

``python -m tests.runs.logs.make_samples [NAME…]`` writes ``samples/`` anew, for the libraries that are installed
(``pip install 'lplr[readers]'``). Beside each sample ``expected.json`` keeps what was logged, told by the library or
by the loop, never by lplr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).with_name("samples")
ROWS = 40

Columns = dict[str, list[float]]


def decay(rows: int = ROWS) -> Columns:
    """A run as a loop logs it."""
    steps = range(rows)
    return {
        "step": [float(i) for i in steps],
        "loss": [0.02 + 3.0 * 0.9**i for i in steps],
        "grad_norm": [0.7 * math.sqrt(3.0) * 0.9 ** (i / 2) for i in steps],
        "lr": [0.05 for _ in steps],
    }


def rows(columns: Columns) -> Iterator[dict[str, float]]:
    """Row by row, the step as an integer."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working directory of a library that writes where it stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def keep_tables(path: Path, *names: str) -> None:
    """Drop all other tables of a database, and what indexes alone take: a sample is small."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for kind in ("index", "table"):
            query = "SELECT name FROM sqlite_master WHERE type = ? AND sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
            for (name,) in database.execute(query, (kind,)).fetchall():
                if name not in names:
                    database.execute(f'DROP {kind} "{name}"')
        database.commit()
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("VACUUM")


def huggingface(folder: Path) -> Columns:
    """``Trainer`` on a tiny classifier: ``checkpoint-20`` and ``checkpoint-40``, of which the trainer states count."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    import torch
    from transformers import Trainer, TrainingArguments

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(4, 3)

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            logits = self.line(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 4), torch.randint(3, (40,))
    data: Any = [{"x": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=ROWS, logging_steps=1, save_steps=20, eval_strategy="steps", eval_steps=10,
        per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    trainer = Trainer(model=Net(), args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    names = {"step": "step", "loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "trainer_state.json":
            path.unlink()
    return {known: [float(row[name]) for row in logged] for known, name in names.items()}


def lightning(folder: Path) -> Columns:
    """``CSVLogger`` below a ``Trainer`` that logs each step, each epoch, the learning rate and validation."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    said: Columns = {"step": [], "loss": []}

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = (self.line(batch[0]) - batch[1]).square().mean()
            said["step"].append(float(self.global_step))
            said["loss"].append(float(loss))
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", (self.line(batch[0]) - batch[1]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    loader: Any = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randn(40, 1)), batch_size=8
    )
    trainer = lightning.Trainer(
        max_epochs=8, logger=CSVLogger(str(folder), name=""), log_every_n_steps=1, accelerator="cpu",
        callbacks=[LearningRateMonitor("step")], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Net(), loader, loader)
    (folder / "version_0" / "hparams.yaml").unlink(missing_ok=True)
    return said


def tensorboard(folder: Path) -> Columns:
    """``SummaryWriter`` of torch, which writes float32."""
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    columns = decay()
    with SummaryWriter(str(folder)) as writer:
        for row in rows(columns):
            writer.add_scalar("Loss/train", row["loss"], int(row["step"]))
            writer.add_scalar("Loss/val", 1.1 * row["loss"], int(row["step"]))
            writer.add_scalar("learning_rate", row["lr"], int(row["step"]), new_style=True)
    (file,) = folder.iterdir()
    file.rename(folder / "events.out.tfevents.1700000000.host.1.0")
    del columns["grad_norm"]
    return {k: [float(np.float32(v)) for v in values] for k, values in columns.items()}


def mlflow_database(folder: Path) -> Columns:
    """``mlflow.db``, of which the tables that MLflow fills for others are dropped to keep it small."""
    import mlflow

    columns = decay()
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.create_experiment("e", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("e")
    for name, factor in (("first", 1.0), ("second", 2.0)):
        with mlflow.start_run(run_name=name):
            for row in rows(columns):
                metrics = {"train/loss": factor * row["loss"], "grad_norm": row["grad_norm"], "lr": row["lr"]}
                mlflow.log_metrics(metrics, step=int(row["step"]))
            mlflow.log_metric("val/loss", 1.0, step=0)
    keep_tables(folder / "mlflow.db", "metrics", "runs")
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE runs SET user_id = '', source_name = '', artifact_uri = ''")
    return columns


def mlflow_folder(folder: Path) -> Columns:
    """``mlruns``, MLflow's folders of files."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    columns = decay()
    mlflow.set_tracking_uri(f"file:{folder / 'mlruns'}")
    mlflow.set_experiment("e")
    with mlflow.start_run(run_name="first"):
        for row in rows(columns):
            metrics = {"train/loss": row["loss"], "grad_norm": row["grad_norm"], "lr": row["lr"]}
            mlflow.log_metrics(metrics, step=int(row["step"]))
    for path in [*folder.rglob("meta.yaml"), *folder.rglob("mlflow.user"), *folder.rglob("mlflow.source.name")]:
        path.write_text("", encoding="utf-8")
    return columns


def wandb(folder: Path) -> Columns:
    """The file of an offline run."""
    os.environ["WANDB_MODE"], os.environ["WANDB_SILENT"] = "offline", "true"
    import wandb

    columns = decay()
    # What W&B tells of the machine and of the program is nobody's business.
    quiet = wandb.Settings(x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, console="off")
    run = wandb.init(project="p", name="one", dir=str(folder), settings=quiet)
    for row in rows(columns):
        run.log({"train": {"loss": row["loss"]}, "grad_norm": row["grad_norm"], "lr": row["lr"], "note": "text"})
    run.finish()
    (file,) = folder.rglob("*.wandb")
    kept = folder / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    kept.parent.mkdir()
    shutil.move(file, kept)
    shutil.rmtree(folder / "wandb")
    return columns


def trackio(folder: Path) -> Columns:
    """A project's database with two runs."""
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    columns = decay()
    for name, factor in (("first", 1.0), ("second", 2.0)):
        trackio.init(project="p", name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
        for row in rows(columns):
            trackio.log({"train/loss": factor * row["loss"], "grad_norm": row["grad_norm"], "lr": row["lr"]})
        trackio.finish()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "p.db":
            path.unlink()
    keep_tables(folder / "p.db", "metrics")
    return columns


def keras(folder: Path) -> Columns:
    """``CSVLogger`` and the history of ``fit``; epochs are all that Keras counts."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse", metrics=["mae"])
    inputs = np.random.default_rng(0).normal(size=(40, 4))
    history = model.fit(
        inputs, inputs[:, :1], epochs=ROWS, verbose=0, validation_split=0.25,
        callbacks=[keras.callbacks.CSVLogger(str(folder / "training.csv"))],
    )  # fmt: skip
    (folder / "history.json").write_text(json.dumps(history.history), encoding="utf-8")
    return {"step": [float(e) for e in history.epoch], "loss": [float(v) for v in history.history["loss"]]}


def sklearn(folder: Path) -> Columns:
    """``loss_curve_`` of ``MLPRegressor``, as people keep it."""
    import warnings

    import numpy as np
    from sklearn.neural_network import MLPRegressor

    inputs = np.random.default_rng(0).normal(size=(60, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = MLPRegressor(hidden_layer_sizes=(8,), max_iter=ROWS, random_state=0).fit(inputs, inputs[:, 0])
    curve = [float(v) for v in fitted.loss_curve_]
    np.save(folder / "curve.npy", curve)
    np.savetxt(folder / "curve.txt", curve)
    (folder / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
    return {"step": [float(i) for i in range(len(curve))], "loss": curve}


WRITERS: dict[str, Callable[[Path], Columns]] = {
    "huggingface": huggingface,
    "lightning": lightning,
    "tensorboard": tensorboard,
    "mlflow_database": mlflow_database,
    "mlflow_folder": mlflow_folder,
    "wandb": wandb,
    "trackio": trackio,
    "keras": keras,
    "sklearn": sklearn,
}


def main(names: list[str]) -> None:
    """Write the samples of these names, of all by default."""
    for name in names or WRITERS:
        with tempfile.TemporaryDirectory() as work, inside(Path(work)):
            made = Path(work) / name
            made.mkdir()
            try:
                expected = WRITERS[name](made)
            except ImportError as error:
                print(f"{name}: left as it is ({error})")
                continue
            (made / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
            shutil.rmtree(SAMPLES / name, ignore_errors=True)
            shutil.copytree(made, SAMPLES / name)
            print(f"{name}: {sum(p.stat().st_size for p in made.rglob('*') if p.is_file()):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
