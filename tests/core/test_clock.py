"""Times as the records write them, and as JavaScript and others do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.clock import iso_after, now_iso, parse_iso, seconds_between, to_iso, utc_now

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
UTC = timezone.utc
#: Years from 1000 have four digits on every platform.
MOMENTS = st.datetimes(  # bounds are naive: hypothesis adds the zone
    min_value=datetime(1000, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
)


def test_a_time_is_written_in_utc_with_microseconds_and_z() -> None:
    moment = datetime(2026, 11, 24, 8, 13, 2, 123456, tzinfo=UTC)

    assert to_iso(moment) == "2026-11-24T08:13:02.123456Z"


def test_a_whole_second_is_written_with_microseconds_too_so_that_texts_sort() -> None:
    assert to_iso(datetime(2026, 11, 24, tzinfo=UTC)) == "2026-11-24T00:00:00.000000Z"


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    east = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    assert to_iso(east) == "2025-12-31T23:30:00.000000Z"


@PROPERTY
@given(MOMENTS, MOMENTS)
def test_the_order_of_the_texts_is_the_order_of_the_times(one: datetime, two: datetime) -> None:
    assert (to_iso(one) < to_iso(two)) == (one < two)


@PROPERTY
@given(MOMENTS)
def test_a_time_that_was_written_is_read_as_the_same(moment: datetime) -> None:
    assert parse_iso(to_iso(moment)) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        # JavaScript's toISOString()
        ("2024-09-02T13:45:00.250Z", datetime(2024, 9, 2, 13, 45, 0, 250_000, tzinfo=UTC)),
        ("2024-09-02T13:45:00Z", datetime(2024, 9, 2, 13, 45, tzinfo=UTC)),
        # Python's isoformat()
        ("2024-09-02T13:45:00.250000+00:00", datetime(2024, 9, 2, 13, 45, 0, 250_000, tzinfo=UTC)),
        ("2024-09-02T15:45:00+02:00", datetime(2024, 9, 2, 13, 45, tzinfo=UTC)),
        # without a zone: UTC
        ("2024-09-02T13:45:00", datetime(2024, 9, 2, 13, 45, tzinfo=UTC)),
        ("2024-09-02 13:45:00", datetime(2024, 9, 2, 13, 45, tzinfo=UTC)),
        ("2024-09-02", datetime(2024, 9, 2, tzinfo=UTC)),
    ],
)
def test_times_of_others_are_read(text: str, moment: datetime) -> None:
    parsed = parse_iso(text)

    assert parsed == moment
    assert parsed is not None
    assert parsed.tzinfo is not None


@pytest.mark.parametrize(
    "text",
    [
        None,
        0,
        1_725_284_700_000,
        12.5,
        True,
        [],
        {},
        "",
        "Z",
        "now",
        "2024-13-01T00:00:00Z",
        "2024-02-30T00:00:00Z",
        "2024-09-02T25:00:00Z",
        "2024-09-02T13:45:00ZZ",
        "2024-09-02T13:45:00Z\n",
        "Mon Sep 02 2024 13:45:00 GMT",
        "tomorrow " * 500,
        "٢٠٢٤-٠٩-٠٢T١٣:٤٥:٠٠Z",
    ],
)
def test_what_is_no_time_is_none(text: object) -> None:
    assert parse_iso(text) is None


@PROPERTY
@example("0001-01-01T00:00:00+14:00")
@example("9999-12-31T23:59:59-14:00")
@given(st.text(alphabet="0123456789-:.TZ+ ", max_size=40))
def test_reading_a_text_as_a_time_never_raises(text: str) -> None:
    parsed = parse_iso(text)

    assert parsed is None or parsed.tzinfo is not None
    assert seconds_between(text, "2024-09-02T13:45:00Z") is None or parsed is not None


def test_now_is_aware_and_in_utc() -> None:
    assert utc_now().utcoffset() == timedelta(0)


def test_now_is_written_as_every_time_is() -> None:
    before, now, after = to_iso(utc_now()), now_iso(), to_iso(utc_now())

    assert before <= now <= after


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (60, "2026-01-01T00:01:00.000000Z"),
        (0, "2026-01-01T00:00:00.000000Z"),
        (-0.5, "2025-12-31T23:59:59.500000Z"),
    ],
)
def test_a_moment_after_another_is_so_many_seconds_later(seconds: float, expected: str) -> None:
    assert iso_after(seconds, start=datetime(2026, 1, 1, tzinfo=UTC)) == expected


def test_a_moment_after_nothing_given_is_after_now() -> None:
    assert iso_after(-1) < now_iso() < iso_after(60)


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("2026-01-01T00:00:00.000000Z", "2026-01-01T00:01:00.500000Z", 60.5),
        ("2026-01-01T00:00:00.250Z", "2026-01-01T00:00:01Z", 0.75),
        ("2026-01-01T00:00:10Z", "2026-01-01T00:00:00Z", -10.0),
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00Z", 0.0),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z", 0.0),
    ],
)
def test_seconds_between_two_recorded_times(start: str, end: str, seconds: float) -> None:
    assert seconds_between(start, end) == seconds


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, "2026-01-01T00:00:00Z"),
        ("2026-01-01T00:00:00Z", None),
        ("yesterday", "2026-01-01T00:00:00Z"),
        (5, 6),
    ],
)
def test_between_what_is_no_time_there_are_no_seconds(start: object, end: object) -> None:
    assert seconds_between(start, end) is None
