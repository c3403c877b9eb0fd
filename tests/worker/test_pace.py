"""How many pages a worker has in hand, as they come and go by a clock of the test's."""

from __future__ import annotations

import pytest

from nimbus_tasks.core.claims import Claim
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import Entry
from nimbus_tasks.worker.pace import MAX_AHEAD_CHARACTERS, MAX_AHEAD_PAGES, RATE_KEPT, Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pace_of(rate: float, concurrency: int = 4) -> tuple[Pace, Clock]:
    """A pace that has seen pages end at that rate a second."""
    clock = Clock()
    pace = Pace(concurrency, clock=clock)
    clock.now += 1
    pace.ended(round(rate))
    return pace, clock


def claims(count: int, characters: int) -> list[Claim]:
    page = Entry("page:p:a", "x" * characters)
    return [Claim("a", PageStatus("processing", "b", ""), page)] * count


def test_a_page_a_thread_until_the_rate_is_known() -> None:
    assert Pace(4).wanted() == 4


@pytest.mark.parametrize(("rate", "wanted"), [(39, 4), (40, 24), (400, 204), (3000, 1504)])
def test_short_pages_are_claimed_for_half_a_second_ahead(rate: float, wanted: int) -> None:
    pace, _ = pace_of(rate)
    assert pace.wanted() == wanted


def test_no_more_are_claimed_ahead_than_fit_into_memory() -> None:
    pace, _ = pace_of(100_000)
    assert pace.wanted() == 4 + MAX_AHEAD_PAGES
    pace.claimed(claims(200, 200_000))
    assert pace.wanted() == pytest.approx(4 + MAX_AHEAD_CHARACTERS / 200_000, abs=1)
    pace.claimed(claims(400, 0))
    assert pace.wanted() == 4 + MAX_AHEAD_PAGES


def test_the_first_pages_are_enough_to_tell() -> None:
    clock = Clock()
    pace = Pace(2, clock=clock)
    pace.ended(8)  # at the very moment: of a clock with coarse ticks
    assert pace.wanted() == 2
    clock.now += 0.02
    pace.ended(0)
    assert pace.wanted() == 2 + 200


def test_a_stall_does_not_make_short_pages_long_ones() -> None:
    """Threads may have had to wait for the store; if it lasts, the pages are what is slow."""
    pace, clock = pace_of(1000)
    clock.now += 0.3
    pace.ended(1)
    assert pace.wanted() == 4 + int(1000 * RATE_KEPT / 2)
    for _ in range(20):
        clock.now += 0.3
        pace.ended(1)
    assert pace.wanted() == 4


def test_what_it_took_to_begin_is_not_counted() -> None:
    clock = Clock()
    pace = Pace(4, clock=clock)
    clock.now += 10
    pace.start_over()
    clock.now += 0.25
    pace.ended(250)
    assert pace.wanted() == 4 + 500


def test_a_store_that_is_asked_seldom_is_asked_for_more() -> None:
    clock = Clock()
    pace = Pace(10, write_interval=1.0, first_ahead=4.0, clock=clock)
    assert pace.wanted() == 10 + 4 * 10 * 3
    clock.now += 10
    pace.ended(20)  # pages of seconds, of which two a second end
    assert pace.wanted() == 10 + 2 * 3
    assert Pace(10, write_interval=1.0, clock=clock).wanted() == 10
