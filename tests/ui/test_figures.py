"""Figures in words, signs, tables and bars."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_tasks.core.lifecycle import BatchStatus, PageState
from nimbus_tasks.core.pace import Pace
from nimbus_tasks.ui import figures
from nimbus_tasks.ui.style import Style, style_for
from nimbus_tasks.ui.table import table
from nimbus_tasks.ui.text import width


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (-3, "0 ms"),
        (0.0421, "42 ms"),
        (5.04, "5.0 s"),
        (42, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3600 * 75, "3 d 3 h"),
    ],
)
def test_a_duration_in_words(seconds: float | None, shown: str) -> None:
    assert figures.duration(seconds) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (None, None, ""),
        (0.2, 1.5, "a moment left"),
        (4.2, 7.9, "4–8 s left"),
        (130, 170, "2–3 min left"),
        (4000, 9000, "1–3 h left"),
        (3.0, 3.0, "3 s left"),
    ],
)
def test_the_time_left_is_a_range(low: float | None, high: float | None, shown: str) -> None:
    assert figures.time_left(Pace(1.0, low, high)) == shown


@pytest.mark.parametrize(
    ("per_second", "shown"),
    [(None, ""), (1234.5, "1,234 pages/s"), (2.71, "2.7 pages/s"), (0.5, "30 pages/min"),
     (0.005, "18 pages/h")],
)  # fmt: skip
def test_a_rate_in_the_handiest_unit(per_second: float | None, shown: str) -> None:
    assert figures.rate(per_second) == shown


def test_it_is_100_percent_only_when_all_is_there() -> None:
    assert figures.percent(99_999, 100_000) == "99%"
    assert figures.percent(100_000, 100_000) == "100%"
    assert figures.percent(0, 0) == "0%"


@given(
    st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.integers(0, 500), st.integers(0, 60)
)
def test_a_bar_is_never_overfilled_nor_full_too_soon(
    parts: list[int], rest: int, columns: int
) -> None:
    total = sum(parts) + rest
    widths = figures.segments([float(part) for part in parts], total, columns)
    assert all(w >= 0 for w in widths)
    assert sum(widths) <= columns
    assert all(part or not w for part, w in zip(parts, widths, strict=True))
    if rest and columns:
        assert sum(widths) < columns or sum(parts) * columns / total >= columns - 1
    if not rest and sum(parts) > 0:
        assert sum(widths) == columns


def test_every_state_has_a_sign_of_two_columns_and_a_word() -> None:
    for style in (Style(colour=False, unicode=True), Style(colour=True, unicode=False)):
        for state in [*PageState, *BatchStatus]:
            assert width(style.sign(state.value)) == 2
            assert width(style.state(state.value)) == len(state.value)
            assert "❓" not in style.sign(state.value)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colour"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"FORCE_COLOR": "1"}, True),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colour: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert style_for(Terminal()).colour is colour
    assert style_for(io.StringIO()).colour is ("FORCE_COLOR" in environment)


@given(st.lists(st.tuples(st.text("ab日", max_size=80), st.text("xy", max_size=8)), min_size=1))
def test_a_table_fits_and_its_columns_stand_under_one_another(rows: list[tuple[str, str]]) -> None:
    lines = table(rows, 40, flexible=0, right=[1], indent=2)
    assert len(lines) == len(rows)
    assert all(width(line) <= 40 for line in lines)
