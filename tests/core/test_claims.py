"""Claiming pages: in which order, past what is in the queue and should not be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from nimbus_tasks.core.batches import cancelled_batches
from nimbus_tasks.core.keys import batch_key, page_key, queue_key, queue_prefix, status_key
from nimbus_tasks.core.records import queue_entry
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, Store
from tests.core.claiming import (
    LEASE,
    cancel,
    claim,
    claim_one,
    in_queue,
    iso,
    put_page,
    put_status,
    queue,
    status_of,
)
from tests.core.stored_batches import BATCH, LATER, PROJECT, put_batch

# --- the order of claiming ---


def test_pages_are_claimed_by_priority_and_then_by_age(store: Store) -> None:
    queue(store, "new_old", queued=-50)
    queue(store, "new_young", queued=-10)
    queue(store, "retry_young", priority=8, queued=-5)
    queue(store, "retry_old", priority=8, queued=-20)
    queue(store, "urgent", priority=10, queued=-1)
    queue(store, "last", priority=1, queued=-90)

    claimed = [one.page_id for one in claim(store)]

    assert claimed == ["urgent", "retry_old", "retry_young", "new_old", "new_young", "last"]


def test_the_order_is_the_same_where_they_are_claimed_one_at_a_time(store: Store) -> None:
    queue(store, "page_b", queued=-10)
    queue(store, "page_c", priority=8)
    queue(store, "page_a", queued=-20)

    assert [claim_one(store).page_id for _ in range(3)] == ["page_c", "page_a", "page_b"]


def test_no_more_pages_are_claimed_than_asked_for(store: Store) -> None:
    queue(store, "page_a", queued=-3)
    queue(store, "page_b", queued=-2)
    queue(store, "page_c", queued=-1)

    assert [one.page_id for one in claim(store, 2)] == ["page_a", "page_b"]
    assert in_queue(store) == ["page_c"]


@pytest.mark.parametrize("limit", [0, 1, 10])
def test_an_empty_queue_has_nothing_to_claim(store: Store, limit: int) -> None:
    assert claim(store, limit) == []


def test_a_claim_has_a_number_a_token_a_lease_and_the_page(store: Store) -> None:
    queue(store, "page_a", attempts=2)

    claimed = claim_one(store)

    assert claimed.attempt == 3
    assert claimed.page == store.get(page_key(PROJECT, "page_a"))
    status = status_of(store, "page_a")
    assert status.claim == claimed.status.claim
    assert status.claim is not None
    assert (status.state, status.attempts, status.step, status.progress) == (
        "processing",
        3,
        None,
        0,
    )
    assert (status.started, status.updated, status.lease) == (iso(0), iso(0), iso(LEASE))
    assert (status.path, status.batch_id) == ("page_a.html", BATCH)
    assert in_queue(store) == []


def test_a_claimed_page_cannot_be_claimed_again(store: Store) -> None:
    queue(store, "page_a")
    claim_one(store)

    assert claim(store) == []


def test_no_two_claims_have_the_same_token(store: Store) -> None:
    queue(store, *(f"page_{number}" for number in range(20)))

    assert len({one.status.claim for one in claim(store, 20)}) == 20


def test_a_page_without_content_is_claimed_all_the_same_and_says_so(store: Store) -> None:
    queue(store, "page_a")
    store.delete_many([page_key(PROJECT, "page_a")])

    assert claim_one(store).page is None


def test_fields_of_others_survive_a_claim(store: Store) -> None:
    queue(store, "page_a", extra={"owner": "ann"})

    claim_one(store)

    assert status_of(store, "page_a").extra == {"owner": "ann"}


def test_a_worker_of_one_batch_claims_its_pages_and_no_others(store: Store) -> None:
    queue(store, "page_a", batch_id=LATER, priority=10)
    queue(store, "page_b", "page_c")
    queue(store, "page_d", batch_id=LATER)

    assert [one.page_id for one in claim(store, batch_id=BATCH)] == ["page_b", "page_c"]
    assert in_queue(store) == ["page_a", "page_d"]
    assert claim(store, batch_id="batch_of_nobody") == []


def test_a_worker_of_one_batch_finds_its_pages_behind_many_of_others(store: Store) -> None:
    queue(store, *(f"other_{number}" for number in range(5)), batch_id=LATER, priority=10)
    queue(store, "page_a", "page_b", "page_c")

    assert [one.page_id for one in claim(store, 2, batch_id=BATCH)] == ["page_a", "page_b"]
    assert len(in_queue(store)) == 6


# --- what is in the queue and should not be ---


def test_items_that_no_queued_page_stands_behind_are_removed_on_the_way(store: Store) -> None:
    queue(store, "gone", "ended", "in_flight", "cancelled", "page_a")
    store.delete_many([status_key(PROJECT, "gone")])
    for page_id, state in (("ended", "done"), ("in_flight", "processing")):
        put_status(store, page_id, state)
    put_status(store, "cancelled", "cancelled")
    before = {name: status_of(store, name) for name in ("ended", "in_flight", "cancelled")}

    assert [one.page_id for one in claim(store)] == ["page_a"]
    assert in_queue(store) == []
    assert {name: status_of(store, name) for name in before} == before


def test_items_that_are_removed_do_not_count_as_claimed(store: Store) -> None:
    queue(store, *(f"stray_{number}" for number in range(5)), queued=-90)
    for number in range(5):
        put_status(store, f"stray_{number}", "done")
    queue(store, "page_a", "page_b")

    assert [one.page_id for one in claim(store, 2)] == ["page_a", "page_b"]


def test_a_page_with_two_items_is_claimed_once_at_the_place_that_it_names(store: Store) -> None:
    queue(store, "page_a", queued=-90)
    old_item = store.get(queue_key(PROJECT, "page_a", 5, iso(-90)))
    assert old_item is not None
    queue(store, "page_b", queued=-60)
    queue(store, "page_a", queued=-30)

    assert [one.page_id for one in claim(store)] == ["page_b", "page_a"]
    assert in_queue(store) == []


@pytest.mark.parametrize("value", ["{", "[]", "null", ""])
def test_a_damaged_queue_item_is_as_good_as_any_since_its_key_says_all(
    store: Store, value: str
) -> None:
    queue(store, "page_a")
    store.put(queue_key(PROJECT, "page_a", 5, iso(-30)), value)

    assert [one.page_id for one in claim(store)] == ["page_a"]


@pytest.mark.parametrize("page_id", ["", "../../etc", "a b", "\x1b[2J", "x" * 300])
def test_an_item_of_a_hostile_id_is_removed_and_hurts_nobody(store: Store, page_id: str) -> None:
    store.put(f"{queue_prefix(PROJECT)}00:0:{page_id}", "{}")
    queue(store, "page_a")

    assert [one.page_id for one in claim(store)] == ["page_a"]
    assert in_queue(store) == []


def test_a_queued_page_of_the_wire_contract_is_claimed_though_it_does_not_name_its_place(
    store: Store,
) -> None:
    """A Worker queues pages with the contract's fields; ``queued`` in the status is our own."""
    put_page(store, "page_a")
    value = {"status": "queued", "batch_id": BATCH, "updated": iso(0), "attempts": 0}
    store.put(status_key(PROJECT, "page_a"), json.dumps(value))
    item = {"page_id": "page_a", "batch_id": BATCH, "priority": 5, "queued_at": iso(0)}
    store.put(queue_key(PROJECT, "page_a", 5, iso(0)), json.dumps(item), {"batch_id": BATCH})

    assert [one.page_id for one in claim(store)] == ["page_a"]


