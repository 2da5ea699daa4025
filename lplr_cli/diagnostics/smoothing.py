"""Logs that were smoothed before they were written: recognised, and undone.

An exponential moving average S_t = φ S_{t-1} + (1 − φ) L_t, S_0 = L_0, as dashboards and progress bars write it, bends
the curve at its beginning and makes neighbouring rows alike. It has an exact inverse, L_t = (S_t − φ S_{t-1})/(1 − φ).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lplr_cli.diagnostics.decay import LAWS
from lplr_cli.diagnostics.fit_data import scaled
from lplr_cli.diagnostics.fits import NEAR, CurveFit, fit_one
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.noise import Noise

# Evidence asked for, in units of −2 log likelihood; more before a factor is left out, as it also says which law it is.
_EVIDENCE, _ALIKE = 10.0, 15.0
_LEAST_PHI, _LEAST_ROWS, _MOST_ROWS = 0.5, 100, 5_000
_COMMON = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)


def unsmoothed(loss: Array, phi: float) -> Array | None:
    """The losses behind a moving average of factor ``phi``; None when one would not be positive.

    Args:
        loss: one row a step, shape (T,).
        phi: weight of the past, 0 ≤ φ < 1.
    """
    raw = np.concatenate([loss[:1], (loss[1:] - phi * loss[:-1]) / (1 - phi)])
    return raw if (raw > 0).all() else None


def recognise(steps: Array, loss: Array, fit: CurveFit, otherwise: Callable[[], float]) -> list[float]:
    """Factors of moving averages that explain the series better than correlated noise, likeliest first.

    Likelihoods of the same rows are compared, with the price of the parameters. Factors stay in that are less likely
    than the first by no more than :data:`_ALIKE`.

    Args:
        steps: evenly spaced, shape (T,).
        loss: shape (T,).
        fit: the best curve under correlated noise, of all rows.
        otherwise: surprise of another explanation, for instance of a curve without a law or of slower noise;
            asked only where some factor is possible.
    """
    n = len(loss)
    apart = np.diff(steps)
    if n < _LEAST_ROWS or len(fit.data.s) < n or np.ptp(apart) > 1e-6 * apart[0]:
        return []
    if fit.noise.phi < _LEAST_PHI or fit.noise.additive:
        return []
    tried = sorted((cost, phi) for phi in _COMMON if (cost := _cost(steps, loss, phi)) is not None)
    if not tried:
        return []
    # A factor stands for the memory of the noise.
    plain = min(fit.surprise, otherwise())
    return [phi for cost, phi in tried if cost < min(plain - _EVIDENCE, tried[0][0] + _ALIKE)]


def _cost(steps: Array, loss: Array, phi: float) -> float | None:
    """−2 log likelihood of the smoothed rows under the best curve with white noise on the raw ones."""
    raw = unsmoothed(loss, phi)
    if raw is None:
        return None
    n = len(loss)
    data, white = scaled(steps, raw), Noise(np.ones(n))
    # Noise with a memory of its own would make up for a wrong factor.
    fit = min((fit_one(law, data, white, NEAR) for law in LAWS), key=lambda one: one.surprise)
    stretch = np.log(loss[1:] / ((1 - phi) * raw[1:]))
    return fit.surprise - 2 * float(stretch.sum())
