"""The Hessian of the loss, at a checkpoint and along a run, as records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lplr_cli.analysis.case import LossName
from lplr_cli.curvature import Interval, SpectralDensity, Survey, TraceEstimate, norm
from lplr_cli.runs import SCHEMA_VERSION, plain
from lplr_cli.shown import Shown

# Points of the density's curve, and its smoothing in parts of the spectrum's width.
_GRID, _WIDTH = 401, 0.01
# An eigenvalue counts as negative below this part of the largest |eigenvalue|.
NEGATIVE = 1e-3


@dataclass(frozen=True)
class Stability:
    """A largest curvature beside what the optimiser's steps bear on a quadratic (theory.md section 13).

    Attributes:
        value, residual: the curvature, within which an eigenvalue lies.
        rule: the threshold in words, or why it is not known.
        lr: of the steps. threshold: the largest stable curvature; both None where they are not known.
    """

    value: float
    residual: float
    rule: str
    lr: float | None
    threshold: float | None

    @property
    def ratio(self) -> float | None:
        """The curvature in parts of the threshold."""
        return None if self.threshold is None else self.value / self.threshold

    @property
    def ratio_error(self) -> float | None:
        """Its residual in the same."""
        return None if self.threshold is None else self.residual / self.threshold

    @property
    def told(self) -> dict[str, Any]:
        """What every record says of it."""
        return {"rule": self.rule, "lr": self.lr, "threshold": self.threshold, "ratio": self.ratio}


@dataclass(frozen=True)
class Negative:
    """The negative part of a spectrum: share by number, of eigenvalues below the threshold, and by weight of all."""

    threshold: float
    share: Interval
    weight: Interval


@dataclass(frozen=True)
class KernelTie:
    """2s λ_max(K), and by what part of λ_max(G) it differs from that."""

    lambda_max: float
    relative_difference: float


@dataclass(frozen=True, repr=False)
class HessianProbe(Shown):
    """The Hessian at a checkpoint.

    Attributes:
        checkpoint: its file. step: of the optimiser; None where the file does not tell.
        assumptions: what was read off the file rather than written down.
        loss: whose Hessian it is.
        samples: of the data set, of which the first n are examined.
        dtype: of the passes.
        survey: eigenvalues, traces, parts and density.
        kernel: the tie to the kernel; None without a Gauss-Newton part or for another loss than the squared one.
        preconditioned: as Adam sees it; None where the file has no second moments.
        stability: of the steps of its optimiser.
        density: smoothed; empty where it was not asked for.
    """

    checkpoint: Path
    step: int | None
    assumptions: tuple[str, ...]
    loss: LossName
    samples: int
    dtype: str
    survey: Survey
    kernel: KernelTie | None
    preconditioned: Stability | None
    stability: Stability
    density: pd.DataFrame

    @property
    def subset(self) -> bool:
        """Whether less than all samples are examined."""
        return self.survey.n < self.samples

    @property
    def lower_bound_full(self) -> float | None:
        """What λ_max(G) of all samples is at least: Λ ⪰ 0 for the known losses, so that samples only add."""
        if self.survey.parts is None or not self.loss.known:
            return None
        # (1/N) Σ over all ⪰ (n/N) (1/n) Σ over some.
        return self.survey.n / self.samples * float(self.survey.parts.gauss_newton.high[-1])

    @property
    def negative(self) -> Negative | None:
        """Of the density; None without one."""
        density = self.survey.density
        if density is None:
            return None
        below = -NEGATIVE * norm(self.survey.extremes)
        return Negative(below, density.share_below(below), density.negative_weight())

    @property
    def record(self) -> dict[str, Any]:
        """The same as :meth:`to_dict`."""
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The record of ``probe-hessian --format json``."""
        survey, adam, at = self.survey, self.preconditioned, self.stability
        record = {
            "command": "probe-hessian",
            "schema_version": SCHEMA_VERSION,
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "assumptions": self.assumptions,
            "loss": {**asdict(self.loss), "value": survey.loss, "grad_norm_sq": survey.gradient_norm_sq},
            "normalisation": {"hessian": "of the mean over the n samples", "n": survey.n},
            "samples": self.samples,
            "n": survey.n,
            "subset": self.subset,
            "parameters": survey.size,
            "dtype": self.dtype,
            "method": survey.method,
            "micro_batch": survey.batch,
            "products": survey.products,
            **_figures(survey),
            **self._parts(),
            "negative": None if self.negative is None else asdict(self.negative),
            "density": _quadrature(survey.density),
            "preconditioned": None
            if adam is None
            else {
                "lambda_max": {"value": adam.value, "residual": adam.residual},
                **adam.told,
            },
            "stability": {**at.told, "ratio_error": at.ratio_error},
        }
        cleaned: dict[str, Any] = plain(record)
        return cleaned

    def _parts(self) -> dict[str, Any]:
        parts = self.survey.parts
        if parts is None:
            return {"gauss_newton": None, "rest": None}
        inner, rest = parts.gauss_newton, parts.rest
        return {
            "gauss_newton": {
                "lambda_max": _end(inner.high[-1], inner.high_residuals[-1]),
                "trace": _trace(parts.gauss_newton_trace),
                "kernel": None if self.kernel is None else asdict(self.kernel),
                "lower_bound_full": self.lower_bound_full,
            },
            "rest": {
                "lambda_max": _end(rest.high[-1], rest.high_residuals[-1]),
                "lambda_min": _end(rest.low[0], rest.low_residuals[0]),
            },
        }

    def to_frame(self) -> pd.DataFrame:
        """The density: eigenvalue, density, low, high; empty where it was not asked for."""
        return self.density