def test_a_worker_of_one_batch_claims_its_pages_whose_item_has_no_metadata(store: Store) -> None:
    queue(store, "page_a")
    key = queue_key(PROJECT, "page_a", 5, iso(-30))
    item = store.get(key)
    assert item is not None
    store.put_many([item._replace(metadata=None)])

    assert [one.page_id for one in claim(store, batch_id=BATCH)] == ["page_a"]


def test_a_page_whose_record_is_damaged_is_not_left_queued_and_in_no_queue(store: Store) -> None:
    queue(store, "page_a")
    metadata = status_of(store, "page_a").to_metadata()
    store.put(status_key(PROJECT, "page_a"), "{damaged", metadata)

    claim(store)

    info = store.head(status_key(PROJECT, "page_a"))
    assert info is not None
    assert in_queue(store) or (info.metadata or {}).get("status") != "queued"


class Behind(SqliteStore):
    """A store of which one key is listed, and not to be read yet."""

    lag_seconds = 60.0
    unseen = ""

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        return super().get_many(key for key in keys if key != self.unseen)

    def get_values(self, keys: Iterable[str]) -> dict[str, str]:
        return super().get_values(key for key in keys if key != self.unseen)


def test_a_record_that_is_listed_and_cannot_be_read_yet_is_not_taken_for_damaged(
    tmp_path: Path,
) -> None:
    store = Behind(tmp_path / "kv.sqlite3", create=True)
    with store:
        put_batch(store)
        queue(store, "page_a")
        stored = store.get(status_key(PROJECT, "page_a"))
        store.unseen = status_key(PROJECT, "page_a")
        assert claim(store) == []
        store.unseen = ""
        assert store.get(status_key(PROJECT, "page_a")) == stored
        assert len(in_queue(store)) == 1


