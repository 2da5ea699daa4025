"""Which curve the evidence of one stretch of rows is for: a law, a curve that is no law, or none.

Linear, two-rate and sublinear curves with a floor are weighed by the Bayesian information criterion under one noise
(theory.md sections 8 and 12). A law is named when it fits: a free curve on top of it must not better it (an F test),
nor a curve that is no law. Where nothing fits, three and four exponentials are tried: a sum of many converges linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lplr_cli.diagnostics.decay import (
    COSINE,
    LABELS,
    LAWS,
    LINEAR,
    LOGARITHM,
    MORE_RATES,
    RAMP,
    SHIFTED,
    STRETCHED,
    SUBLINEAR,
    TWO_RATE,
    Curve,
)
from lplr_cli.diagnostics.fit_data import scaled
from lplr_cli.diagnostics.fits import (
    CERTAIN,
    REJECTED,
    RESOLUTION,
    CurveFit,
    beside_its_own_noise,
    criterion,
    fit_all,
    fit_one,
    fit_plain,
    surprise,
)
from lplr_cli.diagnostics.least_squares import Array
from lplr_cli.diagnostics.noise import MAX_CORRELATION, Noise, orthonormal, restricted_correlation, whiten
from lplr_cli.diagnostics.shape import parabolas

# Evidence asked for: a difference of the criterion of 6 is odds of 20 to 1 (Kass and Raftery 1995).
EVIDENCE = 6.0
# A second exponential is resolved when it decays this much faster than the first, or the first alone is refuted.
GAP = 2.0
# A stretched exponential whose exponent is this near to 1 is an exponential, and so is one under a step size that is
# annealed by less than this depth.
NEARLY_ONE, DEEP = 0.15, 0.3
# Of more than two rates, which resemble much, a better fit is looked for, and this many rows a parameter.
ACCEPTED, ROWS_EACH = 0.01, 10
# Fewer rows decide little: there a curve that is no law counts only against a law that does not fit well.
SHORT = 40
# Errors that correlate more than this from row to row are held against a random walk, on which a law gains less than
# the second number in nearly all of them (docs/benchmarks.md).
LONG, WALKS = 0.9, 30.0
# Parabolas with noise of their own that are likelier by this show that no law holds.
PIECES = 25.0
# Innovations that correlate with a p-value below this are no noise that intervals could rest on; a law is given up for
# them where they are this large a share of the loss.
COLOURED = 1e-8
LARGE = 0.2


@dataclass(frozen=True)
class Weighed:
    """All curves fitted to one stretch of rows, and what the evidence says.

    Attributes:
        verdict: linear, two_rate, sublinear, undecided or none.
        reason: one line for people.
        chosen: the law whose constants are reported; for ``none`` the nearest.
        fits: by name of the curve.
        misfit: p-value of ``chosen`` against a free curve on top.
        label: what the curve looks like, when a curve that is no law says it.
        constant_bic: criterion of a loss that stays where it is.
        doubtful: whether ``none`` rests on a misfit alone that a right law may show, if rarely.
    """

    verdict: str
    reason: str
    chosen: CurveFit
    fits: dict[str, CurveFit]
    misfit: float
    label: str | None
    constant_bic: float
    doubtful: bool = False


def weigh(
    steps: Array, loss: Array, grain: Array | None = None, changes: Sequence[int] = (), more: bool = False
) -> Weighed:
    """Fit every curve and weigh the evidence.

    Args:
        steps: increasing, shape (T,), T ≥ :data:`lplr_cli.diagnostics.fits.MIN_POINTS`; any unit of time.
        loss: positive and finite, without spikes, shape (T,).
        grain: relative noise of each row where it is known, shape (T,).
        changes: rows where something is known to change: a law must hold across them.
        more: whether more than two rates are tried where nothing fits.
    """
    plain = fit_plain(scaled(steps, loss, grain, changes))
    found = _weighed(fit_all(plain))
    if not more or found.verdict != "none" or found.label is not None or _rises(found.chosen):
        return found
    return _of_more_rates(plain) or found


def _of_more_rates(plain: dict[str, CurveFit]) -> Weighed | None:
    """The linear law with the fewest rates beyond two that fits well, or as well as more of them; None where they fail.

    A further rate is fitted, too: what it does to the rate at the end is room around it.
    """
    data = plain[LINEAR.name].data
    found: Weighed | None = None
    plain = plain | fit_plain(data, [SHIFTED])
    for last, further in pairwise(MORE_RATES):
        if len(data.s) < ROWS_EACH * len(last.parameters):
            break
        plain = plain | fit_plain(data, [last])
        again = _weighed(fit_all(plain))
        chosen = again.chosen
        if again.label is not None:
            return again
        if chosen.curve is not last:
            break
        if again.verdict == LINEAR.name:
            fits = again.fits | {further.name: fit_one(further, chosen.data, chosen.noise)}
            found = replace(again, fits=fits)
            if again.misfit >= ACCEPTED:
                break
    return found


def _weighed(fits: dict[str, CurveFit]) -> Weighed:
    laws = _Laws.of(fits)
    return _without_fall(laws) or _without_law(laws) or _between(laws)


@dataclass(frozen=True)
class _Laws:
    """The laws of a series against each other.

    Attributes:
        fits: of every curve by its name.
        straight: the linear law, with a second rate where that is resolved.
        law: the likelier of it and the power law. rival: the other.
        misfit: p-value of the law against a free curve on top.
        noise_like: whether what the law leaves over looks like noise, or is too small to matter.
        constant: criterion of a loss that stays where it is.
    """

    fits: dict[str, CurveFit]
    straight: CurveFit
    law: CurveFit
    rival: CurveFit
    misfit: float
    noise_like: bool
    constant: float

    @classmethod
    def of(cls, fits: dict[str, CurveFit]) -> _Laws:
        """Choose among the fits."""
        one, two, power = (fits[c.name] for c in LAWS)
        straight = two if two.bic < one.bic - EVIDENCE and _resolved(one, two) else one
        for further in (fits[curve.name] for curve in MORE_RATES if curve.name in fits):
            # As with two near rates, one more is resolved where those before are refuted.
            asked = EVIDENCE if straight.misfit() >= ACCEPTED else 0.0
            straight = further if further.bic < straight.bic - asked else straight
        law, rival = (straight, power) if straight.bic <= power.bic else (power, straight)
        noise_like = law.sigma < LARGE or law.whiteness() >= COLOURED
        return cls(fits, straight, law, rival, law.misfit(), noise_like, _constant_bic(one, one.noise))

    def refutation(self, chosen: CurveFit) -> Weighed:
        """No law, as the law does not go through the series."""
        found = self.answer("none", _refuted(self.law, self.misfit), chosen)
        return replace(found, doubtful=self.noise_like and self.misfit >= CERTAIN)

    @property
    def refuted(self) -> bool:
        """Whether the law does not go through the series."""
        return self.misfit < REJECTED

    def answer(self, verdict: str, reason: str, chosen: CurveFit, label: str | None = None) -> Weighed:
        """With all that was weighed."""
        return Weighed(verdict, reason, chosen, self.fits, self.misfit, label, self.constant)


def _without_fall(laws: _Laws) -> Weighed | None:
    """The answer of a loss that rises or stays where it is."""
    law, straight = laws.law, laws.straight
    if _rises(law):
        return laws.answer("none", "the loss ends above all of its beginning", straight)
    stays = laws.constant < law.bic + EVIDENCE
    if not stays and not laws.refuted and _wanders(law):
        return laws.answer("undecided", "the loss falls by no more than its slow noise may", straight)
    if not stays:
        return None
    if laws.refuted:
        return laws.refutation(straight)
    if not laws.noise_like:
        return laws.answer("none", coloured(law), straight)
    return laws.answer("undecided", "the loss does not fall measurably more than its noise", straight)


def _without_law(laws: _Laws) -> Weighed | None:
    """The answer of a loss that falls by none of the laws."""
    law, label = laws.law, _label(laws.fits, laws.law)
    if label is not None and len(law.data.s) < SHORT and laws.misfit >= ACCEPTED:
        return laws.answer("undecided", _beaten(law, label), laws.straight)
    if label is not None:
        return laws.answer("none", _beaten(law, label), law, _looks(label))
    if laws.refuted:
        return laws.refutation(law)
    if not laws.noise_like:
        return laws.answer("none", coloured(law), law)
    return _described_in_pieces(laws)


def _described_in_pieces(laws: _Laws) -> Weighed | None:
    """The answer where a curve of pieces describes the log as well as the law."""
    law, pieces = laws.law, in_pieces(laws.law)
    if pieces == math.inf:
        return None
    own = beside_its_own_noise(law)
    better = (law.surprise if own.lasts else min(law.surprise, own.surprise)) - pieces
    if better >= PIECES:
        reason = f"pieces of their own describe the log better than {_name(law)}, the nearest (ΔBIC {better:.1f})"
        return laws.answer("none", reason, law)
    # What a wrong law leaves over looks like noise that lasts as long as the rows.
    if better >= (-EVIDENCE / 2 if own.lasts else EVIDENCE):
        return laws.answer("undecided", f"pieces of their own describe the log as well as {_name(law)}", laws.straight)
    return None


def _between(laws: _Laws) -> Weighed:
    """Which of the laws it is, where the evidence tells them apart."""
    law, gap = laws.law, laws.rival.bic - laws.law.bic
    if gap < EVIDENCE:
        reason = (
            f"the evidence between linear and sublinear is thin (ΔBIC {gap:.1f} for {_name(law)}, {EVIDENCE:g} is "
            "asked for)"
        )
        return laws.answer("undecided", reason, laws.straight)
    close = _close_label(laws.fits, law)
    if close is not None:
        return laws.answer("undecided", f"a {_name(close)} fits as well as {_name(law)}", laws.straight)
    against = f"ΔBIC {gap:.1f} against {'sublinear' if law is laws.straight else 'linear'}"
    second = ""
    if law.curve is TWO_RATE:
        second = f", {laws.fits[LINEAR.name].bic - law.bic:.1f} for a second rate"
    if law.curve not in MORE_RATES:
        return laws.answer(law.curve.name, against + second, law)
    rates = np.exp(law.p[1:-1:2])
    second = (
        f"; of {len(rates)} rates this is the one of the end, earlier ones are up to {rates.max() / rates.min():.3g} "
    )
    return laws.answer(LINEAR.name, f"{against}{second}times as fast", law)


def _rises(fit: CurveFit) -> bool:
    """Whether the median of the last third lies above all of the first third."""
    log_y, third = fit.data.log_y, len(fit.data.log_y) // 3
    return float(np.median(log_y[-third:])) > float(log_y[:third].max()) + RESOLUTION


def _name(fit: CurveFit) -> str:
    if fit.curve in MORE_RATES:
        return "the linear law with more rates"
    return {
        LINEAR.name: "the linear law",
        TWO_RATE.name: "the linear law with two rates",
        SUBLINEAR.name: "the power law",
        STRETCHED.name: "stretched exponential",
        SHIFTED.name: "stretched exponential",
        LOGARITHM.name: "logarithm",
        COSINE.name: "decay under a step size annealed like a cosine",
        RAMP.name: "decay under a step size annealed like a line",
    }[fit.curve.name]


def _resolved(one: CurveFit, two: CurveFit) -> bool:
    """Whether the rates of two exponentials are apart, as far as one of them does not fit."""
    rates = two.p[1:-1:2]
    return float(rates[1] - rates[0]) > math.log(GAP) or one.misfit() < REJECTED


def _refuted(law: CurveFit, misfit: float) -> str:
    p = f"= {misfit:.1g}" if misfit > 0 else "below 1e-300"
    how = "refuted" if misfit < CERTAIN else "in doubt"
    return f"{_name(law)}, the nearest, is {how} by its misfit (p {p} against a free curve)"


def coloured(law: CurveFit) -> str:
    """Why no law holds where what it leaves over is no noise."""
    return f"what {_name(law)} leaves over is no noise: neighbouring errors belong together"


def _label(fits: dict[str, CurveFit], law: CurveFit) -> CurveFit | None:
    """A curve that is no law, fits, and beats the best law."""
    best = _best_label(fits, LABELS)
    return best if best is not None and best.bic < law.bic - EVIDENCE and best.misfit() >= REJECTED else None


def _best_label(fits: dict[str, CurveFit], labels: Sequence[Curve]) -> CurveFit | None:
    """The likeliest of some curves that are no laws; None where it is nearly an exponential."""
    best = min((fits[c.name] for c in (*labels, SHIFTED) if c.name in fits), key=lambda fit: fit.bic)
    shallow = float(best.p[2]) < DEEP
    flat = abs(float(best.p[2])) < NEARLY_ONE
    nearly = {STRETCHED: flat, SHIFTED: flat, COSINE: shallow, RAMP: shallow}
    return None if nearly.get(best.curve) else best


def _close_label(fits: dict[str, CurveFit], law: CurveFit) -> CurveFit | None:
    """A curve that is no law and nearly as likely as a law that resembles it."""
    alike: dict[Curve, tuple[Curve, ...]] = {SUBLINEAR: (STRETCHED, LOGARITHM), TWO_RATE: (COSINE, RAMP)}
    best = _best_label(fits, alike[law.curve]) if law.curve in alike else None
    return best if best is not None and best.bic < law.bic + EVIDENCE else None


def _beaten(law: CurveFit, label: CurveFit) -> str:
    return f"a {_name(label)} fits better than {_name(law)}, the nearest (ΔBIC {law.bic - label.bic:.1f})"


def _looks(label: CurveFit) -> str:
    if label.curve is LOGARITHM:
        return "falls ever slower, like a logarithm of time"
    if label.curve in (COSINE, RAMP):
        return f"slows at the end of the log, like a {_name(label)}"
    beta = float(np.exp(label.p[2]))
    pace = "slower" if beta < 1 else "faster"
    return f"falls ever {pace}, like a stretched exponential exp(−(t/τ)^{beta:.2g})"


def _wanders(law: CurveFit) -> bool:
    """Whether a random walk without a law is as likely, or the loss falls by no more than its long noise may."""
    walks = [replace(law.noise, phi=MAX_CORRELATION, theta=theta) for theta in {0.0, law.noise.theta}]
    likely = min(_constant_bic(law, walk) + 2 * math.log(walk.spread) for walk in walks)
    if likely < law.bic + 2 * math.log(law.noise.spread) + EVIDENCE:
        return True
    if law.noise.phi < LONG:
        return False
    walk = replace(law.noise, phi=MAX_CORRELATION)
    error = replace(law, noise=walk).residual(law.p)[0]
    asked = WALKS if len(error) >= SHORT else EVIDENCE
    return _constant_bic(law, walk) < replace(law, cost=float(error @ error)).bic + asked


def in_pieces(law: CurveFit) -> float:
    """Surprise of the fewest parabolas that describe the log, with noise of their own; infinite for one.

    The slow noise beside a law may be what a curve with another course leaves over.
    """
    data = law.data
    columns, pieces = parabolas(data.s, data.log_y)
    if pieces == 1:
        return math.inf
    scale = law.noise.scale
    if law.noise.additive:
        scale = scale / np.maximum(law.curve.value(law.p, data.s)[0], 1e-300)
    both = np.column_stack([data.log_y, columns]) / scale[:, None]
    found = restricted_correlation(both[:, 0], both[:, 1:])
    white = whiten(both, found.phi, found.theta)
    basis = orthonormal(white[:, 1:])
    left = white[:, 0] - basis @ (basis.T @ white[:, 0])
    own = replace(law.noise, phi=found.phi, theta=found.theta)
    # A cut is a parameter, too.
    return surprise(float(left @ left), own, columns.shape[1] + pieces - 1, len(left))


def _constant_bic(fit: CurveFit, noise: Noise) -> float:
    """Criterion of a constant under ``noise``."""
    data = fit.data
    y = np.exp(data.log_y) if noise.additive else data.log_y
    both = whiten(np.column_stack([y, np.ones(len(y))]) / noise.scale[:, None], noise.phi, noise.theta)
    white, level = both[:, 0], both[:, 1]
    white = white - level * float(level @ white) / float(level @ level)
    return criterion(float(white @ white), 1, len(white))
