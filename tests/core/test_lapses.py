"""Pages whose holders were not heard of again."""

from __future__ import annotations

from typing import Any

import pytest

from nimbus_tasks.core.claims import Claim
from nimbus_tasks.core.keys import queue_prefix
from nimbus_tasks.core.lapses import MAX_LAPSES, find_lapsed, is_suspect
from nimbus_tasks.core.leases import LEASELESS_SECONDS
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.kv.store import Store
from tests.core.claiming import (
    LEASE,
    at,
    cancel,
    claim,
    claim_one,
    everything,
    failure,
    finish,
    in_queue,
    iso,
    log_of,
    make_ended,
    make_lapsed,
    make_released,
    make_stolen,
    make_uploaded_anew,
    put_status,
    queue,
    renew,
    status_of,
    success,
    take_up,
)
from tests.core.stored_batches import LATER, PROJECT


def test_a_page_has_lapsed_when_its_lease_is_over(store: Store) -> None:
    queue(store, "page_a", "page_b")
    claim(store)

    assert find_lapsed(list_pages(store, PROJECT), at(LEASE)) == {}
    assert list(find_lapsed(list_pages(store, PROJECT), at(LEASE + 0.001))) == ["page_a", "page_b"]


def test_lapsed_pages_can_be_looked_for_in_one_batch(store: Store) -> None:
    queue(store, "page_a")
    queue(store, "page_b", batch_id=LATER)
    claim(store)

    assert find_lapsed(list_pages(store, PROJECT, LATER), at(LEASE + 1)) == {"page_b": LATER}


def test_a_claim_without_a_lease_lapses_when_nothing_came_of_it_for_long(store: Store) -> None:
    put_status(store, "page_a", "processing", updated=iso(0), started=iso(-9000))

    assert find_lapsed(list_pages(store, PROJECT), at(LEASELESS_SECONDS)) == {}
    assert take_up(store, "page_a", now=LEASELESS_SECONDS) == ([], [])
    assert list(find_lapsed(list_pages(store, PROJECT), at(LEASELESS_SECONDS + 1))) == ["page_a"]
    assert take_up(store, "page_a", now=LEASELESS_SECONDS + 1) == (["page_a"], [])
    assert status_of(store, "page_a").state == "queued"


def test_a_lapsed_page_is_queued_again_and_its_log_says_why(store: Store) -> None:
    queue(store, "page_a")
    claim_one(store)

    assert take_up(store, "page_a", now=LEASE + 1) == (["page_a"], [])

    status = status_of(store, "page_a")
    assert (status.state, status.attempts, status.lapses) == ("queued", 1, 1)
    assert (status.claim, status.lease) == (None, None)
    assert in_queue(store) == ["page_a"]
    assert log_of(store, "page_a") == ["The worker of attempt 1 has not been heard of"]
    assert claim_one(store, now=LEASE + 2).attempt == 2


def test_a_lapsed_page_keeps_its_place_in_the_queue(store: Store) -> None:
    queue(store, "retry", priority=8, queued=-5)
    queue(store, "waiting", queued=-90)
    before = [info.key for info in store.scan(queue_prefix(PROJECT))]
    claim_one(store)

    take_up(store, "retry", now=LEASE + 1)

    assert [info.key for info in store.scan(queue_prefix(PROJECT))] == before


@pytest.mark.parametrize(
    "meanwhile", [make_released, make_ended, make_uploaded_anew, make_lapsed, make_stolen, renew]
)
def test_a_page_that_has_not_lapsed_any_more_is_left_alone(store: Store, meanwhile: Any) -> None:
    queue(store, "page_a")
    claimed = claim_one(store)
    meanwhile(store, claimed)
    before = everything(store)

    assert take_up(store, "page_a", "page_of_nobody", now=LEASE + 0.5) == ([], [])
    assert everything(store) == before


def lapse(store: Store, times: int) -> tuple[list[str], list[str]]:
    """Let so many workers vanish, one after the other, each with the page."""
    taken: tuple[list[str], list[str]] = ([], [])
    for number in range(times):
        now = number * 2 * LEASE
        claimed = claim_one(store, now=now)
        taken = take_up(store, claimed.page_id, now=now + LEASE + 1)
    return taken


def test_neighbours_of_a_page_that_makes_workers_vanish_do_not_fail_for_it(store: Store) -> None:
    """Claimed ahead, they lapse with it; on the last chance each is claimed without the others."""
    names = [f"page_{letter}" for letter in "abcdef"]
    queue(store, *names)
    deadly, now = "page_c", 0.0
    for _ in range(40):
        now += 2 * LEASE
        take_up(store, *find_lapsed(list_pages(store, PROJECT), at(now)), now=now)
        held: list[Claim] = []
        while claims := claim(store, 4 - len(held), now=now, has_suspect=any(map(suspect, held))):
            held += claims
            if deadly in {c.page_id for c in claims}:
                break  # the worker is gone, with all that it has in hand
            finish(store, *(success(c) for c in held), now=now + 1)
            held = []
    states = {name: status_of(store, name).state for name in names}
    assert states == {name: "failed" if name == deadly else "done" for name in names}


def suspect(claimed: Claim) -> bool:
    return is_suspect(claimed.status)


def test_a_page_whose_holders_vanish_again_and_again_fails(store: Store) -> None:
    queue(store, "page_a")

    assert lapse(store, MAX_LAPSES) == ([], ["page_a"])

    status = status_of(store, "page_a")
    assert (status.state, status.code, status.attempts) == ("failed", "worker_lost", MAX_LAPSES)
    assert status.error is not None
    assert str(MAX_LAPSES) in status.error
    assert status.completed == status.updated
    assert in_queue(store) == []
    assert len(log_of(store, "page_a")) == MAX_LAPSES


def test_one_lapse_less_is_not_enough_to_fail(store: Store) -> None:
    queue(store, "page_a")

    assert lapse(store, MAX_LAPSES - 1) == (["page_a"], [])


def test_an_attempt_that_ends_clears_the_lapses(store: Store) -> None:
    queue(store, "page_a")
    lapse(store, MAX_LAPSES - 1)
    finish(store, failure(claim_one(store, now=5000)))

    assert status_of(store, "page_a").lapses == 0


def test_a_lapsed_page_of_a_cancelled_batch_is_cancelled(store: Store) -> None:
    queue(store, "page_a")
    claim_one(store)
    cancel(store)

    take_up(store, "page_a", now=LEASE + 1)

    assert status_of(store, "page_a").state == "cancelled"
    assert in_queue(store) == []
