"""Tables on terminals of any width: nothing of them is cut, the main thing stands above."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from lplr_cli.reporting import Grid, terminal_chart
from lplr_cli.reporting.terminal import log_ticks

WORD = st.text("abcdefghij0123456789", min_size=1, max_size=9)
TEXT = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


def rendered(grid: Grid, width: int) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    for part in grid.fitting(width):
        console.print(part.to_rich(width))
    return stream.getvalue()


def test_a_table_without_rows_has_no_head() -> None:
    assert Grid("title", ("key", "figure"), [], note=("a note",)).to_markdown() == "**title**\n\n\na note\n"


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    count = draw(st.integers(1, 9))
    columns = tuple(draw(st.lists(TEXT, min_size=count, max_size=count)))
    right = tuple(i for i in range(count) if draw(st.booleans()))
    rows = [[draw(WORD if i in (0, *right) else TEXT) for i in range(count)] for _ in range(draw(st.integers(0, 3)))]
    return Grid("title", columns, rows, right)


@given(grids(), st.integers(36, 200))
def test_no_word_is_lost_or_broken_and_no_line_is_too_long(grid: Grid, width: int) -> None:
    text = rendered(grid, width)
    assert all(len(line) <= width for line in text.splitlines())
    found = re.findall(r"\S+", text)
    for cell in [*grid.columns, *(c for row in grid.rows for c in row)]:
        for word in cell.split():
            assert word in found


def test_a_table_that_fits_is_one() -> None:
    grid = Grid("t", ("run", "a"), [["x", "1"]], (1,))
    assert grid.fitting(80) == [grid]
    assert grid.fitting(grid.width) == [grid]
    assert len(grid.fitting(grid.width - 1)) == 1  # a single column beside the first cannot be cut further


def test_names_longer_than_half_the_terminal_are_folded_and_nothing_else() -> None:
    grid = Grid("t", ("run", "status", "loss"), [["/a/path/" + "x" * 100, "finished", "0.123456789"]], (2,))
    text = rendered(grid, 60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "finished" in text
    assert "0.123456789" in text
    assert text.count("x") == 100


@pytest.mark.parametrize("width", [40, 60, 80])
def test_parts_repeat_the_first_column_in_the_order_of_the_table(width: int) -> None:
    names = [f"column{i}" for i in range(9)]
    grid = Grid("t", ("run", *names), [["first", *map(str, range(9))]], tuple(range(1, 10)), ("note",))
    parts = grid.fitting(width)
    assert all(p.columns[0] == "run" and p.rows[0][0] == "first" for p in parts)
    assert [c for p in parts for c in p.columns[1:]] == names
    assert [v for p in parts for v in p.rows[0][1:]] == [str(i) for i in range(9)]
    assert all(p.right == tuple(range(1, len(p.columns))) for p in parts)
    assert [p.title for p in parts] == ["t", *[""] * (len(parts) - 1)]
    assert [p.note for p in parts] == [*[()] * (len(parts) - 1), ("note",)]


@given(st.floats(1e-200, 1e200), st.floats(1.0, 1e60))
@example(0.25, 3.5)
def test_ticks_are_round_few_and_inside(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 8
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(set(ticks))
    assert len(ticks) > 1 or factor < 1 + 1e-9
    if factor > 5.1:
        assert all(f"{tick:e}"[0] in "125" and float(f"{tick:.0e}") == pytest.approx(tick) for tick in ticks)


def test_the_names_of_a_chart_stand_above_it() -> None:
    pytest.importorskip("plotext")
    lines = terminal_chart("t", [0, 1, 2], [("one", [1.0, 1e-4, 1e-9]), ("two", [2.0, 2.0, 2.0])], label="step")
    title, names, *chart = lines.splitlines()
    assert (title.strip(), names.strip()) == ("t", "⢕⢕ one   ·· two")
    assert not any("one" in line or "two" in line for line in chart)
    assert [word for word in ("10⁻⁹┤", "10⁻⁵┤", "0.1┤") if word in lines] == ["10⁻⁹┤", "10⁻⁵┤", "0.1┤"]
