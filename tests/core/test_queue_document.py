"""The queue in one document: a store like any other, with items in the place of keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.keys import queue_prefix
from nimbus_tasks.core.queue_document import DocumentQueueStore
from nimbus_tasks.core.records import PageStatus, queue_entry
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, Store
from tests.kv.store_suite import IsolatedStoreSuite, Reopen

PROJECT, BATCH = "proj_0123456789ab", "batch_20261124_081302"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with DocumentQueueStore(SqliteStore(path, create=True), PROJECT) as opened:
        yield opened


class TestSuite(IsolatedStoreSuite):
    """Whatever is no queue item is the real store's affair."""

    @pytest.fixture
    def reopen(self, path: Path, store: Store) -> Iterator[Reopen]:
        handles: list[Store] = []

        def another() -> Store:
            handles.append(DocumentQueueStore(SqliteStore(path), PROJECT))
            return handles[-1]

        yield another
        for handle in handles:
            with suppress(StoreError, OSError):
                handle.close()


def item(page_id: str, priority: int, second: int) -> Entry:
    moment = f"2026-11-24T08:13:{second:02d}.000000Z"
    status = PageStatus("queued", BATCH, moment, priority=priority, queued_at=moment)
    return queue_entry(PROJECT, page_id, status)


def document(store: Store) -> list[str]:
    entry = store.get(f"queue:{PROJECT}")
    assert entry is not None
    return [one["page_id"] for one in json.loads(entry.value)["items"]]


def listed(store: Store, limit: int | None = None) -> list[str]:
    found = store.scan(queue_prefix(PROJECT), limit=limit)
    return [(info.metadata or {})["page_id"] for info in found]


def test_items_are_listed_in_the_order_of_claiming(store: Store) -> None:
    store.put_many([item("late", 5, 9), item("retry", 8, 30), item("early", 5, 1)])
    assert document(store) == ["late", "retry", "early"]
    assert listed(store) == ["retry", "early", "late"]
    assert listed(store, limit=2) == ["retry", "early"]


def test_an_item_is_read_and_deleted_by_the_key_that_it_would_have(store: Store) -> None:
    one, other = item("one", 5, 1), item("other", 5, 2)
    store.put_many([one, other])
    assert store.get(one.key) == one
    head = store.head(one.key)
    assert head is not None
    assert head.metadata == one.metadata
    store.delete_many([one.key, "queue:another:key"])
    assert store.get(one.key) is None
    assert (document(store), listed(store)) == (["other"], ["other"])


def test_a_page_is_in_the_document_once(store: Store) -> None:
    store.put_many([item("one", 5, 1), item("other", 5, 2)])
    store.put_many([item("one", 8, 3)])
    assert document(store) == ["other", "one"]


def test_what_is_unknown_in_the_document_is_carried_along(store: Store) -> None:
    strange = [5, {"page_id": "../x"}, {"page_id": "theirs", "note": "n", "priority": "high"}]
    store.put(f"queue:{PROJECT}", json.dumps({"items": strange, "version": 3}))
    assert listed(store) == ["theirs"]
    store.put_many([item("ours", 5, 1)])
    store.delete_many([item("ours", 5, 1).key])
    entry = store.get(f"queue:{PROJECT}")
    assert entry is not None
    assert json.loads(entry.value) == {"items": strange, "version": 3}


def test_a_transaction_that_fails_leaves_the_document_as_it_was(store: Store) -> None:
    store.put_many([item("one", 5, 1)])
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:  # noqa: PT012 - it ends so
        tx.put_many([item("other", 5, 2)])
        raise ZeroDivisionError
    assert document(store) == ["one"]
