"""The queue: an item a queued page, sorting in the order of claiming.

An item only says where to look: whether its page is to be worked on, the page's status says. So an
item too many is passed over by whoever claims, and one that is missing is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import datetime
from typing import Any

from nimbus_tasks.core.clock import iso_after, now_iso
from nimbus_tasks.core.keys import (
    digits_of,
    is_queue_item,
    last_part,
    queue_key,
    queue_prefix,
)
from nimbus_tasks.core.pages import PageInfo, read_statuses, status_entries
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, PageStatus, queue_entry
from nimbus_tasks.core.wire import UnreadableRecordError, load_object
from nimbus_tasks.kv.store import Entry, KeyInfo, KeyValues


def first_items(
    tx: KeyValues, project_id: str, limit: int, batch_id: str | None, but: Set[str] = frozenset()
) -> list[str]:
    """The keys of the first ``limit`` items, of all batches or of one, without those in ``but``."""
    most = limit + len(but) if batch_id is None else None
    while True:
        keys, seen = [], 0
        for info in tx.scan(queue_prefix(project_id), limit=most):
            seen += 1
            if not is_queue_item(info.key) or info.key in but:
                continue
            if batch_id is None or item_batch(tx, info) == batch_id:
                keys.append(info.key)
                if len(keys) == limit:
                    return keys
        if most is None or seen < most:
            return keys
        most *= 4  # keys that are no items may stand before the others


def queue_items(store: KeyValues, project_id: str) -> Iterator[KeyInfo]:
    """The items of the project's queue, in the order of claiming."""
    return (info for info in store.scan(queue_prefix(project_id)) if is_queue_item(info.key))


def count_items(store: KeyValues, project_id: str, batch_id: str | None) -> int:
    """How many items the queue has: all batches', or those of one."""
    if batch_id is None:
        listed = store.scan_many(queue_prefix(project_id))
        return sum(sum(map(is_queue_item, keys)) for keys, _ in listed)
    return sum(item_batch(store, info) == batch_id for info in queue_items(store, project_id))


def is_newer(key: str, moment: str) -> bool:
    """Whether a queue item was made after that moment, as its key tells it."""
    return key.split(":")[-2] > digits_of(moment)


def item_batch(tx: KeyValues, info: KeyInfo) -> object:
    """The batch of a queue item, from its value where its writer left no metadata."""
    if info.metadata is not None:
        return info.metadata.get("batch_id")
    return read_item(tx.get(info.key)).get("batch_id")


def read_item(entry: Entry | None) -> Mapping[str, Any]:
    """What a queue item says; nothing where it cannot be read."""
    try:
        return {} if entry is None else load_object(entry)
    except UnreadableRecordError:
        return {}


def find_unqueued(
    store: KeyValues, project_id: str, pages: Iterable[PageInfo], now: datetime
) -> dict[str, PageStatus]:
    """Those of the pages that are queued and in no queue: nobody would ever claim them."""
    # Where reads lag, the item of a page that was queued just now may not be seen yet.
    before = iso_after(-store.lag_seconds, start=now)
    items = {info.key for info in queue_items(store, project_id)}
    in_queue = {last_part(key) for key in items}

    def has_item(page: PageInfo) -> bool:
        place = _place(project_id, page)
        # A writer that does not know our place in the record names none: any item is its own.
        return page.page_id in in_queue if place is None else place in items

    suspects = [
        page.page_id
        for page in pages
        if page.status["status"] == "queued"
        and not (store.lag_seconds and (page.status.get("updated") or "") > before)
        and not has_item(page)
    ]
    if suspects and store.may_hide(len(suspects)):
        return {}  # each of them may have a message that no scan shows
    statuses = read_statuses(store, project_id, suspects)
    return {page_id: status for page_id, status in statuses.items() if status.state == "queued"}


def put_back(tx: KeyValues, project_id: str, lost: Mapping[str, PageStatus]) -> None:
    """Queue the pages that :func:`find_unqueued` has found."""
    placed = {i: status for i, status in lost.items() if status.queued_at is not None}
    if not placed or tx.hidden_items() is None:
        put_in_queue(tx, project_id, lost)
        return
    # With messages a page may have its own after all, and be at work by now: its status is left.
    tx.put_many(queue_entry(project_id, page_id, one) for page_id, one in placed.items())
    put_in_queue(tx, project_id, {i: lost[i] for i in lost.keys() - placed.keys()})


def put_in_queue(tx: KeyValues, project_id: str, pages: Mapping[str, PageStatus]) -> None:
    """Queue pages at the place that their records name, or else behind the others."""
    now = now_iso()
    queued = {}
    for page_id, status in pages.items():
        priority, queued_at = status.priority or NEW_PAGE_PRIORITY, status.queued_at or now
        queued[page_id] = status.as_queued(priority, queued_at).changed(updated=now)
    tx.put_many(status_entries(project_id, queued))
    tx.put_many(queue_entry(project_id, page_id, one) for page_id, one in queued.items())


def _place(project_id: str, page: PageInfo) -> str | None:
    queued_at = page.status.get("queued_at")
    if queued_at is None:
        return None
    priority = page.status.get("priority") or NEW_PAGE_PRIORITY
    return queue_key(project_id, page.page_id, priority, queued_at)
