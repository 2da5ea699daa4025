"""Noise of a log: its scale from row to row and its correlation in time.

Errors follow an ARMA(1,1) process after division by a local scale, e_i = φ e_{i-1} + u_i + θ u_{i-1}; AR(1) is θ = 0,
and white noise on top of an AR(1) is the same with θ < 0. They are whitened exactly by the innovations algorithm
(Brockwell and Davis 1991, section 5.3). φ and θ come from the restricted likelihood (Patterson and Thompson 1971) of a
model that holds a free smooth curve beside the law: with the free curve, what a wrong law leaves over is not taken for
correlation, and the restriction takes off the bias that so many columns would bring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import median_filter
from scipy.signal import lfilter

Array = NDArray[np.float64]

# Correlations beyond this cannot be told from a random walk.
MAX_CORRELATION = 0.995
_PHI = np.concatenate([np.linspace(-0.95, 0.95, 96), 1 - np.geomspace(0.045, 1 - MAX_CORRELATION, 24)])
_THETA = (-0.95, -0.9, -0.85, -0.8, -0.75, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, 0.2, 0.4, 0.6)
# Rows of a stretch that shows the noise, at least, and stretches at most.
_STRETCH, _STRETCHES = 40, 8
# A scale varies where a constant one is less likely than the first. Errors of one size on the loss itself, and those
# of a mean of squares, are these powers of it relative to it, unless that is less likely than the last.
_VARIES, _POWERS, _FOLLOWS = 1e-3, (-1.0, -0.5), 0.05
# Rows of a block that shows the trend, and blocks at most.
_BLOCK, _BLOCKS = 5, 200
# Standard deviation of long means, at least, in units of that of means of the innovations.
_LASTING = 0.5
# Fewer rows tell no second correlation, nor a negative one from what a curve with too many parameters leaves.
_FEW = 60
# A second correlation must earn this much of −2 log likelihood a log row count.
_PRICE = 0.5


@dataclass(frozen=True)
class Noise:
    """Scale and correlation of the errors.

    Attributes:
        scale: local standard deviation up to a common factor, shape (n,); relative to the loss when ``additive`` is
            False, in the units of the scaled loss when it is True.
        additive: whether errors are compared on the loss itself, not on its logarithm.
        phi, theta: of the ARMA(1,1) process.
        phi_high, theta_high: a pair as likely within a standard error, with the longer memory; for intervals,
            which are too short when correlation is estimated too small.
    """

    scale: Array
    additive: bool = False
    phi: float = 0.0
    theta: float = 0.0
    phi_high: float = 0.0
    theta_high: float = 0.0

    def cautious(self) -> Noise:
        """The same with the longer memory."""
        return replace(self, phi=self.phi_high, theta=self.theta_high)

    @property
    def spread(self) -> float:
        """Standard deviation of the errors in units of their innovations'."""
        return math.sqrt((1 + 2 * self.phi * self.theta + self.theta**2) / (1 - self.phi**2))

    @property
    def worth(self) -> float:
        """How many independent rows one row is worth for a level: 1 for white noise."""
        ratio = self.spread * (1 - self.phi) / (1 + self.theta)
        return min(ratio * ratio, 1.0)

    def rows(self, keep: NDArray[np.bool_]) -> Noise:
        """The noise of some rows."""
        return replace(self, scale=self.scale[keep])

    def residual(self, m: Array, jacobian: Array, log_y: Array) -> tuple[Array, Array]:
        """Whitened errors of a curve m (shape (n,)) with its Jacobian (n, p)."""
        both = np.empty((len(m), jacobian.shape[1] + 1))
        if self.additive:
            both[:, 0] = m - np.exp(log_y)
            both[:, 1:] = jacobian
        else:
            m = np.maximum(m, 1e-300)
            both[:, 0] = np.log(m) - log_y
            both[:, 1:] = jacobian / m[:, None]
        white = whiten(both / self.scale[:, None], self.phi, self.theta)
        return white[:, 0], white[:, 1:]


