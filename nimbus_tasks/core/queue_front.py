"""A store in front of another one, which keeps the queue of one project in a layout of its own.

Inside, the queue is an item a key, whatever it is outside. What is no item is the real store's
affair, and passes through.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nimbus_tasks.core.keys import queue_prefix
from nimbus_tasks.kv.store import Entry, KeyInfo, KeyValues, Metadata, Store


class QueueFrontStore(Store):
    """``inner`` with the queue of one project elsewhere. Used as any other store."""

    def __init__(self, inner: Store, project_id: str) -> None:
        self._inner = inner
        self._project_id = project_id
        self._prefix = queue_prefix(project_id)

    @abstractmethod
    def _get_items(self, keys: list[str]) -> dict[str, Entry]:
        """The items of those keys that exist."""

    @abstractmethod
    def _put_items(self, items: list[Entry]) -> None:
        """Queue these."""

    @abstractmethod
    def _delete_items(self, keys: set[str]) -> None:
        """Take these out of the queue."""

    @abstractmethod
    def _scan_items(self, prefix: str, limit: int | None) -> Iterator[KeyInfo]:
        """The items that there are, in the order of their keys."""

    def _passing(self, entry: Entry) -> None:
        """An entry that is no item is about to be written."""

    @property
    def lag_seconds(self) -> float:  # type: ignore[override]  # the real store's
        return self._inner.lag_seconds

    @property
    def memory_seconds(self) -> float:  # type: ignore[override]  # the real store's
        return self._inner.memory_seconds

    @property
    def write_interval(self) -> float:
        return self._inner.write_interval

    @property
    def read_pause(self) -> float:
        return self._inner.read_pause

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        wanted = list(keys)
        found = self._inner.get_many(key for key in wanted if not self._is_item(key))
        items = [key for key in wanted if self._is_item(key)]
        return found | self._get_items(items) if items else found

    def get_values(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = list(keys)
        if any(map(self._is_item, wanted)):
            return super().get_values(wanted)
        return self._inner.get_values(wanted)

    def put_many(self, entries: Iterable[Entry]) -> None:
        items: list[Entry] = []
        with self.transaction():
            self._inner.put_many(self._others(entries, items))
            if items:
                self._put_items(items)

    def _others(self, entries: Iterable[Entry], items: list[Entry]) -> Iterator[Entry]:
        """All but the queue's ``items``, which are gathered."""
        for entry in entries:
            if self._is_item(entry.key):
                items.append(entry)
            else:
                self._passing(entry)
                yield entry

    def delete_many(self, keys: Iterable[str]) -> None:
        doomed = set(keys)
        items = set(filter(self._is_item, doomed))
        with self.transaction():
            self._inner.delete_many(doomed - items)
            if items:
                self._delete_items(items)

    def scan(self, prefix: str, *, limit: int | None = None) -> Iterator[KeyInfo]:
        if self._is_item(prefix):
            return self._scan_items(prefix, limit)
        return self._inner.scan(prefix, limit=limit)

    def scan_many(self, prefix: str) -> Iterator[tuple[list[str], list[Metadata | None]]]:
        if self._is_item(prefix):
            return super().scan_many(prefix)
        return self._inner.scan_many(prefix)

    def head(self, key: str) -> KeyInfo | None:
        if not self._is_item(key):
            return self._inner.head(key)
        entry = self._get_items([key]).get(key)
        return None if entry is None else KeyInfo(key, entry.metadata)

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
