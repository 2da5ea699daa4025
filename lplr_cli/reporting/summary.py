"""The closing table of a run: μ beside the PL ratio."""

from __future__ import annotations

from typing import Any

from lplr_cli.reporting.text import Grid, number


def _rate_meaning(rate: dict[str, Any]) -> str:
    law = {"linear": "linear", "two_rate": "linear, slower of two modes", "sublinear": "sublinear"}
    if rate["rate"] is None:
        return f"{law['sublinear']}: L − L_∞ ~ t^-{number(rate['alpha'], 3)}, floor {number(rate['l_inf'], 3)}"
    low, high = number(rate["rate_low"], 7), number(rate["rate_high"], 7)
    name = law.get(rate["verdict"], "undecided whether linear or sublinear")
    return f"{name}; 95 % interval {low} to {high}, R² {number(rate['r_squared'])}, floor {number(rate['l_inf'], 3)}"


def _rows(s: dict[str, Any]) -> list[tuple[str, Any, str, str]]:
    """(quantity, value, kind, meaning) a row."""
    probe, low, lip = s["probe"], s["lambda_min"], s["lipschitz"]
    where = f"{probe['size']:,} of {number(s['data']['n'])} samples (subset)" if probe["subset"] else "all samples"
    ratio, star, rate, compatibility = s["pl_ratio"], s["pl_ratio_star"], s["rate"], s["compatibility"]
    certified = s["mu_certified"]
    proved = number(low["lower_initial"])
    fails = compatibility["holds"] is False
    rows: list[tuple[str, Any, str, str]] = [
        ("λ0 = λ_min(K) at start", low["initial"], "computed", f"on {where}; proved lower bound {proved}"),
    ]
    if probe["subset"]:
        rows.append(
            (
                "upper bound of the full λ0",
                low["upper_bound_full"],
                "computed",
                "interlacing: a subset can only refute",
            )
        )
    rows += [
        ("λ_min(K) at end", low["final"], "computed", "positive at both ends is needed, not sufficient"),
        (
            "L_K",
            lip["L_K_estimated"],
            "estimate",
            "largest ‖K_t − K_0‖/‖θ_t − θ_0‖ seen: a lower bound of the true constant",
        ),
        ("R", s["drift"]["max"], "measured", "largest drift ‖θ_t − θ_0‖ of the run"),
        (
            "L_K·R < λ0",
            compatibility["holds"],
            "estimate",
            "unknown without probes"
            if compatibility["holds"] is None
            else f"L_K·R = {number(compatibility['L_K_R'])}: compatibility "
            + ("fails, the bound is vacuous" if fails else "holds with the estimated L_K"),
        ),
        (
            "μ estimated = 2(λ0 − L_K·R)",
            s["mu_estimated"],
            "estimate",
            "not positive: says nothing" if fails else "an upper estimate, as L_K is one from below",
        ),
        ("μ certified", certified, "certified", s["mu_certified_reason"] if certified is None else "proved"),
        (
            "PL ratio, minimum",
            ratio["min"],
            "measured",
            "½‖∇L‖²/(L − min L) on the window; at most this much μ holds there" if s["window"] else "no stable window",
        ),
        ("PL ratio, median", ratio["median"], "measured", "the same with its typical size"),
        (
            "PL ratio*, minimum",
            star["min"],
            "measured",
            "½‖∇L‖²/L, valid without knowing L*: twice a Rayleigh quotient of K",
        ),
        ("PL ratio*, median", star["median"], "measured", "the same with its typical size"),
        (
            "rate ρ a step",
            None if rate is None else rate["rate"],
            "fit",
            "too few rows to fit" if rate is None else _rate_meaning(rate),
        ),
        ("NTK drift", s["ntk_drift_percent"], "measured", "‖K_T − K_0‖/‖K_0‖ in per cent"),
        (
            "η·sharpness/2",
            s["sharpness"]["lr_over_stable"],
            "estimate",
            "above 1 the step size exceeds 2/sharpness: the edge of stability",
        ),
    ]
    return rows


def summary_grid(s: dict[str, Any]) -> Grid:
    """The closing table of ``lplr train``."""
    model = s["model"]
    title = (
        f"{s['data']['source']}, {model['kind']}, {model['parameters']:,} parameters, "
        f"{s['optimizer']['name']} with step size {number(s['optimizer']['lr'])}, {s['steps']:,} steps: "
        f"loss {number(s['loss']['initial'])} → {number(s['loss']['final'])}"
    )
    rows = [
        [
            name,
            number(value, 8 if name.startswith("rate") else 4)
            + (" %" if name == "NTK drift" and value is not None else ""),
            kind,
            meaning,
        ]
        for name, value, kind, meaning in _rows(s)
    ]
    notes = [f"Verdict: {s['verdict']}."]
    if s["window"]:
        notes.append(f"Window: {s['window']['explanation']}.")
    notes.append(f"Run: {s['run']} ({s['status']}).")
    return Grid(title, ("quantity", "value", "kind", "meaning"), rows, right=(1,), note=tuple(notes))