def test_content_that_cannot_be_read_yet_is_waited_for_as_long_as_reads_lag(
    tmp_path: Path,
) -> None:
    """After that it is missing, and its page is to fail for it."""
    store = Behind(tmp_path / "kv.sqlite3", create=True)
    with store:
        put_batch(store)
        queue(store, "page_a", queued=-30)
        store.unseen = page_key(PROJECT, "page_a")
        assert claim(store) == []
        assert in_queue(store) == ["page_a"]
        queue(store, "page_b", queued=-90)
        store.unseen = page_key(PROJECT, "page_b")
        assert {one.page_id: one.page is None for one in claim(store)} == {
            "page_a": False,
            "page_b": True,
        }


def test_a_page_of_several_items_is_claimed_once(store: Store) -> None:
    """One of the seed's names no place of its own: each item is its."""
    put_batch(store)
    put_page(store, "page_a")
    status = put_status(store, "page_a", "queued")
    for priority in (5, 8):
        place = status.changed(priority=priority, queued_at=iso(-30))
        store.put_many([queue_entry(PROJECT, "page_a", place)])
    assert [one.attempt for one in claim(store)] == [1]
    assert in_queue(store) == []


# --- batches that have been cancelled ---


def test_queued_pages_of_a_cancelled_batch_become_cancelled(store: Store) -> None:
    put_batch(store, LATER)
    queue(store, "page_a", "page_b", priority=8)
    queue(store, "page_c", batch_id=LATER)
    cancel(store)

    assert [one.page_id for one in claim(store, 1)] == ["page_c"]
    assert [status_of(store, page).state for page in ("page_a", "page_b")] == ["cancelled"] * 2
    assert status_of(store, "page_a").attempts == 0
    assert in_queue(store) == []


def test_a_cancelled_batch_is_one_for_which_a_cancel_was_asked(store: Store) -> None:
    put_batch(store, "batch_run")
    put_batch(store, "batch_retry", intent="retry")
    cancel(store, "batch_cancel")
    everyone = ["batch_run", "batch_retry", "batch_cancel", "batch_gone", ""]

    assert cancelled_batches(store, PROJECT, everyone) == {"batch_cancel"}


def test_a_cancel_holds_though_a_client_of_the_seed_has_dropped_the_metadata(store: Store) -> None:
    queue(store, "page_a")
    cancel(store)
    entry = store.get(batch_key(PROJECT, BATCH))
    assert entry is not None
    store.put_many([entry._replace(metadata=None)])

    assert claim(store) == []
