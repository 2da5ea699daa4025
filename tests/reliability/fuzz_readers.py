"""Coverage-guided fuzzing of everything that reads bytes or text of others (atheris, libFuzzer).

``python -m tests.reliability.fuzz_readers -runs=10000`` stops at the first input that raises something other than
an error of lplr. What it finds becomes a case of test_garbage.py.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["lplr_cli"]):
    from lplr_cli.audit.requirements import check_requirements, parse_requirement
    from lplr_cli.diagnostics import clean_series, parse_window
    from lplr_cli.errors import LplrError
    from lplr_cli.runs.logs import parse_columns, read_stream

HEADS = (b"", b"step,loss,grad_norm\n", b'{"step": 0, "loss": ', b"[", b"PAR1", b"\xef\xbb\xbfstep;loss\n")


def one(data: bytes) -> None:
    """A log and three option texts from one input."""
    if not data:
        return
    head, rest = HEADS[data[0] % len(HEADS)], data[1:]
    text = rest.decode("utf-8", "replace")
    for attempt in (
        lambda: clean_series(read_stream(io.BytesIO(head + rest), "log").log),
        lambda: parse_window(text),
        lambda: parse_columns([text]),
        lambda: check_requirements([parse_requirement(text)], {"a": {"b": 1.0}, "c": None}),
    ):
        with contextlib.suppress(LplrError):
            attempt()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
