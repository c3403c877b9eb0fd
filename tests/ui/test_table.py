"""A table: aligned, as wide as there is room, with one column that gives way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.table import table
from nimbus_tasks.ui.text import clean, width

PROPERTY = settings(derandomize=True, deadline=None, max_examples=200)
CELL = st.one_of(st.text(max_size=40), st.sampled_from(["漢字" * 20, "📦 ⚙️", "e\u0301" * 9])).map(
    clean
)
SHORT = st.text("abc漢", max_size=6)


def test_no_rows_make_no_lines() -> None:
    assert table([], 80) == []


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table([["a", "bb", "c"], ["aaa", "b", "c"]], 80) == ["a    bb  c", "aaa  b   c"]


def test_wide_characters_are_aligned_by_columns() -> None:
    assert table([["漢字", "1"], ["abc", "2"]], 80) == ["漢字  1", "abc   2"]


def test_colours_do_not_move_what_follows() -> None:
    green = Style(colour=True, unicode=True).state("done", "ok")

    assert table([["a", green, "1"], ["b", "long", "2"]], 80) == [
        f"a  {green}    1",
        "b  long  2",
    ]


def test_figures_stand_under_one_another_at_the_right() -> None:
    assert table([["a", "1"], ["b", "100"]], 80, right=[1]) == ["a    1", "b  100"]


def test_a_table_is_indented() -> None:
    assert table([["a", "b"]], 80, indent=3) == ["   a  b"]


def test_no_line_ends_in_spaces() -> None:
    assert table([["a", ""], ["b", "long"]], 80)[0] == "a"


def test_the_flexible_column_gives_way_at_its_beginning() -> None:
    assert table([["dist/deep/page.html", "done"]], 20) == ["…eep/page.html  done"]


def test_any_column_may_be_the_flexible_one() -> None:
    assert table([["ok", "dist/deep/page.html", "1"]], 20, flexible=1) == ["ok  …ep/page.html  1"]


def test_a_table_that_fits_exactly_is_not_cut() -> None:
    assert table([["dist/deep/page.html", "done"]], 25) == ["dist/deep/page.html  done"]


@pytest.mark.parametrize("columns", [30, 20, 18, 15])
def test_the_flexible_column_keeps_eight_columns(columns: int) -> None:
    (line,) = table([["dist/page.html", "x" * 40]], columns)

    assert line == f"…ge.html  {'x' * 40}"


@PROPERTY
@given(
    st.lists(st.tuples(SHORT, CELL, SHORT), min_size=1, max_size=8),
    st.integers(40, 100),
    st.integers(0, 3),
    st.sampled_from([(), (0,), (2,), (0, 2)]),
)
def test_a_table_whose_fixed_cells_leave_room_fits_its_width(
    rows: list[tuple[str, str, str]], columns: int, indent: int, right: tuple[int, ...]
) -> None:
    lines = table(rows, columns, flexible=1, right=right, indent=indent)

    assert len(lines) == len(rows)
    assert max(map(width, lines)) <= columns


@PROPERTY
@given(st.lists(st.tuples(CELL, SHORT), min_size=1, max_size=8))
def test_where_there_is_room_every_cell_is_shown_whole(rows: list[tuple[str, str]]) -> None:
    for line, row in zip(table(rows, 200), rows, strict=True):
        assert line.startswith(row[0].rstrip())
        assert line.endswith(row[1])
