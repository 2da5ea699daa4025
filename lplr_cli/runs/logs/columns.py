"""Which column is which: the names that common loggers give to what diagnostics read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.diagnostics.series import numbers
from lplr_cli.errors import InputError

_OPTIMISERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad", "lion", "muon")
# By known name, others' names for it in the spelling of :func:`normal`, the likelier first.
ALIASES: dict[str, tuple[str, ...]] = {
    "step": (
        *("step", "global_step", "trainer_global_step", "train_global_step", "train_step", "training_step"),
        *("iteration", "iterations", "train_iteration", "iter", "iters", "iter_num", "n_iter", "it", "update"),
        *("updates", "num_updates", "optimizer_step", "steps", "_step", "unnamed_0", "index"),
    ),
    "loss": (
        *("loss", "train_loss", "training_loss", "loss_train", "loss_training", "train_loss_step", "loss_step"),
        *("train_batch_loss", "batch_loss", "iter_loss", "step_loss", "train_step_loss", "total_loss", "loss_total"),
        *("train_total_loss", "train_loss_total", "loss_value", "running_loss", "train_running_loss"),
        *("train_loss_epoch", "loss_epoch", "epoch_loss", "train_epoch_loss", "lm_loss", "train_lm_loss", "nll"),
        *("nll_loss", "train_nll", "train_nll_loss", "cross_entropy", "train_cross_entropy", "ce_loss", "train_ce"),
        *("mse", "train_mse", "mse_loss", "objective", "cost", "train_cost", "loss_curve", "value"),
    ),
    "grad_norm_sq": (
        *("grad_norm_sq", "grad_norm_squared", "gradient_norm_squared", "squared_grad_norm", "grad_sq_norm"),
        *("train_grad_norm_sq", "train_grad_norm_squared"),
    ),
    "grad_norm": (
        *("grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "grads_norm", "grad_norm_total"),
        *("grad_2_0_norm_total", "grad_2_norm_total", "grad_norm_step", "total_grad_norm", "global_grad_norm"),
        *("grad_l2_norm", "gradient_l2_norm", "gnorm", "train_gnorm", "grad_norm_epoch"),
    ),
    "lr": (
        *("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_0", "lr_group_0", "lr_group0", "lr_pg1"),
        *(f"lr_{name}{group}" for name in _OPTIMISERS for group in ("", "_pg1")),
    ),
    "drift": ("drift",),
    "epoch": ("epoch", "epochs", "train_epoch", "epoch_num", "epoch_idx"),
}
# By such a spelling, what may be meant and how likely it is: 0 is the likeliest.
_MEANINGS: dict[str, dict[str, int]] = {}
for _known, _spellings in ALIASES.items():
    for _place, _spelling in enumerate(_spellings):
        _MEANINGS.setdefault(_spelling, {}).setdefault(_known, _place)
# What diagnostics read.
KNOWN = tuple(name for name in ALIASES if name != "epoch")
_DECORATIONS = ("metrics_", "logs_", "log_", "history_", "scalars_", "average_", "avg_", "mean_", "current_")
# Columns that tell the runs of one table apart, in the same spelling.
_RUNS = frozenset(("run", "run_id", "run_name", "run_uuid", "experiment", "experiment_name", "trial", "trial_id"))
_RUNS |= {"seed", "job_id", "config_id"}
# Names of what is better the larger it is: nobody's loss, though it be the only column.
_SCORES = re.compile(r"(\w*_)?(acc|accuracy|f1|auc|auroc|precision|recall|bleu|score|reward|return)(_\w*)?")
# Ends of the names of the bands that a chart export of W&B has beside each line.
_BANDS = ("__MIN", "__MAX")
_SHOWN = 40


def parse_columns(options: Iterable[str]) -> dict[str, str]:
    """``--column`` options ``name=column`` as a mapping.

    Raises:
        InputError: not of that form, an unknown name, a name given twice, or both grad_norm and grad_norm_sq.
    """
    columns: dict[str, str] = {}
    for option in options:
        name, equals, column = option.partition("=")
        if not equals or not column or name not in KNOWN:
            raise InputError(f"--column {option!r} is not understood", f"write NAME=COLUMN with {', '.join(KNOWN)}")
        if name in columns:
            raise InputError(f"--column {name} is given twice", "give it once")
        columns[name] = column
    if "grad_norm" in columns and "grad_norm_sq" in columns:
        raise InputError("--column has both grad_norm and grad_norm_sq", "give one of them")
    return columns


def normal(name: str) -> str:
    """A column's name in the spelling of :data:`ALIASES`; empty for bands of charts."""
    if name.endswith(_BANDS):
        return ""
    core = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", chart_line(name)[1])
    words = re.sub(r"\W+", "_", core.strip()).lower().rstrip("_")
    for decoration in _DECORATIONS:
        words = words.removeprefix(decoration)
    return words


