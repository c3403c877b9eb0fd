"""``"queue": "document"``: the queue as one document, ``queue:{project}``, as the seed has it.

Inside, the queue is an item a key; this store in front of the real one reads and writes the items
of the document in their place. Whoever else rewrites the document at the same moment can lose items
of ours, which KV cannot prevent: a worker finds the pages that are queued and in no queue, and puts
them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from nimbus_tasks.core.keys import is_id, queue_key
from nimbus_tasks.core.queue_front import QueueFrontStore
from nimbus_tasks.core.records import NEW_PAGE_PRIORITY
from nimbus_tasks.core.wire import (
    UnreadableRecordError,
    dump_json,
    load_object,
    priority_field,
    text_field,
)
from nimbus_tasks.kv.store import Entry, KeyInfo, Store

Item = Mapping[str, Any]


class DocumentQueueStore(QueueFrontStore):
    """``inner`` with the queue of one project in a document."""

    def __init__(self, inner: Store, project_id: str) -> None:
        super().__init__(inner, project_id)
        self._key = self._prefix.rstrip(":")
        self._parsed: tuple[str, dict[str, Any]] = ("", {"items": []})

    def _get_items(self, keys: list[str]) -> dict[str, Entry]:
        items = self._items()
        return {key: _entry(key, items[key]) for key in keys if key in items}

    def _put_items(self, items: list[Entry]) -> None:
        # An item of a page takes the place of an older one, as it does in the seed.
        added = [load_object(item) for item in items]
        pages = {item["page_id"] for item in added}
        self._rewrite(lambda item: str(item.get("page_id")) not in pages, added)

    def _delete_items(self, keys: set[str]) -> None:
        self._rewrite(lambda item: self._key_of(item) not in keys, [])

    def _scan_items(self, prefix: str, limit: int | None) -> Iterator[KeyInfo]:
        listed = sorted((k, i) for k, i in self._items().items() if k.startswith(prefix))
        return (_info(key, item) for key, item in islice(listed, limit))

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

    def _rewrite(self, keeps: Callable[[Item], bool], added: Sequence[Item]) -> None:
        document = self._document()
        kept = [item for item in document["items"] if not isinstance(item, dict) or keeps(item)]
        if added or len(kept) != len(document["items"]):
            self._inner.put(self._key, dump_json({**document, "items": [*kept, *added]}), {})


def _entry(key: str, item: Item) -> Entry:
    return Entry(key, dump_json(item), _info(key, item).metadata)


def _info(key: str, item: Item) -> KeyInfo:
    return KeyInfo(key, {"page_id": item["page_id"], "batch_id": item.get("batch_id")})
