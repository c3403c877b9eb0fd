"""``"queue": "document"``: the queue as one document, ``queue:{project}``, as the seed has it.

Inside, the queue is an item a key; this store in front of the real one reads and writes the items
of the document in their place. Whoever else rewrites the document at the same moment can lose items
of ours, which KV cannot prevent: a worker finds the pages that are queued and in no queue, and puts
them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from nimbus_tasks.core.keys import is_id, queue_key, queue_prefix
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY, priority_field
from nimbus_tasks.core.wire import (
    UnreadableRecordError,
    dump_json,
    load_object,
    text_field,
)
from nimbus_tasks.kv.store import Entry, KeyInfo, KeyValues, Store

Item = Mapping[str, Any]


class DocumentQueueStore(Store):
    """``inner`` with the queue of one project in a document. Used as any other store."""

    def __init__(self, inner: Store, project_id: str) -> None:
        self._inner = inner
        self._project_id = project_id
        self._prefix = queue_prefix(project_id)
        self._key = self._prefix.rstrip(":")
        self._parsed: tuple[str, dict[str, Any]] = ("", {"items": []})

    @property
    def lag_seconds(self) -> float:  # type: ignore[override]  # the real store's
        return self._inner.lag_seconds

    @property
    def write_interval(self) -> float:
        return self._inner.write_interval

    @property
    def read_pause(self) -> float:
        return self._inner.read_pause

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        wanted = list(keys)
        found = self._inner.get_many(key for key in wanted if not self._is_item(key))
        if any(map(self._is_item, wanted)):
            items = self._items()
            found |= {key: _entry(key, items[key]) for key in wanted if key in items}
        return found

    def put_many(self, entries: Iterable[Entry]) -> None:
        others: list[Entry] = []
        items: list[Item] = []
        for entry in entries:
            if self._is_item(entry.key):
                items.append(load_object(entry))
            else:
                others.append(entry)
        with self.transaction():
            self._inner.put_many(others)
            if items:
                # An item of a page takes the place of an older one, as it does in the seed.
                pages = {item["page_id"] for item in items}
                self._rewrite(lambda item: str(item.get("page_id")) not in pages, items)

    def delete_many(self, keys: Iterable[str]) -> None:
        doomed = set(keys)
        items = set(filter(self._is_item, doomed))
        with self.transaction():
            self._inner.delete_many(doomed - items)
            if items:
                self._rewrite(lambda item: self._key_of(item) not in items, [])

    def scan(self, prefix: str, *, limit: int | None = None) -> Iterator[KeyInfo]:
        if not self._is_item(prefix):
            yield from self._inner.scan(prefix, limit=limit)
            return
        listed = sorted((k, i) for k, i in self._items().items() if k.startswith(prefix))
        yield from (_info(key, item) for key, item in islice(listed, limit))

    def head(self, key: str) -> KeyInfo | None:
        return super().head(key) if self._is_item(key) else self._inner.head(key)

    def prefetch(self, prefix: str) -> None:
        self._inner.prefetch(prefix)

    @contextmanager
    def transaction(self) -> Iterator[KeyValues]:
        with self._inner.transaction():
            yield self

    @contextmanager
    def snapshot(self) -> Iterator[KeyValues]:
        with self._inner.snapshot():
            yield self

    def faults(self) -> list[str]:
        return self._inner.faults()

    def close(self) -> None:
        self._inner.close()

    def _is_item(self, key: str) -> bool:
        return key.startswith(self._prefix)

    def _document(self) -> dict[str, Any]:
        """The document; an unreadable one counts as empty, and its pages are found by status."""
        entry = self._inner.get(self._key)
        if entry is None:
            return {"items": []}
        if entry.value != self._parsed[0]:
            try:
                document = load_object(entry)
            except UnreadableRecordError:
                document = {}
            if not isinstance(document.get("items"), list):
                document["items"] = []
            self._parsed = (entry.value, document)
        return self._parsed[1]

    def _items(self) -> dict[str, Item]:
        found: dict[str, Item] = {}
        for item in self._document()["items"]:
            key = self._key_of(item)
            if key is not None:
                found.setdefault(key, item)
        return found

    def _key_of(self, item: object) -> str | None:
        """The key that an item would have; ``None`` for what is no item."""
        if not isinstance(item, dict) or not is_id(item.get("page_id")):
            return None
        priority = priority_field(item.get("priority")) or NEW_PAGE_PRIORITY
        queued_at = text_field(item.get("queued_at")) or ""
        return queue_key(self._project_id, item["page_id"], priority, queued_at)

    def _rewrite(self, keeps: Any, added: list[Item]) -> None:
        document = self._document()
        kept = [item for item in document["items"] if not isinstance(item, dict) or keeps(item)]
        if added or len(kept) != len(document["items"]):
            self._inner.put(self._key, dump_json({**document, "items": [*kept, *added]}), {})


def _entry(key: str, item: Item) -> Entry:
    return Entry(key, dump_json(item), _info(key, item).metadata)


def _info(key: str, item: Item) -> KeyInfo:
    return KeyInfo(key, {"page_id": item["page_id"], "batch_id": item.get("batch_id")})