def whiten(values: Array, phi: float, theta: float = 0.0) -> Array:
    """Turn ARMA(1,1) errors into uncorrelated ones of the innovations' size; first axis n."""
    if phi == 0.0 and theta == 0.0:
        return values
    columns = values.reshape(len(values), -1)
    out = np.empty_like(columns)
    spread = (1 + 2 * phi * theta + theta * theta) / (1 - phi * phi)
    out[0] = columns[0] / math.sqrt(spread)
    if theta == 0.0:
        np.subtract(columns[1:], phi * columns[:-1], out=out[1:])
        return out.reshape(values.shape)
    innovation, i = columns[0], 1
    # The prediction error settles to the innovations' variance within some rows; from there on it is one filter.
    while i < len(columns) and abs(spread - 1) > 1e-9:
        innovation = columns[i] - phi * columns[i - 1] - theta / spread * innovation
        spread = 1 + theta * theta - theta * theta / spread
        out[i] = innovation / math.sqrt(spread)
        i += 1
    if i < len(columns):
        state = (-phi * columns[i - 1] - theta * innovation)[None, :]
        out[i:] = lfilter([1.0, -phi], [1.0, theta], columns[i:], axis=0, zi=state)[0]
    return out.reshape(values.shape)


@dataclass(frozen=True)
class Correlation:
    """φ and θ of the errors, a cautious pair, and the restricted estimate of the innovations' variance."""

    phi: float
    theta: float
    phi_high: float
    theta_high: float
    variance: float


def restricted_correlation(residual: Array, design: Array) -> Correlation:
    """φ and θ of restricted maximum likelihood for raw residuals and the columns that were fitted.

    Args:
        residual: shape (n,), divided by the local scale.
        design: shape (n, p), divided likewise; nearly dependent columns count once.
    """
    basis, few = orthonormal(design), len(residual) < _FEW
    choices = (0.0,) if few else (0.0, *_THETA)
    profile = {theta: _profile(residual, basis, theta) for theta in choices}
    price = _PRICE * math.log(len(residual))
    cost = np.array([profile[theta][0] + (price if theta else 0.0) for theta in choices])
    if few:
        cost[:, _PHI < 0] = np.inf
    kind, at = np.unravel_index(int(np.argmin(cost)), cost.shape)
    theta = choices[int(kind)]
    # Within a standard error of the profile, among the same kind of noise.
    same = [i for i, c in enumerate(choices) if (c == 0.0) == (theta == 0.0)]
    near = cost[same].min(axis=0) <= cost.min() + 1.0
    high = int(np.flatnonzero(near)[-1])
    theta_high = choices[same[int(np.argmin(cost[same][:, high]))]]
    variance = float(profile[theta][1][at]) / max(len(residual) - basis.shape[1], 1)
    return Correlation(float(_PHI[at]), theta, max(float(_PHI[high]), float(_PHI[at])), theta_high, variance)


def orthonormal(design: Array) -> Array:
    """An orthonormal basis of the columns, shape (n, rank)."""
    size = np.sqrt((design**2).sum(axis=0))
    columns = design[:, size > 0] / size[size > 0]
    if columns.shape[1] == 0:
        return np.asarray(columns)
    u, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(u[:, singular > 1e-9 * singular[0]])


def _profile(residual: Array, basis: Array, theta: float) -> tuple[Array, Array]:
    """Restricted criterion and residual squares over the grid of φ.

    For AR(1) errors every product that the likelihood needs is a quadratic in φ, so that the whole grid costs no more
    passes over the data than one value.
    """
    both = np.column_stack([basis, residual])
    if theta:
        both = lfilter([1.0], [1.0, theta], both, axis=0)
    n, p = basis.shape
    middle = both[1:-1]
    squares, inner = both.T @ both, middle.T @ middle
    cross = both[1:].T @ both[:-1]
    cross = cross + cross.T
    phi = _PHI
    products = squares - phi[:, None, None] * cross + (phi**2)[:, None, None] * inner
    a, b, c = products[:, :p, :p], products[:, :p, p], products[:, p, p]
    if p:
        c = c - (b * np.linalg.solve(a, b[..., None])[..., 0]).sum(axis=1)
        determinant = np.linalg.slogdet(a)[1]
    else:
        determinant = np.zeros(len(phi))
    rest = np.maximum(c, 1e-300)
    criterion = (n - p) * np.log(rest) - np.log1p(-(phi**2)) + determinant
    # A root of the one that nearly cancels the other's leaves white noise with a wild memory. Noise does not average
    # out much faster than white noise, as what a free curve leaves does.
    wild = (np.abs(phi + theta) < 0.1 * bool(theta)) | (1 + theta < _LASTING * (1 - phi))
    criterion = np.where(wild, np.inf, criterion)
    return criterion, rest


