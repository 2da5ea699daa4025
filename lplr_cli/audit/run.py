"""The audit of a run or log: its scope, every hypothesis and conclusion of the theory, and the sanity of the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lplr_cli.analysis import OWN, LazyPrediction, LogInput, Source, read_log
from lplr_cli.audit.along import Along, along_of
from lplr_cli.audit.baseline import Change, compare
from lplr_cli.audit.evidence import Examination, gather
from lplr_cli.audit.figures import Figures, figures_of
from lplr_cli.audit.findings import Finding, Verdict
from lplr_cli.audit.judge import findings_of, verdict_of
from lplr_cli.audit.point import gather_point
from lplr_cli.audit.sanity import CHECKS
from lplr_cli.audit.scope import ENTROPY, Scope
from lplr_cli.audit.telling import checks, statements
from lplr_cli.diagnostics import Convergence, PLRatio
from lplr_cli.linalg.tasks import Tasks
from lplr_cli.losses import Loss
from lplr_cli.ntk import DEFAULT_MEMORY
from lplr_cli.runs import SCHEMA_VERSION, frame_of, plain
from lplr_cli.runs.logs import holds_weights
from lplr_cli.shown import Shown

if TYPE_CHECKING:
    import pandas as pd

# Checks that not every log gives occasion for.
OPTIONAL = ("window", "interpolation", "descent", "spikes", "noise", "lazy")
_LOCAL_PL = {Verdict.YES: True, Verdict.NO: False, Verdict.UNDETERMINED: None}


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """Everything that was found.

    Attributes:
        source: the run or log.
        scope: what it is, and which statements can be asked of it.
        verdict: ``yes``, ``no`` or ``undetermined``: whether the run lies in a locally PL ball around its start.
        explanation: one sentence.
        along: the same of the region around its own path.
        findings: hypotheses and conclusions, H1 to C2, CE1 and CE2 of cross-entropy, and P1 to P3 along the path.
        sanity: checks of the run itself.
        figures: PL ratio, rate, drift and constants.
        baseline: comparison with an earlier run, by figure.
        ratio, rate: the series that the findings rest on; None where the log does not tell.
        prediction: the loss that the kernel at the start predicts; None, with ``no_prediction``, where it does not.
    """

    source: str
    scope: Scope
    verdict: Verdict
    explanation: str
    along: Along
    findings: tuple[Finding, ...]
    sanity: tuple[Finding, ...]
    figures: Figures
    baseline: dict[str, Change] | None
    ratio: PLRatio | None = None
    rate: Convergence | None = None
    prediction: LazyPrediction | None = None
    no_prediction: str = ""

    def __getitem__(self, key: str) -> Finding:
        """The finding named ``key``, e.g. ``audit["H3"]``."""
        return {f.key: f for f in (*self.findings, *self.sanity)}[key]

    @property
    def regressions(self) -> list[str]:
        """Lines of what became worse than the baseline beyond the tolerance."""
        return [change.line(name) for name, change in (self.baseline or {}).items() if change.failed]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``lplr audit``."""
        cleaned: dict[str, Any] = plain(
            {
                "command": "audit",
                "schema_version": SCHEMA_VERSION,
                "source": self.source,
                "scope": self.scope.to_dict(),
                "verdict": str(self.verdict),
                "local_pl": _LOCAL_PL[self.verdict],
                "explanation": self.explanation,
                "along": asdict(self.along),
                # Every run has the same keys: null where a statement is no matter of its loss, or a check of its log.
                **dict.fromkeys(ENTROPY),
                **{f.key: f.to_dict() for f in self.findings},
                "sanity": {**dict.fromkeys(OPTIONAL), **{f.key: f.to_dict() for f in self.sanity}},
                **self.figures.to_dict(),
                "baseline": None if self.baseline is None else {k: asdict(v) for k, v in self.baseline.items()},
            }
        )
        return cleaned

    def short(self) -> list[tuple[str, str]]:
        """The verdicts and the findings as people read them."""
        rows = [("source", self.source), ("local PL", f"{self.verdict}: {self.explanation}")]
        rows.append(("along the run", f"{self.along.verdict}: {self.along.explanation}"))
        for told in (statements(self), checks(self)):
            rows += [(f.key, f"{f.status}: {f.reason}") for f in told.rows]
            rows += [("", sentence) for sentence in told.aside]
        return rows

    def to_frame(self) -> pd.DataFrame:
        """A row a finding."""
        rows = [{"key": f.key, **f.to_dict()} for f in (*self.findings, *self.sanity)]
        return frame_of(rows)


def audit(
    source: str | LogInput,
    *,
    columns: dict[str, str] | None = None,
    window: tuple[float, float] | None = None,
    offline_probe: bool = False,
    probe_size: int | None = None,
    foreign: Source = OWN,
    baseline: str | None = None,
    tolerance: float = 0.1,
    certificate: bool = True,
    pieces: int | None = None,
    memory: int = DEFAULT_MEMORY,
    loss: Loss | None = None,
    tasks: Tasks | None = None,
) -> Audit:
    """Judge each hypothesis and conclusion of the theory over a run or log.

    Args:
        source: a run directory, a log of any format, or - for stdin; or a log that is read already; or a checkpoint,
            of which H1, loss, gradient and curvature are examined.
        columns: names of the log's columns, see :func:`lplr_cli.runs.logs.parse_columns`.
        window: first and last step of the stable window; by rule when None.
        offline_probe: compute from checkpoints what the log lacks: gradient norms and NTK probes.
        probe_size: samples of offline probes; all by default.
        foreign: model and data of a run that does not tell them.
        baseline: an earlier run or log to compare with.
        tolerance: relative worsening against the baseline that still passes.
        certificate: whether to compute the certificate at the start, where the run has a checkpoint of it.
        pieces: checkpoints to predict the loss from, 0 for no prediction; by default the start alone, with the
            certificate.
        memory: bytes for kernels.
        loss: of a checkpoint, run or log that does not tell it; nothing is verified for it.
        tasks: where offline probes run, a task a checkpoint; in this process by default.

    Raises:
        InputError: what cannot be read; a loss that is not the one that the run tells.
        UnnamedCodeError: the certificate or an offline probe needs code that ``foreign`` does not name.
    """
    pieces = int(certificate) if pieces is None else pieces
    how = Examination(window, offline_probe, probe_size, foreign, certificate, pieces, memory, tasks)
    if isinstance(source, str) and holds_weights(source):
        evidence, name = gather_point(Path(source), how, loss), source
    else:
        log = source if isinstance(source, LogInput) else read_log(source, columns)
        evidence, name = gather(log, how, loss), log.name
    findings = findings_of(evidence)
    verdict, explanation = verdict_of(evidence, {f.key: f for f in findings})
    figures = figures_of(evidence)
    compared = None
    if baseline is not None:
        before = gather(read_log(baseline, columns), replace(how, certificate=False, pieces=0))
        compared = compare(figures, figures_of(before), tolerance)
    return Audit(
        name,
        evidence.scope,
        verdict,
        explanation,
        along_of(evidence, {f.key: f for f in findings}["P2"]),
        findings,
        tuple(found for check in CHECKS if (found := check(evidence)) is not None),
        figures,
        compared,
        evidence.ratio,
        evidence.rate,
        evidence.prediction,
        evidence.no_prediction,
    )
