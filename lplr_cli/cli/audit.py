"""``lplr audit``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.executors import check_executor, tasks_of
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.logs import Columns, RunName, Source, WindowOption, open_log
from lplr_cli.errors import InputError, OutputError

if TYPE_CHECKING:
    from lplr_cli.audit.findings import Finding
    from lplr_cli.audit.requirements import Failure
    from lplr_cli.audit.run import Audit
    from lplr_cli.reporting import Grid
    from lplr_cli.reporting.junit import TestCase

FAIL_ON = ("no", "undetermined", "along", "never")


@expanded
def audit(
    *,
    run: Source,
    column: Columns = None,
    run_name: RunName = None,
    window: WindowOption = None,
    offline_probe: Annotated[
        bool,
        typer.Option("--offline-probe", help="Compute from checkpoints what the log lacks.", rich_help_panel="Input"),
    ] = False,
    probe_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of offline probes; all by default.", rich_help_panel="Input")
    ] = None,
    said: o.SourceOptions,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a checkpoint, run or log that does not tell it: squared, cross-entropy, bce.",
            rich_help_panel="Input",
        ),
    ] = None,
    loss_scale: Annotated[
        float, typer.Option(help="s of --loss, e.g. 1/C for torch's MSELoss.", rich_help_panel="Input")
    ] = 1.0,
    policy: Annotated[
        str | None,
        typer.Option(metavar="FILE.toml[:SET]", help="A named set of requirements.", rich_help_panel="Verdict"),
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Exit 1 on the verdict no, also on undetermined; unless along the run it is yes; never.",
            rich_help_panel="Verdict",
        ),
    ] = "no",
    baseline: Annotated[
        str | None,
        typer.Option(metavar="RUN|LOG", help="Fail when it became worse than this.", rich_help_panel="Verdict"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Relative worsening that passes.", rich_help_panel="Verdict")
    ] = 0.1,
    certificate: Annotated[
        bool,
        typer.Option("--certificate/--no-certificate", help="Prove what can be proved.", rich_help_panel="Verdict"),
    ] = True,
    junit: Annotated[
        Path | None, typer.Option(help="Write a JUnit report.", rich_help_panel="Output", metavar="FILE.xml")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Append a Markdown summary, as for $GITHUB_STEP_SUMMARY.", rich_help_panel="Output"),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="mlflow|wandb|tensorboard|trackio[:NAME]",
            help="Log the figures into a tracker; NAME is its experiment, project or folder. Repeatable.",
            rich_help_panel="Output",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Bytes for kernels, e.g. 2GiB.", rich_help_panel="Input")] = "2GiB",
    executor: Annotated[
        str, typer.Option(help="Of offline probes: local, or ray, a task a checkpoint.", rich_help_panel="Input")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; starts Ray here by default.", rich_help_panel="Input")
    ] = None,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Judge every hypothesis and conclusion of the theory over a run or log; for CI.

    [bold]lplr audit runs/mnist-mlp64-s0 --junit audit.xml --markdown "$GITHUB_STEP_SUMMARY"[/bold]
    [bold]lplr audit metrics.csv --column loss=train_loss --require 'C2.holds == true'[/bold]
    [bold]lplr audit model.ckpt --model mycode:build --data mycode:data --loss cross-entropy[/bold]
    """
    from lplr_cli.audit import read_policy

    if fail_on not in FAIL_ON:
        raise InputError(f"--fail-on {fail_on!r} is unknown", f"choose from {', '.join(FAIL_ON)}")
    sink = out_.Sink(format, output, force, [*(read_policy(policy) if policy else []), *(require or [])])
    for option, path in (("--junit", junit), ("--markdown", markdown)):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"no directory {path.parent} for {option}", "create it first")
    trackers = _trackers(to)
    source = said.source()
    check_executor(executor, ray_address)
    from lplr_cli.audit.run import audit as examine
    from lplr_cli.diagnostics import parse_window
    from lplr_cli.losses import Loss
    from lplr_cli.runs.logs import holds_weights, parse_columns

    with tasks_of(executor, ray_address) as tasks:
        result = examine(
            run if holds_weights(run) else open_log(run, column, run_name),
            columns=parse_columns(column or []),
            window=parse_window(window) if window else None,
            offline_probe=offline_probe,
            probe_size=probe_size,
            foreign=source,
            baseline=baseline,
            tolerance=tolerance,
            certificate=certificate,
            memory=o.parse_memory(memory),
            loss=None if loss is None else Loss(loss, loss_scale),
            tasks=tasks,
        )
    record = result.to_dict()
    failures = sink.check(record)
    lines = _failing(result, fail_on, failures)
    if junit is not None:
        from lplr_cli.reporting.junit import junit_xml
        from lplr_cli.runs.atomic import write_text

        write_text(junit, junit_xml(result.source, _cases(result, fail_on, sink, failures)))
    if markdown is not None:
        _append(markdown, result, lines)
    for send in trackers:
        send(record)
    sink.emit(out_.Result(record, result.to_frame(), _grids(result)), extra_failures=lines[len(failures) :])


