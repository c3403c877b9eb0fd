"""How many pages a worker claims ahead, by how fast pages end and how large they are."""

from __future__ import annotations

from nimbus_tasks.worker.ahead import MAX_AHEAD_CHARACTERS, MAX_AHEAD_PAGES, Ahead

NOW = 100.0


def measured(ended: int, seconds: float, *, concurrency: int = 4, first_ahead: float = 0) -> Ahead:
    """After so many pages have ended in so many seconds."""
    ahead = Ahead(concurrency, first_ahead, NOW)
    ahead.ended(ended, NOW + seconds)
    return ahead


def test_long_pages_are_claimed_one_a_thread() -> None:
    assert Ahead(4, 4.0, NOW).wanted(0) == 4
    assert measured(39, 1.0).wanted(0) == 4


def test_of_short_pages_half_a_second_is_claimed_ahead() -> None:
    assert measured(400, 1.0).wanted(0) == 4 + 200


def test_where_writes_have_to_wait_more_is_claimed_ahead() -> None:
    assert measured(40, 1.0).wanted(2.0) == 4 + 6 * 40


def test_before_any_page_has_ended_it_is_what_is_expected() -> None:
    assert Ahead(4, 4.0, NOW).wanted(1.0) == 4 + 3 * 16
    assert Ahead(4, 0.0, NOW).wanted(1.0) == 4


def test_a_stretch_in_which_less_was_done_lowers_the_rate_bit_by_bit() -> None:
    ahead = measured(400, 1.0)
    ahead.ended(0, NOW + 2)
    assert ahead.wanted(0) == 4 + 150


def test_neither_too_many_nor_too_large_ones_are_in_hand() -> None:
    ahead = measured(1_000_000, 1.0)
    assert ahead.wanted(0) == 4 + MAX_AHEAD_PAGES
    ahead.claimed([MAX_AHEAD_CHARACTERS // 10] * 200)
    assert ahead.wanted(0) == 4 + 10


def test_what_is_measured_anew_does_not_count_what_was_before() -> None:
    ahead = Ahead(4, 0.0, NOW)
    ahead.ended(15, NOW + 0.2)
    ahead.measure_anew(NOW + 0.2)
    ahead.ended(1, NOW + 0.3)
    assert ahead.wanted(1.0) == 4
