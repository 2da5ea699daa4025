"""``lplr certify``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import counting_progress
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.analysis import Source, StartCertificate
    from lplr_cli.analysis.certificates import Followed
    from lplr_cli.reporting import Grid

PATH = "Along the path of a run"


@expanded
def certify(
    *,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory (its step 0).")
    ],
    radius: Annotated[float | None, typer.Option(help="Report what is proved on the ball of this radius.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run from this checkpoint: its largest drift is the radius.")
    ] = None,
    bounds: Annotated[
        str, typer.Option(help="auto, tight (a Gram matrix for each sample) or fast (products of norms).")
    ] = "auto",
    path: Annotated[
        bool, typer.Option("--path", help="Prove a region along the whole path of a RUN.", rich_help_panel=PATH)
    ] = False,
    pieces: Annotated[str, typer.Option(help="Pieces of the path at most, or auto.", rich_help_panel=PATH)] = "auto",
    radius_path: Annotated[
        str, typer.Option(help="Radius of the tube around the path, or auto.", rich_help_panel=PATH)
    ] = "auto",
    from_step: Annotated[int, typer.Option(help="First step of the stretch.", rich_help_panel=PATH)] = 0,
    to_step: Annotated[
        int | None, typer.Option(help="Last step of the stretch; the end by default.", rich_help_panel=PATH)
    ] = None,
    directions: Annotated[int, typer.Option(help="Random directions for the estimates of L_J and L_K; 0: none.")] = 4,
    memory: Annotated[str, typer.Option(help="Bytes for the kernels, e.g. 2GiB.")] = "2GiB",
    said: o.SourceOptions,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """Prove μ over a ball: λ0, L_J and L_K with certified radii, and containment of the run.

    [bold]lplr certify runs/mnist-mlp64-s0[/bold]
    [bold]lplr certify runs/mnist-mlp64-s0 --path[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    budget = o.parse_memory(memory)
    if directions < 0:
        raise InputError(f"--directions {directions} is too few", "give at least 0")
    source = said.source()
    if path:
        stretch = _stretch(pieces, radius_path, from_step, to_step)
        _certify_path(checkpoint, run, radius, bounds, directions, budget, source, stretch, sink)
        return
    from lplr_cli.analysis import certify_start

    certificate = certify_start(
        checkpoint,
        run=run,
        radius=radius,
        method=bounds,
        directions=directions,
        memory=budget,
        source=source,
    )
    record = certificate.to_dict()
    sink.emit(out_.Result(record, out_.key_value_frame(record), [_grid(certificate)]))


def _stretch(pieces: str, radius: str, first: int, last: int | None) -> dict[str, Any]:
    """The options of the path by the names of :func:`lplr_cli.analysis.certify_path`."""
    most = None if pieces == "auto" else o.parse_list(pieces, "pieces", int)[0]
    if most is not None and most < 1:
        raise InputError(f"--pieces {most} is too few", "give at least 1, or auto")
    tube = None if radius == "auto" else o.parse_list(radius, "radius-path", float)[0]
    return {"pieces": most, "radius": tube, "first": first, "last": last}


def _certify_path(
    checkpoint: Path,
    run: Path | None,
    radius: float | None,
    bounds: str,
    directions: int,
    memory: int,
    source: Source,
    stretch: dict[str, Any],
    sink: out_.Sink,
) -> None:
    from lplr_cli.analysis import certify_run, keep
    from lplr_cli.reporting import path_grid
    from lplr_cli.runs import RunDirectory

    if run is not None or not checkpoint.is_dir():
        raise InputError("--path needs a run directory", "give RUN, whose path it is, as the only argument")
    directory = RunDirectory.open(checkpoint)
    with counting_progress("steps certified") as progress:
        both = certify_run(
            directory,
            radius=radius,
            method=bounds,
            directions=directions,
            memory=memory,
            source=source,
            stretch={**stretch, "progress": progress},
        )
    if stretch == {"pieces": None, "radius": None, "first": 0, "last": None}:
        keep(directory, both.along.figures, both.along.to_frame())
    start = both.start
    given = None if start is None else start.certificate.given
    grids = [] if start is None else [_grid(start)]
    grids.append(path_grid(both.along.figures, given))
    record = both.to_dict()
    sink.emit(out_.Result(record, out_.key_value_frame(record), grids))


def _grid(start: StartCertificate) -> Grid:
    from lplr_cli.reporting import Grid

    rows = [*_start_rows(start), *_ball_rows(start), *_containment_rows(start), *_estimate_rows(start)]
    notes = [f"Verdict: {start.certificate.verdict}."]
    if start.assumptions:
        notes.append(f"Assumed: {'; '.join(start.assumptions)}.")
    if start.run is not None:
        rows += _run_rows(start.run, _two(start))
        check = start.run.check
        done = f"{check.steps} steps, {check.violations} violations" if check.applies else "not applicable"
        notes.append(f"Run against the certificate: {done} ({check.reason}).")
    n, parameters = start.certificate.n, start.certificate.parameters
    title = f"Certificate at {start.checkpoint} (step {start.step}), {n:,} samples, P = {parameters:,}"
    if start.scale != 1:
        title += f", {start.loss}"
    return Grid(title, ("quantity", "value", "kind", "section", "meaning"), rows, right=(1,), note=tuple(notes))


def _two(start: StartCertificate) -> str:
    """The factor 2s of μ and β."""
    return "2" if start.scale in (1, None) else f"2·{start.scale:g}"


def _start_rows(start: StartCertificate) -> list[list[str]]:
    """At θ0, and the largest radii."""
    from lplr_cli.reporting import known

    c, free = start.certificate, "unbounded" if start.unbounded else None
    return [
        ["λ0 ≥", known(c.lambda_0_lower, 5), "verified", "7", f"λ_min(K) on all {c.n:,} samples"],
        ["σ0 ≥", known(c.sigma_0_lower, 5), "verified", "3", "√λ0"],
        ["‖J̃(θ0)‖ ≤", known(c.norm_upper, 5), "verified", "3", "√λ_max(K)"],
        ["√L0 ≤", known(c.sqrt_loss_upper, 5), "verified", "4", "residual at θ0"],
        ["L_J at R = 0", known(c.l_j_start, 5), "bound", "5", f"Hessians at θ0, {c.method} bounds"],
        ["R Kernel-Weyl", free or known(c.radius_kernel, 5), "verified", "3", "largest start with L_K R < λ0"],
        ["R Jacobian-Weyl", free or known(c.radius_jacobian, 5), "verified", "3", "largest start with L_J R < σ0"],
    ]


def _ball_rows(start: StartCertificate) -> list[list[str]]:
    """On the ball that was asked for."""
    from lplr_cli.reporting import known

    at, two = start.certificate.given, _two(start)
    if at is None:
        return []
    name, none = f"R = {at.radius:.4g}", "none: not positive" if math.isfinite(at.beta) else "none: another loss"
    return [
        [f"L_J on {name}", known(at.l_j, 5), "bound", "5", "Jacobian, Lipschitz"],
        [f"L_K on {name}", known(at.l_k, 5), "bound", "3", "2 (‖J̃‖ + L_J R) L_J"],
        *(
            [f"μ on {name}, {way}", known(mu, 5), none if mu is None else "verified", "3", formula]
            for way, mu, formula in (
                ("Kernel-Weyl", at.mu_kernel, f"{two}(λ0 − L_K R)"),
                ("Jacobian-Weyl", at.mu_jacobian, f"{two}(σ0 − L_J R)²"),
            )
        ),
    ]


def _containment_rows(start: StartCertificate) -> list[list[str]]:
    from lplr_cli.reporting import known

    c, two = start.certificate.containment, _two(start)
    if not math.isfinite(c.at.beta):
        return []
    root = "√L0" if two == "2" else "‖r̃0‖"
    meaning = f"R (σ0 − L_J R) / 2{root}: above ½ for small steps, 1 for η = 1/β"
    rows = [["containment", known(c.reach), "verified" if c.holds else "not proved", "4", meaning]]
    if c.holds:
        beta = f"{c.step_fraction:.3g}/β, β = {two}(B² + L_J {root})"
        rows += [
            ["R contained", known(c.at.radius, 5), "verified", "4", "every iterate stays within"],
            ["μ", known(c.at.mu_jacobian, 5), "verified", "4", "L_t ≤ (1 − ημ)^t L0"],
            ["η ≤", known(c.eta_max, 5), "verified", "4", beta],
        ]
    return rows


def _estimate_rows(start: StartCertificate) -> list[list[str]]:
    from lplr_cli.reporting import known

    e = start.estimates
    if e is None:
        return []
    where = f"largest over {e.directions} directions with {e.ascents} ascents each, R = {e.radius:.3g}"
    return [
        ["L_J ≥", known(e.l_j, 5), "estimate", "3", where],
        ["L_K ≥", known(e.l_k, 5), "estimate", "3", where],
    ]


def _run_rows(run: Followed, two: str) -> list[list[str]]:
    from lplr_cli.reporting import known

    measured = run.measured
    return [
        ["drift of the run", known(run.drift, 5), "measured", "", "largest ‖θ_t − θ_0‖"],
        ["L_J ≥", known(measured.l_j, 5), "estimate", "3", "probes of the run"],
        ["μ estimated", known(measured.mu_kernel, 5), "estimate", "3", f"{two}(λ0 − L_K R) with L_K from probes"],
    ]
