"""Holding claimed pages, and giving them back."""

from __future__ import annotations

from typing import Any

import pytest

from nimbus_tasks.core.keys import queue_prefix
from nimbus_tasks.core.lapses import find_lapsed
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.kv.store import Store
from tests.core.claiming import (
    LEASE,
    TAKEN_AWAY,
    at,
    cancel,
    claim,
    claim_one,
    everything,
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
from tests.core.stored_batches import PROJECT

# --- holding ---


def test_a_renewed_claim_shows_where_it_is_and_lives_another_lease(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)

    assert renew(store, claimed, "rewrite", 40, now=30) == []

    status = status_of(store, "page_a")
    assert (status.step, status.progress) == ("rewrite", 40)
    assert (status.lease, status.updated, status.started) == (iso(30 + LEASE), iso(30), iso(0))
    assert (status.claim, status.attempts) == (claimed.status.claim, 1)
    assert take_up(store, "page_a", now=LEASE + 1) == ([], [])
    assert finish(store, success(claimed)) == []


def test_a_claim_can_be_renewed_after_its_lease_if_nobody_has_taken_the_page_up(
    store: Store,
) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)

    assert renew(store, claimed, now=LEASE + 10) == []
    assert find_lapsed(list_pages(store, PROJECT), at(LEASE + 11)) == {}


@pytest.mark.parametrize("taken_away", TAKEN_AWAY)
def test_a_claim_that_is_not_current_cannot_be_renewed_and_nothing_changes(
    store: Store, taken_away: Any
) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    taken_away(store, claimed)
    before = everything(store)

    assert renew(store, claimed, "rewrite", 40, now=LEASE + 3) == ["page_a"]
    assert everything(store) == before


# --- giving back ---


def test_a_released_page_is_as_if_it_had_never_been_claimed(store: Store) -> None:
    queue(store, "page_a", attempts=1)

    assert release(store, claim_one(store)) == ["page_a"]

    status = status_of(store, "page_a")
    assert (status.state, status.attempts, status.claim) == ("queued", 1, None)
    assert status.updated == iso(1)  # later than its claim, which reads that lag may show still
    assert in_queue(store) == ["page_a"]
    assert log_of(store, "page_a") == []
    assert claim_one(store, now=2).attempt == 2


def test_a_released_page_keeps_its_place_in_the_queue(store: Store) -> None:
    queue(store, "retry", priority=8, queued=-5)
    queue(store, "oldest", queued=-90)
    queue(store, "younger", queued=-10)
    before = [info.key for info in store.scan(queue_prefix(PROJECT))]

    release(store, *claim(store, 2))

    assert [info.key for info in store.scan(queue_prefix(PROJECT))] == before


@pytest.mark.parametrize("taken_away", TAKEN_AWAY)
def test_a_claim_that_is_not_current_cannot_be_released_and_nothing_changes(
    store: Store, taken_away: Any
) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    taken_away(store, claimed)
    before = everything(store)

    assert release(store, claimed, now=LEASE + 3) == []
    assert everything(store) == before


def test_a_released_page_of_a_cancelled_batch_is_cancelled(store: Store) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    cancel(store)

    release(store, claimed)

    status = status_of(store, "page_a")
    assert (status.state, status.attempts, status.claim) == ("cancelled", 0, None)
    assert in_queue(store) == []
