"""The end of a run as the kernel at its start predicts it, kept beside the run for its closing table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from lplr_cli.analysis.lazy import LAZY, PART, predict_run
from lplr_cli.analysis.path_figures import log_fingerprint
from lplr_cli.analysis.subject import OWN, Source
from lplr_cli.errors import InputError, NumericalError
from lplr_cli.runs import RunDirectory, plain
from lplr_cli.schema import check_fields

_FILE = "prediction.json"
# Rows of K, and parameters times rows, up to which two kernels with their eigenvectors cost a second or two.
_ROWS, _CHEAP = 1000, 2e8


@dataclass(frozen=True)
class PredictedEnd:
    """Prediction by K_0 beside what the run did (theory.md section 11); estimates.

    Attributes:
        step: of the last row with a loss.
        measured, predicted: L there; no prediction where it leaves the numbers.
        error: the laziness error of all rows.
        kernel_change: ||K_T − K_0||/||K_0||.
        directions_start, directions_end: the fewest eigendirections with 90 % of ||r̃||², at the first and last
            checkpoint.
    """

    step: int
    measured: float
    predicted: float | None
    error: float | None
    kernel_change: float | None
    directions_start: int
    directions_end: int

    @property
    def lazy(self) -> bool | None:
        """Whether every loss is predicted within 10 %; None where nothing was comparable, or the prediction left the
        numbers.
        """
        return None if self.error is None else self.error < LAZY

    @property
    def meaning(self) -> str:
        """For the closing table."""
        answer = {True: "lazy", False: "not lazy", None: "not comparable"}[self.lazy]
        away = "" if self.error is None else f", all along within a factor {math.exp(min(self.error, 700)):.4g}"
        return f"measured {self.measured:.4g}{away}: {answer}"

    def to_dict(self) -> dict[str, Any]:
        """``prediction`` in the summary."""
        record: dict[str, Any] = plain({**asdict(self), "lazy": self.lazy})
        return record


def predict_while_cheap(run: RunDirectory, source: Source = OWN) -> PredictedEnd | None:
    """Predict and keep it, for a run whose kernels are small; None for others, and where nothing can be predicted."""
    manifest = run.manifest()
    rows = (manifest.data.n or math.inf) * (manifest.data.outputs or math.inf)
    if rows > _ROWS or rows * (manifest.parameters or math.inf) > _CHEAP:
        return None
    try:
        prediction = predict_run(run.path, source=source, pieces=1)
    except (InputError, NumericalError):
        return None
    predicted = prediction.to_frame().dropna(subset=["loss"])
    if predicted.empty:
        return None
    last = predicted.iloc[-1]
    end = PredictedEnd(
        int(last["step"]),
        float(last["loss"]),
        _finite(float(last["predicted"])),
        None if prediction.error is None else _finite(prediction.error),
        prediction.kernel_change,
        prediction.start.directions(PART),
        prediction.end.directions(PART),
    )
    run.write_record(_FILE, {"log": log_fingerprint(run), **asdict(end)})
    return end


def kept_prediction(run: RunDirectory) -> PredictedEnd | None:
    """What was kept of the very same log; None where there is nothing that can be read."""
    record = run.record(_FILE)
    if record is None or record.get("log") != log_fingerprint(run):
        return None
    try:
        end = PredictedEnd(**{f.name: record.get(f.name) for f in fields(PredictedEnd)})  # type: ignore[arg-type]
        check_fields(end, _FILE)
    except InputError:
        return None
    return end


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
