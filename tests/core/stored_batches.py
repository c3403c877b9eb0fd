"""Batches and their pages, made or stored in a line with only what a test is about spelled out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from nimbus_tasks.core.batch_records import Batch, BatchHead
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.keys import status_key, superseded_key
from nimbus_tasks.core.lifecycle import PAGE_STATES, Tally
from nimbus_tasks.core.records import PageStatus
from nimbus_tasks.kv.store import KeyValues, Store

PROJECT = "proj_0123456789ab"
BATCH, LATER = "batch_20240902_134500", "batch_20240903_090000"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
CREATED = "2024-09-02T13:45:00.000000Z"
#: As JavaScript's toISOString() writes times.
JS = "2024-09-02T13:45:00.250Z"


class UndoError(Exception):
    """Raised to undo what an example has written."""


@contextmanager
def undone(store: Store) -> Iterator[KeyValues]:
    """A transaction that leaves nothing behind, for one example of many."""
    with suppress(UndoError), store.transaction() as tx:
        yield tx
        raise UndoError


def ago(seconds: float) -> str:
    """So many seconds before now, as the records write it."""
    return to_iso(NOW - timedelta(seconds=seconds))


def a_head(**fields: Any) -> BatchHead:
    """A head, with only what a test is about spelled out."""
    usual = {"created": CREATED, "page_count": 2, "status": "queued", "intent": "run"}
    return BatchHead(batch_id=BATCH, project_id=PROJECT, **{**usual, **fields})


def a_batch(*page_ids: str, **fields: Any) -> Batch:
    """A batch of those pages."""
    pages = {page_id: {"status": "queued", "uploaded": JS} for page_id in page_ids}
    return Batch(a_head(page_count=len(pages), **fields), pages)


def in_states(batch: Batch, tally: Tally, status: str, **states: str) -> Batch:
    """The batch with a snapshot: what it is in, and its pages."""
    return batch.with_snapshot(tally, status, batch.pages_in(states.items()))


def put_batch(store: KeyValues, batch_id: str = BATCH, *page_ids: str, **fields: Any) -> BatchHead:
    """Store a batch that lists those pages."""
    pages = {page_id: {"status": "uploaded", "uploaded": ago(60)} for page_id in page_ids}
    usual = {"created": ago(60), "page_count": len(pages), "status": "queued", "intent": "run"}
    head = BatchHead(batch_id, PROJECT, **{**usual, **fields})
    store.put_many([Batch(head, pages).entry()])
    return head


def put_page(
    store: KeyValues, page_id: str, state: str, batch_id: str = BATCH, **fields: Any
) -> None:
    """Store the status of a page."""
    status = PageStatus(state, batch_id, ago(0), **fields)
    store.put_many([status.entry(status_key(PROJECT, page_id))])


def put_superseded(store: KeyValues, page_id: str, state: str, batch_id: str = BATCH) -> None:
    """Store what a batch keeps of a page that a later batch took over."""
    status = PageStatus(state, batch_id, ago(0), superseded_by=LATER)
    store.put_many([status.entry(superseded_key(PROJECT, batch_id, page_id))])


def put_raw(store: KeyValues, key: str, value: object, metadata: Any = None) -> None:
    """Store what somebody else might have written."""
    store.put(key, value if isinstance(value, str) else json.dumps(value), metadata)


def counts(**pages: int) -> dict[str, int]:
    """Counts by state, all six of them."""
    return dict.fromkeys(PAGE_STATES, 0) | pages
