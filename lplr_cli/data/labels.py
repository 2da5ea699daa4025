"""Whether the targets of user data are numbers or classes, and which classes.

Text and truth values are classes. Whole numbers are classes when their name says so (:data:`NAMES`), when they are few
(:data:`MOST_CLASSES`, each at least twice on average), and when they are not −1 and +1, which are encoded already.
Everything else are numbers. The user may overrule it, and what was decided is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import InputError

TASKS = ("regression", "classification")
NAMES = ("label", "labels", "class", "classes", "species", "category", "target", "targets", "y", "y_train", "digit")
MOST_CLASSES = 20
_SHOWN = 6


@dataclass(frozen=True)
class Labels:
    """Classes of the samples.

    Attributes:
        index: of each sample's class, shape (n,).
        classes: in the order of the targets: whole numbers, or text.
    """

    index: NDArray[np.int64]
    classes: tuple[int | str, ...]

    def describe(self, name: str | None) -> str:
        """For people."""
        shown = ", ".join(str(c)[:30] for c in self.classes[:_SHOWN]) + (", …" if len(self.classes) > _SHOWN else "")
        return f"{len(self.classes)} classes of {name or 'the targets'} ({shown})"


def are_classes(targets: NDArray[Any], name: str, task: str | None) -> bool:
    """Whether targets are classes.

    Args:
        targets: shape (n,) or (n, C).
        name: of their array or column; "" where they have none.
        task: what the user says, one of :data:`TASKS`, or None.

    Raises:
        InputError: a task that is unknown, text as numbers, or several columns as classes.
    """
    if task not in (None, *TASKS):
        raise InputError(f"--task {task!r} is unknown", f"choose from {', '.join(TASKS)}")
    single = targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1)
    text = targets.dtype.kind in "USO"
    if task == "classification" and not single:
        raise InputError(f"targets of shape {targets.shape} are no labels", "give one column of classes")
    if text and (task == "regression" or not single):
        raise InputError(f"the targets {name} are text".replace("  ", " "), "encode them as numbers")
    if task is not None:
        return task == "classification"
    return single and (text or targets.dtype.kind == "b" or _named_and_few(targets, name))


def _named_and_few(targets: NDArray[Any], name: str) -> bool:
    if targets.dtype.kind not in "iu" or re.sub(r"\W", "_", name.strip().lower()) not in NAMES:
        return False
    values = np.unique(targets)
    return len(values) <= min(MOST_CLASSES, len(targets) // 2) and values.tolist() != [-1, 1]


def find_labels(targets: NDArray[Any], chosen: tuple[int | str, ...] | None, origin: str) -> Labels:
    """The classes of targets that are such.

    Args:
        targets: shape (n,) or (n, 1): text, truth values or whole numbers.
        chosen: the classes to keep, in this order; all, sorted, by default. Samples of others have index −1.
        origin: for messages.

    Raises:
        InputError: numbers that are not whole, or a chosen class without samples.
    """
    values = targets.reshape(len(targets))
    if values.dtype.kind in "USO":
        values = np.array([str(v) for v in values])
    else:
        numbers = values.astype(np.float64)
        if not np.array_equal(numbers, np.round(numbers)):
            raise InputError(f"targets of {origin} are no integer labels", "use --targets raw or --task regression")
        values = numbers.astype(np.int64)
    present = [v.item() for v in np.unique(values)]
    as_text = isinstance(present[0], str)
    classes = tuple(present) if chosen is None else tuple(str(c) if as_text else c for c in chosen)
    missing = [c for c in classes if c not in present]
    if missing:
        shown = ", ".join(map(str, present[:MOST_CLASSES]))
        raise InputError(f"class {missing[0]} has no samples in {origin}", f"choose --classes from {shown}")
    index = np.full(len(values), -1, dtype=np.int64)
    for k, c in enumerate(classes):
        index[values == c] = k
    return Labels(index, classes)
