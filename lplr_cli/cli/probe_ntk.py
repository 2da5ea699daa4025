"""``lplr probe-ntk``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lplr_cli.cli import options as o
from lplr_cli.cli import output as out_
from lplr_cli.cli.groups import expanded
from lplr_cli.cli.progress import counting_progress
from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.analysis import KernelProbe


@expanded
def probe_ntk(
    *,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory (its last one).")
    ],
    engine: Annotated[str, typer.Option(help="auto, structured, jacobian or operator (matrix-free).")] = "auto",
    size: Annotated[str, typer.Option(help="Samples, the first of the training set, or all.")] = "all",
    outputs: Annotated[str, typer.Option(help="full (nC × nC), trace, or the index of one output.")] = "full",
    eigenvalues: Annotated[int, typer.Option(help="Eigenvalues to print at each end.")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="Prove a lower bound of λ_min.")] = False,
    dtype: Annotated[str, typer.Option(help="float64, or float32 (λ_min then has few digits or none).")] = "float64",
    memory: Annotated[str, typer.Option(help="Bytes for the kernel and all work on it, e.g. 2GiB.")] = "2GiB",
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A kernel above --memory lies in a file here, on disk and not in memory."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    said: o.SourceOptions,
    format: out_.Format = "table",
    output: out_.Output = None,
    force: out_.Force = False,
    require: out_.Require = None,
) -> None:
    """NTK spectrum of a checkpoint.

    [bold]lplr probe-ntk runs/mnist-mlp64-s0/checkpoints/step-000500.pt --verify[/bold]
    """
    sink = out_.Sink(format, output, force, require)
    budget = o.parse_memory(memory)
    source = said.source()
    count = o.parse_size(size)
    if scratch is not None and not scratch.is_dir():
        raise InputError(f"no directory {scratch}", "create it first")
    if eigenvalues < 1:
        raise InputError(f"--eigenvalues {eigenvalues} is too small", "give at least 1")
    from lplr_cli.analysis import probe_checkpoint

    with counting_progress("products with K") as progress:
        probe = probe_checkpoint(
            checkpoint,
            size=count,
            engine=engine,
            outputs=outputs,
            eigenvalues=eigenvalues,
            verify=verify,
            dtype=dtype,
            memory=budget,
            device=device,
            scratch=scratch,
            source=source,
            progress=progress,
        )
    if probe.record["method"] == "lanczos":
        out_.note(
            "matrix-free: the smallest values are Ritz values, estimates from above; "
            f"some eigenvalue lies within {probe.record['lambda_min']['residual']:.2g} of λ_min"
        )
    if dtype == "float32":
        out_.note(
            f"float32: λ_min can have about {probe.record['lambda_min']['digits']:.1f} decimal digits here; "
            "float64 is the default for a reason"
        )
    sink.emit(out_.Result(probe.record, probe.to_frame(), _grids(probe, eigenvalues)))


def _grids(probe: KernelProbe, shown: int) -> list[Any]:
    from lplr_cli.reporting import Grid, number

    r = probe.record
    low = r["lambda_min"]
    where = "a subset: λ_min bounds the full one from above" if r["subset"] else "all samples"
    digits = f"about {low['digits']:.1f} decimal digits in {r['dtype']}"
    ritz = r["method"] == "lanczos"
    above = f"Ritz value, from above; residual {number(low['residual'], 3)}"
    rows = [
        ["λ_min", number(low["value"], 6), "estimate" if ritz else "computed", above if ritz else digits],
        [
            "λ_max",
            number(r["lambda_max"], 6),
            "computed",
            "gradient descent on L is stable to about η = 1/λ_max (lazy)",
        ],
        ["trace", number(r["trace"], 6), "computed", "sum of the eigenvalues"],
        ["effective rank", number(r["effective_rank"], 6), "computed", "trace/λ_max"],
        ["condition number", number(r["condition_number"], 4), "computed", "λ_max/λ_min"],
    ]
    if low["lower"] is not None or r["verified"]:
        meaning = "covers the rounding of forming K and of the factorisation"
        rows.insert(1, ["λ_min ≥", number(low["lower"], 6), "verified", meaning])
    if r["subset"]:
        rows.append(
            [
                "full λ_min ≤",
                number(low["upper_bound_full"], 6),
                "computed",
                "by interlacing, from this subset",
            ]
        )
    title = (
        f"NTK of {r['checkpoint']}: {r['n']:,} of {r['samples']:,} samples ({where}), "
        f"K = J Jᵀ/n is {r['rows']:,} × {r['rows']:,}, engine {r['engine']}"
    )
    notes = [f"Assumed: {'; '.join(r['assumptions'])}."] if r["assumptions"] else []
    if r["duplicate_inputs"]:
        one, two = r["duplicate_inputs"]
        notes.append(f"Samples {one} and {two} have equal inputs: λ_min is exactly 0, and no PL region is certified.")
    if r["fallback"]:
        notes.append(f"No structured rule for {', '.join(r['fallback'])}: Jacobian used for these parameters.")
    values = probe.eigenvalues
    edge = min(shown, len(values))
    pairs = [
        [str(i + 1), number(float(values[i]), 6), number(float(values[len(values) - 1 - i]), 6)] for i in range(edge)
    ]
    return [
        Grid(title, ("quantity", "value", "kind", "meaning"), rows, right=(1,), note=tuple(notes)),
        Grid("Extremal eigenvalues", ("rank", "smallest", "largest"), pairs, right=(0, 1, 2)),
    ]
