"""The snapshot in a batch record, and where it is not to be written."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from nimbus_tasks.core import batches
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import batch_key, status_key
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import Store
from tests.core.stored_batches import (
    BATCH,
    PROJECT,
    ago,
    counts,
    put_batch,
    put_page,
    put_superseded,
)


def test_saving_rebuilds_what_the_record_says_and_returns_the_status(store: Store) -> None:
    put_batch(store, BATCH, "page_a", "page_b", "page_c", status="queued")
    put_page(store, "page_a", "done", duration_ms=40)
    put_page(store, "page_b", "failed")
    put_superseded(store, "page_c", "cancelled")

    assert batches.save_snapshot(store, PROJECT, BATCH) == "partially_completed"

    batch = batches.load(store, PROJECT, BATCH)
    assert batch.head.counts == counts(done=1, failed=1, cancelled=1)
    assert (batch.head.status, batch.head.average_time_ms) == ("partially_completed", 40)
    assert [page["status"] for page in batch.pages.values()] == ["done", "failed", "cancelled"]
    assert batches.heads(store, PROJECT) == [batch.head]


def test_saving_twice_changes_nothing(store: Store) -> None:
    put_batch(store, BATCH, "page_a", "page_b")
    put_page(store, "page_a", "done")
    batches.save_snapshot(store, PROJECT, BATCH)
    once = store.get(batch_key(PROJECT, BATCH))

    batches.save_snapshot(store, PROJECT, BATCH)

    assert store.get(batch_key(PROJECT, BATCH)) == once


def test_saving_a_batch_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        batches.save_snapshot(store, PROJECT, BATCH)


def test_the_pages_there_are_those_with_a_status_listed_or_not(store: Store) -> None:
    put_batch(store, BATCH, "page_listed", "page_announced", "page_taken_over")
    put_page(store, "page_listed", "queued")
    put_page(store, "page_unlisted", "queued", uploaded=ago(5))
    put_superseded(store, "page_taken_over", "done")

    batch = batches.with_pages_there(store, batches.load(store, PROJECT, BATCH))

    assert batch.pages.keys() == {"page_listed", "page_unlisted", "page_taken_over"}
    assert batch.pages["page_listed"] == {"status": "uploaded", "uploaded": ago(60)}
    assert batch.pages["page_unlisted"]["uploaded"] == ago(5)
    assert batch.head.page_count == 3


@pytest.mark.parametrize("lag", [0.0, 60.0])
def test_where_reads_lag_nobody_writes_that_a_batch_is_being_uploaded(
    store: Store, lag: float
) -> None:
    """It may have been read before its upload ended; written again, it would be for ever."""
    put_batch(store, BATCH, "page_1", intent="upload")
    put_page(store, "page_1", "processing")
    before = store.get(batch_key(PROJECT, BATCH))
    store.lag_seconds = lag
    assert batches.save_snapshot(store, PROJECT, BATCH) == "uploading"
    assert (store.get(batch_key(PROJECT, BATCH)) == before) == bool(lag)


@pytest.mark.parametrize("lag", [0.0, 60.0])
@pytest.mark.parametrize("save", ["save_snapshot", "save_begun"])
@pytest.mark.parametrize(
    ("intent", "state"), [("run", "cancelled"), ("cancel", "queued"), ("cancel", "cancelled")]
)
def test_where_reads_lag_a_record_of_before_a_cancel_or_a_retry_is_not_written_again(
    store: Store, lag: float, save: str, intent: str, state: str
) -> None:
    """The pages tell of what the record does not: it may be an old one."""
    put_batch(store, BATCH, "page_1", "page_2", intent=intent, status="queued")
    for page_id, its in (("page_1", state), ("page_2", "processing")):
        status = PageStatus(its, BATCH, to_iso(datetime.now(timezone.utc)))
        store.put_many([status.entry(status_key(PROJECT, page_id))])
    before = store.get(batch_key(PROJECT, BATCH))
    store.lag_seconds = lag
    if save == "save_snapshot" or not batches.save_begun(store, PROJECT, BATCH, ["page_2"]):
        batches.save_snapshot(store, PROJECT, BATCH)
    is_contrary = (intent, state) != ("cancel", "cancelled")
    assert (store.get(batch_key(PROJECT, BATCH)) == before) == (bool(lag) and is_contrary)


def test_where_reads_lag_pages_that_were_cancelled_long_ago_hold_nothing_up(store: Store) -> None:
    put_batch(store, BATCH, "page_1", status="processing")
    status = PageStatus("cancelled", BATCH, to_iso(datetime.now(timezone.utc) - timedelta(hours=1)))
    store.put_many([status.entry(status_key(PROJECT, "page_1"))])
    store.lag_seconds = 60.0
    assert batches.save_snapshot(store, PROJECT, BATCH) == "cancelled"
    assert batches.load(store, PROJECT, BATCH).head.status == "cancelled"