def tells_runs(name: str) -> bool:
    """Whether a column of that name tells the runs of one table apart."""
    return normal(name) in _RUNS


def chart_line(name: str) -> tuple[str, str]:
    """Run and metric of a chart export's column ``run - metric``; no run for other columns."""
    run, dash, metric = name.rpartition(" - ")
    return (run, metric) if dash else ("", name)


@dataclass(frozen=True)
class Table:
    """What a reader found.

    Attributes:
        frame: columns by their own names, at least those that the choice wants.
        present: names of all columns, for messages.
        notes: what was understood, where that is not evident.
    """

    frame: pd.DataFrame
    present: Sequence[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A log in the terms of diagnostics.

    Attributes:
        log: columns of :data:`KNOWN`.
        notes: what was chosen where several things could be meant.
    """

    log: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What the user says of a log.

    Attributes:
        columns: by known name, the column of the log.
        run: which run of a store that holds several.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    run: str | None = None

    def wants(self, name: str) -> bool:
        """Whether a column may be needed."""
        meanings = _MEANINGS.get(normal(name), {})
        return (
            name in self.columns.values()
            or tells_runs(name)
            or any(self._rank(known, name) is not None for known in meanings)
        )

    def pick(self, present: Sequence[str]) -> list[str]:
        """The columns to load; where no name tells the loss and one column is left over, that one too."""
        wanted = [name for name in present if self.wants(name)]
        alone = self._alone(present)
        return wanted if alone is None else [*wanted, alone]

    def is_loss(self, name: str) -> bool:
        """Whether a column is or may be the loss."""
        return self._rank("loss", name) is not None

    def select(self, table: Table, origin: str) -> Reading:
        """The known columns under their known names.

        Raises:
            InputError: a column named by the user, or the loss, is missing, listing those present; or several runs.
        """
        notes = list(table.notes)
        table = self._of_one_run(table, origin)
        loss = self._loss(table, origin, notes)
        notes += _of_no_numbers(table.frame[loss])
        filled = np.isfinite(_numbers(table.frame[loss]))
        chosen = {"loss": table.frame[loss]}
        for known in KNOWN:
            if known not in ("loss", "step"):
                name = self._find(known, table, filled, origin)
                if name is not None:
                    chosen[known] = table.frame[name]
        return Reading(pd.DataFrame({"step": self._steps(table, filled, origin, notes), **chosen}), tuple(notes))

    def _rank(self, known: str, name: str) -> int | None:
        """How likely a column is meant: 0 is the likeliest, None is not at all."""
        if known in self.columns:
            return 0 if name == self.columns[known] else None
        if known.startswith("grad_norm") and self.columns.keys() & {"grad_norm", "grad_norm_sq"}:
            return None
        if self.run is not None and chart_line(name)[0] not in ("", self.run):
            return None
        return _MEANINGS.get(normal(name), {}).get(known)

    def _alone(self, present: Sequence[str]) -> str | None:
        if "loss" in self.columns or any(self._rank("loss", name) is not None for name in present):
            return None
        rest = [name for name in present if normal(name) and not self.wants(name)]
        return rest[0] if len(rest) == 1 and not _SCORES.fullmatch(normal(rest[0])) else None

    def _of_one_run(self, table: Table, origin: str) -> Table:
        """The rows of one run where a column names several that have steps in common.

        Raises:
            InputError: several runs and none chosen, or one that is not there.
        """
        if not table.frame.columns.is_unique:
            return table
        for name in filter(tells_runs, map(str, table.frame.columns)):
            runs = table.frame[name]
            if runs.nunique() < 2:
                continue
            steps = next(iter(self._candidates("step", table) or self._candidates("epoch", table)), None)
            if steps is not None and self.run is None and _is_one_run(runs, table.frame[steps]):
                continue
            told = runs.map(_spelled)
            one = pick_run({key: key for key in told.dropna().unique()}, self, origin)
            return replace(table, frame=table.frame[told == one].reset_index(drop=True))
        return table

    def _candidates(self, known: str, table: Table) -> list[str]:
        """Loaded columns that could be meant, the likeliest first, empty ones last."""
        ranked = [
            (not np.isfinite(_numbers(table.frame[name])).any(), rank, place, name)
            for place, name in enumerate(map(str, table.frame.columns))
            if (rank := self._rank(known, name)) is not None
        ]
        return [name for *_, name in sorted(ranked)]

    def _loss(self, table: Table, origin: str, notes: list[str]) -> str:
        candidates = self._candidates("loss", table)
        if not candidates:
            alone = self._alone(table.present)
            if alone is None or alone not in table.frame:
                raise self._missing("loss", table, origin)
            notes.append(f"{alone!r} is taken as the loss: there is no other column")
            return alone
        runs = list(dict.fromkeys(chart_line(name)[0] for name in candidates))
        if len(runs) > 1:
            raise InputError(f"{origin} holds {len(runs)} runs", f"choose one with --run: {', '.join(runs[:10])}")
        if len(candidates) > 1:
            notes.append(f"{candidates[0]!r} is taken as the loss; also there: {', '.join(candidates[1:6])}")
        return candidates[0]

    def _find(self, known: str, table: Table, filled: NDArray[np.bool_], origin: str) -> str | None:
        """The likeliest column, those before others that have a number wherever there is a loss."""
        candidates = self._candidates(known, table)
        if not candidates and known in self.columns:
            raise self._missing(known, table, origin)
        whole = [name for name in candidates if np.isfinite(_numbers(table.frame[name])[filled]).all()]
        return next(iter([*whole, *candidates]), None)

    def _steps(self, table: Table, filled: NDArray[np.bool_], origin: str, notes: list[str]) -> NDArray[np.float64]:
        """The step of each row: a column of steps, else of epochs, else the rows counted; which, is noted."""
        name = self._find("step", table, filled, origin)
        epoch = self._find("epoch", table, filled, origin)
        epochs = None if epoch is None else _numbers(table.frame[epoch])
        counted: NDArray[np.float64] = np.maximum(np.cumsum(filled) - 1.0, 0.0)
        if name is not None:
            steps: NDArray[np.float64] = _numbers(table.frame[name])
            if "step" in self.columns or epochs is None or not _within_epochs(steps[filled], epochs[filled]):
                return steps
            notes.append(f"{name!r} starts again with each epoch: rows are counted as steps")
            return counted
        if epochs is not None and (np.diff(epochs[filled]) > 0).all():
            notes.append(f"no column of steps: {epoch!r} is taken as the step")
            return epochs
        notes.append("no column of steps: rows are counted as steps, from 0")
        return counted

    def _missing(self, known: str, table: Table, origin: str) -> InputError:
        shown = ", ".join(map(str, table.present[:_SHOWN]))
        more = len(table.present) - _SHOWN
        has = f"it has {shown or 'none'}" + (f" and {more} more" if more > 0 else "")
        if known in self.columns:
            return InputError(f"{origin} has no column {self.columns[known]!r}", has)
        return InputError(f"{origin} has no column {known!r}", f"name it with --column {known}=NAME; {has}")


def pick_run(runs: Mapping[str, str], choice: Choice, origin: str) -> str:
    """The key of the run that was asked for, by key or name, or of the only one.

    Args:
        runs: names by key, in order.
        choice: names the run.
        origin: for messages.

    Raises:
        InputError: none, several, or none of that name; the message lists them.
    """
    listed = ", ".join(name or key for key, name in list(runs.items())[:10]) + (" …" if len(runs) > 10 else "")
    if not runs:
        raise InputError(f"{origin} holds no run", "give a log with rows")
    if choice.run is None:
        if len(runs) > 1:
            raise InputError(f"{origin} holds {len(runs)} runs", f"choose one with --run: {listed}")
        return next(iter(runs))
    if choice.run in runs:
        return choice.run
    keys = [key for key, name in runs.items() if name == choice.run]
    if len(keys) > 1:
        raise InputError(f"{origin} holds {len(keys)} runs {choice.run!r}", f"give its key: {', '.join(keys[:10])}")
    if not keys:
        raise InputError(f"{origin} holds no run {choice.run!r}", f"it holds {listed}")
    return keys[0]


def _numbers(column: pd.Series | pd.DataFrame) -> NDArray[np.float64]:
    if isinstance(column, pd.DataFrame):
        raise InputError(f"the log has several columns {column.columns[0]!r}", "rename all but one")
    return numbers(column)


def _spelled(run: object) -> str | None:
    """A run's name as it was written: whole numbers beside empty cells have become floats."""
    if isinstance(run, float):
        return None if run != run else f"{run:.15g}"
    return str(run)


def _is_one_run(runs: pd.Series, steps: pd.Series) -> bool:
    """Whether no step is in two runs: one that was resumed under other names."""
    told = pd.DataFrame({"run": runs, "step": _numbers(steps)}).dropna().drop_duplicates()
    return not told["step"].duplicated().any()


def _of_no_numbers(column: pd.Series | pd.DataFrame) -> tuple[str, ...]:
    """How many cells of the loss have text instead of a number, with one of them."""
    if isinstance(column, pd.DataFrame) or pd.api.types.is_numeric_dtype(column):
        return ()
    wrong = column[np.isnan(_numbers(column)) & column.notna().to_numpy()]
    wrong = wrong[wrong.astype(str).str.strip() != ""]
    if not len(wrong):
        return ()
    return (f"{len(wrong):,} rows of {column.name!r} hold no number, such as {str(wrong.iloc[0])[:40]!r}",)


def _within_epochs(steps: NDArray[np.float64], epochs: NDArray[np.float64]) -> bool:
    """Whether steps go back, and always as a new epoch begins."""
    back = np.diff(steps) <= 0
    return bool(back.any() and (np.diff(epochs)[back] > 0).all())
