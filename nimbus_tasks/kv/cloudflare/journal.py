"""What the commands of this directory wrote lately, so that no older read is taken for newer.

Reads of Workers KV lag behind writes by a minute or more, and listings and look-ups of what is not
there do too. A command that has just retried a batch must not be told by the next one that the
batch has ended. So each write is kept here for some minutes, in a file that all commands of the
directory share, with the revision that it wrote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nimbus_tasks.core.errors import StoreError, StoreUnreachableError
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import Entry, KeyInfo, Metadata

#: Longer than any lag that Cloudflare speaks of ("60 seconds or more").
KEPT_SECONDS = 300.0
#: Longer than a transaction takes that waits for the end of Cloudflare's block of five minutes.
TURN_TIMEOUT_SECONDS = 400.0


class Written(NamedTuple):
    """A write of ours: when (seconds since 1970), its revision, whether it was a deletion."""

    key: str
    at: float
    revision: str
    is_deletion: bool


class Journal:
    """The file ``path``; it may be deleted at any time, and then remembers nothing."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._turns = FileLock(path.with_name(path.name + ".turn"))
        try:
            self._store = SqliteStore(path, create=True)
        except StoreError:
            # It is a memory of minutes: a damaged one is worth less than the command.
            path.unlink(missing_ok=True)
            self._store = SqliteStore(path, create=True)
        self._pruned = 0.0

    def add(self, entries: Iterable[Entry], deleted: Iterable[str], revision: str) -> None:
        """Keep what has been written: ``revision`` goes for entries that name none themselves."""
        now = self._clock()
        kept = [_kept(entry, now, revision) for entry in entries]
        gone = [Entry(key, "", {"at": now, "rev": revision, "gone": True}) for key in deleted]
        with self._store.transaction() as tx:
            if now - self._pruned > KEPT_SECONDS / 4:
                self._pruned = now
                tx.delete_many([info.key for info in tx.scan("") if self._is_old(info)])
            tx.put_many(kept)
            tx.put_many(gone)

    def scan(self, prefix: str) -> Generator[Written, None, None]:
        """The writes under ``prefix``, in the order of their keys."""
        for info in self._store.scan(prefix):
            if not self._is_old(info):
                yield _written(info)

    def get_many(self, keys: Iterable[str]) -> dict[str, tuple[Written, Entry | None]]:
        """The writes of ``keys``, with what was written, where that has been kept."""
        found = {}
        for key, entry in self._store.get_many(keys).items():
            info = KeyInfo(key, entry.metadata)
            if not self._is_old(info):
                found[key] = (_written(info), _restored(entry))
        return found

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else of this directory reads and writes meanwhile: what one command has just read
        another has not just changed."""
        if not self._turns.acquire(TURN_TIMEOUT_SECONDS):
            raise StoreUnreachableError(
                "another nimbus command of this directory has not ended its turn for"
                f" {TURN_TIMEOUT_SECONDS:.0f} seconds",
                advice="See which one hangs or is stopped, and end it.",
            )
        try:
            yield
        finally:
            self._turns.release()

    def close(self) -> None:
        """Release the files."""
        self._store.close()
        self._turns.close()

    def _is_old(self, info: KeyInfo) -> bool:
        return self._clock() - float((info.metadata or {}).get("at") or 0) > KEPT_SECONDS


def revision_of(metadata: Metadata | None) -> str:
    """What orders the versions of an entry: the time of its last change. Empty if it names none."""
    for name in ("rev", "updated"):
        told = (metadata or {}).get(name)
        if isinstance(told, str):
            return told
    return ""


def _kept(entry: Entry, now: float, revision: str) -> Entry:
    # Contents are large and never change state: that they were written is all that is needed.
    value = None if entry.key.startswith("page:") else entry.value
    document = json.dumps([value, entry.metadata], ensure_ascii=False, separators=(",", ":"))
    return Entry(entry.key, document, {"at": now, "rev": revision_of(entry.metadata) or revision})


def _restored(kept: Entry) -> Entry | None:
    if not kept.value:
        return None
    value, metadata = json.loads(kept.value)
    return None if value is None else Entry(kept.key, value, metadata)


def _written(info: KeyInfo) -> Written:
    metadata = info.metadata or {}
    return Written(info.key, metadata["at"], metadata["rev"], bool(metadata.get("gone")))