@dataclass(frozen=True, repr=False)
class HessianSeries(Shown):
    """The Hessian along a run.

    Attributes:
        run: its directory.
        assumptions: what was read off its files rather than written down.
        loss: whose Hessian it is.
        samples: of the data set, of which the first n are examined.
        parameters: P.
        dtype: of the passes.
        every: steps between the checkpoints that are examined.
        rule: the largest stable curvature in words, or why it is not known.
        table: a row a checkpoint.
    """

    run: Path
    assumptions: tuple[str, ...]
    loss: LossName
    samples: int
    n: int
    parameters: int
    dtype: str
    every: int
    rule: str
    table: pd.DataFrame

    @property
    def subset(self) -> bool:
        """Whether less than all samples are examined."""
        return self.n < self.samples

    @property
    def growth(self) -> float:
        """Of λ_max, from first to last."""
        return float(self.table["sharpness"].iloc[-1] / self.table["sharpness"].iloc[0])

    @property
    def record(self) -> dict[str, Any]:
        """The same as :meth:`to_dict`."""
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The record of ``probe-hessian --every --format json``."""
        sharpness, known = self.table["sharpness"], self.table["ratio"].dropna()
        record = {
            "command": "probe-hessian",
            "schema_version": SCHEMA_VERSION,
            "run": str(self.run),
            "assumptions": self.assumptions,
            "loss": asdict(self.loss),
            "samples": self.samples,
            "n": self.n,
            "subset": self.subset,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "every": self.every,
            "rule": self.rule,
            "sharpness": {
                "initial": float(sharpness.iloc[0]),
                "final": float(sharpness.iloc[-1]),
                "max": float(sharpness.max()),
                "growth": self.growth,
            },
            "ratio": {
                "max": float(known.max()) if len(known) else None,
                "final": float(known.iloc[-1]) if len(known) else None,
            },
            "rows": self.table.astype(object).where(self.table.notna(), None).to_dict("records"),
        }
        cleaned: dict[str, Any] = plain(record)
        return cleaned

    def to_frame(self) -> pd.DataFrame:
        """A row a checkpoint."""
        return self.table


def _end(value: float, residual: float) -> dict[str, float]:
    return {"value": float(value), "residual": float(residual)}


def _figures(survey: Survey) -> dict[str, Any]:
    ends, trace = survey.extremes, survey.trace
    return {
        "converged": ends.converged,
        "resolution": survey.resolution,
        "lambda_max": _end(ends.high[-1], ends.high_residuals[-1]),
        "lambda_min": _end(ends.low[0], ends.low_residuals[0]),
        "largest": _pairs(ends.high[::-1], ends.high_residuals[::-1]),
        "smallest": _pairs(ends.low, ends.low_residuals),
        "trace": _trace(trace),
        "frobenius": None
        if trace is None
        else {"value": trace.frobenius, "standard_error": trace.frobenius_error, "vectors": trace.vectors},
    }


def _pairs(values: NDArray[np.float64], residuals: NDArray[np.float64]) -> list[dict[str, float]]:
    return [_end(v, r) for v, r in zip(values, residuals, strict=True)]


def _trace(estimate: TraceEstimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.trace,
        "standard_error": estimate.trace_error,
        "vectors": estimate.vectors,
        "exact": estimate.exact,
    }


def _quadrature(density: SpectralDensity | None) -> dict[str, Any] | None:
    if density is None:
        return None
    return {
        "vectors": len(density.samples),
        "nodes": max(len(q.nodes) for q in density.samples),
        "width": _width(density),
    }


def _width(density: SpectralDensity) -> float:
    nodes = density.points()[0]
    return _WIDTH * max(float(nodes[-1] - nodes[0]), 1e-300)


def curve(density: SpectralDensity | None) -> pd.DataFrame:
    columns = ["eigenvalue", "density", "low", "high"]
    if density is None:
        return pd.DataFrame(columns=columns)
    nodes, width = density.points()[0], _width(density)
    grid = np.linspace(nodes[0] - 4 * width, nodes[-1] + 4 * width, _GRID)
    return pd.DataFrame(dict(zip(columns, (grid, *density.curve(grid, width)), strict=True)))
