"""Entry point: the overview, and errors turned into one line and an exit code.

Imports nothing heavy: ``lplr --help`` answers without Typer, Rich or torch.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

from lplr_cli import __version__, escape
from lplr_cli.cli.streams import ReaderGone, guarded, reserve_descriptors, say
from lplr_cli.errors import LplrError

# A fault of lplr itself, told apart from the documented codes (EX_SOFTWARE of sysexits.h).
INTERNAL_ERROR = 70
# What a shell reports for a writer whose reader has gone (128 + SIGPIPE).
READER_GONE = 141

OVERVIEW = """\
lplr: audit neural-network training runs against local Polyak-Łojasiewicz theory

Usage: lplr COMMAND [OPTIONS]        lplr COMMAND --help for all options

Runs
  train      Train a network, log the diagnostics, end with the table of μ beside the PL ratio.
  ablate     Sweep a grid of training runs: where the local regime breaks and recovers.

Diagnostics
  probe-ntk  NTK spectrum of a checkpoint.
  probe-hessian
             Curvature of the loss: extreme eigenvalues of the Hessian, trace, density, and the step that it allows.
  certify    Prove μ over a ball: λ0, L_J and L_K with certified radii, and containment of the run.
  pl-ratio   PL ratio of a run and its lower envelope on the stable window.
  fit-rate   Is the convergence linear? Which rate, how sure?
  audit      Judge every hypothesis and conclusion of the theory over a run or log; for CI.
  report     Figures and a self-contained HTML report: verdicts first, tables behind every figure.
  list       List the runs below a folder with status and key figures.
  watch      Live view of a run in progress: loss, drift, λ_min, PL ratio, time left.

Every command but watch takes
  --format table|json|csv|markdown   on stdout; progress and notes go to stderr
  --output FILE                      also write .csv, .parquet, .json or .md (--force overwrites)
  --require 'KEY >= NUMBER'          exit 1 unless it holds; keys are those of --format json

Options
  --version   --debug (tracebacks)   --install-completion   -h, --help

Examples
  lplr train mnist --width 64
  lplr probe-ntk runs/mnist-mlp64-s0 --verify
  lplr certify runs/mnist-mlp64-s0
  lplr pl-ratio runs/mnist-mlp64-s0 --require 'pl_ratio_star.min >= 0.05'
  lplr audit runs/mnist-mlp64-s0 --junit audit.xml
  lplr report runs/mnist-mlp64-s0 -o report.html
  lplr ablate mnist --width 32,64 --seed 0,1

Exit codes
  0 done   1 a requirement or verdict failed   2 bad usage or input   130 interrupted, run resumable
  3 numerical failure, or output that could not be written; everything computed so far is kept
"""


def _fail(message: str, code: int) -> int:
    say(f"error: {message}")
    return code


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    Nothing escapes as a traceback; ``--debug`` shows one on stderr before the line that tells what was wrong.
    """
    debug = "--debug" in arguments or bool(os.environ.get("LPLR_DEBUG"))
    with guarded():
        try:
            code = _command([a for a in arguments if a != "--debug"])
            sys.stdout.flush()
        except ReaderGone:
            # No complaint, as of any tool in `lplr … | head`.
            return READER_GONE
        except SystemExit as stop:
            return _after_exit(stop)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                sys.stderr.write(escape.line("".join(traceback.format_exception(error)), keep="\n"))
            return _explain(error)
        return code


def _command(arguments: list[str]) -> int:
    # A shell asks for completions by this variable, with no arguments.
    completing = "_LPLR_COMPLETE" in os.environ
    if not completing and arguments in ([], ["--help"], ["-h"]):
        sys.stdout.write(OVERVIEW)
        return 0
    if arguments == ["--version"]:
        sys.stdout.write(f"lplr {__version__}\n")
        return 0
    from lplr_cli.cli.app import app

    code = app(args=arguments, prog_name="lplr", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _after_exit(stop: SystemExit) -> int:
    """The code of a ``sys.exit``, by which completion ends and code of the user's may."""
    try:
        sys.stdout.flush()
    except (ReaderGone, LplrError) as error:
        return READER_GONE if isinstance(error, ReaderGone) else _explain(error)
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    return _fail(str(stop.code), 1)


def _explain(error: BaseException) -> int:
    """The line and the exit code of an error."""
    if isinstance(error, LplrError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, OSError):
        where = f" ({str(error.filename)[:100]})" if error.filename else ""
        # What no layer met: a full disk is a failure of the run, a name that no system takes is bad input.
        code = 3 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS) else 2
        return _fail(f"{error.strerror or error}{where}; check the path", code)
    import typer

    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        say("interrupted")
        return 130
    # Typer's usage errors are known by their interface: where the class lives differs between its versions.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        return _fail(f"{' '.join(str(describe()).split()).rstrip('.')}; see 'lplr --help'", 2)
    what = f"internal: {type(error).__name__}: {' '.join(str(error).split())}"
    return _fail(f"{what}; run again with --debug and report it", INTERNAL_ERROR)


def main() -> None:
    """Console script ``lplr``."""
    reserve_descriptors()
    sys.exit(run(sys.argv[1:]))
