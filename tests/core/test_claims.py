"""Claiming pages, holding them, and ending their attempts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.batches import cancelled_batches
from nimbus_tasks.core.claims import (
    Claim,
    Outcome,
    claim_pages,
    finish_pages,
    release_claims,
    renew_claims,
)
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.keys import (
    batch_key,
    last_part,
    logs_key,
    page_key,
    queue_key,
    queue_prefix,
    status_key,
)
from nimbus_tasks.core.lapses import MAX_LAPSES, find_lapsed, is_suspect, take_up_lapsed
from nimbus_tasks.core.leases import LEASELESS_SECONDS
from nimbus_tasks.core.logs import log_entry, read_logs
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.records import PageStatus, queue_entry, read_status
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, KeyValues, Store

PROJECT = "proj_0123456789ab"
BATCH, OTHER = "batch_20240902_134500", "batch_20240903_090000"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
LEASE = 60.0


# --- making pages, and looking at them ---


def at(seconds: float) -> datetime:
    """So many seconds after now."""
    return NOW + timedelta(seconds=seconds)


def iso(seconds: float) -> str:
    """So many seconds after now, as the records write it."""
    return to_iso(at(seconds))


def put_batch(store: KeyValues, batch_id: str = BATCH, intent: str = "run") -> None:
    """Store a batch record of that intent."""
    head = BatchHead(batch_id, PROJECT, iso(-60), 0, "queued", intent)
    store.put_many([Batch(head, {}).entry()])


def cancel(store: KeyValues, batch_id: str = BATCH) -> None:
    """Ask for a batch to be cancelled; its pages are not touched yet."""
    put_batch(store, batch_id, intent="cancel")


def put_status(store: KeyValues, page_id: str, state: str, **fields: Any) -> PageStatus:
    """Store the status of a page."""
    usual = {"batch_id": BATCH, "updated": iso(0), "path": f"{page_id}.html"}
    status = PageStatus(state, **{**usual, **fields})
    store.put_many([status.entry(status_key(PROJECT, page_id))])
    return status


def put_page(store: KeyValues, page_id: str) -> None:
    """Store the content of a page."""
    value = json.dumps({"page_id": page_id, "source_path": f"{page_id}.html", "extraction": {}})
    store.put(page_key(PROJECT, page_id), value, {"sha256": page_id})


def queue(
    store: KeyValues, *page_ids: str, priority: int = 5, queued: float = -30, **fields: Any
) -> None:
    """Queue pages with content, ``queued`` seconds after now."""
    for page_id in page_ids:
        put_page(store, page_id)
        moment = iso(queued)
        status = put_status(
            store, page_id, "queued", priority=priority, queued_at=moment, updated=moment, **fields
        )
        store.put_many([queue_entry(PROJECT, page_id, status)])


def status_of(store: KeyValues, page_id: str) -> PageStatus:
    """The status of a page, which is there."""
    entry = store.get(status_key(PROJECT, page_id))
    assert entry is not None
    return read_status(entry)


def in_queue(store: KeyValues) -> list[str]:
    """The pages in the queue, in the order of its keys."""
    return [last_part(info.key) for info in store.scan(queue_prefix(PROJECT))]


def log_of(store: KeyValues, page_id: str) -> list[str]:
    """The messages in a page's log."""
    return [entry["message"] for entry in read_logs(store.get(logs_key(PROJECT, page_id)))]


def everything(store: KeyValues) -> dict[str, Entry]:
    """All that is stored."""
    kinds = ("batch:", "logs:", "page:", "queue:", "status:", "superseded:")
    return store.get_many([info.key for kind in kinds for info in store.scan(kind)])


# --- what a worker does, in a line ---


def claim(
    store: Store,
    limit: int = 10,
    *,
    now: float = 0,
    batch_id: str | None = None,
    has_suspect: bool = False,
) -> list[Claim]:
    """Claim up to ``limit`` pages, ``now`` seconds after now."""
    with store.transaction() as tx:
        return claim_pages(tx, PROJECT, limit, LEASE, at(now), batch_id, has_suspect=has_suspect)


def claim_one(store: Store, *, now: float = 0) -> Claim:
    """Claim the first page of the queue."""
    (claimed,) = claim(store, 1, now=now)
    return claimed


def success(claimed: Claim, **fields: Any) -> Outcome:
    """An attempt that ended well."""
    entries = [log_entry(iso(1), "done", f"attempt {claimed.attempt} ended well")]
    usual = {"started": iso(0), "completed": iso(1), "duration_ms": 1000, "changes": 2}
    return Outcome(claimed, **{**usual, "confidence": 0.5, "entries": entries, **fields})


def failure(claimed: Claim, **fields: Any) -> Outcome:
    """An attempt that failed."""
    entries = [log_entry(iso(1), "read", f"attempt {claimed.attempt} failed", level="error")]
    usual = {"error": "no title", "code": "bad_html", "changes": 0, "confidence": None}
    return success(claimed, **{**usual, "entries": entries, **fields})


def finish(store: Store, *outcomes: Outcome, now: float = 1) -> list[Outcome]:
    """Write outcomes; returns those that do not count."""
    with store.transaction() as tx:
        return finish_pages(tx, PROJECT, outcomes, at(now))[1]


def renew(
    store: Store,
    claimed: Claim,
    step: str | None = None,
    progress: float | None = 0,
    now: float = 1,
) -> list[str]:
    """Renew a claim; returns it if it is not ours any more."""
    with store.transaction() as tx:
        return renew_claims(
            tx, PROJECT, {claimed.page_id: (claimed, step, progress)}, LEASE, at(now)
        )


