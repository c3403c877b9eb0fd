"""Ending attempts: what an outcome leaves, and when it does not count."""

from __future__ import annotations

from typing import Any

import pytest

from nimbus_tasks.core.keys import page_key
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import Store
from tests.core.claiming import (
    LEASE,
    TAKEN_AWAY,
    cancel,
    claim,
    claim_one,
    everything,
    failure,
    finish,
    in_queue,
    iso,
    log_of,
    queue,
    release,
    renew,
    status_of,
    success,
    take_up,
)
from tests.core.stored_batches import BATCH, PROJECT


def test_metadata_of_others_that_leave_no_room_keep_no_page_from_ending(store: Store) -> None:
    """Cloudflare counts their bytes, of which JSON with escapes has more."""
    queue(store, "page_a")
    claimed = claim_one(store)
    assert claimed.page is not None
    page = claimed.page._replace(metadata={"sha256": "abc", "theirs": "ü" * 500})
    assert finish(store, success(claimed._replace(page=page), page_value="{}")) == []
    entry = store.get(page_key(PROJECT, "page_a"))
    assert entry is not None
    assert (entry.value, entry.metadata) == ("{}", {"sha256": "abc"})


def test_an_attempt_that_ended_well_leaves_its_result(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)

    refused = finish(store, success(claimed, page_value='{"optimization":{"title":"better"}}'))

    assert refused == []
    assert status_of(store, "page_a") == PageStatus(
        "done",
        BATCH,
        iso(1),
        attempts=1,
        path="page_a.html",
        started=iso(0),
        completed=iso(1),
        duration_ms=1000,
        changes=2,
        confidence=0.5,
    )
    page = store.get(page_key(PROJECT, "page_a"))
    assert page is not None
    assert page.value == '{"optimization":{"title":"better"}}'
    assert page.metadata == {"sha256": "page_a"}
    assert log_of(store, "page_a") == ["attempt 1 ended well"]


def test_an_attempt_that_changed_nothing_leaves_the_content_as_it_was(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    before = store.get(page_key(PROJECT, "page_a"))

    finish(store, success(claimed, changes=0))

    assert store.get(page_key(PROJECT, "page_a")) == before


def test_a_page_that_had_no_content_gets_none(store: Store) -> None:
    queue(store, "page_a")
    store.delete_many([page_key(PROJECT, "page_a")])
    claimed = claim_one(store)

    finish(store, success(claimed, page_value="{}"))

    assert store.get(page_key(PROJECT, "page_a")) is None


def test_an_attempt_that_failed_leaves_its_error(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)

    assert finish(store, failure(claimed)) == []

    status = status_of(store, "page_a")
    assert (status.state, status.error, status.code) == ("failed", "no title", "bad_html")
    assert (status.completed, status.duration_ms, status.attempts) == (iso(1), 1000, 1)
    assert in_queue(store) == []
    assert log_of(store, "page_a") == ["attempt 1 failed"]


def test_an_attempt_that_is_to_be_tried_again_goes_back_to_the_queue(store: Store) -> None:
    queue(store, "page_a")

    assert finish(store, failure(claim_one(store), try_again=True)) == []

    status = status_of(store, "page_a")
    assert (status.state, status.attempts, status.claim, status.error) == ("queued", 1, None, None)
    assert in_queue(store) == ["page_a"]
    assert log_of(store, "page_a") == ["attempt 1 failed"]
    again = claim_one(store, now=2)
    assert again.attempt == 2
    finish(store, success(again))
    assert log_of(store, "page_a") == ["attempt 1 failed", "attempt 2 ended well"]


def test_a_page_that_is_tried_again_waits_behind_those_of_its_priority(store: Store) -> None:
    queue(store, "page_a", queued=-20)
    queue(store, "page_b", queued=-10)

    finish(store, failure(claim_one(store), try_again=True))

    assert in_queue(store) == ["page_b", "page_a"]


def test_a_retry_that_is_tried_again_is_still_a_retry(store: Store) -> None:
    queue(store, "page_a", priority=8)
    queue(store, "page_b", queued=-90)

    finish(store, failure(claim_one(store), try_again=True))

    assert in_queue(store) == ["page_a", "page_b"]
    assert status_of(store, "page_a").priority == 8


def test_nothing_of_a_cancelled_batch_is_tried_again(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    cancel(store)

    assert finish(store, failure(claimed, try_again=True)) == []

    status = status_of(store, "page_a")
    assert (status.state, status.error) == ("failed", "no title")
    assert in_queue(store) == []


def test_a_page_in_flight_of_a_cancelled_batch_keeps_its_result(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    cancel(store)

    assert finish(store, success(claimed)) == []
    assert status_of(store, "page_a").state == "done"


def test_an_outcome_counts_as_long_as_nobody_has_taken_the_page_up(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)

    assert finish(store, success(claimed), now=10 * LEASE) == []
    assert status_of(store, "page_a").state == "done"


@pytest.mark.parametrize("taken_away", TAKEN_AWAY)
@pytest.mark.parametrize("ended", [success, failure])
def test_an_outcome_whose_claim_is_not_current_is_refused_and_changes_nothing(
    store: Store, taken_away: Any, ended: Any
) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    taken_away(store, claimed)
    before = everything(store)
    late = ended(claimed, completed=iso(2), page_value='{"late": true}', try_again=ended is failure)

    assert finish(store, late, now=LEASE + 3) == [late]
    assert everything(store) == before


@pytest.mark.parametrize("ended", [success, failure])
def test_an_outcome_that_is_sent_again_counts_and_changes_nothing(store: Store, ended: Any) -> None:
    """A write whose answer was lost: the worker cannot know that it has been done."""
    queue(store, "page_a")
    outcome = ended(claim_one(store))
    finish(store, outcome)
    before = everything(store)

    assert finish(store, outcome, now=5) == []
    assert everything(store) == before


def test_a_record_never_says_to_be_older_than_the_one_before(store: Store) -> None:
    """A lease may be renewed after the page has ended, and before that is written."""
    queue(store, "page_a")
    claimed = claim_one(store)
    renew(store, claimed, now=7)
    finish(store, success(claimed, completed=iso(5)), now=8)
    ended = status_of(store, "page_a")

    assert (ended.completed, ended.updated) == (iso(5), iso(8))


def test_of_two_holders_of_a_page_the_current_one_counts(store: Store) -> None:
    queue(store, "page_a")
    first = claim_one(store)
    take_up(store, "page_a", now=LEASE + 1)
    second = claim_one(store, now=LEASE + 2)
    late, right = failure(first), success(second)

    assert finish(store, late, right) == [late]
    assert status_of(store, "page_a").state == "done"
    assert "attempt 1 failed" not in log_of(store, "page_a")


def test_outcomes_of_many_pages_are_written_together(store: Store) -> None:
    queue(store, "page_a", "page_b", "page_c", "page_d")
    a, b, c, d = claim(store)
    release(store, d)
    late = success(d)

    assert finish(store, success(a), failure(b), failure(c, try_again=True), late) == [late]

    states = [status_of(store, f"page_{name}").state for name in "abcd"]
    assert states == ["done", "failed", "queued", "queued"]


def test_nothing_ended_writes_nothing(store: Store) -> None:
    queue(store, "page_a")
    before = everything(store)

    assert finish(store) == []
    assert everything(store) == before