def roughness(log_y: Array) -> Array:
    """|fourth differences| in units of the standard deviation of white noise, padded to shape (n,)."""
    fourth = np.abs(np.diff(log_y, 4)) / math.sqrt(70.0)
    return np.concatenate([fourth[:1].repeat(2), fourth, fourth[-1:].repeat(2)])


def stretch_edges(count: int) -> NDArray[np.intp]:
    """Rows where the stretches begin over which noise is measured, and the number of rows.

    At most eight, of 40 rows or more, but for a single one.
    """
    parts = max(min(count // _STRETCH, _STRETCHES), 1)
    return np.linspace(0, count, parts + 1).astype(np.intp)


def local_scale(log_y: Array, least: Array | None = None) -> Array:
    """Relative size of the noise from row to row, geometric mean 1; all ones unless it clearly varies.

    Medians of the fourth differences over at most eight stretches of 40 rows or more, or of ``least``, the noise that
    rows have at least, shape (n,), where that is larger. Where they follow a power of the loss (:data:`_POWERS`) the
    scale does, within stretches, too.
    """
    n, edges = len(log_y), stretch_edges(len(log_y))
    parts, flat = len(edges) - 1, np.ones(n)
    if parts < 2:
        return flat
    rough = roughness(log_y)
    if least is not None:
        # The median of normal errors is two thirds of their standard deviation.
        rough = np.maximum(rough, 0.67 * least)
    middle = np.array([np.median(rough[a:b]) for a, b in pairwise(edges)])
    if (middle <= 0).any():
        return flat
    level = np.log(middle)
    # The logarithm of a median of |normal| values has a standard error of about 1.17/√rows; correlated differences of
    # the fourth order carry about half of their number.
    error = math.sqrt(2 * 1.17**2 / (n / parts))

    def likely(offset: Array) -> float:
        rest = level - offset
        return float(stats.chi2.sf(float(((rest - rest.mean()) ** 2).sum()) / error**2, parts - 1))

    if likely(np.zeros(parts)) > _VARIES:
        return flat
    trend = _trend(log_y)
    of_stretch = np.array([trend[a:b].mean() for a, b in pairwise(edges)])
    chance, power = max((likely(power * of_stretch), power) for power in _POWERS)
    if chance > _FOLLOWS:
        return np.asarray(np.exp(power * (trend - trend.mean())))
    centres = 0.5 * (edges[1:] + edges[:-1])
    smooth = np.interp(np.arange(n), centres, level)
    return np.asarray(np.exp(smooth - smooth.mean()))


def _trend(log_y: Array) -> Array:
    """Medians of short blocks, interpolated, shape (n,)."""
    n = len(log_y)
    edges = np.linspace(0, n, max(min(n // _BLOCK, _BLOCKS), 2) + 1).astype(int)
    middle = [float(np.median(log_y[a:b])) for a, b in pairwise(edges)]
    return np.interp(np.arange(n), 0.5 * (edges[1:] + edges[:-1] - 1), middle)


def fine_noise(log_loss: Array) -> Array:
    """Relative noise of each row that no fast smooth decay can feign: medians of |eighth differences|, shape (T,)."""
    if len(log_loss) < 10:
        return np.full(len(log_loss), np.inf)
    eighth = np.abs(np.diff(log_loss, 8)) / math.sqrt(12870.0)
    eighth = median_filter(np.concatenate([eighth[:1].repeat(4), eighth, eighth[-1:].repeat(4)]), 7, mode="nearest")
    return np.maximum(1.5 * eighth, 2.0**-52)