def release(store: Store, *claims: Claim, now: float = 1) -> list[str]:
    """Give claims back."""
    with store.transaction() as tx:
        return release_claims(tx, PROJECT, claims, at(now))


def take_up(store: Store, *page_ids: str, now: float) -> tuple[list[str], list[str]]:
    """Take lapsed pages up: those that are queued again, and those that fail."""
    with store.transaction() as tx:
        return take_up_lapsed(tx, PROJECT, page_ids, at(now))


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
    queue(store, "page_a", batch_id=OTHER, priority=10)
    queue(store, "page_b", "page_c")
    queue(store, "page_d", batch_id=OTHER)

    assert [one.page_id for one in claim(store, batch_id=BATCH)] == ["page_b", "page_c"]
    assert in_queue(store) == ["page_a", "page_d"]
    assert claim(store, batch_id="batch_of_nobody") == []


def test_a_worker_of_one_batch_finds_its_pages_behind_many_of_others(store: Store) -> None:
    queue(store, *(f"other_{number}" for number in range(5)), batch_id=OTHER, priority=10)
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
    put_batch(store, OTHER)
    queue(store, "page_a", "page_b", priority=8)
    queue(store, "page_c", batch_id=OTHER)
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


# --- finishing ---


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


def make_stolen(store: Store, claimed: Claim) -> None:
    take_up(store, claimed.page_id, now=LEASE + 1)
    claim_one(store, now=LEASE + 2)


def make_lapsed(store: Store, claimed: Claim) -> None:
    take_up(store, claimed.page_id, now=LEASE + 1)


def make_released(store: Store, claimed: Claim) -> None:
    release(store, claimed)


def make_ended(store: Store, claimed: Claim) -> None:
    finish(store, success(claimed))


def make_uploaded_anew(store: Store, claimed: Claim) -> None:
    queue(store, claimed.page_id, batch_id=OTHER, queued=5)


def make_lost(store: Store, claimed: Claim) -> None:
    store.delete_many([status_key(PROJECT, claimed.page_id)])


def make_damaged(store: Store, claimed: Claim) -> None:
    store.put(status_key(PROJECT, claimed.page_id), "{damaged")


TAKEN_AWAY = [
    make_stolen,
    make_lapsed,
    make_released,
    make_ended,
    make_uploaded_anew,
    make_lost,
    make_damaged,
]


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


# --- holders that were not heard of again ---


def test_a_page_has_lapsed_when_its_lease_is_over(store: Store) -> None:
    queue(store, "page_a", "page_b")
    claim(store)

    assert find_lapsed(list_pages(store, PROJECT), at(LEASE)) == {}
    assert list(find_lapsed(list_pages(store, PROJECT), at(LEASE + 0.001))) == ["page_a", "page_b"]


def test_lapsed_pages_can_be_looked_for_in_one_batch(store: Store) -> None:
    queue(store, "page_a")
    queue(store, "page_b", batch_id=OTHER)
    claim(store)

    assert find_lapsed(list_pages(store, PROJECT, OTHER), at(LEASE + 1)) == {"page_b": OTHER}


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


# --- all of it, in any order ---


class UndoError(Exception):
    """Raised to undo what an example has written."""


@contextmanager
def undone(store: Store) -> Iterator[None]:
    """What is written meanwhile leaves nothing behind, for one example of many."""
    with suppress(UndoError), store.transaction():
        yield
        raise UndoError


ACTIONS = ["claim", "succeed", "fail", "try again", "renew", "release", "lapse", "cancel", "retry"]


@settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50)), max_size=25))
def test_whatever_workers_do_a_page_is_queued_once_or_not_and_an_attempt_has_one_outcome(
    store: Store, actions: list[tuple[str, int]]
) -> None:
    with undone(store):
        put_batch(store, OTHER)
        put_batch(store)
        queue(store, "page_a", "page_b")
        queue(store, "page_c", batch_id=OTHER)
        claims: list[Claim] = []
        counted: list[tuple[str, int]] = []
        now = 0.0
        for action, which in actions:
            now += 20
            if action == "claim":
                claims += claim(store, which % 3, now=now)
            elif action == "cancel":
                cancel(store)
            elif action == "lapse":
                take_up(store, *find_lapsed(list_pages(store, PROJECT), at(now)), now=now)
            elif action == "retry":
                _retry_failed(store, now)
            elif claims:
                held = claims[which % len(claims)]
                counted += _act(store, action, held, now)
            _check_queue(store)
        assert len(counted) == len(set(counted))


def _act(store: Store, action: str, held: Claim, now: float) -> list[tuple[str, int]]:
    """What a holder does; returns the attempt if an outcome of it has counted."""
    if action == "renew":
        renew(store, held, now=now)
        return []
    if action == "release":
        release(store, held, now=now)
        return []
    outcome = success(held) if action == "succeed" else failure(held)
    outcome = outcome._replace(completed=iso(now), try_again=action == "try again")
    refused = finish(store, outcome, now=now)
    return [] if refused else [(str(held.status.claim), held.attempt)]


def _retry_failed(store: Store, now: float) -> None:
    for page_id in ("page_a", "page_b", "page_c"):
        status = status_of(store, page_id)
        if status.state == "failed":
            queued = status.as_queued(8, iso(now))
            store.put_many([queued.entry(status_key(PROJECT, page_id))])
            store.put_many([queue_entry(PROJECT, page_id, queued)])


def _check_queue(store: Store) -> None:
    """A queued page has one item, where it says; any other page has none."""
    keys = [info.key for info in store.scan(queue_prefix(PROJECT))]
    expected = [
        status_of(store, page_id).queue_key(PROJECT, page_id)
        for page_id in ("page_a", "page_b", "page_c")
    ]
    assert sorted(keys) == sorted(key for key in expected if key is not None)
