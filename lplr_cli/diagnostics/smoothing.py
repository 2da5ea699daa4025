"""Logs that were smoothed before they were written: recognised, and undone.

An exponential moving average S_t = φ S_{t-1} + (1 − φ) L_t, S_0 = L_0, as dashboards and progress bars write it, bends
the curve at its beginning and makes neighbouring rows alike. It has an exact inverse, L_t = (S_t − φ S_{t-1})/(1 − φ).
"""

from __future__ import annotations

import math

import numpy as np

from lplr_cli.diagnostics.decay import LAWS
from lplr_cli.diagnostics.fits import CurveFit, fit_all, scaled
from lplr_cli.diagnostics.least_squares import Array

# Evidence asked for, in units of −2 log likelihood.
_EVIDENCE = 10.0
_LEAST_PHI, _LEAST_ROWS, _MOST_ROWS = 0.5, 100, 5_000
_COMMON = (0.6, 0.8, 0.9, 0.95, 0.98, 0.99)


def unsmoothed(loss: Array, phi: float) -> Array | None:
    """The losses behind a moving average of factor ``phi``; None when one would not be positive.

    Args:
        loss: one row a step, shape (T,).
        phi: weight of the past, 0 ≤ φ < 1.
    """
    raw = np.concatenate([loss[:1], (loss[1:] - phi * loss[:-1]) / (1 - phi)])
    return raw if (raw > 0).all() else None


def recognise(steps: Array, loss: Array, fit: CurveFit) -> float | None:
    """Factor of the moving average that the series is more likely to be than a law with correlated noise.

    Both have the same number of parameters; likelihoods of the same rows are compared.

    Args:
        steps: evenly spaced, shape (T,).
        loss: shape (T,).
        fit: the best curve under correlated noise, of all rows.
    """
    n = len(loss)
    apart = np.diff(steps)
    if n < _LEAST_ROWS or len(fit.data.s) < n or fit.noise.phi < _LEAST_PHI or np.ptp(apart) > 1e-6 * apart[0]:
        return None
    tried = [(cost, phi) for phi in _COMMON if (cost := _cost(steps, loss, phi)) is not None]
    if not tried or fit.noise.additive:
        return None
    best, phi = min(tried)
    plain = n * math.log(fit.cost / n) + math.log(fit.noise.spread**2)
    return phi if best < plain - _EVIDENCE else None


def _cost(steps: Array, loss: Array, phi: float) -> float | None:
    """−2 log likelihood of the smoothed rows under the best curve with white noise on the raw ones."""
    raw = unsmoothed(loss, phi)
    if raw is None:
        return None
    n = len(loss)
    fit = min(fit_all(scaled(steps, raw), LAWS).values(), key=lambda one: one.bic)
    if fit.noise.additive:
        return None
    stretch = np.log(loss[1:] / ((1 - phi) * raw[1:]))
    return n * math.log(fit.cost / n) + math.log(fit.noise.spread**2) - 2 * float(stretch.sum())
