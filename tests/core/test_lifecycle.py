"""What a batch is in, as a table; and what its pages add up to."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.lifecycle import (
    PAGE_STATES,
    TERMINAL_BATCH_STATUSES,
    TERMINAL_PAGE_STATES,
    BatchStatus,
    Intent,
    PageState,
    Tally,
    Timing,
    batch_status,
    is_finished,
    percentile,
)

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)

INTENTS = st.sampled_from([intent.value for intent in Intent])
COUNTS = st.fixed_dictionaries({state: st.integers(0, 3) for state in PAGE_STATES})


def counts(**pages: int) -> dict[str, int]:
    """Counts by state, all six of them."""
    return dict.fromkeys(PAGE_STATES, 0) | pages


def tally_of(page_count: int, *pages: dict[str, Any]) -> Tally:
    """A batch that lists so many pages, of which these have a status."""
    tally = Tally(page_count)
    for page in pages:
        tally.add(page)
    return tally


def done(duration_ms: int | None = None, **fields: Any) -> dict[str, Any]:
    """The status metadata of a page that is done."""
    return {"status": "done", "duration_ms": duration_ms, **fields}


# --- the status of a batch ---


@pytest.mark.parametrize(
    ("intent", "pages", "status"),
    [
        # An upload that has not come to its end is one, whatever its pages are in already.
        ("upload", {}, "uploading"),
        ("upload", {"uploaded": 2}, "uploading"),
        ("upload", {"uploaded": 1, "queued": 1}, "uploading"),
        ("upload", {"queued": 1, "processing": 1}, "uploading"),
        ("upload", {"done": 1, "failed": 1, "cancelled": 1}, "uploading"),
        ("upload", {"done": 2}, "uploading"),
        # Nothing has begun.
        ("run", {"queued": 2}, "queued"),
        ("run", {"uploaded": 2}, "queued"),
        ("run", {"uploaded": 1, "queued": 1}, "queued"),
        # Something has begun, and something has not ended.
        ("run", {"processing": 1}, "processing"),
        ("run", {"queued": 1, "processing": 1}, "processing"),
        ("run", {"queued": 1, "done": 1}, "processing"),
        ("run", {"queued": 1, "failed": 1}, "processing"),
        ("run", {"queued": 1, "cancelled": 1}, "processing"),
        ("run", {"uploaded": 1, "done": 1}, "processing"),
        ("run", {"processing": 1, "done": 5, "failed": 1}, "processing"),
        # All have ended.
        ("run", {"done": 2}, "completed"),
        ("run", {"done": 99, "failed": 1}, "partially_completed"),
        ("run", {"done": 1, "failed": 99}, "partially_completed"),
        ("run", {"failed": 2}, "failed"),
        ("run", {}, "completed"),
        # Pages that were cancelled were not worked on: the batch did not come to its own end.
        ("run", {"cancelled": 2}, "cancelled"),
        ("run", {"done": 1, "cancelled": 1}, "cancelled"),
        ("run", {"done": 1, "failed": 1, "cancelled": 1}, "cancelled"),
        # At work again after a retry: until all have ended, then as if there had been none.
        ("retry", {"queued": 1}, "retrying"),
        ("retry", {"queued": 1, "done": 1}, "retrying"),
        ("retry", {"processing": 1, "failed": 1}, "retrying"),
        ("retry", {"uploaded": 1}, "retrying"),
        ("retry", {"done": 2}, "completed"),
        ("retry", {"done": 1, "failed": 1}, "partially_completed"),
        ("retry", {"failed": 2}, "failed"),
        ("retry", {"done": 1, "cancelled": 1}, "cancelled"),
        # Cancelled, as soon as no page is in flight or still to be taken out of the queue.
        ("cancel", {"processing": 1}, "cancelling"),
        ("cancel", {"processing": 1, "cancelled": 5, "done": 1}, "cancelling"),
        ("cancel", {"queued": 1, "cancelled": 5}, "cancelling"),
        ("cancel", {"uploaded": 1}, "cancelling"),
        ("cancel", {"cancelled": 2}, "cancelled"),
        ("cancel", {"done": 1, "cancelled": 1}, "cancelled"),
        ("cancel", {"done": 2}, "cancelled"),
        ("cancel", {"failed": 2}, "cancelled"),
        ("cancel", {}, "cancelled"),
        # What somebody else asked for, and we do not know, is no reason to stop.
        ("paused", {"queued": 1}, "queued"),
        ("", {"done": 1}, "completed"),
    ],
)
def test_the_status_follows_from_what_was_asked_and_what_the_pages_are_in(
    intent: str, pages: dict[str, int], status: str
) -> None:
    assert batch_status(intent, counts(**pages)).value == status


@PROPERTY
@given(INTENTS, COUNTS)
def test_a_batch_is_finished_when_every_page_is_and_never_before(
    intent: str, pages: dict[str, int]
) -> None:
    every_page_ended = all(pages[s] == 0 for s in PAGE_STATES if s not in TERMINAL_PAGE_STATES)

    finished = is_finished(batch_status(intent, pages).value)

    assert finished == (every_page_ended and intent != "upload")


@PROPERTY
@given(INTENTS, COUNTS)
def test_completed_means_that_every_page_is_done(intent: str, pages: dict[str, int]) -> None:
    if batch_status(intent, pages) is BatchStatus.COMPLETED:
        assert pages == counts(done=pages["done"])


@pytest.mark.parametrize(
    ("pages", "superseded", "status"),
    [
        ({"done": 19, "cancelled": 1}, 1, "completed"),
        ({"done": 18, "failed": 1, "cancelled": 1}, 1, "partially_completed"),
        ({"failed": 3, "cancelled": 1}, 1, "failed"),
        ({"cancelled": 4}, 4, "cancelled"),
        ({"done": 18, "cancelled": 2}, 1, "cancelled"),
        ({"queued": 2, "cancelled": 2}, 2, "processing"),
    ],
)
def test_a_page_that_a_later_batch_took_over_does_not_make_a_batch_cancelled(
    pages: dict[str, int], superseded: int, status: str
) -> None:
    assert batch_status("run", counts(**pages), superseded).value == status
    tally = Tally(0)
    for number, state in enumerate(s for s, count in pages.items() for _ in range(count)):
        is_taken = state == "cancelled" and tally.superseded < superseded
        page = {"status": state, "batch_id": "b", "updated": f"2026-{number}"}
        tally.add({**page, "superseded_by": "later"} if is_taken else page)
    assert tally.status("run") == status


def test_an_intent_can_be_given_as_text_or_as_a_member() -> None:
    for intent in Intent:
        assert batch_status(intent, counts(queued=1)) == batch_status(
            intent.value, counts(queued=1)
        )


def test_four_statuses_are_ends_and_five_are_not() -> None:
    ends = {status.value for status in BatchStatus if is_finished(status.value)}

    assert ends == {"completed", "partially_completed", "failed", "cancelled"}
    assert ends == TERMINAL_BATCH_STATUSES


def test_the_states_of_a_page_are_the_six_of_the_contract() -> None:
    assert PAGE_STATES == ("uploaded", "queued", "processing", "done", "failed", "cancelled")
    assert {state.value for state in PageState} == set(PAGE_STATES)


# --- counts ---


@PROPERTY
@given(st.integers(0, 12), st.lists(st.sampled_from(PAGE_STATES), max_size=12))
def test_the_counts_always_add_up_to_the_pages_of_the_batch(
    page_count: int, states: list[str]
) -> None:
    tally = tally_of(page_count, *({"status": state} for state in states))

    assert sum(tally.counts.values()) == tally.total
    assert tally.total == max(page_count, len(states))
    assert set(tally.counts) == set(PAGE_STATES)
    assert tally.pending + tally.ended == tally.total


@PROPERTY
@given(st.integers(0, 12), st.lists(st.sampled_from(PAGE_STATES), max_size=12))
def test_the_summary_and_the_cancelled_pages_are_all_pages(
    page_count: int, states: list[str]
) -> None:
    tally = tally_of(page_count, *({"status": state} for state in states))
    summary = tally.summary()
    parts = [summary["completed"], summary["failed"], summary["pending"]]

    assert sum(part or 0 for part in parts) + states.count("cancelled") == tally.total


def test_a_listed_page_without_a_status_is_uploaded_and_waits() -> None:
    tally = tally_of(5, done(), {"status": "queued"})

    assert tally.counts == counts(uploaded=3, queued=1, done=1)
    assert tally.pending == 4
    assert tally.ended == 1


def test_a_batch_of_no_pages_adds_up_to_nothing() -> None:
    tally = Tally(0)

    assert tally.counts == counts()
    assert tally.success_rate == 0.0
    assert tally.average_confidence is None


# --- one page of each state ---


@pytest.mark.parametrize("state", PAGE_STATES)
def test_a_page_is_counted_under_its_state_and_no_other(state: str) -> None:
    assert tally_of(1, {"status": state}).counts == counts(**{state: 1})


def test_an_uploaded_or_queued_page_gives_its_attempts_and_its_last_change() -> None:
    tally = tally_of(2, {"status": "queued", "attempts": 2, "updated": "2026-01-01T00:00:00Z"})

    assert (tally.attempts, tally.last_change) == (2, "2026-01-01T00:00:00Z")
    assert (tally.completions, tally.first_started) == ([], None)


def test_a_page_in_flight_has_begun_and_ended_nothing() -> None:
    page = {"status": "processing", "started": "2026-01-01T00:00:00Z", "progress": 50}
    tally = tally_of(1, page)

    assert tally.first_started == "2026-01-01T00:00:00Z"
    assert (tally.completions, tally.timing()) == ([], Timing(None, None, None))


def test_a_done_page_gives_its_time_changes_and_confidence() -> None:
    tally = tally_of(1, done(120, changes=3, confidence=0.8, completed="2026-01-01T00:00:02Z"))

    assert tally.average_time_ms() == 120
    assert tally.total_changes == 3
    assert tally.average_confidence == 0.8
    assert tally.completions == ["2026-01-01T00:00:02Z"]
    assert tally.errors == {}


def test_a_done_page_that_states_nothing_counts_as_done_and_in_no_mean() -> None:
    tally = tally_of(2, done(), done(100, changes=1, confidence=0.5))

    assert tally.counts["done"] == 2
    assert tally.average_time_ms() == 100
    assert tally.average_confidence == 0.5


def test_a_failed_page_is_grouped_by_its_code_and_gives_no_time_or_changes() -> None:
    failed = {"status": "failed", "code": "timeout", "duration_ms": 60_000, "changes": 9}
    tally = tally_of(3, failed, failed, {"status": "failed"})

    assert tally.errors == {"timeout": 2, "unknown": 1}
    assert (tally.total_changes, tally.average_time_ms()) == (0, None)


def test_failed_pages_have_ended_and_count_for_the_pace() -> None:
    tally = tally_of(1, {"status": "failed", "completed": "2026-01-01T00:00:02Z"})

    assert tally.completions == ["2026-01-01T00:00:02Z"]


def test_a_cancelled_page_was_not_worked_on_and_counts_for_no_pace() -> None:
    tally = tally_of(1, {"status": "cancelled", "completed": "2026-01-01T00:00:02Z"})

    assert tally.completions == []
    assert tally.summary() == {
        "completed": 0,
        "failed": 0,
        "pending": 0,
        "average_time_ms": None,
    }


def test_the_first_start_and_the_last_change_do_not_depend_on_the_order_of_pages() -> None:
    early = {"status": "done", "started": "2026-01-01T00:00:01Z", "updated": "2026-01-01T00:00:03Z"}
    late = {"status": "done", "started": "2026-01-01T00:00:02Z", "updated": "2026-01-01T00:00:04Z"}

    for pages in ([early, late], [late, early]):
        tally = tally_of(2, *pages)
        assert tally.first_started == "2026-01-01T00:00:01Z"
        assert tally.last_change == "2026-01-01T00:00:04Z"


# --- figures ---


def test_the_success_rate_is_of_all_pages_not_only_of_those_that_ended() -> None:
    assert tally_of(4, done(), {"status": "failed"}).success_rate == 25.0
    assert tally_of(3, done(), done()).success_rate == 66.67
    assert tally_of(2, done(), done()).success_rate == 100.0
    assert tally_of(2).success_rate == 0.0


def test_the_mean_confidence_is_rounded_to_four_digits() -> None:
    tally = tally_of(3, done(confidence=1), done(confidence=0), done(confidence=0))

    assert tally.average_confidence == 0.3333


def test_a_confidence_of_zero_is_one() -> None:
    assert tally_of(1, done(confidence=0)).average_confidence == 0.0


def test_timing_tells_average_median_and_95th_percentile() -> None:
    tally = tally_of(20, *(done(ms) for ms in range(2000, 0, -100)))

    assert tally.timing() == Timing(average_ms=1050, p50_ms=1000, p95_ms=1900)


def test_one_slow_page_moves_the_average_and_not_the_median() -> None:
    tally = tally_of(4, done(10), done(10), done(10), done(9970))

    assert tally.timing() == Timing(average_ms=2500, p50_ms=10, p95_ms=9970)


def test_the_summary_has_the_seeds_four_fields() -> None:
    tally = tally_of(4, done(100), done(200), {"status": "failed"}, {"status": "processing"})

    assert tally.summary() == {
        "completed": 2,
        "failed": 1,
        "pending": 1,
        "average_time_ms": 150,
    }


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.0, 7),
        ([7], 0.5, 7),
        ([7], 1.0, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        ([1, 2, 3, 4], 0.5, 2),
        (list(range(1, 101)), 0.95, 95),
        (list(range(1, 21)), 0.95, 19),
        (list(range(1, 20)), 0.95, 19),
        ([1, 2, 3], 1.0, 3),
        ([1, 2, 3], 0.0, 1),
    ],
)
def test_a_percentile_is_a_value_of_the_list(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


@PROPERTY
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted),
    st.sampled_from(["0.5", "0.9", "0.95", "0.99", "1"]),
)
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[int], share: str
) -> None:
    found = percentile(values, float(share))
    needed = Fraction(share) * len(values)

    assert sum(value <= found for value in values) >= needed
    assert all(sum(v <= smaller for v in values) < needed for smaller in values if smaller < found)
