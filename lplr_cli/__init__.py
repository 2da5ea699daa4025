"""lplr: audit neural-network training runs against local Polyak-Łojasiewicz theory.

The commands are functions here as well, imported when first used:

    import lplr_cli as lplr
    lplr.audit("runs/mine").verdict
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lplr_cli.analysis import Source
    from lplr_cli.api import (
        ablate,
        certify,
        certify_path,
        fit_rate,
        list_runs,
        pl_ratio,
        predict,
        predict_outputs,
        probe_hessian,
        probe_ntk,
        report,
        train,
        watch,
    )
    from lplr_cli.audit.run import Audit, audit
    from lplr_cli.training import Recorder
    from lplr_cli.training.callbacks import lightning_callback, transformers_callback

__version__ = "0.2.0"

_HOMES = {
    "lplr_cli.api": (
        "ablate",
        "certify",
        "certify_path",
        "fit_rate",
        "list_runs",
        "pl_ratio",
        "predict",
        "predict_outputs",
        "probe_hessian",
        "probe_ntk",
        "report",
        "train",
        "watch",
    ),
    "lplr_cli.audit.run": ("Audit", "audit"),
    "lplr_cli.analysis": ("Source",),
    "lplr_cli.training": ("Recorder",),
    "lplr_cli.training.callbacks": ("lightning_callback", "transformers_callback"),
}
__all__ = [
    "Audit",
    "Recorder",
    "Source",
    "ablate",
    "audit",
    "certify",
    "certify_path",
    "fit_rate",
    "lightning_callback",
    "list_runs",
    "pl_ratio",
    "predict",
    "predict_outputs",
    "probe_hessian",
    "probe_ntk",
    "report",
    "train",
    "transformers_callback",
    "watch",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
