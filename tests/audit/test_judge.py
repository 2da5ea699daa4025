"""What each statement says of given evidence: the status, the figure and what it is compared with, case by case."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from lplr_cli.audit import judge
from lplr_cli.audit.along import along_of, local_pl_along, rate_along, smooth_along
from lplr_cli.audit.evidence import Evidence, Probes
from lplr_cli.audit.findings import Finding, Status, Verdict
from lplr_cli.audit.sanity import stable_step
from lplr_cli.audit.scope import Scope
from lplr_cli.diagnostics.convergence import Promised

YES, SEEN, FAILS, UNKNOWN = Status.VERIFIED, Status.ESTIMATED, Status.FAILS, Status.UNKNOWN
ROW = {"step": 0, "lambda_min": 0.5, "lambda_min_lower": 0.4, "lambda_max": 9.0, "probe_size": 8, "sharpness": 4.0}
BALL = {"radius": 2.0, "l_k": 0.1, "mu_jacobian": 0.6, "beta": 5.0}


def proof(**changes: Any) -> SimpleNamespace:
    """A certificate that speaks of the run, whose data are confirmed."""
    ball = {k: changes.pop(k, v) for k, v in BALL.items()}
    certificate = SimpleNamespace(
        lambda_0_lower=changes.pop("low", 0.3), n=8, radius_jacobian=3.0, given=SimpleNamespace(**ball),
        containment=SimpleNamespace(at=SimpleNamespace(radius=1.5)),
    )  # fmt: skip
    if not changes.pop("ball", True):
        certificate.given = None
    made: dict[str, Any] = {
        "certificate": certificate, "why_not": "", "confirmed": True, "dtype": "float64",
        "check": SimpleNamespace(applies=True, violations=0, steps=7),
        "ratio": SimpleNamespace(violations=0, lowest=0.7),
    }  # fmt: skip
    return SimpleNamespace(**{**made, **changes})


def evidence(rows: list[dict[str, Any]] | None = None, **changes: Any) -> Evidence:
    """Nothing but what is given."""
    full, own = changes.pop("full", True), changes.pop("own", True)
    made: dict[str, Any] = {
        "proof": None, "probes": Probes(pd.DataFrame([ROW] if rows is None else rows), full, own), "estimates": None,
        "no_proof": "none was asked for", "why_singular": "", "scope": Scope("gd", "squared", "exact"), "lr": 0.1,
        "eta": 0.1, "drift": 2.0, "ratio": None, "exact": True, "rate": None, "path": None, "manifest": None,
        "why_no_path": "", "series": SimpleNamespace(lost_from=None),
    }  # fmt: skip
    return cast(Evidence, SimpleNamespace(**{**made, **changes}))


def constants(**changes: Any) -> SimpleNamespace:
    made = {"compatible": True, "l_k": 0.1, "radius": 2.0, "lambda_0": 0.5, "mu_kernel": 0.6}
    return SimpleNamespace(**{**made, **changes})


def ratio(lowest: float, star: float) -> SimpleNamespace:
    return SimpleNamespace(pl_ratio=SimpleNamespace(min=lowest), pl_ratio_star=SimpleNamespace(min=star))


def fit(verdict: str) -> SimpleNamespace:
    told = {"verdict": verdict, "rate": 0.9, "alpha": 1.5, "reason": "by a margin", "about": "it bends"}
    return SimpleNamespace(
        fit=SimpleNamespace(**told),
        theory=Promised(rate_path=0.95, rate_estimated=0.93, eta=2.0),
    )


ALONE = SimpleNamespace(fit=fit("linear").fit, theory=Promised())
UNCONFIRMED = proof(confirmed=False)
OTHER = proof(why_not="the loss is another", confirmed=False)
OUTSIDE = proof(check=SimpleNamespace(applies=False, violations=0, steps=0))
BROKEN = proof(check=SimpleNamespace(applies=True, violations=2, steps=7))
UNKNOWN_LOSS = Scope("gd", "?", "exact", unknown_loss="the loss is not known")
OTHER_STEPS = Scope("gd", "squared", "exact", other_steps="momentum", unknown_steps="")
# What rounding leaves of a λ_min of zero, beside λ_max = 9 on 8 samples.
RESOLUTION = 10 * 2.0**-52 * 9.0 * math.sqrt(8.0)
Case = tuple[str, Evidence, Status, float | None, float | None]
CASES: list[Case] = [
    ("linear_rate", evidence(rate=fit("linear"), series=SimpleNamespace(lost_from=7.0)), UNKNOWN, None, None),
    ("positivity", evidence(proof=proof()), YES, 0.3, 0.0),
    ("positivity", evidence(proof=UNCONFIRMED), SEEN, 0.3, 0.0),
    ("positivity", evidence(proof=proof(low=0.0)), YES, 0.4, 0.0),
    ("positivity", evidence(), YES, 0.4, 0.0),
    ("positivity", evidence(own=False), SEEN, 0.4, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min_lower": math.nan}]), SEEN, 0.5, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min_lower": None}]), SEEN, 0.5, 0.0),
    ("positivity", evidence([{k: v for k, v in ROW.items() if k != "lambda_min_lower"}]), SEEN, 0.5, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min_lower": 0.0}]), SEEN, 0.5, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min_lower": 0.5}]), YES, 0.5, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min_lower": 0.51}]), SEEN, 0.5, 0.0),
    # 10 ε λ_max √8 = 5.65e-14 is zero within rounding, and twice of it is not.
    ("positivity", evidence([{**ROW, "lambda_min": 5.6e-14, "lambda_min_lower": -1.0}]), FAILS, 5.6e-14, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min": 5.7e-14, "lambda_min_lower": -1.0}]), SEEN, 5.7e-14, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min": RESOLUTION, "lambda_min_lower": -1.0}]), FAILS, RESOLUTION, 0.0),
    ("positivity", evidence(full=False), SEEN, 0.5, 0.0),
    ("positivity", evidence([{**ROW, "lambda_min": 0.0}], full=False), FAILS, 0.0, 0.0),
    ("positivity", evidence([{**ROW, "step": 5}]), UNKNOWN, None, 0.0),
    ("positivity", evidence([]), UNKNOWN, None, 0.0),
    ("lipschitz", evidence(proof=proof()), YES, 0.1, None),
    ("lipschitz", evidence(proof=UNCONFIRMED), SEEN, 0.1, None),
    ("lipschitz", evidence(proof=proof(ball=False)), UNKNOWN, None, None),
    ("lipschitz", evidence(estimates=constants()), SEEN, 0.1, None),
    ("lipschitz", evidence(estimates=constants(l_k=None)), UNKNOWN, None, None),
    ("lipschitz", evidence(), UNKNOWN, None, None),
    ("compatibility", evidence(proof=proof()), YES, 0.2, 0.3),
    ("compatibility", evidence(proof=UNCONFIRMED), SEEN, 0.2, 0.3),
    ("compatibility", evidence(proof=proof(low=0.2)), UNKNOWN, None, None),
    # A product below λ0 by less than its rounding decides nothing.
    ("compatibility", evidence(proof=proof(low=0.2 * (1 + 4e-13))), UNKNOWN, None, None),
    ("compatibility", evidence(proof=proof(low=0.2 * (1 + 4e-12))), YES, 0.2, 0.2 * (1 + 4e-12)),
    ("compatibility", evidence(proof=proof(low=0.1), estimates=constants()), SEEN, 0.2, 0.5),
    ("compatibility", evidence(proof=proof(ball=False), estimates=constants(compatible=False)), FAILS, 0.2, 0.5),
    ("compatibility", evidence(proof=proof(ball=False)), UNKNOWN, None, None),
    ("compatibility", evidence(estimates=constants(radius=None)), UNKNOWN, None, None),
    ("compatibility", evidence(estimates=constants(lambda_0=None)), UNKNOWN, None, None),
    ("compatibility", evidence(estimates=constants(l_k=None)), UNKNOWN, None, None),
    ("compatibility", evidence(estimates=constants(compatible=None)), UNKNOWN, None, None),
    ("step_size", evidence(proof=proof()), YES, 0.5, 1.0),
    ("step_size", evidence(proof=proof(beta=10.0)), YES, 1.0, 1.0),
    ("step_size", evidence(proof=proof(beta=10.1)), SEEN, 0.4, 1.0),
    ("step_size", evidence(proof=UNCONFIRMED), SEEN, 0.4, 1.0),
    ("step_size", evidence(proof=proof(why_not="the loss is another")), SEEN, 0.4, 1.0),
    ("step_size", evidence(proof=proof(ball=False)), SEEN, 0.4, 1.0),
    ("step_size", evidence(proof=proof(), eta=None), UNKNOWN, 0.4, 1.0),
    ("step_size", evidence(proof=proof(), lr=None), UNKNOWN, None, 1.0),
    ("step_size", evidence(lr=0.25), SEEN, 1.0, 1.0),
    # Beyond 1 by no more than a millionth it does not refute.
    ("step_size", evidence(lr=0.25 * (1 + 1e-6)), SEEN, 1 + 1e-6, 1.0),
    ("step_size", evidence(lr=0.25 * (1 + 2e-6)), FAILS, 1 + 2e-6, 1.0),
    ("step_size", evidence(lr=0.26), FAILS, 1.04, 1.0),
    ("step_size", evidence(lr=0.26, eta=None), FAILS, 1.04, 1.0),
    ("step_size", evidence([]), UNKNOWN, None, 1.0),
    ("containment", evidence(proof=proof()), YES, 1.5, None),
    ("containment", evidence(proof=proof(dtype="float32")), YES, 1.5, None),
    ("containment", evidence(proof=BROKEN), FAILS, 1.5, None),
    ("containment", evidence(proof=OUTSIDE), SEEN, 2.0, 3.0),
    ("containment", evidence(proof=OUTSIDE, drift=3.0), SEEN, 3.0, 3.0),
    ("containment", evidence(proof=OUTSIDE, drift=3.1), FAILS, 3.1, 3.0),
    ("containment", evidence(proof=OUTSIDE, drift=None), UNKNOWN, None, None),
    ("containment", evidence(), UNKNOWN, 2.0, None),
    ("local_pl", evidence(proof=proof()), YES, 0.6, 0.0),
    ("local_pl", evidence(proof=UNCONFIRMED), SEEN, 0.6, 0.0),
    ("local_pl", evidence(proof=proof(ratio=SimpleNamespace(violations=1, lowest=0.2))), FAILS, 0.2, 0.6),
    ("local_pl", evidence(proof=proof(), scope=UNKNOWN_LOSS, ratio=ratio(0.4, 0.3)), UNKNOWN, 0.3, 0.0),
    ("local_pl", evidence(proof=OTHER), UNKNOWN, None, 0.0),
    ("local_pl", evidence(proof=proof(mu_jacobian=None)), UNKNOWN, None, 0.0),
    ("local_pl", evidence(proof=proof(ball=False), estimates=constants()), SEEN, 0.6, 0.0),
    ("local_pl", evidence(estimates=constants(), ratio=ratio(0.6, 0.5)), SEEN, 0.6, 0.0),
    ("local_pl", evidence(estimates=constants(), ratio=ratio(0.6 * (1 - 1e-9), 0.5)), SEEN, 0.6, 0.0),
    ("local_pl", evidence(estimates=constants(), ratio=ratio(0.6 * (1 - 2e-9), 0.5)), FAILS, 0.6, 0.6),
    ("local_pl", evidence(estimates=constants(), ratio=ratio(0.59, 0.5)), FAILS, 0.59, 0.6),
    ("local_pl", evidence(estimates=constants(), ratio=ratio(0.59, 0.5), exact=False), SEEN, 0.6, 0.0),
    ("local_pl", evidence(estimates=constants(mu_kernel=0.0), ratio=ratio(0.4, 0.3)), UNKNOWN, 0.3, 0.0),
    ("local_pl", evidence(estimates=constants(mu_kernel=None, compatible=False)), UNKNOWN, None, 0.0),
    ("linear_rate", evidence(proof=proof()), YES, None, None),
    ("linear_rate", evidence(proof=BROKEN), FAILS, None, None),
    ("linear_rate", evidence(proof=OUTSIDE, rate=fit("linear")), SEEN, 0.9, 0.95),
    ("linear_rate", evidence(rate=fit("two_rate")), SEEN, 0.9, 0.95),
    ("linear_rate", evidence(rate=ALONE), SEEN, 0.9, None),
    ("linear_rate", evidence(rate=fit("sublinear")), UNKNOWN, 1.5, None),
    ("linear_rate", evidence(rate=fit("none")), UNKNOWN, 0.9, None),
    ("linear_rate", evidence(), UNKNOWN, None, None),
]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_what_is_said(number: int) -> None:
    name, given, status, value, threshold = CASES[number]
    found: Finding = getattr(judge, name)(given)
    assert found.status is status, found.reason
    assert [found.value, found.threshold] == [pytest.approx(value), pytest.approx(threshold)]
    assert found.reason
    assert "None" not in found.reason
    keys = {v.__name__: k for k, v in judge.STATEMENTS.items()}
    assert found.key == keys[name]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("positivity", evidence([{**ROW, "lambda_min": 0.0, "lambda_min_lower": -1.0}], why_singular="twins"), "twins"),
        ("positivity", evidence(full=False), "which can refute, not certify"),
        ("compatibility", evidence(proof=proof(low=0.1)), "undecided: the proved L_K R ≤ 0.2 is not below λ0 ≥ 0.1"),
        ("compatibility", evidence(), "no probes tell"),
        ("step_size", evidence(eta=None, scope=OTHER_STEPS), "which this is not"),
        ("step_size", evidence(eta=None, scope=Scope("?", "s", "e", unknown_steps="nobody knows")), "nobody knows"),
        ("step_size", evidence([{**ROW, "sharpness": math.nan}], scope=UNKNOWN_LOSS), "no sharpness: the loss is not"),
        ("step_size", evidence([], scope=UNKNOWN_LOSS), "no probe, and no certificate (none was asked for)"),
        ("step_size", evidence([{**ROW, "sharpness": math.nan}]), "no probe measured"),
        ("containment", evidence(proof=proof(dtype="float32")), "7 logged steps in float32"),
        ("containment", evidence(proof=proof()), "before the first step"),
        ("local_pl", evidence(estimates=constants(mu_kernel=None, compatible=False)), "as H3 fails"),
        ("local_pl", evidence(), "is not known"),
        ("local_pl", evidence(ratio=ratio(0.4, 0.3)), "at least 0.3"),
        ("local_pl", evidence(scope=UNKNOWN_LOSS, ratio=ratio(0.4, 0.3)), "at least 0.3"),
        ("lipschitz", evidence(proof=OTHER), "for the data named; the loss is another"),
        ("lipschitz", evidence(proof=UNCONFIRMED), "nothing tells that the data"),
        ("linear_rate", evidence(rate=fit("linear"), scope=UNKNOWN_LOSS), "of the curve alone: the loss is not known"),
        ("linear_rate", evidence(rate=fit("linear")), "1 − ημ = 0.95"),
    ],
)
def test_why_it_is_said(name: str, given: Evidence, said: str) -> None:
    found: Finding = getattr(judge, name)(given)
    assert said in found.reason


@pytest.mark.parametrize(
    ("name", "given", "end"),
    [
        ("positivity", evidence([{**ROW, "lambda_min": 0.0, "lambda_min_lower": -1.0}]), "within rounding (6e-14)"),
        ("linear_rate", evidence(rate=ALONE), "by a margin"),
        ("linear_rate", evidence(rate=fit("linear")), "with the smallest known μ"),
    ],
)
def test_nothing_is_said_of_what_is_not_there(name: str, given: Evidence, end: str) -> None:
    found: Finding = getattr(judge, name)(given)
    assert found.reason.endswith(end)


# -- along the path --


def figures(**changes: Any) -> SimpleNamespace:
    made: dict[str, Any] = {
        "kind": "certified", "certified": True, "confirmed": True, "agreement": "another log", "eta_beta_max": 1.5,
        "rate_reason": "no descent", "not_certified": [{"step": 1, "reason": "eta beta = 2.1"}, {"step": 2}],
        "steps": 40, "mu_path": 0.5, "mu_path_star": 0.4, "mu_path_estimated": 0.7, "mu_path_star_estimated": 0.65,
        "share": 1.0, "radius": 1e-3, "measured": 0.6, "rate_proved": 0.9, "rate_estimated": 0.8, "rate_from_step": 6,
        "evidence": "linear",
    }  # fmt: skip
    return SimpleNamespace(**{**made, **changes})


ESTIMATE = {"kind": "estimate", "certified": False}
ALONG = [
    (smooth_along, None, UNKNOWN, None),
    (smooth_along, {}, YES, 1.5),
    (smooth_along, {"confirmed": False}, SEEN, 1.5),
    (smooth_along, ESTIMATE, SEEN, 1.5),
    (smooth_along, {"eta_beta_max": 2.0}, UNKNOWN, 2.0),
    (smooth_along, {"eta_beta_max": None}, UNKNOWN, None),
    (local_pl_along, None, UNKNOWN, None),
    (local_pl_along, {}, YES, 0.5),
    (local_pl_along, {"confirmed": False}, SEEN, 0.5),
    (local_pl_along, ESTIMATE, SEEN, 0.7),
    (local_pl_along, {"share": 0.999}, UNKNOWN, 0.5),
    (local_pl_along, {"mu_path": None}, UNKNOWN, None),
    (rate_along, None, UNKNOWN, None),
    (rate_along, {}, YES, 0.9),
    (rate_along, {"confirmed": False}, SEEN, 0.9),
    (rate_along, ESTIMATE, SEEN, 0.8),
    (rate_along, {"rate_from_step": 7}, UNKNOWN, 0.9),
    (rate_along, {"rate_proved": None}, UNKNOWN, None),
    (rate_along, {"rate_from_step": None}, UNKNOWN, None),
]


@pytest.mark.parametrize("number", range(len(ALONG)), ids=[f"{k}-{c[0].__name__}" for k, c in enumerate(ALONG)])
def test_what_is_said_along_the_path(number: int) -> None:
    of, changes, status, value = ALONG[number]
    e = evidence(path=None if changes is None else figures(**cast(dict[str, Any], changes)))
    found = of(e)
    assert (found.status, found.value) == (status, value)
    assert found.threshold == {smooth_along: 2.0, local_pl_along: 0.0, rate_along: 1.0}[of]
    if changes is None:
        assert "lplr certify RUN --path" in found.reason
    elif value is None:
        assert found.reason in ("no descent", "no step of the path has a region")
    doubted = changes is not None and "confirmed" in changes and of is not smooth_along
    assert ("another log" in found.reason) == doubted
    if of is smooth_along and value == 2.0:
        assert "on 1 of 40 steps" in found.reason
    if of is local_pl_along:
        share = "μ ≥ 0.5 on 99.9 % of the path; 2 steps" if changes == {"share": 0.999} else ""
        assert share in found.reason
        assert status is UNKNOWN or f"μ ≥ {value:.4g} within 0.001 of the whole path, measured 0.6" in found.reason
        along = along_of(e, found)
        assert along.verdict is (Verdict.UNDETERMINED if status is UNKNOWN else Verdict.YES)
        assert along.explanation.startswith("certified, as kept by the run: ") == (status is YES)
        if changes is not None:
            estimated = not changes.get("certified", True)
            wanted = (0.7, 0.65) if estimated else (changes.get("mu_path", 0.5), 0.4)
            assert (along.mu, along.mu_star, along.share) == (*wanted, changes.get("share", 1.0))


# -- the verdict --


def told(**changes: Status) -> dict[str, Finding]:
    statuses = {"H1": YES, "H2": YES, "H3": YES, "C1": YES, **changes}
    return {k: Finding(k, status, None, None, f"of {k}") for k, status in statuses.items()}


OTHER_LOSS = Scope("gd", "ce", "exact", other_loss="cross-entropy")
POINT = Scope("gd", "squared", "exact", no_path="a checkpoint alone")
VERDICTS: list[tuple[dict[str, Status], Scope | None, Verdict, str]] = [
    ({}, None, Verdict.YES, "certified: of C1"),
    ({"H2": UNKNOWN, "H3": FAILS}, None, Verdict.YES, "certified: of C1"),
    ({"H1": SEEN}, None, Verdict.YES, "by estimates, not by proof: H1"),
    ({"C1": SEEN}, None, Verdict.YES, "by estimates, not by proof: H1"),
    ({"C1": SEEN}, OTHER_LOSS, Verdict.UNDETERMINED, "cross-entropy"),
    ({"C1": FAILS}, OTHER_LOSS, Verdict.UNDETERMINED, "cross-entropy"),
    ({"C1": SEEN}, POINT, Verdict.UNDETERMINED, "a checkpoint alone"),
    ({"C1": FAILS}, None, Verdict.NO, "C1 fails: of C1"),
    ({"H1": FAILS}, None, Verdict.NO, "H1 fails: of H1"),
    ({"H3": FAILS, "C1": SEEN}, None, Verdict.NO, "H3 fails: of H3"),
    ({"H2": FAILS, "C1": SEEN}, None, Verdict.UNDETERMINED, " cannot be decided"),
    ({"H2": UNKNOWN, "C1": UNKNOWN}, None, Verdict.UNDETERMINED, "H2, C1 cannot be decided"),
]


@pytest.mark.parametrize("number", range(len(VERDICTS)))
def test_the_verdict(number: int) -> None:
    changes, scope, verdict, said = VERDICTS[number]
    e = evidence() if scope is None else evidence(scope=scope)
    found = judge.verdict_of(e, told(**changes))
    assert found[0] is verdict
    assert said in found[1]


def test_what_cannot_be_asked_is_not_judged() -> None:
    found = {f.key: f for f in judge.findings_of(evidence(proof=proof(), scope=OTHER_LOSS)) if f.key in ("H1", "C1")}
    assert (found["H1"].status, found["C1"].status) == (YES, UNKNOWN)
    assert found["C1"].reason == "not asked: cross-entropy"


def test_the_words_along_the_path() -> None:
    def said(of: Callable[[Evidence], Finding], **changes: Any) -> str:
        return of(evidence(path=figures(**changes))).reason

    assert said(smooth_along, eta_beta_max=None, rate_reason="") == "no step size is known"
    assert said(rate_along, rate_proved=None, rate_reason="") == "not proved"
    assert said(rate_along).startswith("L − L* shrinks by 0.9 or more")
    assert said(local_pl_along, measured=None).endswith("measured 0")
    for of in (local_pl_along, rate_along):  # an estimate is one whatever the path was compared with
        assert "another log" not in said(of, **ESTIMATE, confirmed=False)
    nothing = evidence(scope=Scope("?", "s", "e", no_path="one point is known"))
    assert along_of(nothing, local_pl_along(nothing)).explanation == "one point is known"
    assert "lplr certify RUN --path" in along_of(evidence(), local_pl_along(evidence())).explanation


@pytest.mark.parametrize(
    ("name", "advice"), [("adamw", "record with data and probe_every"), ("lion", "is not known here")]
)
def test_steps_that_are_no_gradient(name: str, advice: str) -> None:
    """What a probe could tell is advised for Adam alone."""
    e = evidence(
        [], scope=Scope(name, "squared", "exact", adaptive=f"a step of {name} is not η∇L"), kinks=None,
        manifest=SimpleNamespace(optimizer=SimpleNamespace(name=name), config={}),
    )  # fmt: skip
    found = stable_step(e)
    assert found.status is UNKNOWN
    assert found.reason.endswith(advice)
