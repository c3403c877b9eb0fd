"""What the commands of this directory wrote lately, so that no older read is taken for newer.

Reads of Workers KV lag behind writes by a minute or more, and listings and look-ups of what is not
there do too. A command that has just retried a batch must not be told by the next one that the
batch has ended. So each write is kept here for some minutes, in a file that all commands of the
directory share, with the revision that it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nimbus_tasks.core.errors import (
    DamagedStoreError,
    StoreError,
    StoreGoneError,
    StoreUnreachableError,
    cannot_write,
)
from nimbus_tasks.kv.cloudflare.revisions import revision_of
from nimbus_tasks.kv.lock import FileLock
from nimbus_tasks.kv.sqlite import SqliteStore
from nimbus_tasks.kv.store import MAX_VALUE_BYTES, Entry, KeyInfo, Metadata

#: Longer than any lag that Cloudflare speaks of ("60 seconds or more").
KEPT_SECONDS = 300.0
#: Longer than a transaction takes that waits for the end of Cloudflare's block of five minutes.
TURN_TIMEOUT_SECONDS = 400.0
#: The key that stands in the journal while something is sent.
_SENDING = "~sending"
#: Contents would fill the disk; that they were written is all that is needed of them.
_LARGE = "page:"


class Written(NamedTuple):
    """A write of ours: when (seconds since 1970), its revision, whether it was a deletion.

    ``replaced`` is the digest of the value that was there before, if that had no revision.
    """

    key: str
    at: float
    revision: str
    is_deletion: bool
    replaced: str | None = None


class Kept(NamedTuple):
    """A write with what was written; of large contents that is the metadata alone."""

    written: Written
    value: str | None
    metadata: Metadata | None

    @property
    def entry(self) -> Entry | None:
        """The entry that was written, if it was one and its value has been kept."""
        return None if self.value is None else Entry(self.written.key, self.value, self.metadata)


class Journal:
    """The file ``path``; it may be deleted at any time, and then remembers nothing.

    ``clock`` gives seconds since 1970. Raises :class:`StoreError` where it cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        path.parent.mkdir(mode=0o775, parents=True, exist_ok=True)
        self._path = path
        try:
            self._turns = FileLock(path.with_name(path.name + ".turn"))
        except OSError as error:
            raise cannot_write(f"the journal {path}", error) from error
        self._store = self._opened()
        self._pruned = 0.0
        self._is_closed = False

    def add(
        self,
        entries: Iterable[Entry],
        deleted: Iterable[str],
        revision: str,
        replaced: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what has been written: ``revision`` goes for entries that name none themselves;
        ``replaced`` has digests by key, of values without a revision."""
        now, digests = self._clock(), replaced or {}
        kept = []
        for entry in entries:
            value = None if entry.key.startswith(_LARGE) else entry.value
            document = json.dumps([value, entry.metadata], ensure_ascii=False)
            if len(document) * 4 > MAX_VALUE_BYTES and len(document.encode()) > MAX_VALUE_BYTES:
                document = json.dumps([None, entry.metadata])  # what surrounds it is too much
            told = {"at": now, "rev": revision_of(entry.metadata) or revision}
            if entry.key in digests:
                told["replaced"] = digests[entry.key]
            kept.append(Entry(entry.key, document, told))
        gone = [
            Entry(k, "[null,null]", {"at": now, "rev": revision, "gone": True}) for k in deleted
        ]
        with self._sound(), self._store.transaction() as tx:
            if not 0 <= now - self._pruned < KEPT_SECONDS / 4:
                self._pruned = now
                tx.delete_many([info.key for info in tx.scan("") if self._is_old(info)])
            tx.put_many(kept)
            tx.put_many(gone)

    def scan(self, prefix: str) -> Generator[Written, None, None]:
        """The writes under ``prefix``, in the order of their keys."""
        with self._sound():
            for info in self._store.scan(prefix):
                if not self._is_old(info) and info.key != _SENDING:
                    yield _written(info)

    def get_many(self, keys: Iterable[str]) -> dict[str, Kept]:
        """The writes of ``keys``, with what was written."""
        found = {}
        with self._sound():
            for key, entry in self._store.get_many(keys).items():
                info = KeyInfo(key, entry.metadata)
                if not self._is_old(info):
                    found[key] = Kept(_written(info), *json.loads(entry.value))
        return found

    def begin_sending(self) -> None:
        """Something is about to be sent of which the journal does not know yet."""
        with self._sound():
            self._store.put(_SENDING, "", {"at": self._clock(), "rev": ""})

    def end_sending(self) -> None:
        """The journal knows all that was sent."""
        with self._sound():
            self._store.delete_many([_SENDING])

    def sending_since(self) -> float | None:
        """When a command of this directory began to send, in seconds since 1970, if it is still at
        it or was killed meanwhile; else ``None``."""
        with self._sound():
            info = self._store.head(_SENDING)
            return None if info is None else float((info.metadata or {})["at"])
        return None  # a damaged file, which has just been begun anew

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """A file that is damaged, or that somebody has written rubbish into, is begun anew: it is a
        memory of minutes, and worth less than the command. One that cannot be written, of a disk
        that is full, is still worth reading, and stays."""
        try:
            yield
        except StoreGoneError:
            self._store.close()
            self._store = self._opened()
        except (DamagedStoreError, ValueError, TypeError, KeyError):
            if self._is_closed:
                raise
            with contextlib.suppress(StoreError):
                self._store.close()
            self._store = self._new_file()

    def _opened(self) -> SqliteStore:
        try:
            return self._made()
        except DamagedStoreError:
            return self._new_file()

    def _made(self) -> SqliteStore:
        # Not durable: after a power cut reads may be a minute old again, and nothing is lost of KV.
        return SqliteStore(self._path, create=True, durable=False)

    def _new_file(self) -> SqliteStore:
        for name in (self._path.name + end for end in ("", "-wal", "-shm")):
            self._path.with_name(name).unlink(missing_ok=True)
        return self._made()

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
        self._is_closed = True
        self._store.close()
        self._turns.close()

    def _is_old(self, info: KeyInfo) -> bool:
        # A time of the future is from before a clock was set back: how old it is, nobody knows.
        return not 0 <= self._clock() - float((info.metadata or {}).get("at") or 0) <= KEPT_SECONDS


def digest_of(value: str) -> str:
    """What tells a value from another."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _written(info: KeyInfo) -> Written:
    told = info.metadata or {}
    return Written(info.key, told["at"], told["rev"], bool(told.get("gone")), told.get("replaced"))
