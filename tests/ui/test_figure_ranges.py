"""Figures at the edges of their units, ranges that contain what they say, bars that show all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.pace import UNKNOWN, Pace
from nimbus_tasks.ui.figures import (
    ago,
    duration,
    milliseconds,
    moment,
    pages,
    percent,
    rate,
    segments,
    size,
    time_left,
)

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)


@pytest.fixture
def _time_zone(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine is in the time zone that the test names."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (1, "1.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599.6, "1 h"),
        (7259, "2 h"),
        (86399.7, "1 d"),
        (400 * 86400, "400 d"),
    ],
)
def test_a_duration_at_the_edge_of_a_unit_is_in_the_right_one(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9996, "1.0 s"), (9.96, "10 s")])
def test_a_duration_that_is_rounded_up_is_in_the_next_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 ms"), (5230, "5.2 s"), (61_000, "1 min 1 s")]
)
def test_milliseconds_are_a_duration_too(value: float | None, text: str) -> None:
    assert milliseconds(value) == text


@pytest.mark.parametrize("known", [UNKNOWN, Pace(1.0, None, 5.0), Pace(1.0, 5.0, None)])
def test_where_nothing_is_known_nothing_is_said(known: Pace) -> None:
    assert time_left(known) == ""


@PROPERTY
@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_the_range_in_words_contains_the_range_in_seconds(one: float, other: float) -> None:
    low, high = sorted((one, other))
    text = time_left(Pace(1.0, low, high))

    if text == "a moment left":
        assert high < 2
        return
    figures, unit, _ = text.split()
    first, _, last = figures.partition("–")
    unit_seconds = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert int(first) * unit_seconds <= low
    assert int(last or first) * unit_seconds >= high
    assert last != first


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(1, "1 page/s"), (1 / 60, "1 page/min"), (0.01, "36 pages/h"), (0, "0 pages/h")],
)
def test_a_rate_is_per_the_unit_that_gives_a_figure_of_one_or_more(
    per_second: float, text: str
) -> None:
    assert rate(per_second) == text


@PROPERTY
@given(
    st.integers(1, 10**9).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole)))
)
@example((10**9 - 1, 10**9))
def test_it_is_never_100_percent_before_all_are_there(pair: tuple[int, int]) -> None:
    part, whole = pair

    assert (percent(part, whole) == "100%") == (part == whole)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (1536, "1.5 KB"),
        (2_500_000, "2.5 MB"),
        (3e9, "3.0 GB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_a_size_is_in_the_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("count", "text"), [(999_960, "1.0 MB"), (999_960_000, "1.0 GB")])
def test_a_size_that_is_rounded_up_is_in_the_next_unit(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 pages"), (1, "1 page"), (2, "2 pages"), (2000, "2,000 pages")]
)
def test_pages_are_counted_in_english(count: int, text: str) -> None:
    assert pages(count) == text


@pytest.mark.parametrize(
    ("_time_zone", "local"),
    [
        ("UTC", "2026-11-24 12:00:00"),
        ("JST-9", "2026-11-24 21:00:00"),
        ("EST5", "2026-11-24 07:00:00"),
    ],
    indirect=["_time_zone"],
)
@pytest.mark.usefixtures("_time_zone")
@pytest.mark.skipif(not hasattr(time, "tzset"), reason="no time zone to set on Windows")
def test_a_moment_is_in_local_time(local: str) -> None:
    assert moment(to_iso(NOW)) == local


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "\x1b[31m"])
def test_what_is_no_time_is_shown_as_nothing(text: str) -> None:
    assert moment(text) == "–"
    assert ago(text, NOW) == "–"


@pytest.mark.parametrize("_time_zone", ["JST-9", "EST5"], indirect=True)
@pytest.mark.usefixtures("_time_zone")
@pytest.mark.skipif(not hasattr(time, "tzset"), reason="no time zone to set on Windows")
def test_a_time_at_either_end_of_the_calendar_ends_no_command() -> None:
    assert all(moment(text) for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"))


def test_how_long_ago_is_a_duration() -> None:
    assert ago(to_iso(NOW - timedelta(minutes=3, seconds=20)), NOW) == "3 min 20 s ago"
    assert ago(None, NOW) == "–"


def test_what_lies_ahead_was_no_time_ago() -> None:
    assert ago(to_iso(NOW + timedelta(minutes=3)), NOW) == "0 ms ago"


#: The four parts of a bar, and how much is missing to the whole.
PARTS = st.lists(st.integers(0, 10_000).map(float), min_size=4, max_size=4)
MISSING = st.integers(0, 50_000)


@PROPERTY
@given(PARTS, MISSING, st.integers(1, 60))
def test_a_bar_looks_full_when_it_is_and_not_before(
    parts: list[float], missing: int, columns: int
) -> None:
    filled = sum(segments(parts, sum(parts) + missing, columns))

    assert filled <= columns
    assert (filled == columns) == (missing == 0 and sum(parts) > 0)


@PROPERTY
@given(PARTS, MISSING, st.integers(4, 60))
def test_a_part_that_is_there_is_visible_where_four_columns_are_filled(
    parts: list[float], missing: int, columns: int
) -> None:
    widths = segments(parts, sum(parts) + missing, columns)

    if sum(widths) >= len(parts):
        assert all(own for own, part in zip(widths, parts, strict=True) if part)


@PROPERTY
@given(PARTS, MISSING, st.integers(1, 60))
@example([29.0, 1.0, 0.0, 0.0], 270, 30)
def test_a_part_that_is_there_is_visible_while_there_is_room(
    parts: list[float], missing: int, columns: int
) -> None:
    widths = segments(parts, sum(parts) + missing, columns)

    if sum(widths) >= sum(1 for part in parts if part):
        assert all(own for own, part in zip(widths, parts, strict=True) if part)


def test_more_pages_than_were_announced_do_not_overfill_a_bar() -> None:
    assert segments([7.0, 0.0, 0.0, 0.0], 5, 10) == [10, 0, 0, 0]


@pytest.mark.parametrize(("total", "columns"), [(0, 10), (10, 0), (10, -3)])
def test_a_bar_of_nothing_or_without_columns_is_empty(total: float, columns: int) -> None:
    assert segments([1.0, 2.0], total, columns) == [0, 0]