def _trackers(targets: list[str] | None) -> list[Callable[[dict[str, Any]], None]]:
    """What logs the figures; a tracker that there is not is told before the audit takes its time."""
    from lplr_cli.reporting.trackers import check_trackers, send

    check_trackers(targets or [])
    return [partial(send, target) for target in targets or []]


def _failing(result: Audit, fail_on: str, failures: list[Failure]) -> list[str]:
    """Every line that makes the command fail, the requirements' first."""
    lines = [str(f) for f in failures]
    if (fail_on == "no" and result.verdict == "no") or (fail_on == "undetermined" and result.verdict != "yes"):
        lines.append(f"verdict {result.verdict}: {result.explanation}")
    if fail_on == "along" and result.along.verdict != "yes":
        lines.append(f"along the run {result.along.verdict}: {result.along.explanation}")
    return lines + result.regressions


def _append(path: Path, result: Audit, lines: list[str]) -> None:
    from lplr_cli.reporting.junit import markdown_summary

    verdict = (
        f"Around initialisation, local PL regime: {result.verdict} ({result.explanation}). "
        f"Along the run: {result.along.verdict} ({result.along.explanation})."
    )
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(markdown_summary(f"lplr audit of {result.source}", verdict, lines, _grids(result)))
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})", "check space and permissions") from error


def _cases(result: Audit, fail_on: str, sink: out_.Sink, failures: list[Failure]) -> list[TestCase]:
    from lplr_cli.reporting.junit import TestCase

    def case(group: str, f: Finding) -> TestCase:
        outcome = {True: "passed", None: "skipped", False: "failed"}[f.holds]
        return TestCase(group, f"{f.key}: {f.title}", outcome, f"{f.status}: {f.reason}")

    cases = [case("hypotheses", f) for f in result.findings] + [case("sanity", f) for f in result.sanity]
    verdict = {"yes": "passed", "no": "failed", "undetermined": "failed" if fail_on == "undetermined" else "skipped"}
    cases.append(TestCase("verdict", "local PL regime", verdict[result.verdict], result.explanation))
    held = "passed" if result.along.verdict == "yes" else "failed" if fail_on == "along" else "skipped"
    cases.append(TestCase("verdict", "local PL region along the run", held, result.along.explanation))
    failed = {str(f.requirement): str(f) for f in failures}
    for requirement in sink.requirements:
        text = str(requirement)
        cases.append(
            TestCase("requirements", text, "failed" if text in failed else "passed", failed.get(text, "holds"))
        )
    for name, change in (result.baseline or {}).items():
        known = change.worse is not None
        outcome = "failed" if change.failed else "passed" if known else "skipped"
        worse = "not comparable" if change.worse is None else f"worse by {change.worse:.2%}"
        cases.append(TestCase("baseline", name, outcome, f"{change.now} against {change.before}: {worse}"))
    return cases


def _grids(result: Audit) -> list[Grid]:
    from lplr_cli.audit.telling import checks, statements
    from lplr_cli.reporting import Grid, number

    def rows(findings: tuple[Any, ...]) -> list[list[str]]:
        return [[f.key, f.title, f.status, number(f.value), f.reason] for f in findings]

    columns = ("key", "statement", "status", "figure", "reason")
    found, made = statements(result), checks(result)
    verdict = (
        *found.aside,
        f"Around initialisation, local PL regime: {result.verdict} ({result.explanation}).",
        f"Along the run: {result.along.verdict} ({result.along.explanation}).",
    )
    grids = [
        Grid(f"Audit of {result.source}: {result.scope.line}.", columns, rows(found.rows), (3,), verdict),
        Grid("The run itself", ("check", *columns[1:]), rows(made.rows), (3,), made.aside),
    ]
    if result.baseline is not None:
        compared = [
            [
                name,
                number(c.now, 6),
                number(c.before, 6),
                "–" if c.worse is None else f"{c.worse:+.2%}",
                f"{c.uncertainty:.2%}",
                "yes" if c.failed else "no",
            ]
            for name, c in result.baseline.items()
        ]
        grids.append(
            Grid(
                "Against the baseline",
                ("figure", "now", "before", "worse by", "uncertain by", "fails"),
                compared,
                (1, 2, 3, 4),
            )
        )
    return grids
