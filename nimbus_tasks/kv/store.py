"""The interface that every store keeps, and the tests in ``tests/kv/store_suite`` check.

A store holds text values under text keys, each with a small metadata object that a listing
returns without the value. That is what Workers KV offers; the embedded store offers the same and
adds what KV cannot: :meth:`Store.transaction` is atomic there.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

Metadata = Mapping[str, Any]

#: Workers KV's limits, kept on every store, so that a project can move from one to the other.
MAX_KEY_BYTES = 512
MAX_METADATA_BYTES = 1024
#: Keys that a listing hands on at a time: what is made of them stays in a processor's cache.
SCANNED_TOGETHER = 250
MAX_VALUE_BYTES = 25 * 1024 * 1024


def sound_metadata(loaded: object) -> Metadata | None:
    """Metadata as they were read; what somebody has spoiled counts as none: an entry's value is
    read then. Half a surrogate pair is no text, and could not be written again."""
    if not isinstance(loaded, dict):
        return None
    try:
        json.dumps(loaded, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return loaded


class Entry(NamedTuple):
    """A key, its value (JSON text) and its metadata (``None`` where somebody wrote none)."""

    key: str
    value: str
    metadata: Metadata | None = None


class KeyInfo(NamedTuple):
    """What a listing tells of a key."""

    key: str
    metadata: Metadata | None


class KeyValues(ABC):
    """Reading and writing, inside a transaction or outside one.

    ``lag_seconds``: for so long others' writes may not be seen; 0 where there is one truth.
    ``memory_seconds``: for so long what was written here is shown, also if others have deleted it.
    """

    lag_seconds: float = 0.0
    memory_seconds: float = 0.0
    #: Whether a worker can be given the pages of one batch alone.
    serves_batches: bool = True

    @abstractmethod
    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of those ``keys`` that exist. Raises :class:`StoreError`."""

    @abstractmethod
    def put_many(self, entries: Iterable[Entry]) -> None:
        """Write ``entries``, replacing value and metadata of keys that exist."""

    @abstractmethod
    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete ``keys``; one that does not exist is no error."""

    @abstractmethod
    def scan(self, prefix: str, *, limit: int | None = None) -> Iterator[KeyInfo]:
        """The keys that begin with ``prefix``, in the byte order of their UTF-8, with metadata.

        Read to its end, or closed, before the next write through the same store.
        """

    def get_values(self, keys: Iterable[str]) -> dict[str, str]:
        """The values alone of those ``keys`` that exist, where nobody asks for the metadata."""
        return {key: entry.value for key, entry in self.get_many(keys).items()}

    def scan_many(self, prefix: str) -> Iterator[tuple[list[str], list[Metadata | None]]]:
        """The same as :meth:`scan`, some hundreds of keys and their metadata at a time."""
        found = self.scan(prefix)
        while some := list(islice(found, SCANNED_TOGETHER)):
            yield [key for key, _ in some], [metadata for _, metadata in some]

    def get(self, key: str) -> Entry | None:
        """The entry of one key, or ``None``."""
        return self.get_many([key]).get(key)

    def put(self, key: str, value: str, metadata: Metadata | None = None) -> None:
        """Write one entry."""
        self.put_many([Entry(key, value, metadata)])

    def head(self, key: str) -> KeyInfo | None:
        """Key and metadata without the value, which may be megabytes; ``None`` if there is none."""
        return next((info for info in self.scan(key, limit=1) if info.key == key), None)

    def hidden_items(self) -> int | None:
        """About how many items of the queue there are that no scan shows, where the queue is one of
        messages; ``None`` where a scan shows them all."""
        return None

    def may_hide(self, count: int) -> bool:
        """Whether so many pages could have an item in the queue that no scan shows."""
        return False

    def prefetch(self, prefix: str) -> None:  # noqa: B027 - most stores need not
        """Many keys under ``prefix`` are about to be looked for, of which few may be there. A store
        for which a listing is cheaper than asking for each may list them now."""


class Store(KeyValues):
    """A store that is open. Use it as a context manager, from one thread."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[KeyValues]:
        """Read and write some keys as one step.

        Embedded: nobody else writes meanwhile; all of it happens or, on an exception or a kill,
        nothing. Cloudflare: reads are as old as KV's, writes are sent at the end, in order.
        """

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[KeyValues]:
        """Several reads that see one state, where the store can do that."""

    @property
    def write_interval(self) -> float:
        """Seconds that a periodic writer leaves between two transactions."""
        return 0.0

    @property
    def read_pause(self) -> float:
        """Seconds by which a periodic reader stretches its interval: the budget runs low."""
        return 0.0

    @abstractmethod
    def faults(self) -> list[str]:
        """What is wrong with the store itself, in words; nothing if it is sound. May take long."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds. The store cannot be used afterwards."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
