"""How fast a batch goes and when it will be done, from what its pages say at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.clock import iso_after, to_iso
from nimbus_tasks.core.lifecycle import Tally
from nimbus_tasks.core.pace import UNKNOWN, Pace, pace

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)


def a_batch(page_count: int, ended: Iterable[float], begun: float | None = None) -> Tally:
    """A batch with a page done so many seconds ago each; the first began ``begun`` seconds ago."""
    tally = Tally(page_count)
    for seconds_ago in ended:
        tally.add({"status": "done", "completed": iso_after(-seconds_ago, start=NOW)})
    if begun is not None:
        tally.first_started = iso_after(-begun, start=NOW)
    return tally


def known(measured: Pace) -> tuple[float, float, float]:
    """The three figures, all of them there."""
    low, high = measured.seconds_left_low, measured.seconds_left_high
    assert measured.per_second is not None
    assert low is not None
    assert high is not None
    return measured.per_second, low, high


def test_nothing_is_known_before_a_page_has_ended() -> None:
    assert pace(Tally(10), NOW) == UNKNOWN


def test_nothing_is_known_of_a_batch_where_no_page_ended_for_a_quarter_of_an_hour() -> None:
    assert pace(a_batch(10, [901, 1000], begun=1100), NOW) == UNKNOWN


def test_a_page_a_second_is_a_page_a_second() -> None:
    rate, low, high = known(pace(a_batch(360, range(1, 301), begun=301), NOW))

    assert rate == pytest.approx(1.0, rel=0.05)
    assert low < 60 < high


def test_only_the_last_minute_counts_where_enough_happened_in_it() -> None:
    slow_then_fast = [*range(70, 700, 10), *(second / 4 for second in range(1, 241))]

    rate, _, _ = known(pace(a_batch(1000, slow_then_fast, begun=710), NOW))

    assert rate == pytest.approx(4.0, rel=0.05)


def test_a_batch_that_has_just_begun_is_measured_from_its_beginning() -> None:
    rate, _, _ = known(pace(a_batch(100, [0.5 * i for i in range(1, 10)], begun=5), NOW))

    assert rate == pytest.approx(9 / 5)


def test_a_slow_batch_is_measured_over_a_quarter_of_an_hour() -> None:
    rate, _, _ = known(pace(a_batch(100, range(10, 900, 60), begun=1000), NOW))

    assert rate == pytest.approx(1 / 60, rel=0.1)


def test_one_page_alone_says_half_to_double() -> None:
    rate, low, high = known(pace(a_batch(11, [10], begun=20), NOW))

    assert rate == pytest.approx(1 / 20)
    assert low == pytest.approx(10 * 20 / 1.5)
    assert high == pytest.approx(10 * 20 * 2)


def test_the_more_pages_have_ended_the_narrower_is_the_range() -> None:
    widths = []
    for count in (1, 4, 16, 64, 256):
        seconds = [30 * i / count for i in range(1, count + 1)]
        _, low, high = known(pace(a_batch(1000, seconds, begun=30), NOW))
        widths.append(high / low)

    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1.2


def test_where_nothing_is_left_no_time_is_left() -> None:
    _, low, high = known(pace(a_batch(3, [1, 2, 3], begun=4), NOW))

    assert (low, high) == (0.0, 0.0)


def test_cancelled_pages_are_not_waited_for() -> None:
    tally = a_batch(4, [1, 2, 3], begun=4)
    tally.add({"status": "cancelled"})

    assert known(pace(tally, NOW))[1:] == (0.0, 0.0)


def test_the_pace_does_not_depend_on_the_order_in_which_pages_are_listed() -> None:
    seconds = [3, 59, 14, 15, 9, 26, 5, 35, 8, 97]

    assert pace(a_batch(50, seconds), NOW) == pace(a_batch(50, sorted(seconds)), NOW)


def test_an_ending_that_another_machine_dates_in_the_future_is_no_fault() -> None:
    rate, low, high = known(pace(a_batch(10, [-3, 5], begun=10), NOW))

    assert rate == pytest.approx(0.2)
    assert low < 8 / 0.2 < high


def test_times_that_javascript_wrote_are_understood() -> None:
    tally = Tally(20)
    for second in range(10):
        moment = (NOW - timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        tally.add({"status": "done", "started": moment, "completed": moment})
    tally.first_started = to_iso(NOW - timedelta(seconds=10))

    assert known(pace(tally, NOW))[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("together", "every", "last"),
    [
        (1, 1200, 0.0),  # a page in 20 minutes, seen as one ends
        (8, 100, 0.01),  # eight threads, 100 seconds a page, seen as they end
        (8, 50, 12.0),
    ],
)
def test_a_slow_batch_does_not_look_fast_at_the_moment_when_pages_end(
    together: int, every: int, last: float
) -> None:
    ended = [last + every * group for group in range(10) for _ in range(together)]

    rate, _, _ = known(pace(a_batch(200, ended, begun=last + 10 * every), NOW))

    assert rate == pytest.approx(together / every, rel=0.75)


@PROPERTY
@given(
    st.lists(st.floats(0, 2000), max_size=40),
    st.integers(0, 100),
    st.one_of(st.none(), st.floats(0, 3000)),
)
def test_the_range_holds_the_estimate_and_is_never_negative(
    ended: list[float], waiting: int, begun: float | None
) -> None:
    measured = pace(a_batch(len(ended) + waiting, ended, begun), NOW)

    if measured != UNKNOWN:
        rate, low, high = known(measured)
        assert rate > 0
        assert 0 <= low <= waiting / rate * (1 + 1e-9)
        assert waiting / rate * (1 - 1e-9) <= high
