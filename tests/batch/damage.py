"""What can be lost or spoiled of a batch's records, a function each, and looks at what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from nimbus_tasks.core import batches
from nimbus_tasks.core.claims import claim_pages
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.keys import batch_key, page_id_for, queue_prefix, status_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.records import queue_entry, read_status
from nimbus_tasks.kv.store import Entry, Store

#: The page that is damaged.
PAGE = "dist/page-004.html"


def page_of(project: Project) -> str:
    return page_id_for(project.project_id, PAGE)


def batch_entry(project: Project, store: Store) -> Entry:
    head = batches.find(store, project.project_id, None)
    entry = store.get(batch_key(project.project_id, head.batch_id))
    assert entry is not None
    return entry


def lose_queue_items(project: Project, store: Store) -> None:
    store.delete_many([info.key for info in store.scan(queue_prefix(project.project_id))])


def queue_twice(project: Project, store: Store) -> None:
    entry = store.get(status_key(project.project_id, page_of(project)))
    assert entry is not None
    status = replace(read_status(entry), priority=9)
    store.put_many([queue_entry(project.project_id, page_of(project), status)])


def queue_a_stranger(project: Project, store: Store) -> None:
    store.put(f"{queue_prefix(project.project_id)}05:1:page_stranger", "{}")


def let_a_claim_lapse(project: Project, store: Store) -> None:
    with store.transaction() as tx:
        claim_pages(tx, project.project_id, 1, lease_seconds=-5, now=utc_now())


def lose_a_status(project: Project, store: Store) -> None:
    store.delete_many([status_key(project.project_id, page_of(project))])


def spoil_a_status(project: Project, store: Store) -> None:
    store.put(status_key(project.project_id, page_of(project)), "{damaged")


def forget_a_page(project: Project, store: Store) -> None:
    head = batches.find(store, project.project_id, None)
    batch = batches.load(store, project.project_id, head.batch_id)
    pages = {page_id: page for page_id, page in batch.pages.items() if page_id != page_of(project)}
    store.put_many([replace(batch, pages=pages).entry()])


def tell_a_lie(project: Project, store: Store) -> None:
    entry = batch_entry(project, store)
    value = {**json.loads(entry.value), "status": "completed"}
    store.put(entry.key, json.dumps(value), {**(entry.metadata or {}), "status": "completed"})


def lose_a_status_of_another_page(project: Project, store: Store) -> None:
    other = page_id_for(project.project_id, "dist/page-007.html")
    store.delete_many([status_key(project.project_id, other)])


def all_values(store: Store) -> dict[str, str]:
    keys = [info.key for info in store.scan("")]
    return {key: entry.value for key, entry in store.get_many(keys).items()}


#: And the kinds of findings that each gives.
DAMAGES: dict[str, tuple[Callable[[Project, Store], None], set[str]]] = {
    "queue items are lost": (lose_queue_items, {"not_in_queue"}),
    "a page is queued twice": (queue_twice, {"stray_queue_item"}),
    "an item of no page": (queue_a_stranger, {"stray_queue_item"}),
    "a claim has lapsed": (let_a_claim_lapse, {"stalled"}),
    "a status is lost": (lose_a_status, {"no_status", "stray_queue_item"}),
    "a status is damaged": (spoil_a_status, {"no_status"}),
    "a page is not listed": (forget_a_page, {"unlisted"}),
    "the record says what is not so": (tell_a_lie, {"drift"}),
}
