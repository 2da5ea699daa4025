"""Logs of other programs: formats are sniffed, columns named, garbage refused in one line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lplr_cli.diagnostics import analyse_rate, clean_series, numbers
from lplr_cli.errors import InputError
from lplr_cli.runs.logs import Reading, parse_columns, read_foreign_log, read_stream

FRAME = pd.DataFrame({"step": np.arange(20), "loss": 0.9 ** np.arange(20), "grad_norm": 0.8 ** np.arange(20)})
LINES = "\n".join(json.dumps(row) for row in FRAME.to_dict("records"))


def from_text(text: str | bytes, columns: dict[str, str] | None = None) -> pd.DataFrame:
    return read_stream(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "log", columns).log


def parquet() -> bytes:
    out = io.BytesIO()
    FRAME.to_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        FRAME.to_csv(index=False),
        FRAME.to_csv(index=False, sep="\t"),
        FRAME.to_csv(index=False, sep=";"),
        b"\xef\xbb\xbf" + FRAME.to_csv(index=False).encode(),
        FRAME.to_csv(index=False).replace("\n", "\r\n"),
        FRAME.to_csv(index=False).replace("\n", "\r\n").encode("utf-16"),
        LINES,
        LINES + "\n\n" + '{"step": 20, "lo',
        "[" + LINES.replace("\n", ",") + "]",
        parquet(),
    ],
    ids=["csv", "tsv", "semicolons", "bom", "crlf", "utf-16", "jsonl", "torn jsonl", "json array", "parquet"],
)
def test_formats_are_sniffed(content: str | bytes, tmp_path: Path) -> None:
    # The name says nothing: what counts is the content.
    path = tmp_path / "log.dat"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for frame in (from_text(content), read_foreign_log(path).log):
        pd.testing.assert_frame_equal(frame, FRAME, check_dtype=False)
    assert clean_series(frame).grad_norm_sq == pytest.approx(FRAME["grad_norm"] ** 2)


def test_columns_are_renamed_and_missing_ones_listed() -> None:
    lines = "\n".join(json.dumps({"_step": i, "train": {"loss": 2.0**-i, "gn2": 1.0}}) for i in range(9))
    frame = from_text(lines, {"loss": "train.loss", "grad_norm_sq": "train.gn2"})
    assert frame["loss"].tolist() == [2.0**-i for i in range(9)]
    assert list(frame.columns) == ["step", "loss", "grad_norm_sq"]
    assert from_text(lines)["loss"].tolist() == frame["loss"].tolist()
    with pytest.raises(InputError, match=r"no column 'loss'.*it has _step, train\.thing, train\.other"):
        from_text(lines.replace("loss", "thing").replace("gn2", "other"))
    with pytest.raises(InputError, match=r"no column 'nope'.*it has step, loss, grad_norm"):
        from_text(FRAME.to_csv(index=False), {"loss": "nope"})


def rows(*lines: str) -> str:
    return "\n".join(("step,loss", *lines))


def reading(text: str, run: str | None = None) -> Reading:
    return read_stream(io.BytesIO(text.encode()), "log", run=run)


def test_commas_between_thousands() -> None:
    """Read where another cell says that they are no decimal commas; else no number is made up."""
    for cell, value in (('"1,234.5"', 1234.5), ('"1,234,567"', 1234567.0), ('"-1,000"', -1000.0)):
        found = reading(rows("0,7", f"1,{cell}"))
        assert numbers(found.log["loss"]).tolist() == [7.0, value]
        assert found.notes == ("commas in 'loss' are taken as those between thousands",)
    steps = reading('step,loss\n"900",3\n"1,000",2\n"1,100",1\n').log["step"]
    assert steps.tolist() == [900.0, 1000.0, 1100.0]
    for cells in (('"0,123"', '"3,100"'), ('"2,987"', '"3,100"'), ('"1,23"', "7")):
        assert np.isnan(numbers(reading(rows(*(f"{i},{c}" for i, c in enumerate(cells)))).log["loss"])[0])


def test_cells_without_a_number_are_told() -> None:
    found = reading(rows("0,7%", "1,6%", "2,", "3,4"))
    assert found.notes == ("2 rows of 'loss' hold no number, such as '7%'",)
    with pytest.raises(InputError, match="it has step, val_accuracy"):
        reading("step,val_accuracy\n0,0.5\n1,0.6\n")


def test_several_runs_in_one_table() -> None:
    """A column names them; one that was resumed under another name is one run."""
    table = "run,step,loss\na,0,3\na,1,2\nb,0,5\nb,1,4\n"
    with pytest.raises(InputError, match="log holds 2 runs; choose one with --run: a, b"):
        reading(table)
    assert reading(table, "b").log["loss"].tolist() == [5.0, 4.0]
    lines = "\n".join(
        json.dumps({"run": r, "step": i, "loss": v}) for r, i, v in (("a", 0, 3), ("b", 0, 5), ("b", 1, 4))
    )
    assert reading(lines, "b").log["loss"].tolist() == [5.0, 4.0]
    assert reading("seed,step,loss\n1,0,3\n,1,2\n2,0,5\n", "2").log["loss"].tolist() == [5.0]
    assert reading("run_id,step,loss\na,0,3\na,1,2\nb,2,1\n").log["loss"].tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("tail", "lost"),
    [
        (["20,nan", "21,nan"], 20.0),
        (["20,inf"], 20.0),
        (["20,nan"], None),  # may be a row of something else
        (["20,inf", "21,1"], None),
        (["19,", "19,"], None),  # rows of the last step that have something else
        (["20,", "23,1", "24,", "25,"], None),  # no longer than three gaps as before
        ([], None),
    ],
)
def test_a_log_that_ends_without_a_finite_loss(tail: list[str], lost: float | None) -> None:
    series = clean_series(from_text(rows(*(f"{i},{2.0**-i}" for i in range(20)), *tail)))
    assert series.lost_from == lost
    assert ("The log ends without a finite loss, from step 20 on." in series.counts()) == (lost is not None)
    # What is fitted is a part of the log, and says so.
    found = analyse_rate(series)
    assert (found.fit.law == "linear, steps 0 to 19") == (lost is not None)
    assert ("to the last finite loss" in found.window.explanation) == (lost is not None)


def test_a_loss_that_goes_below_zero() -> None:
    """Refused, as its positive rows have another law; a few rows of scatter about zero are left out."""
    with pytest.raises(InputError, match=r"below zero in 6 of 10 rows, first at step 4; .* plus a constant"):
        clean_series(from_text(rows(*(f"{i},{3.5 - i}" for i in range(10)))))
    few = [f"{i},{-1e-3 if i == 7 else 2.0**-i}" for i in range(60)]
    assert clean_series(from_text(rows(*few))).dropped["not_positive"] == 1
    assert len(clean_series(from_text(rows(*(f"{i},{1.0 if i < 9 else -1e-9}" for i in range(18))))).loss) == 9


def test_a_log_that_begins_again() -> None:
    again = clean_series(from_text(rows(*(f"{i},{2.0**-i}" for i in [*range(9), *range(9)]))))
    assert again.began_again
    assert "where these are several runs, only the last is read" in again.counts()
    assert not clean_series(from_text(rows(*(f"{i},{2.0**-i}" for i in [*range(9), *range(4, 12)])))).began_again


def test_column_options() -> None:
    assert parse_columns(["loss=train/loss", "lr=a=b"]) == {"loss": "train/loss", "lr": "a=b"}
    for bad in (["loss"], ["loss="], ["colour=x"], ["loss=a", "loss=b"], ["grad_norm=a", "grad_norm_sq=b"]):
        with pytest.raises(InputError, match="--column"):
            parse_columns(bad)


def test_not_numbers_in_json_lines() -> None:
    rows = ['{"step": 0, "loss": 3}', '{"step": 1, "loss": NaN}', '{"step": 2, "loss": "2.5"}', '{"step": 3}']
    frame = from_text("\n".join(rows))
    assert frame["loss"].fillna(-1).tolist() == [3.0, -1.0, 2.5, -1.0]
    with pytest.raises(InputError, match="row 2"):
        from_text('{"step": 0, "loss": 1}\n{oops}\n{"step": 1, "loss": 1}\n')


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"  \n \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (gzip.compress(FRAME.to_csv().encode())[:-20], "cannot unpack"),
        (b"PK\x03\x04" + b"a" * 50, "archive"),
        (b"PAR1" + b"\0" * 50, "no Parquet"),
        (b"\xff\xfe\x00\x01garbage", "no log that lplr knows|names a loss"),
        (b"\x00\x01garbage", "no log that lplr knows"),
        (b"{" * 5000, "cannot read|no JSON"),
        (b"[" * 100_000, "cannot read|no log"),
        (b"[[1, 2, 3], 4]", "different lengths"),
        (b'["a", "b"]', "no column"),
        (b'"step","loss"\n"0', "cannot read"),
    ],
)
def test_garbage_is_one_line(content: bytes, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        clean_series(from_text(content))
    assert "\n" not in str(caught.value)


def complaint(content: bytes) -> str:
    """What is said of a log that cannot be used; nothing of one that can. Any other exception is a failure."""
    try:
        clean_series(from_text(content))
    except InputError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes_are_a_log_or_an_input_error(content: bytes) -> None:
    for prefix in (b"", b"step,loss\n", b"{", b"PAR1"):
        assert "\n" not in complaint(prefix + content)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_logs_are_a_log_or_an_input_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([FRAME.to_csv(index=False).encode(), LINES.encode(), parquet()])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    assert "\n" not in complaint(bytes(content))


def test_tensorboard_events_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "events")) as writer:
        for i in range(30):
            writer.add_scalar("train/loss", 0.9**i, i)
            writer.add_scalar("lr", 0.1, i)
            if i % 2 == 0:
                writer.add_scalar("grad_norm", 0.5**i, i, new_style=True)
    columns = {"loss": "train/loss"}
    folder = read_foreign_log(tmp_path / "events", columns).log
    file = read_foreign_log(next((tmp_path / "events").iterdir()), columns).log
    pd.testing.assert_frame_equal(folder, file)
    series = clean_series(folder)
    # Events hold float32.
    assert series.loss == pytest.approx(0.9 ** np.arange(30), rel=1e-6)
    assert series.grad_norm_sq[::2] == pytest.approx(0.25 ** np.arange(0, 30, 2), rel=1e-6)
    assert np.isnan(series.grad_norm_sq[1::2]).all()
    pd.testing.assert_frame_equal(read_foreign_log(tmp_path / "events").log, folder)
    with pytest.raises(InputError, match="it has step, train/loss, lr, grad_norm"):
        read_foreign_log(tmp_path / "events", {"loss": "nope"})
    with SummaryWriter(str(tmp_path / "events" / "other")) as writer:
        writer.add_scalar("train/loss", 1.0, 0)
    with pytest.raises(InputError, match=r"holds 2 runs; choose one with --run: \., other"):
        read_foreign_log(tmp_path / "events", columns)
    pd.testing.assert_frame_equal(read_foreign_log(tmp_path / "events", run=".").log, folder)


def test_damaged_events_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    for content in (b"", b"\0" * 100, b"\xff" * 1000):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_foreign_log(path)
        assert "\n" not in str(caught.value)


def test_a_surplus_delimiter_moves_no_column() -> None:
    frame = from_text("step,loss\n7,1,\n8,2,\n")
    assert frame.to_dict("list") == {"step": [7, 8], "loss": [1, 2]}


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a run of lplr nor a log"):
        read_foreign_log(tmp_path / "empty")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError):
        read_foreign_log(loop)
